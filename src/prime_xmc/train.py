"""`python -m prime_xmc.train`: prepare, train, test, export."""

from omegaconf import DictConfig

from prime_xmc.app import run_app
from prime_xmc.stages import train_prototypes
from prime_xmc.training.sweeps import in_sweep, run_in_a_process, run_job


def train(config: DictConfig) -> float | None:
    """Train by a configuration, or run it as a job of a sweep; return the validation P@1."""
    if not in_sweep():
        return train_prototypes(config).metrics.get("val/P@1")
    data_parallel = "ddp" in str(config.trainer.get("strategy")).lower()
    return run_job(config, run_in_a_process if data_parallel else train_prototypes)


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app(train, "train")


if __name__ == "__main__":
    main()
