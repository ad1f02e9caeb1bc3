"""A configuration becomes objects: raw files, prepared data, modules, the Trainer and predictors."""

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from omegaconf import DictConfig, ListConfig, OmegaConf

from prime_xmc.data.corpus import Corpus
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.fitting import Setting, find_doubts, find_faults, find_problems, fit, outlook
from prime_xmc.data.preparation import prepare
from prime_xmc.data.raw import RawFiles, Record, read_records
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.export.folder import model_version
from prime_xmc.export.predictor import Predictor
from prime_xmc.model.encoder_folder import Prompts, resolve_prompts
from prime_xmc.model.one_vs_all import OneVsAll
from prime_xmc.training.debugging import check_profiler, make_profiler
from prime_xmc.training.host_threads import OneHostThread
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.one_vs_all_module import OneVsAllModule
from prime_xmc.training.start import check_precision

logger = logging.getLogger(__name__)

_METHOD = ("initialise", "clusters", "mined")  # names of the callbacks without which training is not PRIME's


def raw_files(dataset: DictConfig, prompts: Prompts | None = None) -> RawFiles:
    """Return the raw files that a dataset configuration names, generated if its `dir` says how and need be.

    Args:
        dataset: The configuration.
        prompts: Texts that the encoder wants before every query and label.

    Raises:
        ValueError: If the configuration names no fields, or a number is out of range.
    """
    prompts = prompts or Prompts()
    dataset = instantiate(dataset)
    return RawFiles(
        directory=dataset.dir,
        name=dataset.name,
        fields=dataset.fields or (),
        label_fields=dataset.label_fields,
        hint=dataset.hint,
        query_prompt=prompts.query,
        label_prompt=prompts.label,
        num_test=dataset.get("num_test", 0),
    )


def prompts_of(encoder: DictConfig) -> Prompts:
    """Return what an encoder configuration puts before every query and label; one of version 0.1.0 puts nothing."""
    return resolve_prompts(encoder.source, encoder.get("query_prompt"), encoder.get("label_prompt"))


def raw_test_queries(config: DictConfig, corpus: Corpus) -> Iterator[Record]:
    """Yield the queries of the test split in order, as the raw files have them."""
    source = raw_files(config.dataset)
    rows = corpus.test_rows
    if rows is None:
        yield from read_records(source.paths()["tst"], source.fields, corpus.num_labels)
    else:
        wanted = set(rows.tolist())
        records = read_records(source.paths()["trn"], source.fields, corpus.num_labels)
        yield from (record for row, record in enumerate(records) if row in wanted)


def open_corpus(config: DictConfig) -> Corpus:
    """Prepare a data set as training does, unless that has been done before, and open it."""
    tokenizer = load_tokenizer(config.encoder.source)
    directory = prepare(
        raw_files(config.dataset, prompts_of(config.encoder)),
        tokenizer.backend_tokenizer,
        tokenizer_name=tokenizer.name_or_path,
        pad_token_id=tokenizer.pad_token_id,
        max_length=config.dataset.max_length,
        cache_dir=config.cache_dir,
    )
    return Corpus.open(directory, config.get("verify", "sampled"))


def fit_to_data(config: DictConfig, corpus: Corpus) -> DictConfig:
    """Return a copy of a configuration in which what follows the size of the data has its number.

    See `fit_to_size`.
    """
    return fit_to_size(config, len(corpus.train), corpus.num_labels)


def fit_to_size(config: DictConfig, num_queries: int, num_labels: int) -> DictConfig:
    """Return a copy of a configuration in which what follows the size of the data has its number.

    What follows the size of the data is null in `dataset`, from where the other groups take it. A configuration
    without null comes back as it is.

    Args:
        config: The configuration of a training.
        num_queries: Training queries, those to be held out included.
        num_labels: Labels.

    Raises:
        ValueError: If given settings cannot work with so much data; it names them all.
    """
    fitted = copy.deepcopy(config)
    for setting in fitted_settings(config, num_queries, num_labels):
        OmegaConf.update(fitted, setting.key, setting.value)
    if OmegaConf.select(fitted, "model.num_private") == "all":
        fitted.model.num_private = num_labels
    for own, shared in _shared(config):
        if OmegaConf.select(fitted, own) is None:
            OmegaConf.update(fitted, own, OmegaConf.select(fitted, shared))
        if OmegaConf.select(fitted, shared) is None:
            OmegaConf.update(fitted, shared, OmegaConf.select(fitted, own))
    problems = find_problems(
        num_queries,
        num_labels,
        num_validation=fitted.dataset.num_validation,
        num_free_vectors=fitted.model.num_free_vectors if "num_free_vectors" in fitted.model else None,
        batch_size=fitted.sampling.batch_size,
        initial_size=fitted.sampling.clusters.initial_size,
        free_vectors_key=_given_key(config, "model.num_free_vectors", "dataset.num_free_vectors"),
        batch_size_key=_given_key(config, "sampling.batch_size", "dataset.batch_size"),
    )
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        size = f"{num_queries:,} training queries and {num_labels:,} labels"
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise ValueError(f"{len(problems)} settings do not fit {config.dataset.name}, which has {size}:{listed}")
    return fitted


