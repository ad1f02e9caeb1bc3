"""PRIME: prototypical extreme multi-label classification with a dynamic margin loss."""

import os
from importlib.metadata import version

__version__ = version("prime_xmc")

# A training step touches GBs of fresh memory, a fault for each 4 KB page of it: huge pages spare a tenth of its time.
# Read at torch's first allocation, so it has to be set before anything else of this package is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
