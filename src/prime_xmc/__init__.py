"""PRIME: prototypical extreme multi-label classification with a dynamic margin loss."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prime_xmc.export.predictor import Predictor

__all__ = ["load"]
__version__ = version("prime_xmc")

# A training step touches GBs of fresh memory, a fault for each 4 KB page of it: huge pages spare a tenth of its time.
# Read at torch's first allocation, so it has to be set before anything else of this package is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def load(folder: str | Path, **options: Any) -> "Predictor":
    """Open an exported model, `<run>/model`; arguments and errors are those of `Predictor.load`."""
    from prime_xmc.export.predictor import Predictor  # torch and transformers take seconds to import

    return Predictor.load(folder, **options)
