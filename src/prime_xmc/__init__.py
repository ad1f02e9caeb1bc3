"""PRIME: prototypical extreme multi-label classification with a dynamic margin loss."""

from importlib.metadata import version

__version__ = version("prime_xmc")