def fitted_settings(config: DictConfig, num_queries: int, num_labels: int) -> list[Setting]:
    """Return the settings that a configuration leaves to the size of the data, with their reasons."""
    names = ("num_free_vectors", "batch_size", "clusters.initial_size")
    given = {name.rpartition(".")[2]: OmegaConf.select(config.dataset, name) for name in ("num_validation", *names)}
    for own, shared in _shared(config):
        if (value := OmegaConf.select(config, own)) not in (None, "half"):
            given[shared.rpartition(".")[2]] = value
    return fit(num_queries, num_labels, given)


def _shared(config: DictConfig) -> list[tuple[str, str]]:
    """Return the keys of other groups that take their value from a key of `dataset` unless they have one themselves."""
    pairs = [
        ("sampling.batch_size", "dataset.batch_size"),
        ("sampling.clusters.initial_size", "dataset.clusters.initial_size"),
    ]
    if "num_free_vectors" in config.model:  # not in the configuration of the second stage
        pairs.append(("model.num_free_vectors", "dataset.num_free_vectors"))
    return pairs


def _given_key(config: DictConfig, own: str, shared: str) -> str:
    """Return that of two keys by which a value was given."""
    group, _, name = own.rpartition(".")
    node = OmegaConf.select(config, group)
    return shared if name not in node or OmegaConf.is_interpolation(node, name) else own


def open_data(
    config: DictConfig,
    tokenizer: str,
    *,
    prompts: Prompts,
    max_length: int,
    num_validation: int,
    seed: int,
    memory_labels: int = 0,
    leave_one_out: float | int = 0.0,
    without_centroid: float | int = 0.0,
    of_encoder: DictConfig | None = None,
    corpus: Corpus | None = None,
) -> PrimeDataModule:
    """Make the data module of `dataset` and `sampling` and open its data, prepared if need be.

    Args:
        config: The configuration.
        tokenizer: Folder or hub id.
        prompts: Texts that the encoder wants before every query and label.
        max_length: Most tokens of a text.
        num_validation: Number of training queries that are held out.
        seed: Seed of the split and of sampling.
        memory_labels: Most labels of a batch whose embedding is remembered, which the second stage has no use for.
        leave_one_out: Probability that a query is left out of the centroid of one of its labels, likewise.
        without_centroid: Probability of a label to be shown without a centroid in a batch, likewise.
        of_encoder: Settings of `sampling` that only batches for an encoder follow: its sampler, and what is a negative.
        corpus: The data, where they are open already.
    """
    dataset, sampling = config.dataset, config.sampling
    for_encoder: dict[str, Any] = {}
    if of_encoder is not None:
        for_encoder = {
            "mask_positives": of_encoder.mask_positives,
            "batch_labels": of_encoder.batch_labels,
            "num_mined": of_encoder.mined.num_drawn,
            "mined_alone": of_encoder.mined.alone,
            "make_sampler": instantiate(of_encoder.sampler, _convert_="all"),
            "label_rows": of_encoder.label_rows,
        }
    data = PrimeDataModule(
        raw_files(dataset, prompts),
        load_tokenizer(tokenizer),
        max_length=max_length,
        cache_dir=config.cache_dir,
        propensity_a=dataset.propensity.a,
        propensity_b=dataset.propensity.b,
        batch_size=sampling.batch_size,
        num_positives=sampling.num_positives,
        positive_weighting=sampling.positive_weighting,
        loss_positives=sampling.loss_positives,
        more_queries_per_label=sampling.more_queries_per_label,
        memory_labels=memory_labels,
        leave_one_out=leave_one_out,
        without_centroid=without_centroid,
        num_validation=num_validation,
        seed=seed,
        corpus=corpus,
        **for_encoder,
    )
    data.setup()
    return data


