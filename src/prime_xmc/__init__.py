"""PRIME: prototypical extreme multi-label classification with a dynamic margin loss."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prime_xmc.environment import set_defaults

if TYPE_CHECKING:
    import prime_xmc.api
    import prime_xmc.export.predictor

__all__ = ["load", "train"]
__version__ = version("prime_xmc")

set_defaults(os.environ)  # before anything else of this package is imported, and torch with it


def load(
    folder: str | Path,
    device: str = "cpu",
    index: Literal["auto", "exact", "faiss"] = "auto",
    precision: str | None = None,
    scorer: str = "auto",
    classifiers: str | Path | None = None,
    prototype_dtype: str = "float32",
) -> "prime_xmc.export.predictor.Predictor":
    """Open an exported model, `<run>/model`; arguments and errors are those of `Predictor.load`."""
    from prime_xmc.export.predictor import Predictor  # torch and transformers take seconds to import

    return Predictor.load(
        folder,
        device=device,
        index=index,
        precision=precision,
        scorer=scorer,
        classifiers=classifiers,
        prototype_dtype=prototype_dtype,
    )


def train(overrides: Sequence[str] = (), **settings: Any) -> "prime_xmc.api.TrainedRun":
    """Train as `python -m prime_xmc.train` does; arguments and errors are those of `prime_xmc.api.train`.

    Example:
        trained = prime_xmc.train(["dataset=custom"], **{"dataset.dir": "my_data", "dataset.lr": 1e-4})
        trained.metrics["test/P@1"], prime_xmc.load(trained.run_dir / "model")
    """
    from prime_xmc.api import train

    return train(overrides, **settings)
