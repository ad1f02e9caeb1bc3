"""The stages of a run, each from a configuration to a run folder: prototypes, then one-vs-all classifiers."""

import json
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
from prime_xmc.files import write_json
from prime_xmc.index.search import ExactSearch
from prime_xmc.model.classifiers import Classifiers
from prime_xmc.printing import unfailing_output
from prime_xmc.scoring import (
    FinishedModel,
    Scorers,
    check_ensemble,
    finish_scorers,
    lexical_settings,
    open_finished,
)
from prime_xmc.training.callbacks import ExportModel
from prime_xmc.training.classifier_module import ClassifierModule
from prime_xmc.training.continuation import ContinuedRun, check_origin, origin, read_origin
from prime_xmc.training.debugging import debugging, limits, mark_debugging
from prime_xmc.training.interruption import SaveWhenInterrupted, how_to_continue, interruptible
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.one_vs_all_module import OneVsAllModule
from prime_xmc.training.passes import PassProbe
from prime_xmc.training.query_embeddings import Encoded
from prime_xmc.training.record import (
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
from prime_xmc.training.run_folder import METRICS, claimed, record_configuration, with_run_folder
from prime_xmc.training.sharded import leave_group


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
    second = classify_settings(config)
    if second is not None:
        check_settings(compose("classify", second))  # hours before they are used
    config = with_run_folder(config)
    run_dir, started = Path(config.run_dir), time.time()
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    explain = partial(how_to_continue, run_dir, checkpoint, started=started)
    with unfailing_output(), claimed(run_dir) as claim, interruptible(explain):
        record_configuration(config, run_dir)
        continued = None if config.ckpt_path is None else Path(config.ckpt_path).absolute()
        recorded = None if continued is None else read_origin(continued)
        record = RunHistory()
        data = make_data(config)
        config = fit_to_data(config, data.corpus)
        settings, given = describe_run(config, data), origin(config, data)
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
        first = [record, SaveWhenInterrupted(checkpoint), ContinuedRun(given, recorded)]
        if debugging(config) is None:
            first.insert(1, PassProbe(record, config.seed))
        else:
            record.no_pass = "not measured: this was a run for debugging"
        trainer = make_trainer(config, first, [export])
        claim.begin(continued=continued is not None and continued.is_relative_to(run_dir.absolute()))
        for each in trainer.loggers:
            each.log_hyperparams(settings["config"])
        announce(config, data)
        trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
        if module.num_trained == 0:  # the checkpoint is of the end of training: what follows it is still to be done
            trainer.validate(module, datamodule=data, verbose=False)
            module.to(trainer.strategy.root_device)
            for callback in trainer.callbacks:
                callback.on_train_end(trainer, module)

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
        queries = None
        if module.keeps_queries:
            assert isinstance(module, PrimeModule)
            queries = _encode_queries(module, data, trainer.strategy.root_device)
        leave_group()
        if trainer.is_global_zero:
            metrics |= describe_size(run_dir / "model")
            update_metrics(run_dir / "model", metrics)
            if module.test_predictions is not None:
                save_predictions(run_dir / "predictions.npz", *module.test_predictions)
            show_prototypes(metrics, run_dir)
            ranking = module.test_predictions
            if queries is not None:
                handed = FirstStage(record.pass_seconds, answering, str(trainer.precision), *queries)
                scored, weights, ranking = later_stages(config, run_dir, second, handed)
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
            write_json(run_dir / METRICS, metrics)  # last: it says that the run is finished
    return TrainedPrototypes(metrics, module, data, trainer)


def _show_in_words(ranking: Ranking, data: PrimeDataModule) -> None:
    """Print for people what a ranking of labels for the test split is worth."""
    train = data.corpus.train.positives.take(data.sampler.query_ids)
    frequency = np.bincount(train.values.astype(np.int64), minlength=data.corpus.num_labels)
    words = put_in_words(ranking[0], data.corpus.test.positives, frequency)
    if words is not None:
        print_in_words(words, "test")


def classify_settings(config: DictConfig) -> list[str] | None:
    """Return the settings of the second stage of a run; None: it has none.

    `classify` is true or false. As in version 0.1.0, it may also be the list of the settings, or null for none.

    Raises:
        ValueError: If it is anything else.
    """
    classify = config.get("classify")
    if classify is None or classify is False:
        return None
    if classify is not True and not isinstance(classify, ListConfig):
        raise ValueError(f"classify={classify}: expected true, false, or a list of settings of the second stage")
    return [str(setting) for setting in (config.classify_settings if classify is True else classify)]


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
    config: DictConfig, run_dir: Path, settings: list[str] | None, first: FirstStage
) -> tuple[dict[str, Any], str, Ranking | None]:
    """Train classifiers on the exported model of a run, and add them, further scorers and the ensemble to it.

    Args:
        config: Configuration of the run.
        run_dir: Folder of the run; the classifiers are trained in its folder classify/.
        settings: Settings of the second stage; None: there are no classifiers.
        first: What the run hands over.

    Returns:
        Metrics of the scorers that are added, how many epochs the classifiers took, and their cost; a sentence on the
        weights of the ensemble; and its best labels of the test queries, None where there was no test.
    """
    given = settings or []
    stage = compose("classify", [*_same_device(config, given), *_same_debugging(config, given), *given])
    stage.dataset = OmegaConf.to_container(config.dataset, resolve=True)
    stage.model.dir = str(run_dir / "model")
    stage.run_dir = str(run_dir / "classify")
    for key in ("seed", "test", "cache_dir"):
        stage[key] = config[key]
    model = open_finished(stage, first.precision, first.encoded)
    metrics: dict[str, Any] = {}
    classifiers, of_classifiers = None, None
    if settings is not None:
        trained = _train_classifiers(stage, model)
        metrics |= describe_stage(trained.metrics, first.pass_seconds)
        classifiers, of_classifiers = trained.module.classifiers.vectors(), trained.settings
    vote = config.get("neighbours")
    scorers = Scorers(
        classifiers,
        of_classifiers,
        k=None if vote is None else vote.k,
        temperature=None if vote is None else vote.temperature,
        lexical=lexical_settings(config),
    )
    finished = finish_scorers(config, model, scorers, run_dir)
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
    config = with_run_folder(config)
    run_dir = Path(config.run_dir)
    record_configuration(config, run_dir)
    explain = partial(how_to_continue, run_dir, None, started=time.time())
    with unfailing_output(), interruptible(explain):
        trained = _train_classifiers(config)
        show_classifiers(trained.metrics, run_dir)
    return trained


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


