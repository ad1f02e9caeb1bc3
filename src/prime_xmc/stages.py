"""The stages of a run, each from a configuration to a run folder: prototypes, then one-vs-all classifiers."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from prime_xmc.app import compose
from prime_xmc.assemble import (
    announce,
    check_model,
    check_settings,
    fit_second_stage,
    fit_to_data,
    make_data,
    make_module,
    make_trainer,
    method_callbacks,
)
from prime_xmc.calibrating import calibrate_prototypes
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.evaluation.in_words import print_in_words, put_in_words
from prime_xmc.evaluation.metrics import evaluate
from prime_xmc.evaluation.predictions import save_predictions
from prime_xmc.evaluation.rank import Ranking, rank_by
from prime_xmc.export.bundle import save_bundle, update_metrics
from prime_xmc.export.model_size import describe_size
from prime_xmc.export.scorers import SCORERS, label_vectors, read_prototypes, save_classifiers
from prime_xmc.files import remove_leftovers, write_json
from prime_xmc.index.search import ExactSearch
from prime_xmc.model.classifiers import Classifiers
from prime_xmc.printing import unfailing_output
from prime_xmc.run_files import CHECKPOINT, METRICS
from prime_xmc.scoring import (
    FinishedModel,
    Scorers,
    check_ensemble,
    finish_scorers,
    lexical_settings,
    open_finished,
)
from prime_xmc.training.callbacks import ExportModel
from prime_xmc.training.checkpoints import remove_stray_banks
from prime_xmc.training.classifier_module import ClassifierModule
from prime_xmc.training.continuation import (
    ContinuedRun,
    binding_settings,
    check_origin,
    load_weights,
    origin,
    read_origin,
)
from prime_xmc.training.curves import continue_curves
from prime_xmc.training.debugging import debugging, limits, mark_debugging
from prime_xmc.training.interruption import SaveProgress, how_to_continue, interruptible
from prime_xmc.training.kept import FOLDER as UNFINISHED
from prime_xmc.training.kept import KeptParts, Part
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.one_vs_all_module import OneVsAllModule
from prime_xmc.training.passes import PassProbe
from prime_xmc.training.query_embeddings import Encoded
from prime_xmc.training.record import (
    EPOCH_VALIDATED,
    RunHistory,
    describe_run,
    describe_splits,
    describe_stage,
    describe_training,
    quiet_libraries,
    show_calibration,
    show_classifiers,
    show_prototypes,
    show_scorers,
    show_stage_passes,
)
from prime_xmc.training.run_folder import (
    claimed,
    is_first_process,
    record_changes,
    with_run_folder,
)
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
    _check_resume(config, "train")
    second = classify_settings(config)
    if second is not None:
        check_settings(compose("classify", second))  # hours before they are used
    config = with_run_folder(config)
    run_dir, started = Path(config.run_dir), time.time()
    explain = partial(how_to_continue, run_dir, started=started)
    with unfailing_output(), claimed(run_dir) as claim, interruptible(explain):
        continued = None if config.ckpt_path is None else Path(config.ckpt_path).absolute()
        recorded, place = (None, None) if continued is None else read_origin(continued)
        # by whatever name: the checkpoints of another run in this folder go; theirs may be a link to a larger disk
        places = [place.resolve() for place in (run_dir, (run_dir / CHECKPOINT).parent)]
        in_place = continued is not None and any(continued.resolve().is_relative_to(place) for place in places)
        claim.record(config, continued=in_place or config.get("resume") is not None)
        if in_place:
            explain.keywords["started"] = 0.0  # its checkpoint is this run's
            if is_first_process():
                remove_stray_banks(run_dir / CHECKPOINT)
        record, begun_with = RunHistory(), config
        _tidy_cache(config)
        data = make_data(config)
        config = fit_to_data(config, data.corpus)
        settings, given = describe_run(config, data), origin(config, data)
        if recorded is not None and config.get("resume") is not None:
            given["command"] = recorded["command"]  # that which has all settings
        if continued is not None:
            check_origin(Path(config.ckpt_path), recorded, given)
        module = make_module(config, data)
        weighed = [config.get(name) for name in ("neighbours", "lexical")]
        module.keeps_queries = second is not None or any(settings is not None for settings in weighed)
        export = ExportModel(
            partial(_export, run_dir / "model", data=data, settings=settings),
            config.export_every_n_epochs,
            config.get("export_after_validation", True),
        )
        first = [record, ContinuedRun(given, recorded)]
        if debugging(config) is None:
            first.insert(1, PassProbe(record, config.seed))
        else:
            record.no_pass = "not measured: this was a run for debugging"
        trainer = make_trainer(config, first, [SaveProgress(run_dir / CHECKPOINT, _minutes(config)), export])
        kept, done = KeptParts(run_dir / UNFINISHED), None
        if in_place and module.keeps_queries:
            done = kept.find(_FIRST_STAGE, _about_first_stage(config, given, place))
        reads = [given for given in (config.ckpt_path, config.encoder.get("source")) if given is not None]
        claim.begin(continued=in_place, trained=done is not None, reads=reads)
        if (in_place or config.get("resume") is not None) and is_first_process():
            record_changes(begun_with, run_dir)
        if done is None:
            if continued is not None and place is not None:
                continue_curves(trainer.loggers, continued.parent.parent, run_dir, place)
            for each in trainer.loggers:
                each.log_hyperparams(settings["config"])
            announce(config, data)
            trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
            if not record.has_ended:  # the checkpoint is of the end of training: what follows it is still to be done
                _finish_training(trainer, module, data, record)

            metrics: dict[str, Any] = dict(record.validation)
            if config.test and len(data.corpus.test):
                metrics |= trainer.test(module, datamodule=data, verbose=False)[0]
            record.enter(None)
            metrics |= describe_splits(config, data) | describe_training(trainer, module, record, settings)
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
                metrics |= describe_size(run_dir / "model")
        else:
            logger.info("training and test are done: going on with what comes after them")
            assert continued is not None
            load_weights(module, continued)
            metrics, handed = FirstStage.of(done)
        if trainer.is_global_zero:
            if module.test_predictions is not None:
                save_predictions(run_dir / "predictions.npz", *module.test_predictions)
            if handed is not None and done is None:
                about = _about_first_stage(config, given, {"step": trainer.global_step})
                kept.add(_FIRST_STAGE, about, handed.part(metrics, len(data.sampler.query_ids)))
            update_metrics(run_dir / "model", metrics)
            show_prototypes(metrics, run_dir)
            ranking = module.test_predictions
            if handed is not None:
                scored, weights, ranking = later_stages(config, run_dir, second, handed, kept)
                metrics |= scored
                update_metrics(run_dir / "model", metrics)
                show_scorers(metrics, weights)
                show_stage_passes(metrics)
            else:
                device, held_out = trainer.strategy.root_device, module.ranked_queries().get("val")
                made = calibrate_prototypes(run_dir / "model", data, device, module.test_predictions, held_out)
                if made is not None:
                    update_metrics(run_dir / "model", metrics)  # for the model card
            show_calibration(run_dir / "model")
            if ranking is not None:
                _show_in_words(ranking, data)
            kept.clear()
            write_json(run_dir / METRICS, metrics)  # last: it says that the run is finished
    return TrainedPrototypes(metrics, module, data, trainer)


def _tidy_cache(config: DictConfig) -> None:
    """Remove from the cache what killed processes have left half written there, not what others are writing."""
    if is_first_process():
        for path in remove_leftovers(Path(config.cache_dir).expanduser(), idle_hours=24, everywhere=False):
            logger.info("removed %s, which a run that was killed had begun to write", path)


def _about_first_stage(config: DictConfig, given: Mapping[str, Any], place: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all that the results of a first stage depend on, the step of its checkpoint included."""
    return {
        **{name: value for name, value in given.items() if name not in ("command", "prime_xmc_version")},
        "index": OmegaConf.to_container(config.index, resolve=True),
        "test": config.test,
        "step": None if place is None else place["step"],
    }


