"""After training: further scorers of a model are weighed against each other, added to it, and tested."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from prime_xmc.assemble import load_predictor, make_classifier_data
from prime_xmc.calibrating import VALIDATION, OtherQueries, calibrate_rankings
from prime_xmc.composing import compose, own_configs
from prime_xmc.data.corpus import Split
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.raw import read_records
from prime_xmc.evaluation.fusion import choose_weights, deepest_rank, tabulate_scores, weight_grid
from prime_xmc.evaluation.metrics import TOP_K, evaluate
from prime_xmc.evaluation.predictions import save_predictions
from prime_xmc.evaluation.rank import Ranking, search_unfiltered
from prime_xmc.export.calibration import save_calibration
from prime_xmc.export.ensemble import Ensemble, add_scorers
from prime_xmc.export.lexical_folder import LexicalTables
from prime_xmc.export.neighbours_folder import VotingQueries
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest, read_prototypes
from prime_xmc.export.searchers import load_searcher, voting
from prime_xmc.index.fused import Weights, fuse, mixture
from prime_xmc.index.lexical import LexicalIndex, LexicalSearch, Postings, build_postings
from prime_xmc.index.lexical_training import train_postings
from prime_xmc.index.neighbours import Neighbours, VoteSearch, check_vote
from prime_xmc.index.search import ExactSearch, FaissSearch, Search, faiss_problem
from prime_xmc.training.kept import KeptParts, Part
from prime_xmc.training.query_embeddings import Encoded, EncodedQueries

logger = logging.getLogger(__name__)


class FinishedModel(NamedTuple):
    """An exported model with the data that it was trained on.

    Attributes:
        folder: Folder of the model.
        predictor: The model, which scores by its prototypes.
        data: The data set, with the same queries held out as in training.
        digest: Fingerprint of the encoder.
        queries: Embeddings of the queries.
    """

    folder: Path
    predictor: Predictor
    data: PrimeDataModule
    digest: str
    queries: EncodedQueries


class LexicalSettings(NamedTuple):
    """How the lexical vectors of the labels are made.

    Attributes:
        pairs: Whether pairs of adjacent tokens are terms.
        steps: Steps of training.
        most_scores: Labels times texts above which there is no training: finding hard labels scores each of these.
    """

    pairs: bool
    steps: int = 0
    most_scores: float = math.inf


def lexical_settings(config: DictConfig) -> LexicalSettings | None:
    """Return what a configuration says of the lexical score; runs that had no training of it go on without.

    Raises:
        ValueError: If a value is out of range.
    """
    lexical = config.get("lexical")
    if lexical is None:
        return None
    steps, most = lexical.get("steps", 0), lexical.get("most_scores", math.inf)
    if not isinstance(lexical.pairs, bool):
        raise ValueError(f"expected lexical.pairs true or false, got {lexical.pairs}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ValueError(f"expected lexical.steps, a number of steps of at least 0, got {steps}")
    if not _is_number(most) or not most >= 0:
        raise ValueError(f"expected lexical.most_scores, a number of at least 0, got {most}")
    return LexicalSettings(lexical.pairs, steps, float(most))


class Scorers(NamedTuple):
    """What scores besides the prototypes.

    Attributes:
        classifiers: Classifiers w_l, unit vectors; None: there are none.
        classifier_settings: Description of their training.
        k: Number of training queries that vote; None: none do.
        temperature: Temperature of the vote.
        lexical: How the lexical vectors are made; None: there are none.
    """

    classifiers: Float[Tensor, "label d"] | None
    classifier_settings: Mapping[str, Any] | None
    k: int | None
    temperature: float | None
    lexical: LexicalSettings | None = None


def open_finished(
    config: DictConfig, precision: str | None = None, encoded: Mapping[str, Encoded] | None = None
) -> FinishedModel:
    """Open the model and the data set that the configuration of a second stage names.

    Args:
        config: The configuration.
        precision: Precision in which queries are encoded already.
        encoded: These queries: "train", with those held out, and "test".

    Raises:
        FileNotFoundError: If there is no such model or data set.
        ValueError: If they do not belong together.
    """
    folder = Path(config.model.dir).expanduser()
    predictor = load_predictor(config)
    data = make_classifier_data(config, predictor)
    digest = encoder_digest(folder)
    known = encoded if precision == predictor.precision else None
    queries = EncodedQueries(predictor, data, Path(config.cache_dir), digest, known)
    return FinishedModel(folder, predictor, data, digest, queries)


def ensemble_settings(config: DictConfig) -> DictConfig:
    """Return what a configuration says of the ensemble, and today's default of what one of an older version lacks."""
    given = config.get("ensemble")
    if given is not None and "lexical" in given and "lexical" in given.default:
        return given
    with own_configs():  # Hydra may be at the configuration of a run folder
        default = compose("train", []).ensemble
    return default if given is None else cast(DictConfig, OmegaConf.merge(default, given))


