"""The second stage: one-vs-all classifiers on a finished model, from a configuration to a run folder."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from prime_xmc.assemble import check_settings, fit_second_stage, make_trainer, method_callbacks
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.evaluation.metrics import evaluate
from prime_xmc.evaluation.predictions import save_predictions
from prime_xmc.evaluation.rank import rank_by
from prime_xmc.export.scorers import SCORERS, label_vectors, labels_digest, read_prototypes, save_classifiers
from prime_xmc.files import write_json
from prime_xmc.index.search import ExactSearch
from prime_xmc.model.classifiers import Classifiers
from prime_xmc.printing import unfailing_output
from prime_xmc.run_files import CHECKPOINT, METRICS
from prime_xmc.scoring import FinishedModel, open_finished
from prime_xmc.stages.starting import check_resume, make_save_progress, tidy_cache
from prime_xmc.training.classifier_module import ClassifierModule
from prime_xmc.training.continuation import ContinuedRun, check_origin, origin, read_origin
from prime_xmc.training.curves import continue_curves
from prime_xmc.training.debugging import mark_debugging
from prime_xmc.training.interruption import how_to_continue, interruptible
from prime_xmc.training.record import (
    RunHistory,
    describe_run,
    describe_splits,
    describe_training,
    quiet_libraries,
    show_classifiers,
)
from prime_xmc.training.run_folder import claimed, is_first_process, record_changes, with_run_folder

logger = logging.getLogger(__name__)


class TrainedClassifiers(NamedTuple):
    """What a second stage made.

    Attributes:
        metrics: Content of metrics.json.
        module: The trained module.
        data: Its data module.
        settings: Description of the training, as the folder of the classifiers has it.
    """

    metrics: dict[str, Any]
    module: ClassifierModule
    data: PrimeDataModule
    settings: dict[str, Any]


def train_classifiers(config: DictConfig) -> TrainedClassifiers:
    """Train classifiers, evaluate prototypes, classifiers and their ensemble, and write the run folder.

    Raises:
        FileNotFoundError: If there is no such model or data set.
        ValueError: If the model and the data set do not belong together, a setting is out of range, or another process
            works in the folder.
        Interrupted: If a signal ends the run, after its progress has been saved.
    """
    quiet_libraries()
    check_settings(config)
    check_resume(config, "classify")
    config = with_run_folder(config)
    run_dir, resumes = Path(config.run_dir), config.get("resume") is not None
    explain = partial(how_to_continue, run_dir, started=0.0 if resumes else time.time())
    with unfailing_output(), interruptible(explain):
        trained = fit_classifiers(config, continues=resumes)
        remove_checkpoints(run_dir)
        show_classifiers(trained.metrics, run_dir)
    return trained


def remove_checkpoints(run_dir: Path) -> None:
    """Remove the checkpoints of a second stage that is finished, which nothing continues."""
    shutil.rmtree((run_dir / CHECKPOINT).parent, ignore_errors=True)


def check_resolved(settings: object, model: Path) -> None:
    """Refuse settings of a model that become expressions in a configuration, where they would ask this machine.

    Args:
        settings: Settings of the training, as plain JSON; those that training exports are resolved.
        model: Folder of the model, for the message.

    Raises:
        ValueError: If they have one.
    """
    if "${" in json.dumps(settings):
        raise ValueError(
            f"{model}: the settings of the encoder in prime_config.json have an expression, ${{...}}, and no export "
            "has one: copy or export the model again"
        )


def fit_classifiers(
    config: DictConfig, model: FinishedModel | None = None, *, continues: bool = False
) -> TrainedClassifiers:
    """Train classifiers in the folder of a configuration, on the model that it names or that is open already.

    Args:
        config: The configuration.
        model: The model, where it is open.
        continues: Whether to go on from a checkpoint of the same training in the folder, if there is one.
    """
    run_dir = Path(config.run_dir)
    with claimed(run_dir) as claim:
        if model is None:  # otherwise the run that the model is of has recorded all of it
            claim.record(config, continued=continues)
        record, begun_with = RunHistory(), config.copy()
        tidy_cache(config)
        model = model or open_finished(config)
        predictor, data = model.predictor, model.data
        config = fit_second_stage(config, data)
        of_model = predictor.config["settings"]["config"]
        if "encoder" in of_model:  # the configuration's own is not used, and may name a package that is not installed
            check_resolved(of_model["encoder"], model.folder)
            config.encoder = of_model["encoder"]
        settings = describe_run(config, data) | {"model": of_model}
        given = origin(config, data) | {"model": model.digest}
        checkpoint = _own_checkpoint(config, run_dir, given) if continues else None
        recorded, place = (None, None) if checkpoint is None else read_origin(checkpoint)
        record.enter("initialise")
        query_memory = model.queries.train
        record.enter("prepare")
        prototypes = read_prototypes(model.folder)
        module = ClassifierModule(
            Classifiers(prototypes),
            query_memory,
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
            callbacks=method_callbacks(config),
        )
        if checkpoint is not None:  # whose W&B run goes on
            config = config.copy()
            OmegaConf.update(config, "ckpt_path", str(checkpoint), force_add=True)
        save = make_save_progress(config, run_dir)
        trainer = make_trainer(config, [record, ContinuedRun(given, recorded)], [save])
        claim.begin(continued=checkpoint is not None, reads=[model.folder])
        if config.get("resume") is not None and is_first_process():
            record_changes(begun_with, run_dir)
        if place is not None:
            continue_curves(trainer.loggers, run_dir, run_dir, place)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if not record.has_ended:
            for callback in trainer.callbacks:
                callback.on_train_end(trainer, module)

        classifiers = module.classifiers.vectors()
        of_labels = labels_digest(model.folder)
        save_classifiers(run_dir / "classifiers", classifiers, digest=model.digest, labels=of_labels, settings=settings)
        record.enter("test")
        metrics = _evaluate_scorers(config, run_dir, model, prototypes, classifiers.cpu())
        record.enter(None)
        metrics |= describe_splits(config, data) | describe_training(trainer, module, record, settings)
        metrics |= mark_debugging(config)
        write_json(run_dir / METRICS, metrics)
    return TrainedClassifiers(metrics, module, data, settings)


def _own_checkpoint(config: DictConfig, run_dir: Path, given: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint of a second stage in its folder, None if there is none.

    Raises:
        ValueError: If it is of other settings, where the user has asked to continue it.
    """
    path = run_dir / CHECKPOINT
    if not path.is_file():
        return None
    try:
        recorded, _ = read_origin(path)
        check_origin(path, recorded, given)
        if recorded is None or recorded.get("model") != given["model"]:
            raise ValueError(f"{path} is of classifiers on another model")
    except ValueError as error:
        if config.get("resume") is not None:
            raise
        logger.info("the second stage starts anew: %s", error)
        return None
    return path


