"""The rankings of any tool, read and checked against the test split that they are meant for."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from prime_xmc.data.corpus import Corpus
from prime_xmc.data.raw import Record
from prime_xmc.evaluation.metrics import TOP_K
from prime_xmc.evaluation.predicted_lines import is_json_lines, load_predicted_lines
from prime_xmc.evaluation.predictions import load_predictions
from prime_xmc.evaluation.rank import remove_filtered

logger = logging.getLogger(__name__)


def read_rankings(
    path: Path, corpus: Corpus, queries: Iterable[Record]
) -> tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """Return label ids and scores of the `TOP_K` best labels of each test query, filtered pairs removed.

    Args:
        path: A file that `load_predictions` or `load_predicted_lines` reads, with a row for each test query in the
            order of the split.
        corpus: The data set.
        queries: The test queries in order, with which predictions that name their query are compared.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not readable, or has another number of rows than the split has queries.
    """
    if not path.is_file():
        what = "it is a folder, and a file is expected" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"predictions={path}: {what}")
    split = corpus.test
    wanted = TOP_K + int(split.filtered.lengths.max(initial=0))
    if is_json_lines(path):
        indices, scores = load_predicted_lines(path, corpus.labels(), queries, wanted)
    else:
        indices, scores = load_predictions(path, wanted, corpus.num_labels)
    if len(indices) != len(split):
        raise ValueError(
            f"{path} has {len(indices)} rows, the test split has {len(split)} queries: expected a row for each, in "
            "the order of the split"
        )
    try:
        indices, scores = remove_filtered(indices, scores, split.filtered, TOP_K)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    available = np.minimum(TOP_K, corpus.num_labels - split.filtered.lengths)
    num_short = int(((indices >= 0).sum(axis=1) < available).sum())
    if num_short:
        logger.warning(
            "%s: fewer than %d labels for %d of %d queries, filtered pairs left out: R@%d counts those not there as "
            "misses",
            path,
            available.max(),
            num_short,
            len(indices),
            TOP_K,
        )
    return indices, scores
