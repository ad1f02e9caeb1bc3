"""Checks of a composed configuration, made before anything is done with it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prime_xmc.command_line.kinds import fits, in_words, is_number, kind_of, takes_text, takes_whole
from prime_xmc.run_files import goes_on

# Groups that may be left out, by group=null or ~group.
OPTIONAL_GROUPS = ("logger", "callbacks", "experiment", "debug")
_MATMUL = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision, which only warns of another word


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_rate(value: Any) -> bool:
    return is_number(value) and 0 < value < math.inf


def _at_least(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: _is_whole(value, least), f"a whole number of at least {least}"


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


_NOT_NEGATIVE = (lambda value: is_number(value) and 0 <= value < math.inf, "a number of at least 0")
_SHARE = (_is_share, "a number of at least 0 and below 1")
_FRACTION = (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
# Numbers that are in no object's care before the data have been prepared: whether they are right, and what is.
BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (
        lambda value: _is_whole(value, 0) and value < 2**63,
        "a whole number of at least 0 and below 2^63",
    ),
    "dataset.lr": (_is_rate, "a number above 0"),
    "optimizer.lr": (_is_rate, "a number above 0"),
    "optimizer.make.lr": (_is_rate, "a number above 0"),
    "export_every_n_epochs": (
        lambda value: value is None or _is_whole(value, 1),
        "a whole number of at least 1, or null",
    ),
    "checkpoint.every_n_minutes": (lambda value: value is None or _is_rate(value), "a number above 0, or null"),
    "top_k": _at_least(1),
    "chunk": _at_least(1),
    "num_examples": _at_least(0),
    "optimizer.classifier_lr": (_is_rate, "a number above 0"),
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.classifier_weight_decay": _NOT_NEGATIVE,
    "optimizer.warmup_fraction": _FRACTION,
    "encoder.dropout": _SHARE,
    "model.dropout": _SHARE,
    "model.num_heads": _at_least(1),
    "model.feedforward": _at_least(1),
    "model.free_vector_std": _NOT_NEGATIVE,
    "callbacks.memory.every_n_steps": _at_least(1),
    "callbacks.collapse.violators": _FRACTION,
    "trainer.accumulate_grad_batches": _at_least(1),
    "trainer.log_every_n_steps": _at_least(0),
    "trainer.num_sanity_val_steps": (lambda value: _is_whole(value, -1), "a whole number of at least 0, or -1 for all"),
    "trainer.gradient_clip_val": (
        lambda value: value is None or (is_number(value) and 0 <= value < math.inf),
        "a number of at least 0, or null",
    ),
    "num_resamples": _at_least(1),
    "method.parameters.matmul_precision": (lambda value: value in _MATMUL, "highest, high or medium"),
    "delimiter": (lambda value: value is None or len(str(value)) == 1, "a single character, or null"),
    "dataset.max_epochs": _at_least(1),
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
    "dataset.max_length": _at_least(1),
    "dataset.batch_size": (lambda value: value is None or _is_whole(value, 1), "a whole number of at least 1"),
    "sampling.batch_size": (lambda value: value is None or _is_whole(value, 1), "a whole number of at least 1"),
}

# Of the first stage alone, though the second one has them, too: how batches for an encoder are made.
_OF_ENCODER = {
    f"sampling.{name}"
    for name in (
        *("memory_labels", "leave_one_out", "without_centroid", "more_queries_per_label", "label_rows"),
        *("batch_labels", "mask_positives", "mined", "sampler"),
    )
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


def check_values(config: DictConfig, reference: DictConfig, keys: Sequence[str], command: str = "") -> None:
    """Check values that were set by hand: their kinds, see `kinds`, and known bounds.

    A number that stands for a text is made one.

    Args:
        config: The configuration.
        reference: The same without those settings.
        keys: Dotted keys that were set, in their order on the command line.
        command: Entry point that the configuration is of.

    Raises:
        ValueError: If a value is of another kind than its key takes, out of bounds, or null where nothing works without
            a value.
    """
    for key in keys:
        if _is_missing(reference, key) and _value(config, key) is None:
            raise ValueError(f"{key}=null: a value is needed, see --help")
        if not _belongs_to_others(config, reference, key):
            _check_kind(config, reference, key, command)
    for key, expected in NEEDED.items():
        if _has(config, key) and _value(config, key) is None:  # a mandatory key without a value counts as absent
            raise ValueError(f"{key}=null: expected {expected}")
    for key, (is_right, expected) in BOUNDS.items():
        if _has(config, key) and not _belongs_to_others(config, reference, key):
            value = _value(config, key)
            if value is not _ABSENT and not is_right(value):
                raise ValueError(f"{key}={_shown(value)}: expected {expected}")
    endless = all(_value(config, key) == -1 for key in ("trainer.max_epochs", "trainer.max_steps"))
    if endless and not isinstance(_value(config, "trainer.max_time"), str | DictConfig):
        raise ValueError("trainer.max_epochs=-1: training would never end; give trainer.max_steps too")


def check_used(config: DictConfig, overrides: Sequence[Override], choices: Mapping[str, str]) -> None:
    """Refuse settings of the command line that nothing would use, because of what the model is.

    Args:
        config: The configuration.
        overrides: What the command line sets and chooses.
        choices: Option of each group.

    Raises:
        ValueError: If there is one, with the reason.
    """
    because = f"model={choices.get('model')}" if choices.get("model", "null") != "null" else "another option"
    clusters = _value(config, "callbacks.clusters")
    for each in overrides:
        if each.is_delete() or each.value() is None:
            continue
        key, value = each.key_or_group, _shown(each.value())
        if key in choices and _has(config, key) and _value(config, key) is None:
            raise ValueError(f"{key}={value}: nothing would use it, since {because} sets {key}=null; leave it out")
        if _value(config, "task") == "classify" and _is_of_encoder(key):
            raise ValueError(
                f"{key}={value}: nothing would use it, since the model brings its encoder and batches are those of "
                "negatives=sampled or all; leave it out"
            )
        if key.startswith("sampling.clusters") and clusters is None:
            raise ValueError(
                f"{key}={value}: nothing would use it, since no clusters of queries are made (callbacks.clusters=null, "
                f"by {because} or by hand); leave it out"
            )
        if goes_on(config):
            continue
        if (
            key.startswith("sampling.mined.")
            and each.value() is not False
            and _value(config, "sampling.mined.first_epoch") is None
        ):
            raise ValueError(
                f"{key}={value}: nothing would use it, since no labels are searched; give sampling=mined too, or "
                "sampling.mined.first_epoch=<epoch>"
            )
        if key == "sampling.memory_labels" and each.value() != 0 and _value(config, "loss.prototype_weight") == 0:
            raise ValueError(
                f"{key}={value}: nothing would use it, since remembered labels enter the first term of the loss alone, "
                "and loss.prototype_weight=0 switches that off; leave it out"
            )


def _is_of_encoder(key: str) -> bool:
    """Return whether a key, or the group or section it is in, is about training the encoder."""
    parts = key.split(".")
    return parts[0] == "encoder" or key == "sampling" or ".".join(parts[:2]) in _OF_ENCODER


def all_keys(config: DictConfig) -> list[str]:
    """Return the keys at the top of a configuration, whose checks include those of all keys below."""
    return [str(key) for key in config if not OmegaConf.is_missing(config, key)]


_ABSENT = object()


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = _value(config, parent) if parent else config
    return isinstance(node, DictConfig) and name in node


def _is_missing(config: DictConfig, key: str) -> bool:
    """Say whether a key is a mandatory one without a value, which is an error of its own."""
    parent, _, name = key.rpartition(".")
    node = _value(config, parent) if parent else config
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def _value(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key) if _has(config, key) else _ABSENT
    except OmegaConfBaseException:  # an interpolation that has no value yet
        return _ABSENT


def _belongs_to_others(config: DictConfig, reference: DictConfig, key: str) -> bool:
    """Return whether a key is an argument of another object than the one that the defaults name: a user's own."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        target = f"{'.'.join(parts[:end])}._target_"
        if _has(reference, target) and _value(config, target) != _value(reference, target):
            return parts[-1] != "_target_"
    return False


