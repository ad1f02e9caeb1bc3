"""The two stages of a run, each from a configuration to a run folder: prototypes, then one-vs-all classifiers."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from prime_xmc.app import compose
from prime_xmc.assemble import (
    announce,
    fit_second_stage,
    fit_to_data,
    load_predictor,
    make_classifier_data,
    make_data,
    make_module,
    make_trainer,
)
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.evaluation.metrics import evaluate
from prime_xmc.evaluation.predictions import save_predictions
from prime_xmc.evaluation.rank import rank_by
from prime_xmc.evaluation.table import describe_unlabelled, print_notes, print_table
from prime_xmc.export.bundle import save_bundle, update_metrics
from prime_xmc.export.scorers import SCORERS, encoder_digest, label_vectors, read_prototypes, save_classifiers
from prime_xmc.files import write_json
from prime_xmc.index.search import ExactSearch
from prime_xmc.model.classifiers import Classifiers
from prime_xmc.training.callbacks import ExportModel
from prime_xmc.training.classifier_module import ClassifierModule
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.query_embeddings import embed, embed_training_queries
from prime_xmc.training.record import describe_run, describe_training, quiet_libraries


class TrainedPrototypes(NamedTuple):
    """What a training run made.

    Attributes:
        metrics: Content of metrics.json.
        module: The trained module.
        data: Its data module.
        trainer: Its Trainer.
    """

    metrics: dict[str, Any]
    module: PrimeModule
    data: PrimeDataModule
    trainer: Any


def train_prototypes(config: DictConfig) -> TrainedPrototypes:
    """Train by a configuration, write the run folder and return what was made."""
    quiet_libraries()
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    data = make_data(config)
    config = fit_to_data(config, data.corpus)
    module = make_module(config, data)
    settings = describe_run(config, data)
    export = ExportModel(
        partial(_export, run_dir / "model", data=data, settings=settings), config.export_every_n_epochs
    )
    trainer = make_trainer(config, [export])
    if config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
        raise FileNotFoundError(f"ckpt_path={config.ckpt_path}: not found; expected <run>/checkpoints/last.ckpt")
    for each in trainer.loggers:
        each.log_hyperparams(settings["config"])
    announce(config, data)
    start = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    seconds = time.perf_counter() - start
    if module.num_trained == 0:  # the checkpoint is of the end of training: what follows it is still to be done
        trainer.validate(module, datamodule=data, verbose=False)
        module.to(trainer.strategy.root_device)
        for callback in trainer.callbacks:
            callback.on_train_end(trainer, module)

    metrics: dict[str, Any] = {
        name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
    }
    if config.test and len(data.corpus.test):
        metrics |= trainer.test(module, datamodule=data, verbose=False)[0]
    metrics |= describe_splits(config, data)
    metrics |= describe_training(trainer, module, seconds, settings)
    if trainer.is_global_zero:
        update_metrics(run_dir / "model", metrics)
        if module.test_predictions is not None:
            save_predictions(run_dir / "predictions.npz", *module.test_predictions)
        show_prototypes(metrics, run_dir)
        print_notes(note for name, note in metrics.items() if name.startswith("note/"))
        if config.classify is not None:
            metrics |= second_stage(config, run_dir)
        write_json(run_dir / "metrics.json", metrics)  # last: it says that the run is finished
    return TrainedPrototypes(metrics, module, data, trainer)


def second_stage(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train one-vs-all classifiers on the exported model of a run, in its folder classify/.

    Returns:
        The metrics of the classifiers and of the ensemble, how many epochs they took and how long.
    """
    stage = compose("classify", list(config.classify))
    stage.dataset = OmegaConf.to_container(config.dataset, resolve=True)
    stage.model.dir = str(run_dir / "model")
    stage.run_dir = str(run_dir / "classify")
    for key in ("seed", "test", "cache_dir"):
        stage[key] = config[key]
    metrics = train_classifiers(stage).metrics
    scored = {name: value for name, value in metrics.items() if "/W/" in name or "/ensemble/" in name}
    return scored | {f"classify/{name}": metrics[f"train/{name}"] for name in ("epochs", "seconds")}


