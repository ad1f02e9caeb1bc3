"""What all runs that train have in common: what they say of themselves, and what they leave out."""

import logging
import os
import platform
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
    # the best checkpoint, which is the one thing that is lost then, is not kept here
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


def _git_commit() -> str | None:
    """Return the commit of the source, None where it is not a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
