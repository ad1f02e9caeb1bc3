"""The file of ranks: where a run ranked the positives of each test query, which is all that most metrics look at.

It takes a hundredth of the place of the predictions, which it has in a record. Macro metrics also count the labels that
are no positives, so that the file has their values.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, UInt8

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import TOP_K, hits
from prime_xmc.evaluation.predictions import read_arrays
from prime_xmc.files import replacing

PREDICTIONS = "predictions"  # how names of files of predictions begin
_RANKS = "ranks"  # how those of files of ranks begin
_EXPECTED = "expected the file of ranks that a record of a run has"


def name_of_ranks(predictions: str) -> str:
    """Return the name that a file of ranks has beside, or in the place of, one of predictions.

    Example:
        >>> name_of_ranks("predictions_W.npz")
        'ranks_W.npz'
    """
    return predictions.replace(PREDICTIONS, _RANKS, 1)


def are_ranks(path: Path) -> bool:
    """Return whether a file is one of ranks by its name."""
    return path.name.startswith(_RANKS)


def ranks_of(indices: Int[np.ndarray, "query k"], positives: Ragged) -> UInt8[np.ndarray, " positive"]:
    """Return the rank of each positive, from 1, or 0 where it is not among the first `TOP_K` labels of its query.

    Args:
        indices: Labels predicted for each query, best first; -1 pads.
        positives: True labels of each query, unique within a row; the ranks are in their order.
    """
    indices = indices[:, :TOP_K]
    row, column = np.nonzero(hits(indices, positives))
    num_labels = int(max(indices.max(initial=-1), positives.values.max(initial=-1))) + 1
    keys = positives.row_ids() * num_labels + positives.values
    order = np.argsort(keys)
    place = order[np.searchsorted(keys[order], row * num_labels + indices[row, column])]
    ranks = np.zeros(len(keys), dtype=np.uint8)
    ranks[place] = column + 1
    return ranks


def save_ranks(path: Path, ranks: UInt8[np.ndarray, " positive"], macro: Mapping[str, float]) -> None:
    """Write the ranks of a run and the values of its macro metrics; the file appears when it is complete."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, ranks=ranks, names=np.array([*macro]), values=np.array([*macro.values()], dtype=float)
        )


def load_ranks(
    path: Path, positives: Ragged, macro: Sequence[str]
) -> tuple[Int32[np.ndarray, "query rank"], dict[str, float]]:
    """Read the ranks of a run and the values of its macro metrics. Nothing in the file is executed.

    Args:
        path: The file.
        positives: True labels of each query, those that the ranks are of.
        macro: Names of the macro metrics.

    Returns:
        The positives at their ranks, [queries, `TOP_K`], with -1 where a label stood that is no positive; and the value
        of each macro metric.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of ranks, or its ranks cannot be those of these positives.
    """
    arrays = read_arrays(path, _EXPECTED)
    ranks, names, values = (arrays.get(name, np.empty(0)) for name in ("ranks", "names", "values"))
    kinds = (ranks.dtype == np.uint8, names.dtype.kind == "U", values.dtype == np.float64)
    if not all(kinds) or ranks.ndim != 1 or names.ndim != 1 or names.shape != values.shape:
        raise ValueError(f"{path}: holds the arrays {sorted(arrays)}; {_EXPECTED}")
    value_of = dict(zip(names.tolist(), values.tolist(), strict=True))
    if wrong := [name for name in macro if not 0 <= value_of.get(name, -1) <= 1]:
        raise ValueError(f"{path}: {wrong[0]} is {value_of.get(wrong[0])}, expected a fraction; {_EXPECTED}")
    if ranks.shape != positives.values.shape:
        raise ValueError(f"{path}: ranks of {ranks.size} positives, but the test split has {positives.values.size}")
    found = ranks > 0
    place = positives.row_ids()[found] * TOP_K + ranks[found] - 1
    if ranks.max(initial=0) > TOP_K or np.unique(place).size != place.size:
        raise ValueError(f"{path}: two labels of a query at one rank, or a rank beyond {TOP_K}; {_EXPECTED}")
    indices = np.full((len(positives), TOP_K), -1, dtype=np.int32)
    indices.ravel()[place] = positives.values[found]
    return indices, {name: value_of[name] for name in macro}
