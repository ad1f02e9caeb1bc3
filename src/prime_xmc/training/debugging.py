"""Runs to find faults with: what marks them, and where their profile is written."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig

logger = logging.getLogger(__name__)

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
# Settings of the Trainer with which a run sees only a part of the data, and their values with which it does not.
PARTIAL = {
    "fast_dev_run": (False, None, 0),
    "overfit_batches": (0, None),
    "limit_train_batches": (None, 1.0),
    "limit_val_batches": (None, 1.0),
    "limit_test_batches": (None, 1.0),
}


def debugging(config: DictConfig) -> str | None:
    """Return what makes a run one for debugging: the option of `debug`, or settings of the Trainer; None: it is none.

    The numbers of such a run say nothing of the method, and reports leave it out.
    """
    if config.get("debug") is not None:
        return str(config.debug)
    return ", ".join(f"trainer.{key}" for key in limits(config)) or None


def limits(config: DictConfig) -> dict[str, Any]:
    """Return the settings of the Trainer with which a run sees only a part of the data."""
    given = {key: config.trainer.get(key) for key in PARTIAL}
    return {key: value for key, value in given.items() if not _is_whole(value, PARTIAL[key])}


def mark_debugging(config: DictConfig) -> dict[str, str]:
    """Return what metrics.json says of a run for debugging; empty for any other run."""
    name = debugging(config)
    return {} if name is None else {"debug": name}


def _is_whole(value: object, whole: tuple[object, ...]) -> bool:
    return any(value == each and isinstance(value, float) >= isinstance(each, float) for each in whole)


def check_profiler(name: str | None) -> None:
    """Check that there is a profiler of a name.

    Raises:
        ValueError: If there is none.
    """
    if name is not None and name not in PROFILERS:
        raise ValueError(f"trainer.profiler={name}: expected {', '.join(PROFILERS)} or null")


def make_profiler(name: str | None, run_dir: Path) -> Profiler | None:
    """Return the profiler of a name, which writes <run>/<stage>-profile.txt; None for None.

    Raises:
        ValueError: If there is none of that name.
    """
    check_profiler(name)
    if name is None:
        return None
    logger.info("the profile will be in %s and %s", run_dir / "fit-profile.txt", run_dir / "test-profile.txt")
    return PROFILERS[name](dirpath=run_dir, filename="profile")