def check_ensemble(config: DictConfig) -> None:
    """Check what a configuration says of neighbours, lexical score and ensemble, hours before it is used.

    Raises:
        ValueError: If a value is out of range.
    """
    ensemble, neighbours = ensemble_settings(config), config.get("neighbours")
    lexical_settings(config)
    if not isinstance(ensemble.criterion, ListConfig):
        raise ValueError(f"expected ensemble.criterion, a list of metrics, got {ensemble.criterion}")
    for name in ("W", "neighbours", "lexical"):
        if not isinstance(ensemble[name], ListConfig) or not all(map(_is_number, ensemble[name])):
            raise ValueError(f"expected ensemble.{name}, a list of numbers, got {ensemble[name]}")
        if not _is_number(ensemble.default[name]):
            raise ValueError(f"expected ensemble.default.{name}, a number, got {ensemble.default[name]}")
    deepest_rank(list(ensemble.criterion))
    weight_grid(
        [*ensemble.W, ensemble.default.W],
        [*ensemble.neighbours, ensemble.default.neighbours],
        [*ensemble.lexical, ensemble.default.lexical],
    )
    keeps_training_texts(config)
    if neighbours is not None:
        check_vote(neighbours.k, neighbours.temperature)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class FinishedScorers(NamedTuple):
    """What `finish_scorers` has made.

    Attributes:
        metrics: Metrics of the scorers that were added and of the ensemble, and how long it took but for the test.
        ensemble: The ensemble, with its weights.
        test: Best labels of the test queries by it; None: there was no test.
        milliseconds: Milliseconds of one processor that a test query takes longer than with the prototypes alone, by
            the name of the scorer.
    """

    metrics: dict[str, float]
    ensemble: Ensemble
    test: Ranking | None
    milliseconds: dict[str, float]


