"""Embeddings that are computed once and kept in the cache, as banks in a folder."""

import logging
from collections.abc import Mapping
from pathlib import Path

from prime_xmc.files import publishing
from prime_xmc.model.banks import RowBank

logger = logging.getLogger(__name__)


def load_embeddings(directory: Path, banks: Mapping[str, RowBank]) -> None:
    """Read what `save_embeddings` wrote.

    Args:
        directory: Folder in the cache.
        banks: Tables to fill, by their folder within it; "." is the folder itself.

    Raises:
        ValueError: If what is there is damaged or incomplete; it names the folder to delete.
    """
    for name, bank in banks.items():
        try:
            bank.load(directory / name)
        except ValueError as error:
            raise ValueError(
                f"{error}; these are cached embeddings: delete {directory.absolute()}, and they are computed again"
            ) from error


def save_embeddings(directory: Path, banks: Mapping[str, RowBank]) -> None:
    """Write embeddings to a new folder; where they cannot be written, a warning says so, as they are only a cache.

    Args:
        directory: Folder in the cache.
        banks: Tables, by their folder within it; "." is the folder itself.
    """
    try:
        with publishing(directory, replace=False) as temporary:
            for name, bank in banks.items():
                bank.save(temporary / name)
    except OSError as error:
        logger.warning(
            "the embeddings cannot be kept in %s (%s), so the next run computes them again", directory.absolute(), error
        )