def _evaluate_scorers(
    config: DictConfig, run_dir: Path, model: FinishedModel, prototypes: Tensor, classifiers: Tensor
) -> dict[str, Any]:
    """Return the metrics of each way to score, and save its predictions for the test split."""
    device, data = model.predictor.device, model.data
    scorers = {scorer: label_vectors(prototypes, classifiers, scorer).to(device) for scorer in SCORERS}
    metrics: dict[str, Any] = {}
    train, ids = data.corpus.train, data.validation_ids
    if len(ids):
        query_emb = model.queries.of_training(ids)
        for scorer, vectors in scorers.items():
            indices, _ = rank_by(vectors, query_emb, train.filtered.take(ids))
            metrics |= _named("val", scorer, evaluate(indices, train.positives.take(ids), data.inverse_propensity))
    if config.test and len(data.corpus.test):
        test = data.corpus.test
        for scorer, vectors in scorers.items():
            indices, scores = rank_by(vectors, model.queries.test, test.filtered)
            save_predictions(run_dir / f"predictions_{scorer}.npz", indices, scores)
            metrics |= _named("test", scorer, evaluate(indices, test.positives, data.inverse_propensity))
    return metrics


def _named(stage: str, scorer: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{scorer}/{name}": value for name, value in metrics.items()}