def _check_resume(config: DictConfig, command: str) -> None:
    """Check that `resume` comes from the command line, which puts the settings of the run into the configuration.

    Args:
        config: The configuration.
        command: Entry point that it is of.

    Raises:
        ValueError: If it does not.
    """
    resume = config.get("resume")
    if resume is None:
        return
    folder = Path(str(config.run_dir)).absolute()
    starts_anew = command == "train" and config.ckpt_path is None and (folder / CHECKPOINT).is_file()
    if Path(str(resume)).absolute() != folder or starts_anew:
        raise ValueError(f"resume={resume} is for the command line: prime-xmc-{command} resume={resume}")


def _minutes(config: DictConfig) -> float | int | None:
    """Return the minutes from one checkpoint within an epoch to the next; None: there are none."""
    callbacks = config.get("callbacks") or {}
    if callbacks.get("checkpoint") is None or config.trainer.get("enable_checkpointing") is False:
        return None
    return (config.get("checkpoint") or {}).get("every_n_minutes")


def _finish_training(
    trainer: Any, module: PrimeModule | OneVsAllModule, data: PrimeDataModule, record: RunHistory
) -> None:
    """Do what follows the last epoch, where an earlier process has trained it.

    If that has validated the final weights, its metrics stay, and the queries are only ranked again for later stages.
    """
    validation, loggers = record.validation, trainer.loggers
    # version 0.1.0 did not say when it was validated
    if validation and validation.get(EPOCH_VALIDATED, trainer.current_epoch) == trainer.current_epoch:
        trainer.loggers = []  # which have these metrics
        trainer.validate(module, datamodule=data, verbose=False)
        trainer.loggers = loggers
        record.validation = validation
    module.to(trainer.strategy.root_device)
    for callback in trainer.callbacks:
        callback.on_train_end(trainer, module)