def show_prototypes(metrics: dict[str, Any], run_dir: Path) -> None:
    """Print the results of a run."""
    rows = {}
    for stage, shown in (("val/", "validation"), ("test/", "test")):
        values = {name.removeprefix(stage): value for name, value in metrics.items() if name.startswith(stage)}
        if values:
            rows[shown] = values
    print_table(rows)
    Console().print(
        f"{metrics['train/epochs']} epochs in {metrics['train/seconds']:.0f} s, "
        f"{metrics['train/queries_per_second']:.0f} queries/s, "
        f"peak memory {metrics['peak_rss_bytes'] / 2**30:.1f} GiB. Run folder: {run_dir}"
    )


def _export(
    directory: Path,
    module: PrimeModule,
    label_emb: Tensor,
    prototypes: Tensor,
    *,
    data: PrimeDataModule,
    settings: dict[str, Any],
) -> None:
    save_bundle(
        directory,
        encoder=module.encoder,
        tokenizer=data.tokenizer,
        max_length=data.max_length,
        prototypes=module.prototypes,
        label_emb=label_emb,
        label_prototypes=prototypes,
        labels=data.corpus.labels(),
        index=module.searcher,
        settings=settings,
        metrics=None,
    )


class TrainedClassifiers(NamedTuple):
    """What a second stage made.

    Attributes:
        metrics: Content of metrics.json.
        module: The trained module.
        data: Its data module.
    """

    metrics: dict[str, Any]
    module: ClassifierModule
    data: PrimeDataModule


def train_classifiers(config: DictConfig) -> TrainedClassifiers:
    """Train classifiers, evaluate prototypes, classifiers and their ensemble, and write the run folder.

    Raises:
        FileNotFoundError: If there is no such model or data set.
        ValueError: If the model and the data set do not belong together, or a setting is out of range.
    """
    quiet_libraries()
    run_dir, model = Path(config.run_dir), Path(config.model.dir).expanduser()
    run_dir.mkdir(parents=True, exist_ok=True)
    predictor = load_predictor(config)
    data = make_classifier_data(config, predictor)
    config = fit_second_stage(config, data)
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
    trainer = make_trainer(config, [])
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
            indices, _ = rank_by(vectors, query_emb, train.filtered.take(ids))
            metrics |= _named("val", scorer, evaluate(indices, train.positives.take(ids), data.inverse_propensity))
    if config.test and len(data.corpus.test):
        test = data.corpus.test
        query_emb = embed(predictor, test.tokens, "test queries")
        for scorer, vectors in scorers.items():
            indices, scores = rank_by(vectors, query_emb, test.filtered)
            save_predictions(run_dir / f"predictions_{scorer}.npz", indices, scores)
            metrics |= _named("test", scorer, evaluate(indices, test.positives, data.inverse_propensity))
    metrics |= describe_splits(config, data)
    metrics |= describe_training(trainer, module, seconds, settings)
    write_json(run_dir / "metrics.json", metrics)
    show_classifiers(metrics, run_dir)
    print_notes(note for name, note in metrics.items() if name.startswith("note/"))
    return TrainedClassifiers(metrics, module, data)


def show_classifiers(metrics: Mapping[str, Any], run_dir: Path) -> None:
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


def describe_splits(config: DictConfig, data: PrimeDataModule) -> dict[str, str]:
    """Return what has to be known about the queries of a run's metrics, as sentences: `note/test`, `note/val`, ...

    Args:
        config: Whose `test` says whether there are test metrics.
        data: The data.
    """
    train, test = data.corpus.train, data.corpus.test
    notes = {"note/val": describe_unlabelled(train.positives.take(data.validation_ids), "validation queries")}
    if config.test:
        notes["note/test_split"] = data.corpus.split_note
        notes["note/test"] = describe_unlabelled(test.positives, "test queries")
    return {name: note for name, note in notes.items() if note is not None}


def _named(stage: str, scorer: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{scorer}/{name}": value for name, value in metrics.items()}
