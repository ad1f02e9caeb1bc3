"""`python -m prime_xmc.train`: prepare, train, test, export."""

import sys
from types import ModuleType
from typing import Any

from omegaconf import DictConfig

from prime_xmc.app import run_app


def train(config: DictConfig) -> float | None:
    """Train by a configuration, or run it as a job of a sweep; return the validation P@1."""
    from prime_xmc.stages import train_prototypes  # here, because the help need not wait for torch
    from prime_xmc.training.sweeps import in_sweep, note_finished, run_in_a_process, run_job

    if not in_sweep():
        objective = train_prototypes(config).metrics.get("val/P@1")
        note_finished(config)
        return objective
    data_parallel = "ddp" in str(config.trainer.get("strategy")).lower()
    return run_job(config, run_in_a_process if data_parallel else train_prototypes)


class _CallableModule(ModuleType):
    """This module, which takes the place of the function `prime_xmc.train` where it is imported by its full name."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from prime_xmc.api import train

        return train(*arguments, **settings)


sys.modules[__name__].__class__ = _CallableModule


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.train:train", "train")


if __name__ == "__main__":
    main()