def make_data(config: DictConfig) -> PrimeDataModule:
    """Make the data module and open its data, prepared if need be; say in the log what follows their size.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If they are malformed, or settings do not fit them.
    """
    corpus = open_corpus(config)
    counts = corpus.manifest["counts"]
    if faults := find_faults(counts["train"]["positives"], corpus.num_labels):
        raise ValueError(f"{config.dataset.name}: {'; '.join(faults)}. `python -m prime_xmc.audit` shows more")
    fitted = fit_to_data(config, corpus)
    if settings := fitted_settings(config, len(corpus.train), corpus.num_labels):
        logger.info("following the size of the data: %s", "; ".join(map(str, settings)))
    for doubt in find_doubts(len(corpus.train), fitted.dataset.num_validation):
        logger.warning("%s", doubt)
    if corpus.split_note is not None:
        logger.info("%s", corpus.split_note)
    return open_data(
        fitted,
        fitted.encoder.source,
        prompts=prompts_of(fitted.encoder),
        max_length=fitted.dataset.max_length,
        num_validation=fitted.dataset.num_validation,
        seed=fitted.seed,
        memory_labels=fitted.sampling.memory_labels,
        leave_one_out=fitted.sampling.leave_one_out,
        without_centroid=fitted.sampling.without_centroid,
        of_encoder=fitted.sampling,
        corpus=corpus,
    )


def fit_second_stage(config: DictConfig, data: PrimeDataModule) -> DictConfig:
    """Return a copy of the configuration of a second stage, fitted to the data with the held-out queries of the first.

    Raises:
        ValueError: If given settings cannot work with so much data.
    """
    config = copy.deepcopy(config)
    config.dataset.num_validation = len(data.validation_ids)
    return fit_to_data(config, data.corpus)


def announce(config: DictConfig, data: PrimeDataModule) -> None:
    """Say in a line of the log what a training is about to do, and in another if a GPU is there that it does not use.

    Args:
        config: The configuration, fitted to the data.
        data: The data.
    """
    line = outlook(
        num_trained=len(data.sampler.query_ids),
        num_held_out=len(data.validation_ids),
        num_test=len(data.corpus.test) if config.test else 0,
        num_labels=data.corpus.num_labels,
        steps_per_epoch=len(data.sampler),
        num_epochs=config.trainer.max_epochs,
        validate_every=config.trainer.check_val_every_n_epoch,
    )
    logger.info("%s", line)
    if config.trainer.accelerator == "cpu" and CUDAAccelerator.is_available():
        logger.info("training on the CPU; there is a GPU here, and trainer=gpu trains on it")


def trains_one_vs_all(config: DictConfig) -> bool:
    """Return whether a configuration trains one-vs-all classifiers with the encoder, in place of prototypes."""
    target = get_object(config.model._target_)
    return isinstance(target, type) and issubclass(target, OneVsAll)


def make_module(config: DictConfig, data: PrimeDataModule) -> PrimeModule | OneVsAllModule:
    """Make the untrained module for a data set.

    Raises:
        ValueError: If texts may be longer than the encoder can read, if the data may hold tokens that it does not
            embed, or if settings do not fit the data or each other.
    """
    config = fit_to_data(config, data.corpus)
    torch.manual_seed(config.seed)
    encoder, make_bank = instantiate(config.encoder), instantiate(config.bank)
    if encoder.max_length is not None and data.max_length > encoder.max_length:
        raise ValueError(
            f"dataset.max_length={data.max_length} is above the {encoder.max_length} positions of the encoder "
            f"(max_position_embeddings in the config.json of {encoder.source}): lower it, or take another encoder"
        )
    num_tokens = data.corpus.manifest.get("vocab_size", 0)
    if num_tokens > encoder.num_tokens:
        raise ValueError(
            f"the data are prepared with a tokenizer of {num_tokens} tokens, and the encoder {encoder.source} embeds "
            f"{encoder.num_tokens}: prepare them with the encoder's own tokenizer"
        )
    if trains_one_vs_all(config):
        return OneVsAllModule(
            encoder,
            instantiate(config.model, num_labels=data.corpus.num_labels, dim=encoder.dim, _convert_="all"),
            instantiate(config.index),
            queries=data.corpus.train,
            make_bank=make_bank,
            **_how_to_train(config, data),
        ).train()
    return PrimeModule(
        encoder,
        instantiate(
            config.model, num_labels=data.corpus.num_labels, dim=encoder.dim, make_bank=make_bank, _convert_="all"
        ),
        instantiate(config.loss),
        instantiate(config.index),
        num_queries=len(data.corpus.train),
        make_bank=make_bank,
        callbacks=method_callbacks(config),
        remember_labels=data.remembers_labels,
        zero_banks=(config.get("callbacks") or {}).get("initialise") is None,
        **_how_to_train(config, data),
    ).train()  # pre-trained encoders come in eval mode, and Lightning keeps it


