"""A configuration becomes objects: raw files, prepared data, modules, the Trainer and predictors."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from prime_xmc.app import native_precision
from prime_xmc.data.corpus import Corpus
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.preparation import prepare
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import use_classifiers
from prime_xmc.training.module import PrimeModule


def raw_files(dataset: DictConfig) -> RawFiles:
    """Return the raw files that a dataset configuration names, generated if its `dir` says how and need be."""
    dataset = instantiate(dataset)
    return RawFiles(
        directory=dataset.dir,
        name=dataset.name,
        fields=tuple(dataset.fields),
        label_fields=None if dataset.label_fields is None else tuple(dataset.label_fields),
        hint=dataset.hint,
    )


def open_corpus(config: DictConfig) -> Corpus:
    """Prepare a data set as training does, unless that has been done before, and open it."""
    tokenizer = load_tokenizer(config.encoder.source)
    directory = prepare(
        raw_files(config.dataset),
        tokenizer.backend_tokenizer,
        tokenizer_name=tokenizer.name_or_path,
        pad_token_id=tokenizer.pad_token_id,
        max_length=config.dataset.max_length,
        cache_dir=config.cache_dir,
    )
    return Corpus.open(directory)


def open_data(
    config: DictConfig, tokenizer: str, *, max_length: int, num_validation: int, seed: int
) -> PrimeDataModule:
    """Make the data module of `dataset` and `sampling` and open its data, prepared if need be.

    Args:
        config: The configuration.
        tokenizer: Folder or hub id.
        max_length: Most tokens of a text.
        num_validation: Training queries that are held out.
        seed: Of the split and of sampling.
    """
    dataset, sampling = config.dataset, config.sampling
    data = PrimeDataModule(
        raw_files(dataset),
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
        num_validation=num_validation,
        seed=seed,
    )
    data.setup()
    return data


def make_data(config: DictConfig) -> PrimeDataModule:
    """Make the data module and open its data, prepared if need be."""
    dataset = config.dataset
    return open_data(
        config,
        config.encoder.source,
        max_length=dataset.max_length,
        num_validation=dataset.num_validation,
        seed=config.seed,
    )


def make_module(config: DictConfig, data: PrimeDataModule) -> PrimeModule:
    """Make the untrained module for a data set.

    Raises:
        ValueError: If texts may be longer than the encoder can read.
    """
    torch.manual_seed(config.seed)
    encoder, make_bank = instantiate(config.encoder), instantiate(config.bank)
    if encoder.max_length is not None and data.max_length > encoder.max_length:
        raise ValueError(
            f"dataset.max_length={data.max_length} is above the {encoder.max_length} positions of the encoder "
            f"(max_position_embeddings in the config.json of {encoder.source}): lower it, or take another encoder"
        )
    return PrimeModule(
        encoder,
        instantiate(
            config.model, num_labels=data.corpus.num_labels, dim=encoder.dim, make_bank=make_bank, _convert_="all"
        ),
        instantiate(config.loss),
        instantiate(config.index),
        num_queries=len(data.corpus.train),
        inverse_propensity=data.inverse_propensity,
        optimizer=instantiate(config.optimizer.make),
        scheduler=instantiate(config.optimizer.schedule),
        weight_decay=config.optimizer.weight_decay,
        warmup_fraction=config.optimizer.warmup_fraction,
        seed=config.seed,
        make_bank=make_bank,
    ).train()  # pre-trained encoders come in eval mode, and Lightning keeps it


def make_trainer(config: DictConfig, callbacks: list[Any]) -> Any:
    """Make the Trainer with the configured callbacks, those given, and the configured loggers."""
    configured = [c for c in instantiate(config.callbacks, _convert_="all").values() if c is not None]
    return instantiate(
        config.trainer,
        callbacks=[*configured, *callbacks],
        logger=instantiate(config.logger) if config.logger else False,
        default_root_dir=str(config.run_dir),
        _convert_="all",
    )


def load_predictor(config: DictConfig) -> Predictor:
    """Load the model that a configuration names, on its device in the fastest precision that this computes natively."""
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = native_precision(torch.device(device).type)
    return Predictor.load(config.model.dir, device=device, index=config.search, precision=precision)


def load_scorer(config: DictConfig) -> Predictor:
    """Load the model, and the classifiers that a configuration names, if it does.

    Raises:
        FileNotFoundError: If model or classifiers are missing.
        ValueError: If the classifiers are not of this model, or another search than an exact one is asked for them.
    """
    predictor = load_predictor(config)
    if config.classifiers is not None:
        if config.search == "faiss":
            raise ValueError("search=faiss: the exported index is of the prototypes; classifiers= takes search=exact")
        model, directory = (Path(folder).expanduser() for folder in (config.model.dir, config.classifiers))
        use_classifiers(predictor, model, directory, config.scorer)
    return predictor


def model_corpus(config: DictConfig, predictor: Predictor) -> Corpus:
    """Prepare the data set with the model's own tokenizer and length, and check that its labels are the model's.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If the labels are others.
    """
    corpus = Corpus.open(
        prepare(
            raw_files(config.dataset),
            predictor.tokenizer,
            tokenizer_name=str(config.model.dir),
            pad_token_id=predictor.config["pad_token_id"],
            max_length=predictor.config["max_length"],
            cache_dir=config.cache_dir,
        )
    )
    hint = f"give the data set that the model {config.model.dir} was trained on, dataset=..."
    if predictor.num_labels != corpus.num_labels:
        raise ValueError(
            f"the model has {predictor.num_labels} labels, {config.dataset.name} has {corpus.num_labels}: {hint}"
        )
    for row, ((model_uid, _), (uid, _)) in enumerate(zip(predictor.labels, corpus.labels(), strict=True)):
        if model_uid != uid:
            raise ValueError(f"label {row} is {model_uid!r} in the model, {uid!r} in {config.dataset.name}: {hint}")
    return corpus


def make_classifier_data(config: DictConfig, predictor: Predictor) -> PrimeDataModule:
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
