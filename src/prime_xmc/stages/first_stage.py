"""The first stage: prototypes, from a configuration to a run folder, and what follows them there."""

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from prime_xmc.assemble import (
    announce,
    check_model,
    check_settings,
    fit_to_data,
    make_data,
    make_module,
    make_trainer,
)
from prime_xmc.calibrating import calibrate_prototypes
from prime_xmc.composing import compose
from prime_xmc.data.datamodule import HELD_OUT, PrimeDataModule
from prime_xmc.evaluation.in_words import print_in_words, put_in_words
from prime_xmc.evaluation.predictions import save_predictions
from prime_xmc.evaluation.rank import Ranking
from prime_xmc.export.bundle import save_bundle, update_metrics
from prime_xmc.export.model_size import describe_size
from prime_xmc.files import write_json
from prime_xmc.printing import unfailing_output
from prime_xmc.run_files import CHECKPOINT, METRICS
from prime_xmc.scoring import check_ensemble
from prime_xmc.stages.later_stages import FirstStage, classify_settings, later_stages
from prime_xmc.stages.starting import check_resume, make_save_progress, tidy_cache
from prime_xmc.training.callbacks import ExportModel
from prime_xmc.training.checkpoints import remove_stray_banks
from prime_xmc.training.continuation import ContinuedRun, check_origin, load_weights, origin, read_origin
from prime_xmc.training.curves import continue_curves
from prime_xmc.training.debugging import debugging, mark_debugging
from prime_xmc.training.interruption import how_to_continue, interruptible
from prime_xmc.training.kept import FOLDER as UNFINISHED
from prime_xmc.training.kept import KeptParts
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.one_vs_all_module import OneVsAllModule
from prime_xmc.training.passes import PassProbe
from prime_xmc.training.query_embeddings import Encoded
from prime_xmc.training.record import (
    EPOCH_VALIDATED,
    RunHistory,
    describe_run,
    describe_splits,
    describe_training,
    quiet_libraries,
    show_calibration,
    show_prototypes,
    show_scorers,
    show_stage_passes,
)
from prime_xmc.training.run_folder import claimed, is_first_process, record_changes, with_run_folder
from prime_xmc.training.sharded import leave_group

logger = logging.getLogger(__name__)

_FIRST_STAGE = "first_stage"  # name of what is kept of it


class TrainedPrototypes(NamedTuple):
    """What a training run made.

    Attributes:
        metrics: Content of metrics.json.
        module: The trained module.
        data: Its data module.
        trainer: Its Trainer.
    """

    metrics: dict[str, Any]
    module: PrimeModule | OneVsAllModule
    data: PrimeDataModule
    trainer: Any


class _Start(NamedTuple):
    """Where a run begins.

    Attributes:
        checkpoint: The checkpoint that it goes on from; None: it begins anew.
        recorded: What the checkpoint says of its run; None in one of version 0.1.0.
        place: Place of the checkpoint in the curves.
        in_place: Whether it is a checkpoint of this run folder.
        resumes: Whether `resume=` names the run folder.
    """

    checkpoint: Path | None
    recorded: dict[str, Any] | None
    place: dict[str, Any] | None
    in_place: bool
    resumes: bool

    @classmethod
    def of(cls, config: DictConfig, run_dir: Path) -> "_Start":
        """Read the checkpoint that a configuration names, if it does."""
        resumes = config.get("resume") is not None
        if config.ckpt_path is None:
            return cls(None, None, None, False, resumes)
        checkpoint = Path(config.ckpt_path).absolute()
        recorded, place = read_origin(checkpoint)
        # by whatever name: the checkpoints of another run in this folder go; theirs may be a link to a larger disk
        folders = [folder.resolve() for folder in (run_dir, (run_dir / CHECKPOINT).parent)]
        in_place = any(checkpoint.resolve().is_relative_to(folder) for folder in folders)
        return cls(checkpoint, recorded, place, in_place, resumes)


class _Run(NamedTuple):
    """The parts of a run, and where it begins.

    Attributes:
        config: The configuration, fitted to the data.
        folder: The run folder.
        settings: Description of the training, as its model has it.
        origin: What binds its checkpoints to it.
        start: Where it begins.
        data: The data module.
        module: The module.
        trainer: The Trainer.
        record: What it costs and reaches; the first of the callbacks.
    """

    config: DictConfig
    folder: Path
    settings: dict[str, Any]
    origin: dict[str, Any]
    start: _Start
    data: PrimeDataModule
    module: PrimeModule | OneVsAllModule
    trainer: Any
    record: RunHistory


