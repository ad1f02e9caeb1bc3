"""What all runs that train have in common: the data, what they say of themselves, and what they leave out."""

import logging
import os
import platform
import resource
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from prime_xmc.data.datamodule import PrimeDataModule


def quiet_libraries() -> None:
    """Leave out what libraries say to everybody: advertisements, which kernels they try, their own deprecations."""
    for name in ("lightning.pytorch", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # a batch is built in a thousandth of the time of a step: workers would only cost memory
    warnings.filterwarnings("ignore", message="The .* does not have many workers")
    # small data have no validation queries, which is said before training
    warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")
    # what is lost then is which checkpoint was the best: here it is the last one
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated", category=FutureWarning)


def describe_run(config: DictConfig, data: PrimeDataModule) -> dict[str, Any]:
    """Return what it takes to know how a model was made, as plain JSON."""
    return {
        "config": OmegaConf.to_container(config, resolve=True),
        "dataset": data.corpus.manifest["name"],
        "data_fingerprint": data.corpus.manifest["fingerprint"],
        "seed": config.seed,
        "torch_version": torch.__version__,
        "prime_xmc_version": version("prime_xmc"),
        "git_commit": _git_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
    }


def describe_training(trainer: Any, module: Any, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what metrics.json says of a training besides its metrics.

    Args:
        trainer: The Trainer, when it has trained.
        module: What it has trained.
        seconds: How long that took.
        settings: What `describe_run` returned.
    """
    return {
        "train/epochs": trainer.current_epoch,
        "train/seconds": seconds,
        "train/queries_per_second": module.num_trained / seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "num_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    } | {name: settings[name] for name in ("torch_version", "prime_xmc_version", "seed", "git_commit")}


def _git_commit() -> str | None:
    """Return the commit of the source, None where it is not a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
