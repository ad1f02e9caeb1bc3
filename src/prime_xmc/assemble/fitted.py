"""What a configuration leaves to the size of the data."""

import copy

from omegaconf import DictConfig, OmegaConf

from prime_xmc.data.corpus import Corpus
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.fitting import Setting, find_problems, fit


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


def fit_second_stage(config: DictConfig, data: PrimeDataModule) -> DictConfig:
    """Return a copy of the configuration of a second stage, fitted to the data with the held-out queries of the first.

    Raises:
        ValueError: If given settings cannot work with so much data.
    """
    config = copy.deepcopy(config)
    config.dataset.num_validation = len(data.validation_ids)
    return fit_to_data(config, data.corpus)


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