def _how_to_train(config: DictConfig, data: PrimeDataModule) -> dict[str, Any]:
    """Return the arguments that all modules with an encoder have in common."""
    return {
        "inverse_propensity": data.inverse_propensity,
        "optimizer": instantiate(config.optimizer.make),
        "scheduler": instantiate(config.optimizer.schedule),
        "weight_decay": config.optimizer.weight_decay,
        "warmup_fraction": config.optimizer.warmup_fraction,
        "seed": config.seed,
    }


def check_model(config: DictConfig) -> None:
    """Check that the settings of a training belong to its model, prototypes or one-vs-all classifiers, and together.

    Raises:
        ValueError: If they do not; it names what to change.
    """
    _check_mined(config)
    one_vs_all, num_positives = trains_one_vs_all(config), config.sampling.num_positives
    if not one_vs_all:
        if num_positives == 0:
            raise ValueError(
                "sampling.num_positives=0: prototypes are trained on labels drawn for queries; give 1 or more"
            )
        if _begins(config):
            _check_left_out(config)
        return
    if num_positives != 0:
        raise ValueError(
            f"sampling.num_positives={num_positives}: one-vs-all classifiers see all labels in every step and no label "
            "is drawn for a query; give sampling.num_positives=0"
        )
    if _begins(config):
        _check_used_by_one_vs_all(config)
    if (config.index.get("kind") or "flat") != "flat":
        raise ValueError(
            f"index={config.index.kind} is for unit vectors, and one-vs-all classifiers are none: give index=exact"
        )
    if config.sampling.clusters.first_epoch is not None:
        raise ValueError(
            f"sampling.clusters.first_epoch={config.sampling.clusters.first_epoch}: one-vs-all classifiers see all "
            "labels in every step, and no clusters of queries are made for them; leave sampling=random as it is"
        )


def _begins(config: DictConfig) -> bool:
    """Return whether a run is not one that goes on, which it does as it was begun."""
    return config.get("ckpt_path") is None and config.get("resume") is None


def _check_used_by_one_vs_all(config: DictConfig) -> None:
    """Refuse settings of prototypes, which one-vs-all classifiers would pass over."""
    if config.get("loss") is not None:
        raise ValueError(
            "one-vs-all classifiers are trained by the binary cross-entropy, which has no settings: leave out what "
            "sets loss, a setting or an experiment"
        )
    nothing = {"memory_labels": 0, "leave_one_out": 0, "without_centroid": 0, "more_queries_per_label": 0}
    for key, value in (nothing | {"batch_labels": "drawn"}).items():
        given = config.sampling.get(key, value)
        if given != value:
            raise ValueError(
                f"sampling.{key}={given}: one-vs-all classifiers have no prototypes and no labels in a "
                f"batch that it would be about; give sampling.{key}={value}"
            )


def _check_left_out(config: DictConfig) -> None:
    """Refuse to leave a query out of a centroid that is not a running mean of its label's queries."""
    model, share = config.model, config.sampling.get("leave_one_out", 0)
    if share and "centroid" in model.get("sources", ()):
        for key, value in (("centroid_update", "frozen"), ("momentum", 0)):
            if model.get(key) == value:
                raise ValueError(
                    f"model.{key}={value} and sampling.leave_one_out={share}: a query is left out of a centroid by "
                    "what it added to it, which is not known then; give sampling.leave_one_out=0"
                )


