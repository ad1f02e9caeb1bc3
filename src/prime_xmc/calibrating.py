"""Probabilities for a model's scores, fitted on queries whose labels are known and that the model has not seen."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.evaluation.metrics import TOP_K
from prime_xmc.evaluation.rank import Ranking, rank_by, rank_split
from prime_xmc.evaluation.reliability import Reliability, Threshold, calibrate, measure
from prime_xmc.export.calibration import Calibration, Held, ScorerCalibration, save_calibration
from prime_xmc.export.ensemble import has_ensemble, read_ensemble
from prime_xmc.export.folder import model_version
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest, read_prototypes
from prime_xmc.export.searchers import load_searcher, scorers_of
from prime_xmc.index.fused import Weights

logger = logging.getLogger(__name__)

VALIDATION = "validation"
TEST = "test"
LABELLED = "labelled"


class OtherQueries(NamedTuple):
    """The best labels of queries on which a calibration is measured.

    Attributes:
        rankings: Ids and scores of each query's best labels, by scorer.
        positives: True labels of each query.
    """

    rankings: Mapping[str, Ranking]
    positives: Ragged


def calibrate_rankings(
    rankings: Mapping[str, Ranking],
    positives: Ragged,
    *,
    queries: str,
    weights: Weights | None,
    test: OtherQueries | None = None,
    version: int = 1,
) -> Calibration | None:
    """Return the calibration of scorers from their best labels for some queries, and measure it.

    Args:
        rankings: Ids and scores of each query's best labels, by scorer.
        positives: True labels of each query.
        queries: What the queries are called: "validation".
        weights: Weights of the model's ensemble; None: it has none.
        test: Other queries, ranked by the same scorers; None: there are none.
        version: Version of the model, one more after each change of its labels.

    Returns:
        None where it cannot be done: fewer than two queries have a label, or no answer of any scorer is right. Scorers
        with which it cannot be done, where it can with others, are left out, and the log says so.
    """
    scorers, left_out = {}, []
    for name, (indices, scores) in rankings.items():
        fitted = calibrate(indices, scores, positives)
        if fitted is None:
            left_out.append(name)
            continue
        held = {queries: _held(len(positives), fitted.reliability, fitted.threshold)}
        if test is not None and name in test.rankings:
            of_test = measure(fitted.regression, fitted.threshold.score, *test.rankings[name], test.positives)
            held[TEST] = _held(len(test.positives), *of_test)
        scorers[name] = ScorerCalibration(**fitted.regression._asdict(), threshold=fitted.threshold.score, held=held)
    if not scorers:
        return None
    if left_out:
        logger.warning(
            "%s: no probabilities, since how probable a label is does not follow from these %d %s queries; what was "
            "fitted earlier goes. Calibrate with more queries whose right labels are among the best of these scorers",
            ", ".join(left_out),
            len(positives),
            queries,
        )
    fitted_on = f"{len(positives):,} {queries} queries"
    return Calibration(fitted_on, scorers, None if weights is None else weights._asdict(), version)


def _held(num_queries: int, reliability: Reliability, threshold: Threshold) -> Held:
    bins = zip(reliability.predicted.tolist(), reliability.observed.tolist(), reliability.counts.tolist(), strict=True)
    return Held(
        num_queries,
        reliability.num_answers,
        round(reliability.ece, 6),
        [{"predicted": round(p, 6), "observed": round(o, 6), "answers": count} for p, o, count in bins],
        round(threshold.precision, 6),
        round(threshold.recall, 6),
        round(threshold.f1, 6),
    )


def calibrate_prototypes(
    model: Path,
    data: PrimeDataModule,
    device: torch.device,
    test: Ranking | None,
    encoded: tuple[Int64[np.ndarray, " held_out"], Float[Tensor, "held_out d"]] | None = None,
) -> Calibration | None:
    """Calibrate the prototypes of a model that has no other scorer, on the queries held out of its training.

    Args:
        model: Folder of the model, to which the calibration is written.
        data: The data that it was trained on.
        device: Device to compute on.
        test: Its best labels for the test split; None: it was not tested.
        encoded: Ids and embeddings of these queries; None: they are encoded.

    Returns:
        None where there are too few queries, see `calibrate_rankings`.
    """
    ids, train = data.validation_ids if encoded is None else encoded[0], data.corpus.train
    if len(ids) == 0:
        return None
    held_out = Split(train.tokens.take(ids), train.positives.take(ids), train.filtered.take(ids))
    if encoded is None:
        predictor = Predictor.load(model, device=str(device), index="exact", scorer="theta")
        ranking = rank_split(predictor, held_out)
    else:
        ranking = rank_by(read_prototypes(model, str(device)), encoded[1].to(device), held_out.filtered)
    calibration = calibrate_rankings(
        {"theta": ranking},
        held_out.positives,
        queries=VALIDATION,
        weights=None,
        test=None if test is None else OtherQueries({"theta": test}, data.corpus.test.positives),
    )
    if calibration is not None:
        save_calibration(model, calibration, digest=encoder_digest(model))
    return calibration


def calibrate_with(
    model: Path, predictor: Predictor, texts: Sequence[str], uids: Sequence[Sequence[str]]
) -> Calibration:
    """Calibrate all scorers of a model on queries with their labels, which it must not have been trained on.

    Training queries would be their own nearest neighbours, and make the model look better than it is. A label that is
    not among a query's own is wrong, also where the filter files of a data set leave it out of the query's answers.

    Args:
        model: Folder of the model, to which the calibration is written.
        predictor: The model, by any of its scorers.
        texts: The queries.
        uids: Uids of the labels of each.

    Raises:
        ValueError: If there are too few, see `calibrate_rankings`.
    """
    rows_of: dict[str, list[int]] = {}
    for row, (uid, _) in enumerate(predictor.labels):
        rows_of.setdefault(uid, []).append(row)
    labels = [np.unique([row for uid in of_query for row in rows_of[uid]]).astype(np.int64) for of_query in uids]
    positives, query_emb, tokens = Ragged.from_rows(labels), predictor.encode(texts), predictor.tokenise(texts)
    rankings: dict[str, Ranking] = {}
    for name in scorers_of(model):
        search = load_searcher(model, predictor.config, scorer=name, index="exact", device=str(predictor.device))
        scores, ids = search.search(query_emb, min(TOP_K, predictor.num_labels), tokens)
        rankings[name] = ids.numpy(), scores.numpy()
    digest = encoder_digest(model)
    weights = read_ensemble(model, digest).weights if has_ensemble(model) else None
    version = model_version(predictor.config)
    calibration = calibrate_rankings(rankings, positives, queries=LABELLED, weights=weights, version=version)
    if calibration is None:
        raise ValueError(
            f"how probable a label is does not follow from these queries, {len(texts):,} in all: expected right labels "
            "among the best of at least two of them, and wrong ones too. Give more queries, some hundreds if possible"
        )
    save_calibration(model, calibration, digest=digest)
    return calibration
