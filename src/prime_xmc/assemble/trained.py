"""A trained model, and the data that it was trained on."""

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig

from prime_xmc.assemble.opened import open_data, raw_files
from prime_xmc.data.corpus import Corpus
from prime_xmc.data.datamodule import HELD_OUT, TRAINED_ON, PrimeDataModule
from prime_xmc.data.preparation import prepare
from prime_xmc.export.folder import model_version
from prime_xmc.export.predictor import Predictor

logger = logging.getLogger(__name__)


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
            "its labels, as they are in labels.jsonl, or evaluate it by prime_xmc.load(...).evaluate, with the "
            "pairs of filter files as its filtered="
        )
    if predictor.num_labels != corpus.num_labels:
        raise ValueError(
            f"the model has {predictor.num_labels} labels, {config.dataset.name} has {corpus.num_labels}: {hint}"
        )
    for row, ((model_uid, _), (uid, _)) in enumerate(zip(predictor.labels, corpus.labels(), strict=True)):
        if model_uid != uid:
            raise ValueError(f"label {row} is {model_uid!r} in the model, {uid!r} in {config.dataset.name}: {hint}")
    if len(corpus.test) and (corpus.test_rows is not None or source.has_drawn_test()):
        _warn_of_other_split(config, predictor, corpus)
    return corpus


def _warn_of_other_split(config: DictConfig, predictor: Predictor, corpus: Corpus) -> None:
    """Warn where the test queries were drawn, and others when the model was trained."""
    settings = predictor.config["settings"]
    if TRAINED_ON in settings:
        is_same = settings[TRAINED_ON] == corpus.training_hash
    else:  # of an earlier version
        is_same = settings.get("data_fingerprint") in (None, corpus.manifest["fingerprint"])
    if is_same:
        return
    way = "give test queries in a file of their own, or train again"
    if corpus.test_rows is not None:
        dataset = (settings.get("config") or {}).get("dataset") or {}
        if dataset.get("num_test") != corpus.manifest["num_test"]:
            number = dataset.get("num_test")
            number = "null" if number is None else number
            way = f"if the data are the same, give dataset.num_test={number} as in its training; otherwise {way}"
    logger.warning(
        "the test queries of %s are drawn at random, and %s was trained when others were drawn, on other data or by an "
        "earlier version: it may have been trained on some of them, so that the metrics are too high. %s",
        config.dataset.name,
        config.model.dir,
        way.capitalize(),
    )


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
    held_out = settings.get(HELD_OUT, "")  # version 0.1.0 did not say it
    data = open_data(
        config,
        str(Path(config.model.dir).expanduser()),
        prompts=predictor.encoder.prompts,
        max_length=predictor.config["max_length"],
        num_validation=num_validation,
        seed=seed,
        held_out_before=held_out,
        corpus=corpus,
    )
    is_other = settings.get(TRAINED_ON, corpus.training_hash) != corpus.training_hash
    if len(data.validation_ids) and (is_other or held_out not in ("", data.held_out)):
        logger.warning(
            "%s was trained on other data, of which other queries were held out: it may have been trained on some of "
            "these validation queries, so that what is chosen and measured by them is too good",
            config.model.dir,
        )
    return data
