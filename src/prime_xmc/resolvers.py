"""What configuration files ask for in `${name:...}`, by the names under which it is registered here."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def package_folder(location: str) -> str:
    """Return the folder of data files that an installed package carries, without running the package's code.

    In the configuration files: `${package:<name>/<path>}`.

    Raises:
        ValueError: The package is not installed or has no such folder.
    """
    package, _, path = location.partition("/")
    spec = importlib.util.find_spec(package)  # locates a top-level package without importing it
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {package} is not installed: pip install {package.replace('_', '-')}")
    folder = Path(spec.origin).parent / path
    if not folder.is_dir():
        raise ValueError(f"the package {package} has no folder {path}: expected {folder}")
    return str(folder)


def native_precision(accelerator: str) -> str:
    """Return Lightning's name of the fastest precision that the machine computes natively.

    In the configuration files: `${native_precision:cpu}`.
    """
    from prime_xmc.model import precision  # torch takes seconds to import

    return precision.native_precision(accelerator)


def by_device(accelerator: str, cpu: Any, gpu: Any) -> Any:
    """Return the one of two values that is for the device of an accelerator, as Lightning calls it.

    In the configuration files: `${by_device:${trainer.accelerator},4,20}`.
    """
    if accelerator == "auto":
        import torch  # takes seconds

        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    return cpu if accelerator == "cpu" else gpu


def default_free_vectors(num_labels: int) -> int:
    """Return the number of free vectors for some labels, which configurations of version 0.1.0 ask for.

    They write `${free_vectors:${dataset.num_labels}}`; today's leave the key null.
    """
    from prime_xmc.data.fitting import free_vectors  # not before it is needed: commands start faster

    return free_vectors(num_labels)


# replace: a test process imports this module afresh for another copy of the package
OmegaConf.register_new_resolver("package", package_folder, replace=True)
OmegaConf.register_new_resolver("native_precision", native_precision, replace=True)
OmegaConf.register_new_resolver("by_device", by_device, replace=True)
OmegaConf.register_new_resolver("free_vectors", default_free_vectors, replace=True)
# A training that is shorter than the interval validates after its last epoch. null is no validation by epochs.
OmegaConf.register_new_resolver(
    "validation_interval", lambda every, last: min(every, last) if every and last and last > 0 else every, replace=True
)
# Layers can stay frozen where they are pre-trained and the implementation can freeze them.
OmegaConf.register_new_resolver(
    "frozen_layers",
    lambda number, implementation, pretrained: number if implementation == "packed" and pretrained else 0,
    replace=True,
)
# Half of what is to follow the size of the data is not null itself: it would pass for the whole of it.
OmegaConf.register_new_resolver("half", lambda number: "half" if number is None else number // 2, replace=True)


def _job_folder(*, _root_: DictConfig) -> str:
    """Return what `training.sweeps.job_folder` does; that module takes the place of this when it is imported."""
    return importlib.import_module("prime_xmc.training.sweeps").job_folder(_root_=_root_)


if not OmegaConf.has_resolver("job_folder"):  # asked for before a job, and with it that module, is started
    OmegaConf.register_new_resolver("job_folder", _job_folder)
