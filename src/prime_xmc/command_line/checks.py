"""Checks of a composed configuration, made before anything is done with it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Keys that take values of other types than their defaults: a list or "auto", true as well as settings, true or a number
FREE_KEYS = {"trainer.devices", "trainer.fast_dev_run", "classify", "model.num_private", "checkpoint.every_n_minutes"}
# Groups that may be left out, by group=null or ~group.
OPTIONAL_GROUPS = ("logger", "callbacks", "experiment", "debug")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


# Numbers that are in no object's care before the data have been prepared: whether they are right, and what is.
BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda value: _is_whole(value, 0), "a whole number of at least 0"),
    "dataset.lr": (_is_rate, "a number above 0"),
    "optimizer.lr": (_is_rate, "a number above 0"),
    "optimizer.make.lr": (_is_rate, "a number above 0"),
    "export_every_n_epochs": (
        lambda value: value is None or _is_whole(value, 1),
        "a whole number of at least 1, or null",
    ),
    "checkpoint.every_n_minutes": (lambda value: value is None or _is_rate(value), "a number above 0, or null"),
    "top_k": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "chunk": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "dataset.max_epochs": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "trainer.max_epochs": (
        lambda value: _is_whole(value, 1) or value == -1,
        "a whole number of at least 1, or -1 to train until trainer.max_steps",
    ),
    "dataset.validate_every": (lambda value: value is None or _is_whole(value, 1), "a whole number of at least 1"),
    "trainer.check_val_every_n_epoch": (
        lambda value: value is None or _is_whole(value, 1),
        "a whole number of at least 1",
    ),
    "dataset.fields": (lambda value: not isinstance(value, ListConfig) or len(value) > 0, "at least one field"),
    "dataset.max_length": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "dataset.batch_size": (lambda value: value is None or _is_whole(value, 1), "a whole number of at least 1"),
    "sampling.batch_size": (lambda value: value is None or _is_whole(value, 1), "a whole number of at least 1"),
}

# Keys that nothing works without, and what they name.
NEEDED = {
    "dataset.dir": "the folder of the raw files",
    "encoder.source": "a folder of an encoder, or its name on the hub",
    "cache_dir": "a folder for prepared data",
    "run_dir": "a folder for the run",
    "dataset.name": "a name for the data set",
    "dataset.propensity": "a value for each of a, b",
}


def check_groups(config: DictConfig, groups: Sequence[str]) -> None:
    """Check that a configuration has the groups that its entry point needs.

    Raises:
        ValueError: If one was left out by group=null or ~group.
    """
    for group in groups:
        if group not in config and group not in OPTIONAL_GROUPS:
            raise ValueError(f"{group}=null: one of the options of {group} is needed, see --help")


def check_values(config: DictConfig, reference: DictConfig, keys: Sequence[str]) -> None:
    """Check values that were set by hand: their types against those of the defaults, and known bounds.

    Args:
        config: The configuration.
        reference: The same without those settings.
        keys: Dotted keys that were set, in their order on the command line.

    Raises:
        ValueError: If a value is of another type than the default, which is a number, true or false, or a list; or if
            it is out of bounds, or null where nothing works without one.
    """
    for key in keys:
        if _is_missing(reference, key) and _value(config, key) is None:
            raise ValueError(f"{key}=null: a value is needed, see --help")
        _check_type(key, _value(config, key), _value(reference, key))
    for key, expected in NEEDED.items():
        if _has(config, key) and _value(config, key) is None:  # a mandatory key without a value counts as absent
            raise ValueError(f"{key}=null: expected {expected}")
    for key, (is_right, expected) in BOUNDS.items():
        if _has(config, key):
            value = _value(config, key)
            if value is not _ABSENT and not is_right(value):
                raise ValueError(f"{key}={_shown(value)}: expected {expected}")


_ABSENT = object()


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and name in node


def _is_missing(config: DictConfig, key: str) -> bool:
    """Say whether a key is a mandatory one without a value, which is an error of its own."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def _value(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key) if _has(config, key) else _ABSENT
    except OmegaConfBaseException:  # an interpolation that has no value yet
        return _ABSENT


def _check_type(key: str, value: Any, default: Any) -> None:
    if value is _ABSENT or value is None or default is _ABSENT or default is None or key in FREE_KEYS:
        return
    if isinstance(default, DictConfig):
        if "_target_" in default:
            return
        if not isinstance(value, DictConfig):
            names = ", ".join(f"{name}" for name in default if isinstance(name, str))
            raise ValueError(f"{key}={_shown(value)}: expected a value for each of {names}")
        for name in value:
            if name in default:
                _check_type(f"{key}.{name!s}", _value(value, str(name)), _value(default, str(name)))
        return
    expected = ""
    if isinstance(default, bool):
        expected = "" if isinstance(value, bool) else "true or false"
    elif isinstance(default, int):
        expected = "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    elif isinstance(default, float):
        expected = "" if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    elif isinstance(default, ListConfig) and not isinstance(value, ListConfig):
        expected = f"a list, such as {key}=[{_shown(value)}]"
    if expected:
        raise ValueError(f"{key}={_shown(value)}: expected {expected}")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
