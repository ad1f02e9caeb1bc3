"""Configurations of earlier versions, such as those in run folders, brought up to this one."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

# Where version 0.1.0 had what a configuration names by `_target_`.
MOVED = {
    "prime_xmc.callbacks.": "prime_xmc.training.callbacks.",
    "prime_xmc.checkpoints.": "prime_xmc.training.checkpoints.",
    "prime_xmc.model.optimizers.": "prime_xmc.training.optimizers.",
    "prime_xmc.sweeps.": "prime_xmc.training.sweeps.",
    "prime_xmc.tracking.": "prime_xmc.training.tracking.",
    "torch.optim.SparseAdam": "prime_xmc.training.optimizers.RowAdam",
    "lightning.pytorch.loggers.CSVLogger": "prime_xmc.training.curves.CSVCurves",
    "lightning.pytorch.callbacks.RichProgressBar": "prime_xmc.training.progress_bar.EpochProgress",
}
# Sections that code reads key by key. Others are given to objects, which have their own defaults.
SECTIONS = ("dataset", "sampling", "trainer")
KEPT = ("name", "dir", "hint", "num_test")  # of a data set: never another one's
# What older runs had none of, in place of today's default: a run of theirs stays what it was.
ABSENT = {
    "classify": None,
    "neighbours": None,
    "lexical": None,
    "sampling.memory_labels": 0,
    "sampling.leave_one_out": 0.0,
    "sampling.without_centroid": 0.0,
}


def update_targets(config: DictConfig) -> None:
    """Let each `_target_` of version 0.1.0 name the place where the object is now; the configuration is changed."""
    for node in _nodes(config):
        if isinstance(node, DictConfig) and isinstance(target := node.get("_target_"), str):
            for old, new in MOVED.items():
                if target.startswith(old):
                    with open_dict(node):
                        node["_target_"] = new + target.removeprefix(old)


def wrap_logger(config: DictConfig) -> None:
    """Give a logger that stands alone under `logger`, as in version 0.1.0, a name; the configuration is changed."""
    logger = config.get("logger")
    if isinstance(logger, DictConfig) and "_target_" in logger:
        content: Any = OmegaConf.to_container(logger, resolve=False)
        target = content["_target_"].rpartition(".")[2].lower()
        name = next((known for known in ("csv", "tensorboard", "wandb") if known in target), "own")
        # what it says of itself, ${logger.offline}, is still found
        beside = {key: value for key, value in content.items() if key != "_target_"}
        with open_dict(config):
            config.logger = beside | {name: content}


def add_keys(config: DictConfig, defaults: DictConfig) -> None:
    """Add the keys that came after a configuration was written, with their defaults; the configuration is changed.

    Args:
        config: The configuration.
        defaults: What its entry point has without any setting.
    """
    with open_dict(config):
        for key, value in ABSENT.items():
            group, _, name = key.rpartition(".")
            node, known = (OmegaConf.select(each, group) if group else each for each in (config, defaults))
            if isinstance(node, DictConfig) and isinstance(known, DictConfig) and name in known and name not in node:
                OmegaConf.update(config, key, value)
    _fill(config, defaults, ())
    for section in SECTIONS:
        if isinstance(config.get(section), DictConfig) and isinstance(defaults.get(section), DictConfig):
            _fill(config[section], defaults[section], KEPT if section == "dataset" else ())


def _fill(node: DictConfig, defaults: DictConfig, kept: tuple[str, ...]) -> None:
    plain: Any = OmegaConf.to_container(defaults, resolve=False)
    with open_dict(node):
        for key in defaults:
            if key not in node and key not in kept and not OmegaConf.is_missing(defaults, key):
                node[key] = plain[key]


def _nodes(node: Any) -> Iterator[DictConfig | ListConfig]:
    """Yield all dictionaries and lists of a configuration; interpolations and missing values are left alone."""
    if isinstance(node, DictConfig | ListConfig) and not node._is_none() and not node._is_missing():
        yield node
        keys = list(node) if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            yield from _nodes(node._get_node(key))