def train_prototypes(config: DictConfig) -> TrainedPrototypes:
    """Train by a configuration, write the run folder and return what was made.

    A run from Python, without an entry point, gets a folder under outputs/ unless `run_dir` names one.

    Raises:
        FileNotFoundError: If there is no such checkpoint or data set.
        ValueError: If a setting is out of range, the checkpoint is another run's, or another process works in the
            folder.
        Interrupted: If a signal ends the run, after training has been saved.
    """
    quiet_libraries()
    check_settings(config)
    check_model(config)
    check_ensemble(config)
    check_resume(config, "train")
    second = classify_settings(config)
    if second is not None:
        check_settings(compose("classify", second))  # hours before they are used
    config = with_run_folder(config)
    run_dir, started = Path(config.run_dir), time.time()
    explain = partial(how_to_continue, run_dir, started=started)
    with unfailing_output(), claimed(run_dir) as claim, interruptible(explain):
        start = _Start.of(config, run_dir)
        claim.record(config, continued=start.in_place or start.resumes)
        if start.in_place:
            explain.keywords["started"] = 0.0  # its checkpoint is this run's
            if is_first_process():
                remove_stray_banks(run_dir / CHECKPOINT)
        tidy_cache(config)
        run = _assemble(config, run_dir, start, has_second_stage=second is not None)
        kept, done = KeptParts(run_dir / UNFINISHED), None
        if start.in_place and run.module.keeps_queries:
            done = kept.find(_FIRST_STAGE, _about_first_stage(run, start.place))
        reads = [given for given in (config.ckpt_path, run.config.encoder.get("source")) if given is not None]
        claim.begin(continued=start.in_place, trained=done is not None, reads=reads)
        if (start.in_place or start.resumes) and is_first_process():
            record_changes(config, run_dir)
        if done is None:
            metrics, handed = _train(run)
        else:
            logger.info("training and test are done: going on with what comes after them")
            assert start.checkpoint is not None
            load_weights(run.module, start.checkpoint)
            metrics, handed = FirstStage.of(done)
        if run.trainer.is_global_zero:
            if run.module.test_predictions is not None:
                save_predictions(run_dir / "predictions.npz", *run.module.test_predictions)
            if handed is not None and done is None:
                about = _about_first_stage(run, {"step": run.trainer.global_step})
                kept.add(_FIRST_STAGE, about, handed.part(metrics, len(run.data.sampler.query_ids)))
            metrics = _finish_model(run, metrics, second, handed, kept)
            kept.clear()
            write_json(run_dir / METRICS, metrics)  # last: it says that the run is finished
    return TrainedPrototypes(metrics, run.module, run.data, run.trainer)


def _assemble(config: DictConfig, run_dir: Path, start: _Start, *, has_second_stage: bool) -> _Run:
    """Make the parts of a run.

    Raises:
        ValueError: If the checkpoint is another run's.
    """
    record = RunHistory()
    unsaid = None if start.checkpoint is None else ""  # in a checkpoint of version 0.1.0
    data = make_data(config, unsaid if start.recorded is None else start.recorded[HELD_OUT])
    config = fit_to_data(config, data.corpus)
    settings, given = describe_run(config, data), origin(config, data)
    if start.recorded is not None and start.resumes:
        given["command"] = start.recorded["command"]  # that which has all settings
    if start.checkpoint is not None:
        check_origin(Path(config.ckpt_path), start.recorded, given)
    module = make_module(config, data)
    weighed = [config.get(name) for name in ("neighbours", "lexical")]
    module.keeps_queries = has_second_stage or any(settings is not None for settings in weighed)
    export = ExportModel(
        partial(_export, run_dir / "model", data=data, settings=settings),
        config.export_every_n_epochs,
        config.get("export_after_validation", True),
    )
    first = [record, ContinuedRun(given, start.recorded)]
    if debugging(config) is None:
        first.insert(1, PassProbe(record, config.seed))
    else:
        record.no_pass = "not measured: this was a run for debugging"
    trainer = make_trainer(config, first, [make_save_progress(config, run_dir), export])
    return _Run(config, run_dir, settings, given, start, data, module, trainer, record)


def _train(run: _Run) -> tuple[dict[str, Any], FirstStage | None]:
    """Train and test, and return the metrics and what later stages need; None where there are none."""
    config, data, module, trainer, record = run.config, run.data, run.module, run.trainer, run.record
    if run.start.checkpoint is not None and run.start.place is not None:
        continue_curves(trainer.loggers, run.start.checkpoint.parent.parent, run.folder, run.start.place)
    for each in trainer.loggers:
        each.log_hyperparams(run.settings["config"])
    announce(config, data)
    trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    if not record.has_ended:  # the checkpoint is of the end of training: what follows it is still to be done
        _finish_training(run)

    metrics: dict[str, Any] = dict(record.validation)
    if config.test and len(data.corpus.test):
        metrics |= trainer.test(module, datamodule=data, verbose=False)[0]
    record.enter(None)
    metrics |= describe_splits(config, data) | describe_training(trainer, module, record, run.settings)
    metrics |= mark_debugging(config)
    tested = module.test_predictions is not None
    answering = record.milliseconds_per_query(len(data.corpus.test)) if tested else None
    if answering is not None:
        metrics["predict/milliseconds_per_query"] = answering
    handed = None
    if module.keeps_queries:
        assert isinstance(module, PrimeModule)
        queries = _encode_queries(module, data, trainer.strategy.root_device)
        handed = FirstStage(record.pass_seconds, answering, str(trainer.precision), *queries)
    leave_group()
    if trainer.is_global_zero:
        metrics |= describe_size(run.folder / "model")
    return metrics, handed