def _show_in_words(ranking: Ranking, data: PrimeDataModule) -> None:
    """Print for people what a ranking of labels for the test split is worth."""
    train = data.corpus.train.positives.take(data.sampler.query_ids)
    frequency = np.bincount(train.values.astype(np.int64), minlength=data.corpus.num_labels)
    words = put_in_words(ranking[0], data.corpus.test.positives, frequency)
    if words is not None:
        print_in_words(words, "test")


_OF_THE_RUN = ("seed", "test", "cache_dir", "verify", "run_dir")


def classify_settings(config: DictConfig) -> list[str] | None:
    """Return the settings of the second stage of a run; None: it has none.

    `classify` is true or false. As in version 0.1.0, it may also be the list of the settings, or null for none.

    Raises:
        ValueError: If it is anything else, or one of the settings is that of the run.
    """
    classify = config.get("classify")
    if classify is None or classify is False:
        return None
    if classify is not True and not isinstance(classify, ListConfig):
        raise ValueError(f"classify={classify}: expected true, false, or a list of settings of the second stage")
    settings = [str(setting) for setting in (config.classify_settings if classify is True else classify)]
    for setting in settings:
        key = setting.lstrip("+~").partition("=")[0]
        if key in _OF_THE_RUN or key.partition(".")[0] in ("dataset", "model"):
            raise ValueError(
                f"classify_settings={setting}: the stages of a run share {key}, which is given to the run itself; "
                "for another value, train classifiers later by prime-xmc-classify model=<run>/model"
            )
    return settings


class FirstStage(NamedTuple):
    """What a first stage hands to later ones in the same run, besides its model.

    Attributes:
        pass_seconds: Duration of a pass; None where it was not measured.
        milliseconds_per_query: Milliseconds of one processor in which prototypes answer a query; None where it was not
            measured.
        precision: Lightning's name of the precision in which it encoded.
        encoded: Queries that the finished model has encoded: "train", with those held out, and "test".
        seconds: Time that it took to encode those of them that training had not ranked.
        cpu_seconds: The same, of all processors.
    """

    pass_seconds: float | None
    milliseconds_per_query: float | None
    precision: str
    encoded: dict[str, Encoded]
    seconds: float
    cpu_seconds: float

    def part(self, metrics: Mapping[str, Any], num_trained: int) -> Part:
        """Return all of it with the metrics of the first stage, to be kept.

        Args:
            metrics: The metrics.
            num_trained: Number of the queries of "train" that were trained on; they come first, are float16 in memory
                and are kept as such.
        """
        tensors: dict[str, Tensor] = {}
        for name, (ids, emb) in self.encoded.items():
            half, rest = emb.split([num_trained, len(emb) - num_trained] if name == "train" else [0, len(emb)])
            tensors |= {f"{name}.ids": torch.from_numpy(ids), f"{name}.half": half.half(), f"{name}.emb": rest}
        values = {name: value for name, value in self._asdict().items() if name != "encoded"}
        return Part(tensors, values | {"metrics": dict(metrics)})

    @classmethod
    def of(cls, part: Part) -> tuple[dict[str, Any], "FirstStage"]:
        """Return the metrics and what was handed over, from what `part` has made."""
        names = {name.partition(".")[0] for name in part.tensors}
        encoded = {
            name: (
                part.tensors[f"{name}.ids"].numpy(),
                torch.cat([part.tensors[f"{name}.half"].float(), part.tensors[f"{name}.emb"]]),
            )
            for name in names
        }
        values = dict(part.values)
        metrics = values.pop("metrics")
        return metrics, cls(encoded=encoded, **values)


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