def finish_scorers(
    config: DictConfig, model: FinishedModel, scorers: Scorers, run_dir: Path, kept: KeptParts
) -> FinishedScorers:
    """Choose the weights of a model's scorers, add these to the model, and test them.

    The weights are chosen on the validation queries, which neither prototypes nor classifiers have seen, and which do
    not vote and are in no lexical vector then. Afterwards they do and are.

    Args:
        config: Configuration of the training: its `ensemble`, and whether there is a test.
        model: The model with its data.
        scorers: The scorers to add.
        run_dir: Folder in which the predictions for the test split are saved.
        kept: Where what took long is kept until the run is finished: lexical vectors, weights, rankings of the test.

    The probabilities of their scores are fitted on the validation queries too, by the same rankings.

    """
    started, cpu_started, settings = time.perf_counter(), time.process_time(), ensemble_settings(config)
    data, device = model.data, str(model.predictor.device)
    train, ids = data.corpus.train, data.validation_ids
    labelled = ids[train.positives.lengths[ids] > 0]
    prototypes = read_prototypes(model.folder, device)
    classifiers = None if scorers.classifiers is None else scorers.classifiers.to(device)
    voters = data.sampler.query_ids
    about = {
        "model": model.digest,
        "scorers": [scorers.classifier_settings, scorers.k, scorers.temperature, scorers.lexical],
        "ensemble": OmegaConf.to_container(settings, resolve=True),
    }

    def lexical_tables(name: str, ids: Int64[np.ndarray, " query"]) -> LexicalTables:
        assert scorers.lexical is not None
        return _kept_tables(kept, name, {"lexical": scorers.lexical}, data, ids, scorers.lexical, device)

    neighbours = None
    if scorers.k is not None and scorers.temperature is not None:
        queries = _voting_queries(model, voters)
        neighbours = voting(queries, k=scorers.k, temperature=scorers.temperature, device=device)
    lexical = None
    if scorers.lexical is not None:
        lexical = lexical_tables("lexical_without_validation", data.train_ids).scorer(len(prototypes), device)

    if len(labelled):
        held_out = Split(train.tokens.take(ids), train.positives.take(ids), train.filtered.take(ids))
        query_emb = model.queries.of_training(ids).to(device)

        def choose() -> Part:
            chosen = _choose(settings, query_emb, prototypes, classifiers, neighbours, lexical, held_out, data)
            return Part({}, {"weights": list(chosen)})

        weights = Weights(*kept.once("weights", about, choose).values["weights"])
    else:
        default = settings.default
        of_classifiers = 0.0 if classifiers is None else float(default.W)
        weights = Weights(
            1 - of_classifiers,
            of_classifiers,
            0.0 if neighbours is None else float(default.neighbours),
            0.0 if lexical is None else float(default.lexical),
        )
    searches = _searches(prototypes, classifiers, neighbours, lexical, weights)
    rankings: dict[str, Ranking] = {}
    if len(labelled):
        rankings = {name: _rank(search, query_emb, held_out) for name, search in searches.items()}
    validation = {
        name: evaluate(indices, held_out.positives, data.inverse_propensity) for name, (indices, _) in rankings.items()
    }
    ensemble = Ensemble(
        weights,
        scorers.k,
        scorers.temperature,
        len(ids) if len(labelled) else 0,
        list(settings.criterion) if len(labelled) else [],
        validation,
        lexical is not None,
    )

    everybody = None
    if neighbours is not None:
        everybody = _voting_queries(model, np.union1d(voters, labelled))
        if keeps_training_texts(config):
            everybody = everybody._replace(texts=_training_texts(data, everybody.rows))
    add_scorers(
        model.folder,
        ensemble,
        digest=model.digest,
        classifiers=scorers.classifiers,
        classifier_settings=scorers.classifier_settings,
        voters=everybody,
        lexical=None if scorers.lexical is None else lexical_tables("lexical", np.union1d(data.train_ids, ids)),
        index=_approximate_index(model.predictor, prototypes, classifiers, weights),
    )
    cost = {
        "ensemble/seconds": time.perf_counter() - started + kept.seconds,
        "ensemble/cpu_seconds": time.process_time() - cpu_started + kept.cpu_seconds,
    }
    names = [name for name in searches if name != "theta"]
    metrics = _named("val", {name: validation[name] for name in names if name in validation})
    test, of_test, searching = data.corpus.test, {}, {}
    if config.test and len(test):
        of_test["theta"], alone = _timed(searches["theta"], model.queries.test.to(device), test)
        for name in names:  # as they were written, so that what is measured is what predicts
            of_test[name], seconds = _kept_test_ranking(kept, name, about, model, device)
            searching[name] = 1000 * (seconds - alone) / len(test)
            indices, scores = of_test[name]
            save_predictions(run_dir / f"predictions_{name}.npz", indices, scores)
            metrics |= _named("test", {name: evaluate(indices, test.positives, data.inverse_propensity)})
    if rankings:
        calibration = calibrate_rankings(
            rankings,
            held_out.positives,
            queries=VALIDATION,
            weights=weights,
            test=OtherQueries(of_test, test.positives) if of_test else None,
        )
        if calibration is not None:
            save_calibration(model.folder, calibration, digest=model.digest)
    return FinishedScorers(metrics | cost, ensemble, of_test.get("ensemble"), searching)


