"""`python -m prime_xmc.classify`: the second stage, one-vs-all classifiers on the frozen encoder of a trained model."""

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from jaxtyping import Float, Float32, Int
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from prime_xmc.bundle import Predictor
from prime_xmc.configs import run_app
from prime_xmc.data.corpus import Ragged
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.evaluate import TOP_K, model_corpus
from prime_xmc.files import replace_folder, temporary_folder, write_json
from prime_xmc.index.search import ExactSearch
from prime_xmc.metrics import evaluate, print_table, search_unfiltered
from prime_xmc.model.banks import RowBank
from prime_xmc.model.classifiers import ClassifierModule, Classifiers
from prime_xmc.predict import expand_model, load_predictor
from prime_xmc.predictions import save_predictions
from prime_xmc.runs import describe_run, describe_training, open_data, quiet_libraries
from prime_xmc.scorers import SCORERS, encoder_digest, label_vectors, read_prototypes, save_classifiers

_CHUNK = 4096  # queries encoded at once

Ranking = tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]


class Run(NamedTuple):
    """What a second stage made.

    Attributes:
        metrics: Content of metrics.json.
        module: The trained module.
        data: Its data module.
    """

    metrics: dict[str, Any]
    module: ClassifierModule
    data: PrimeDataModule


def make_data(config: DictConfig, predictor: Predictor) -> PrimeDataModule:
    """Open the data set as the model's own training did, with the same queries held out.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If it is not the data set of the model, or the model does not say what it was trained on.
    """
    model_corpus(config, predictor)
    settings = predictor.config["settings"]
    try:
        seed, num_validation = settings["seed"], settings["config"]["dataset"]["num_validation"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the model {config.model.dir} does not say which training queries were held out (no {error} in the "
            "settings of prime_config.json): expected one that prime_xmc.train has exported"
        ) from error
    return open_data(
        config,
        str(Path(config.model.dir).expanduser()),
        max_length=predictor.config["max_length"],
        num_validation=num_validation,
        seed=seed,
    )


def embed(predictor: Predictor, tokens: Ragged, what: str) -> Float[Tensor, "text d"]:
    """Return the embeddings of a token store's texts, on the CPU."""
    starts = track(range(0, len(tokens), _CHUNK), f"embed {what}", console=Console(stderr=True))
    chunks = [
        predictor.encode_tokens(tokens.take(np.arange(start, min(start + _CHUNK, len(tokens))))) for start in starts
    ]
    return torch.cat([torch.empty(0, predictor.encoder.dim), *chunks])


def embed_training_queries(predictor: Predictor, data: PrimeDataModule, cache_dir: Path, digest: str) -> RowBank:
    """Return the embeddings of the training queries, made once and kept under a fingerprint of all they depend on.

    Args:
        predictor: The model.
        data: The data set.
        cache_dir: Folder for them.
        digest: Fingerprint of the encoder.
    """
    parts = (data.corpus.manifest["fingerprint"], digest, predictor.precision, predictor.config["encoder"])
    fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()
    directory = cache_dir.expanduser() / f"queries-{fingerprint}"
    tokens = data.corpus.train.tokens
    # in the CPU's memory: a step needs a few of them
    bank = RowBank(len(tokens), predictor.encoder.dim, dtype="float16", placement="host")
    if directory.is_dir():
        bank.load(directory)
    else:
        bank.put(torch.arange(len(tokens)), embed(predictor, tokens, "training queries"))
        with temporary_folder(directory) as temporary:
            bank.save(temporary / "queries")
            replace_folder(temporary / "queries", directory)
    return bank


def rank(vectors: Float[Tensor, "label d"], query_emb: Float[Tensor, "query d"], filtered: Ragged) -> Ranking:
    """Return ids and scores of the 100 best labels of every query, filtered pairs left out."""
    search = ExactSearch()
    search.build(vectors)
    return search_unfiltered(search.search, query_emb, filtered, TOP_K)


def run(config: DictConfig) -> Run:
    """Train classifiers, evaluate prototypes, classifiers and their ensemble, and write the run folder.

    Raises:
        FileNotFoundError: If there is no such model or data set.
        ValueError: If the model and the data set do not belong together, or a setting is out of range.
    """
    quiet_libraries()
    run_dir, model = Path(config.run_dir), Path(config.model.dir).expanduser()
    run_dir.mkdir(parents=True, exist_ok=True)
    predictor = load_predictor(config)
    data = make_data(config, predictor)
    settings = describe_run(config, data) | {"model": predictor.config["settings"]["config"]}
    digest, prototypes = encoder_digest(model), read_prototypes(model)
    module = ClassifierModule(
        Classifiers(prototypes),
        embed_training_queries(predictor, data, Path(config.cache_dir), digest),
        data.corpus.train,
        instantiate(config.loss),
        ExactSearch(),
        negatives=config.negatives,
        dropout=config.dropout,
        inverse_propensity=data.inverse_propensity,
        optimizer=instantiate(config.optimizer.make),
        scheduler=instantiate(config.optimizer.schedule),
        warmup_fraction=config.optimizer.warmup_fraction,
        seed=config.seed,
    )
    trainer = instantiate(
        config.trainer,
        callbacks=[c for c in instantiate(config.callbacks, _convert_="all").values() if c is not None],
        logger=instantiate(config.logger) if config.logger else False,
        default_root_dir=str(run_dir),
        _convert_="all",
    )
    if trainer.world_size > 1:
        raise ValueError(f"classifiers are trained by one process, got {trainer.world_size}: leave trainer=ddp out")
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start

    classifiers = module.classifiers.vectors()
    save_classifiers(run_dir / "classifiers", classifiers, digest=digest, settings=settings)
    scorers = {scorer: label_vectors(prototypes, classifiers.cpu(), scorer).to(predictor.device) for scorer in SCORERS}
    metrics: dict[str, Any] = {}
    train, ids = data.corpus.train, data.validation_ids
    if len(ids):
        query_emb = module(torch.from_numpy(ids))
        for scorer, vectors in scorers.items():
            indices, _ = rank(vectors, query_emb, train.filtered.take(ids))
            metrics |= _named("val", scorer, evaluate(indices, train.positives.take(ids), data.inverse_propensity))
    if config.test:
        test = data.corpus.test
        query_emb = embed(predictor, test.tokens, "test queries")
        for scorer, vectors in scorers.items():
            indices, scores = rank(vectors, query_emb, test.filtered)
            save_predictions(run_dir / f"predictions_{scorer}.npz", indices, scores)
            metrics |= _named("test", scorer, evaluate(indices, test.positives, data.inverse_propensity))
    metrics |= describe_training(trainer, module, seconds, settings)
    write_json(run_dir / "metrics.json", metrics)
    show(metrics, run_dir)
    return Run(metrics, module, data)


def classify(config: DictConfig) -> float | None:
    """Run by a configuration; return the validation P@1 of the classifiers, for sweepers that optimise it."""
    return run(config).metrics.get("val/W/P@1")


def show(metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the results of a run."""
    for stage, shown in (("val", "validation"), ("test", "test")):
        rows: dict[str, dict[str, float]] = {}
        for scorer in SCORERS:
            prefix = f"{stage}/{scorer}/"
            row = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
            if row:
                rows[f"{shown}, {scorer}"] = row
        print_table(rows)  # a table a stage: the best of a column is among rows of the same queries
    Console().print(f"{metrics['train/epochs']} epochs in {metrics['train/seconds']:.0f} s. Run folder: {run_dir}")


def _named(stage: str, scorer: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{scorer}/{name}": value for name, value in metrics.items()}


def main() -> None:
    """Run the entry point with the command line's configuration."""
    sys.argv[1:] = expand_model(sys.argv[1:])
    run_app(classify, "classify")


if __name__ == "__main__":
    main()