def _train_classifiers(config: DictConfig, model: FinishedModel | None = None) -> TrainedClassifiers:
    """Train classifiers in the folder of a configuration, on the model that it names or that is open already."""
    run_dir = Path(config.run_dir)
    with claimed(run_dir) as claim:
        record = RunHistory()
        model = model or open_finished(config)
        predictor, data = model.predictor, model.data
        config = fit_second_stage(config, data)
        of_model = predictor.config["settings"]["config"]
        if "encoder" in of_model:  # the configuration's own is not used, and may name a package that is not installed
            check_resolved(of_model["encoder"], model.folder)
            config.encoder = of_model["encoder"]
        settings = describe_run(config, data) | {"model": of_model}
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
        trainer = make_trainer(config, [record])
        claim.begin(continued=False)
        trainer.fit(module, datamodule=data)

        classifiers = module.classifiers.vectors()
        save_classifiers(run_dir / "classifiers", classifiers, digest=model.digest, settings=settings)
        record.enter("test")
        metrics = _evaluate_scorers(config, run_dir, model, prototypes, classifiers.cpu())
        record.enter(None)
        metrics |= describe_splits(config, data) | describe_training(trainer, module, record, settings)
        metrics |= mark_debugging(config)
        write_json(run_dir / METRICS, metrics)
    return TrainedClassifiers(metrics, module, data, settings)


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