def _choose(
    settings: DictConfig,
    query_emb: Float[Tensor, "query d"],
    prototypes: Float[Tensor, "label d"],
    classifiers: Float[Tensor, "label d"] | None,
    neighbours: Neighbours | None,
    lexical: LexicalIndex | None,
    held_out: Split,
    data: PrimeDataModule,
) -> Weights:
    criterion = list(settings.criterion)
    grid = weight_grid(
        () if classifiers is None else list(settings.W),
        () if neighbours is None else list(settings.neighbours),
        () if lexical is None else list(settings.lexical),
    )
    table = tabulate_scores(
        query_emb,
        prototypes,
        classifiers,
        neighbours,
        held_out.filtered,
        grid,
        deepest_rank(criterion),
        lexical,
        held_out.tokens,
    )
    return choose_weights(table, held_out.positives, data.inverse_propensity, grid, criterion).weights


def _searches(
    prototypes: Float[Tensor, "label d"],
    classifiers: Float[Tensor, "label d"] | None,
    neighbours: Neighbours | None,
    lexical: LexicalIndex | None,
    weights: Weights,
) -> dict[str, Search]:
    """Return the exact search of each scorer, by its name; the ensemble is the last."""
    vectors = mixture(prototypes, classifiers, weights)
    searches: dict[str, Search] = {"theta": _exact(prototypes)}
    if classifiers is not None:
        searches["W"] = _exact(classifiers)
    if neighbours is not None:
        searches["neighbours"] = VoteSearch(neighbours)
    if lexical is not None:
        searches["lexical"] = LexicalSearch(lexical)
    return searches | {"ensemble": fuse(_exact(vectors), vectors, neighbours, lexical, weights)}


def _kept_test_ranking(
    kept: KeptParts, name: str, about: Mapping[str, Any], model: FinishedModel, device: str
) -> tuple[Ranking, float]:
    """Return the best labels of the test queries by a scorer of the model, ranked once, as `_timed` does."""

    def rank() -> Part:
        search = load_searcher(model.folder, model.predictor.config, scorer=name, index="auto", device=device)
        (indices, scores), seconds = _timed(search, model.queries.test, model.data.corpus.test)
        ranking = {"indices": torch.from_numpy(indices), "scores": torch.from_numpy(scores)}
        return Part(ranking, {"cpu_seconds": seconds})

    ranking, values = kept.once(f"test_{name}", about, rank)
    return (ranking["indices"].numpy(), ranking["scores"].numpy()), values["cpu_seconds"]


def _kept_tables(
    kept: KeptParts,
    name: str,
    about: Mapping[str, Any],
    data: PrimeDataModule,
    ids: Int64[np.ndarray, " query"],
    settings: LexicalSettings,
    device: str,
) -> LexicalTables:
    """Return the lexical vectors of all labels from some training queries, made once."""

    def make() -> Part:
        postings, special_ids, pairs = _lexical_tables(data, ids, settings, device)
        return Part(postings._asdict(), {"special_ids": list(special_ids), "pairs": pairs})

    tensors, values = kept.once(name, about, make)
    return LexicalTables(Postings(**tensors), values["special_ids"], values["pairs"])


def _exact(vectors: Float[Tensor, "label d"]) -> ExactSearch:
    search = ExactSearch()
    search.build(vectors)
    return search