def _check_mined(config: DictConfig) -> None:
    """Refuse settings of negatives from a search that would do nothing, or otherwise than they say."""
    sampling, mined = config.sampling, config.sampling.mined
    if not 1 <= mined.num_drawn <= mined.top_k:
        raise ValueError(
            f"expected sampling.mined.num_drawn between 1 and the sampling.mined.top_k={mined.top_k} labels that are "
            f"searched for a query, got {mined.num_drawn}"
        )
    if mined.first_epoch is not None and (config.get("callbacks") or {}).get("mined") is None:
        raise ValueError(
            f"sampling.mined.first_epoch={mined.first_epoch} wants labels to be searched, and nothing searches them, "
            "since callbacks.mined is null: give sampling.mined.first_epoch=null"
        )
    if mined.first_epoch is not None and (config.trainer.get("overfit_batches") or 0) > 0:
        raise ValueError(
            f"trainer.overfit_batches={config.trainer.overfit_batches} trains on the same batches in every epoch, made "
            "before labels are searched, which they would never have: give sampling.mined.first_epoch=null"
        )
    if not mined.alone:
        return
    if mined.first_epoch is None:
        raise ValueError(
            "sampling.mined.alone=true, and no labels are searched: give sampling.mined.first_epoch=1 too, or "
            "sampling=mined"
        )
    if sampling.label_rows:
        raise ValueError(
            "sampling.mined.alone=true leaves the texts of labels without negatives, since none are mined for them: "
            "give sampling.label_rows=false"
        )
    if sampling.memory_labels and sampling.loss_positives == "all":
        raise ValueError(
            f"sampling.memory_labels={sampling.memory_labels} adds labels to the batch that are negatives of all other "
            "queries, against sampling.mined.alone=true: give sampling.memory_labels=0"
        )


def method_callbacks(config: DictConfig) -> list[Any]:
    """Make the callbacks that belong to the method, which modules bring along: any Trainer needs them."""
    chosen = ((config.get("callbacks") or {}).get(name) for name in _METHOD)
    return [instantiate(callback, _convert_="all") for callback in chosen if callback is not None]


def make_trainer(config: DictConfig, first: Sequence[Any] = (), last: Sequence[Any] = ()) -> Any:
    """Make the Trainer with the configured loggers and callbacks, and those given before and after them.

    The callbacks that belong to the method are left out, since the module brings them.
    """
    others = {name: callback for name, callback in (config.get("callbacks") or {}).items() if name not in _METHOD}
    configured = [instantiate(callback, _convert_="all") for callback in others.values() if callback is not None]
    loggers = make_loggers(config.get("logger"))
    needless: list[type] = []
    if config.trainer.get("enable_progress_bar") is False:
        needless.append(ProgressBar)
    if config.trainer.get("enable_checkpointing") is False:
        needless.append(ModelCheckpoint)
    if not loggers:
        needless.append(LearningRateMonitor)
    configured = [callback for callback in configured if not isinstance(callback, tuple(needless))]
    return instantiate(
        config.trainer,
        callbacks=[*first, OneHostThread(), *configured, *last],
        logger=loggers or False,
        # otherwise Lightning adds a bar and a checkpoint of its own where callbacks.progress or checkpoint is null
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in configured),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in configured),
        profiler=make_profiler(config.trainer.get("profiler"), Path(config.run_dir)),
        default_root_dir=str(config.run_dir),
        _convert_="all",
    )


def listed_devices(config: DictConfig) -> list[str] | None:
    """Return the devices that `trainer.devices` names one by one, as [0,1] and "0,1" do; None: it has their number."""
    devices = config.trainer.get("devices")
    listed = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    if not isinstance(listed, list | ListConfig):
        return None
    return [name for each in listed if (name := str(each).strip())]


def make_loggers(config: DictConfig | None) -> list[Any]:
    """Make the loggers of a configuration: those of its keys that say by `_target_` what they are."""
    children = [] if config is None else [child for child in config.values() if isinstance(child, DictConfig)]
    return [instantiate(child, _convert_="all") for child in children if "_target_" in child]


def check_settings(config: DictConfig) -> None:
    """Make what needs no data once, so that settings which do not fit end a run before its data are prepared.

    Raises:
        InstantiationException: If one does not fit.
        ValueError: If the loss, stages or scorers need unit vectors and the encoder makes none; if the machine has no
            GPU but one is asked for; or if the profiler or the precision is unknown.
    """
    made = {key: instantiate(config[key], _convert_="all") for key in ("loss", "index") if config.get(key) is not None}
    if config.encoder.get("normalize", True) is False:
        if needs_unit := [key for key in ("classify", "neighbours", "lexical") if config.get(key)]:
            raise ValueError(
                f"encoder.normalize=false: {', '.join(needs_unit)} need unit vectors; give classify=false "
                "neighbours=null lexical=null"
            )
        if of_cosines := [f"loss.{name}" for name in getattr(made.get("loss"), "cosine_settings", ())]:
            raise ValueError(
                f"encoder.normalize=false: {', '.join(of_cosines)} would be about cosines; take a loss without, such "
                "as loss=infonce loss.temperature=1 loss.regulariser_weight=0"
            )
    check_profiler(config.trainer.get("profiler"))
    if config.trainer.accelerator == "gpu" and not (CUDAAccelerator.is_available() or MPSAccelerator.is_available()):
        raise ValueError(
            "trainer.accelerator=gpu: torch finds no GPU here. Take trainer=cpu, or install torch for the GPU"
        )
    trainer = instantiate(
        config.trainer,
        logger=False,
        profiler=None,
        enable_progress_bar=False,
        enable_checkpointing=False,
        _convert_="all",
    )
    check_precision(str(trainer.precision))


