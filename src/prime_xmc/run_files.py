"""Names of the files of a run folder that commands and trainings know it by, and of settings."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

METADATA = Path(".hydra")  # what Hydra writes before a run begins
CONFIG = METADATA / "config.yaml"  # the configuration, composed and not resolved
OVERRIDES = METADATA / "overrides.yaml"  # the settings of the command line; the last of what Hydra writes
CHECKPOINT = Path("checkpoints", "last.ckpt")  # the newest checkpoint
CHECKPOINT_BEFORE = CHECKPOINT.with_name(f"before-{CHECKPOINT.name}")
TRUST_OPTION = "--trust-config"  # of the command line: run the configuration of a run folder whatever code it names
TRUST_VARIABLE = "PRIME_XMC_TRUST_CONFIG"  # the same for the processes that a run starts
METRICS = "metrics.json"  # the last that a run writes, which says that it is finished
# Settings of a data set that only the training of an encoder reads.
OF_TRAINING = tuple(
    f"dataset.{name}"
    for name in ("num_free_vectors", "batch_size", "num_positives", "validate_every", "max_epochs", "lr", "clusters")
)


def goes_on(config: Mapping[Any, Any]) -> bool:
    """Return whether a run goes on, from a checkpoint or in its folder, which it does as it was begun.

    Example:
        >>> goes_on({"ckpt_path": "last.ckpt"}), goes_on({"ckpt_path": None, "resume": None})
        (True, False)
    """
    return any(config.get(key) is not None for key in ("ckpt_path", "resume"))


def key_of(setting: str) -> str:
    """Return the key, or the group, that a setting of the command line is about.

    Example:
        >>> [key_of(setting) for setting in ("loss.gamma_min=0.1", "++name==b", "~encoder")]
        ['loss.gamma_min', 'name', 'encoder']
    """
    return setting.lstrip("+~").partition("=")[0]


def is_below(key: str, names: Iterable[str]) -> bool:
    """Return whether a key is one of some names, or one of the keys that these hold.

    Example:
        >>> [is_below(key, ["loss", "dataset.lr"]) for key in ("loss", "loss.gamma_min", "dataset.lr_end")]
        [True, True, False]
    """
    return any(key == name or key.startswith(f"{name}.") for name in names)