def _check_kind(config: DictConfig, reference: DictConfig, key: str, command: str) -> None:
    value, default = _value(config, key), _value(reference, key)
    if value is _ABSENT or _is_missing(config, key):
        return
    of_bounds = key in BOUNDS and (value is None or is_number(value)) and not BOUNDS[key][0](value)
    if of_bounds or (value is None and key in NEEDED):
        return  # what is said of these says more than their kind
    kind = kind_of(key, None if default is _ABSENT else default, command)
    if kind is None:
        return
    if takes_whole(kind, value):
        OmegaConf.update(config, key, int(value))
    elif not fits(value, kind):
        raise ValueError(f"{key}={_shown(value)}: expected {_expected(key, value, default, kind)}")
    if takes_text(kind, value):
        OmegaConf.update(config, key, str(value))
    if isinstance(value, DictConfig):
        for child in (f"{key}.{name}" for name in value if isinstance(name, str)):
            if not _belongs_to_others(config, reference, child):
                _check_kind(config, reference, child, command)


def _expected(key: str, value: Any, default: Any, kind: str) -> str:
    """Return what a key takes in place of a value, for people."""
    if kind == "section" and isinstance(default, DictConfig) and len(default) and "_target_" not in default:
        return f"a value for each of {', '.join(name for name in default if isinstance(name, str))}"
    if kind.removesuffix("|null") in ("list", "ints", "numbers", "texts") and not isinstance(
        value, DictConfig | ListConfig | None
    ):
        return f"a list, such as {key}=[{_shown(value)}]"
    return in_words(kind)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