def load_predictor(config: DictConfig) -> Predictor:
    """Load the model that a configuration names, to score by its prototypes.

    It is on the device of the configuration, in its precision or else in the model's own.
    """
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor.load(
        config.model.dir,
        device=device,
        index=config.get("search", "exact"),
        precision=config.get("precision"),
        scorer="theta",
        verify=config.get("verify", "sampled"),
    )


def load_scorer(config: DictConfig) -> Predictor:
    """Load the model that a configuration names, with its scorer, as `load_predictor` does.

    Raises:
        FileNotFoundError: If the model, or what the scorer needs, is missing.
        ValueError: If classifiers are not of this model, or another search than an exact one is asked for them.
    """
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor.load(
        config.model.dir,
        device=device,
        index=config.search,
        precision=config.get("precision"),
        scorer=config.scorer,
        classifiers=config.classifiers,
        prototype_dtype=config.get("prototype_dtype", "float32"),
        verify=config.get("verify", "sampled"),
    )


def model_corpus(config: DictConfig, predictor: Predictor) -> Corpus:
    """Prepare the data set with the model's own tokenizer, prompts and length, and check that it is the model's.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If the labels are others, or the queries would be read from other fields than in training.
    """
    source = raw_files(config.dataset, predictor.encoder.prompts)
    if predictor.fields is not None and tuple(source.fields) != predictor.fields:
        raise ValueError(
            f"dataset.fields=[{','.join(source.fields)}], and the model {config.model.dir} was trained on "
            f"[{','.join(predictor.fields)}]: give dataset.fields=[{','.join(predictor.fields)}]"
        )
    corpus = Corpus.open(
        prepare(
            source,
            predictor.tokenizer,
            tokenizer_name=str(config.model.dir),
            pad_token_id=predictor.config["pad_token_id"],
            max_length=predictor.config["max_length"],
            cache_dir=config.cache_dir,
        ),
        config.get("verify", "sampled"),
    )
    hint = f"give the data set that the model {config.model.dir} was trained on, dataset=..."
    if (number := model_version(predictor.config)) > 1:
        hint = (
            f"labels of {config.model.dir} were changed after training, this is version {number}: give a data set of "
            "its labels, as they are in labels.jsonl, or evaluate it by prime_xmc.load(...).evaluate"
        )
    if predictor.num_labels != corpus.num_labels:
        raise ValueError(
            f"the model has {predictor.num_labels} labels, {config.dataset.name} has {corpus.num_labels}: {hint}"
        )
    for row, ((model_uid, _), (uid, _)) in enumerate(zip(predictor.labels, corpus.labels(), strict=True)):
        if model_uid != uid:
            raise ValueError(f"label {row} is {model_uid!r} in the model, {uid!r} in {config.dataset.name}: {hint}")
    trained = predictor.config["settings"].get("data_fingerprint")
    if len(corpus.test) and corpus.test_rows is not None and trained not in (None, corpus.manifest["fingerprint"]):
        logger.warning(
            "the test queries of %s are drawn at random from its training file, and %s was trained on other data or on "
            "data that an earlier version has split otherwise: it may have been trained on some of them, so that the "
            "metrics are too high. Give test queries in a file of their own, or train again",
            config.dataset.name,
            config.model.dir,
        )
    return corpus


def make_classifier_data(config: DictConfig, predictor: Predictor) -> PrimeDataModule:
    """Open the data set as the model's own training did, with the same queries held out.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If it is not the data set of the model, or the model does not say what it was trained on.
    """
    corpus = model_corpus(config, predictor)
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
        prompts=predictor.encoder.prompts,
        max_length=predictor.config["max_length"],
        num_validation=num_validation,
        seed=seed,
        corpus=corpus,
    )