def _finish_model(
    run: _Run, metrics: dict[str, Any], second: list[str] | None, handed: FirstStage | None, kept: KeptParts
) -> dict[str, Any]:
    """Add to the exported model what comes after its prototypes, print what all of it is worth, return all metrics.

    Args:
        run: The run.
        metrics: Metrics of the first stage.
        second: Settings of the second stage; None: there are no classifiers.
        handed: What the first stage hands to later ones; None: there are none.
        kept: What an earlier process of the run has finished of them.
    """
    folder, ranking = run.folder / "model", run.module.test_predictions
    update_metrics(folder, metrics)
    show_prototypes(metrics, run.folder)
    if handed is not None:
        scored, weights, ranking = later_stages(run.config, run.folder, second, handed, kept)
        metrics = metrics | scored
        update_metrics(folder, metrics)
        show_scorers(metrics, weights)
        show_stage_passes(metrics)
    else:
        device, held_out = run.trainer.strategy.root_device, run.module.ranked_queries().get("val")
        if calibrate_prototypes(folder, run.data, device, ranking, held_out) is not None:
            update_metrics(folder, metrics)  # for the model card
    show_calibration(folder)
    if ranking is not None:
        _show_in_words(ranking, run.data)
    return metrics


def _about_first_stage(run: _Run, place: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all that the results of a first stage depend on, the step of its checkpoint included."""
    return {
        **{name: value for name, value in run.origin.items() if name not in ("command", "prime_xmc_version")},
        "index": OmegaConf.to_container(run.config.index, resolve=True),
        "test": run.config.test,
        "step": None if place is None else place["step"],
    }


def _finish_training(run: _Run) -> None:
    """Do what follows the last epoch, where an earlier process has trained it.

    If that has validated the final weights, its metrics stay, and the queries are only ranked again for later stages.
    """
    module, trainer, record = run.module, run.trainer, run.record
    validation, loggers = record.validation, trainer.loggers
    epochs = trainer.fit_loop.epoch_progress.current
    epochs.completed = epochs.processed  # as the Trainer has it after max_epochs, but not where training stopped early
    # version 0.1.0 did not say when it was validated
    if validation and validation.get(EPOCH_VALIDATED, trainer.current_epoch) == trainer.current_epoch:
        trainer.loggers = []  # which have these metrics
        trainer.validate(module, datamodule=run.data, verbose=False)
        trainer.loggers = loggers
        record.validation = validation
    module.to(trainer.strategy.root_device)
    for callback in trainer.callbacks:
        callback.on_train_end(trainer, module)


def _show_in_words(ranking: Ranking, data: PrimeDataModule) -> None:
    """Print for people what a ranking of labels for the test split is worth."""
    words = put_in_words(ranking[0], data.corpus.test.positives, data.train_frequency())
    if words is not None:
        print_in_words(words, "test")


def _encode_queries(
    module: PrimeModule, data: PrimeDataModule, device: torch.device
) -> tuple[dict[str, Encoded], float, float]:
    """Return embeddings of the queries by the finished model, and the seconds that it took, also of all processors.

    The module encodes them, not the model that is loaded for the next stage: it has kept the outputs of frozen layers.
    When the Trainer is done, it leaves the module on the CPU: it goes back to the device of the run, and again to the
    CPU, so that the next stage has the device to itself.
    """
    started, cpu_started, ranked = time.perf_counter(), time.process_time(), module.ranked_queries()
    module.to(device)
    module.embed(data.train_text_dataloader(), module.query_memory, "query")
    module.cpu()
    if device.type != "cpu":
        module.encoder.frozen = None  # its table stays there, and nobody needs it any more
    ids = data.sampler.query_ids
    embeddings = module.query_memory.take(torch.from_numpy(ids)).float().cpu()
    if "val" in ranked:
        held_out, of_held_out = ranked["val"]
        ids, embeddings = np.concatenate([ids, held_out]), torch.cat([embeddings, of_held_out])
    encoded = {"train": (ids, embeddings)} | {name: queries for name, queries in ranked.items() if name == "test"}
    return encoded, time.perf_counter() - started, time.process_time() - cpu_started


def _export(
    directory: Path,
    module: PrimeModule | OneVsAllModule,
    label_emb: Tensor | None,
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
        prototypes=module.prototypes if isinstance(module, PrimeModule) else None,
        label_emb=label_emb,
        label_prototypes=prototypes,
        labels=data.corpus.labels(),
        index=module.searcher,
        settings=settings,
        metrics=None,
        fields=data.source.fields,
        columns=data.source.columns(),
        bare=set(np.flatnonzero(data.train_frequency() == 0).tolist()),
        precision=module.trainer.precision,
    )