def _rank(search: Search, query_emb: Float[Tensor, "query d"], split: Split) -> Ranking:
    def search_all(some_emb: Float[Tensor, "query d"], k: int) -> tuple[Tensor, Tensor]:
        return search.search(some_emb, k, split.tokens)

    return search_unfiltered(search_all, query_emb, split.filtered, TOP_K)


def _timed(search: Search, query_emb: Float[Tensor, "query d"], split: Split) -> tuple[Ranking, float]:
    """Return a ranking, and the seconds of all processors that it took."""
    started = time.process_time()
    return _rank(search, query_emb, split), time.process_time() - started


def _lexical_tables(
    data: PrimeDataModule, ids: Int64[np.ndarray, " query"], settings: LexicalSettings, device: str
) -> LexicalTables:
    """Return the lexical vectors of all labels, from some training queries; they are trained on the device."""
    train, label_texts, pairs = data.corpus.train, data.corpus.label_tokens, settings.pairs
    special_ids = sorted(set(data.tokenizer.backend_tokenizer.encode("").ids))
    tokens, positives = train.tokens.take(ids), train.positives.take(ids)
    postings = build_postings(tokens, positives, label_texts, special_ids=special_ids, pairs=pairs)
    num_scores = (len(ids) + len(label_texts)) * len(label_texts)
    if settings.steps and num_scores > settings.most_scores:
        logger.info(
            "lexical vectors are not trained: %.2g scores are more than lexical.most_scores=%.2g",
            num_scores,
            settings.most_scores,
        )
    elif settings.steps:
        postings = train_postings(
            Postings(*(part.to(device) for part in postings)),
            tokens,
            positives,
            train.filtered.take(ids),
            label_texts,
            special_ids=special_ids,
            pairs=pairs,
            steps=settings.steps,
        )
        postings = Postings(*(part.cpu() for part in postings))
    return LexicalTables(postings, special_ids, pairs)


def _voting_queries(model: FinishedModel, ids: Int64[np.ndarray, " query"]) -> VotingQueries:
    bank, corpus = model.queries.train, model.data.corpus
    rows = corpus.train_rows
    return VotingQueries(
        bank.take(torch.from_numpy(ids)), corpus.train.positives.take(ids), ids if rows is None else rows[ids]
    )


def keeps_training_texts(config: DictConfig) -> bool:
    """Return whether the texts of training queries go into the model folder; a configuration of 0.1.0 has no such key.

    Raises:
        ValueError: If the setting is neither true nor false.
    """
    keeps = (config.get("export") or {}).get("training_texts", False)
    if not isinstance(keeps, bool):
        raise ValueError(f"expected export.training_texts true or false, got {keeps!r}")
    return keeps


def _training_texts(data: PrimeDataModule, rows: Int64[np.ndarray, " query"] | None) -> Iterator[str]:
    """Yield the texts in some rows, ascending, of the raw file of training queries."""
    assert rows is not None
    wanted = np.zeros(int(rows.max(initial=-1)) + 1, dtype=bool)
    wanted[rows] = True
    path = data.source.paths()["trn"]
    records = read_records(path, data.source.fields, data.corpus.num_labels)
    yield from (record.text for record, is_wanted in zip(records, wanted.tolist(), strict=False) if is_wanted)


def _approximate_index(
    predictor: Predictor,
    prototypes: Float[Tensor, "label d"],
    classifiers: Float[Tensor, "label d"] | None,
    weights: Weights,
) -> FaissSearch | None:
    """Return an index of the ensemble's linear part where the model has an approximate one of its prototypes.

    None where that index serves the ensemble too, or there is none.
    """
    exported = predictor.config["index"]
    if weights.W == 0 or exported is None or exported["kind"] == "flat" or faiss_problem() is not None:
        return None
    index = FaissSearch(**exported)
    index.build(mixture(prototypes, classifiers, weights))
    return index


def _named(stage: str, by_scorer: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        f"{stage}/{scorer}/{name}": value for scorer, metrics in by_scorer.items() for name, value in metrics.items()
    }