def later_stages(
    config: DictConfig, run_dir: Path, settings: list[str] | None, first: FirstStage, kept: KeptParts
) -> tuple[dict[str, Any], str, Ranking | None]:
    """Train classifiers on the exported model of a run, and add them, further scorers and the ensemble to it.

    Args:
        config: Configuration of the run.
        run_dir: Folder of the run; the classifiers are trained in its folder classify/.
        settings: Settings of the second stage; None: there are no classifiers.
        first: What the run hands over.
        kept: What an earlier process of the run has finished of this.

    Returns:
        Metrics of the scorers that are added, how many epochs the classifiers took, and their cost; a sentence on the
        weights of the ensemble; and its best labels of the test queries, None where there was no test.
    """
    given = settings or []
    stage = compose("classify", [*_same_device(config, given), *_same_debugging(config, given), *given])
    stage.dataset = OmegaConf.to_container(config.dataset, resolve=True)
    stage.model.dir = str(run_dir / "model")
    stage.run_dir = str(run_dir / "classify")
    for key in ("seed", "test", "cache_dir"):  # see _OF_THE_RUN
        stage[key] = config[key]
    stage.verify = config.get("verify", "sampled")
    model = open_finished(stage, first.precision, first.encoded)
    metrics: dict[str, Any] = {}
    classifiers, of_classifiers = None, None
    if settings is not None:
        about = {
            "model": model.digest,
            "settings": binding_settings(stage),
            "length": [stage.trainer.get(name) for name in ("max_epochs", "max_steps")],
            "test": stage.test,
        }
        made = kept.find("classifiers", about)
        if made is None:
            trained = _train_classifiers(stage, model, continues=True)
            vectors = trained.module.classifiers.vectors()
            made = Part({"vectors": vectors}, {"metrics": trained.metrics, "settings": trained.settings})
            kept.add("classifiers", about, made)
        _remove_checkpoints(run_dir / "classify")
        metrics |= describe_stage(made.values["metrics"], first.pass_seconds)
        classifiers, of_classifiers = made.tensors["vectors"], made.values["settings"]
    vote = config.get("neighbours")
    scorers = Scorers(
        classifiers,
        of_classifiers,
        k=None if vote is None else vote.k,
        temperature=None if vote is None else vote.temperature,
        lexical=lexical_settings(config),
    )
    finished = finish_scorers(config, model, scorers, run_dir, kept)
    metrics |= finished.metrics
    metrics["ensemble/seconds"] += first.seconds
    metrics["ensemble/cpu_seconds"] += first.cpu_seconds
    sizes = describe_size(run_dir / "model")
    metrics |= {name: size for name, size in sizes.items() if name != "model_bytes"}  # that is known already
    if first.milliseconds_per_query is not None:
        metrics |= {
            f"predict/{name}/milliseconds_per_query": first.milliseconds_per_query + more
            for name, more in finished.milliseconds.items()
        }
    if first.pass_seconds is not None:
        metrics["ensemble/passes"] = metrics["ensemble/seconds"] / first.pass_seconds
    return metrics, finished.ensemble.describe(), finished.test


def _same_debugging(config: DictConfig, settings: list[str]) -> list[str]:
    """Return settings with which the second stage of a run for debugging sees as little of the data as the first."""
    if any(setting.startswith("debug=") for setting in settings):
        return []
    option = [] if config.get("debug") is None else [f"debug={config.debug}"]
    return [*option, *(f"trainer.{key}={value}" for key, value in limits(config).items())]


def _same_device(config: DictConfig, settings: list[str]) -> list[str]:
    """Return settings with which the second stage computes where the first did, unless its own say where."""
    if any(setting.startswith(("trainer=", "trainer.accelerator=", "device=")) for setting in settings):
        return []
    accelerator = str(config.trainer.accelerator)
    devices = {"cpu": ["device=cpu"], "gpu": ["device=cuda"], "cuda": ["device=cuda"]}
    return [f"trainer.accelerator={accelerator}", *devices.get(accelerator, [])]


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
        Interrupted: If a signal ends the run, which has to start again then.
    """
    quiet_libraries()
    check_settings(config)
    _check_resume(config, "classify")
    config = with_run_folder(config)
    run_dir, resumes = Path(config.run_dir), config.get("resume") is not None
    explain = partial(how_to_continue, run_dir, started=0.0 if resumes else time.time())
    with unfailing_output(), interruptible(explain):
        trained = _train_classifiers(config, continues=resumes)
        _remove_checkpoints(run_dir)
        show_classifiers(trained.metrics, run_dir)
    return trained


def _remove_checkpoints(run_dir: Path) -> None:
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


def _train_classifiers(
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
        record = RunHistory()
        _tidy_cache(config)
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
        save = SaveProgress(run_dir / CHECKPOINT, _minutes(config))
        trainer = make_trainer(config, [record, ContinuedRun(given, recorded)], [save])
        claim.begin(continued=checkpoint is not None, reads=[model.folder])
        if place is not None:
            continue_curves(trainer.loggers, run_dir, run_dir, place)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if not record.has_ended:
            for callback in trainer.callbacks:
                callback.on_train_end(trainer, module)

        classifiers = module.classifiers.vectors()
        save_classifiers(run_dir / "classifiers", classifiers, digest=model.digest, settings=settings)
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
