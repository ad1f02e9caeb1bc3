"""The file of predictions: the top-k labels of every query of a split, ours or another tool's."""

import logging
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from prime_xmc.evaluation.metrics import TOP_K
from prime_xmc.files import replacing

_LOG = logging.getLogger(__name__)
_CHUNK = 8192  # queries sorted at once
_EXPECTED = (
    "expected an .npz with `indices` (integer) and `scores` (float), both [queries, k], or a CSR matrix of scores "
    "[queries, labels] as scipy.sparse.save_npz writes it; the JSON lines of prime_xmc.predict are read, too"
)


def save_predictions(path: Path, indices: Int[np.ndarray, "query k"], scores: Float[np.ndarray, "query k"]) -> None:
    """Write label ids as int32 and scores as float32; the file appears under its name only when it is complete.

    Uncompressed: ids and scores are close to random bits, which zip hardly shortens but takes a minute over.

    Args:
        path: the file, usually called ``predictions.npz``.
        indices: label ids, best first; -1 pads.
        scores: higher is closer; -inf where padded.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, indices=indices.astype(np.int32), scores=scores.astype(np.float32))


# What NumPy and zipfile raise for bytes that are no archive of arrays.
_UNREADABLE = (
    *(ValueError, EOFError, KeyError, TypeError, SyntaxError, OverflowError, MemoryError, OSError),
    *(RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error),
)
_UNSUSPICIOUS = 2**28  # bytes of arrays that may come of a file of any size
_LARGEST_RATIO = 100  # of arrays to their file; ids and scores of labels compress to a half


def load_predictions(
    path: Path, k: int = TOP_K, num_labels: int | None = None
) -> tuple[Int32[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """Read the k best labels of each query from our own predictions or from another tool's sparse score matrix.

    Rows of a sparse matrix, and others whose scores do not descend, are sorted by score, ties by label id.

    Args:
        path: an .npz file, one row per query, in the order of the split. Nothing in it is executed.
        k: columns to return.
        num_labels: labels of the data set, which is how many columns a matrix of scores has to have; None: unknown.

    Returns:
        Label ids and scores, best first, always k columns: where the file offers fewer labels, -1 and -inf.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file holds anything else than predictions; names the file, what is wrong and what is
            expected.
    """
    arrays = read_arrays(path, _EXPECTED)
    if {"indptr", "indices", "data", "shape", "format"} <= arrays.keys():
        indices, scores = _from_csr(path, arrays, k, num_labels)
    elif {"indices", "scores"} <= arrays.keys():
        indices, scores = _from_top_k(path, arrays, k)
    else:
        raise ValueError(f"{path}: holds the arrays {sorted(arrays)}; {_EXPECTED}")
    _LOG.info("%s: predictions of %d queries", path, len(indices))
    return indices, scores


def read_arrays(path: Path, expected: str) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name, without running anything of it.

    Args:
        path: the file.
        expected: what it should be, for messages.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not readable, or would take far more memory than its size promises.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("a single array")
            size, packed = archive.zip.infolist(), path.stat().st_size
            if (total := sum(entry.file_size for entry in size)) > max(_UNSUSPICIOUS, _LARGEST_RATIO * packed):
                raise ValueError(f"{packed:,} bytes that would become {total:,}")
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not readable as predictions ({error}); {expected}") from error


def _from_top_k(path: Path, arrays: dict[str, np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    indices, scores = arrays["indices"], arrays["scores"]
    if indices.ndim != 2 or indices.shape != scores.shape:
        raise ValueError(f"{path}: `indices` has shape {indices.shape}, `scores` {scores.shape}; {_EXPECTED}")
    _check_values(path, indices, scores)
    top_indices, top_scores = _empty(len(indices), k)
    for start in range(0, len(indices), _CHUNK):
        rows = slice(start, start + _CHUNK)
        best, best_scores = _descending(indices[rows], scores[rows])
        top_indices[rows, : best.shape[1]] = best[:, :k]
        top_scores[rows, : best.shape[1]] = best_scores[:, :k]
    return top_indices, top_scores


def _from_csr(
    path: Path, arrays: dict[str, np.ndarray], k: int, num_labels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    shapes = {name: arrays[name].shape for name in ("format", "indptr", "indices", "data", "shape")}
    plain = [np.issubdtype(arrays[name].dtype, np.integer) for name in ("indptr", "shape")]
    if [len(shape) for shape in shapes.values()] != [0, 1, 1, 1, 1] or shapes["shape"] != (2,) or not all(plain):
        raise ValueError(f"{path}: not a CSR matrix, the shapes of its parts are {shapes}; {_EXPECTED}")
    kind = arrays["format"].item()
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)
    if kind != "csr":
        raise ValueError(f"{path}: a sparse matrix of format {kind!r}; {_EXPECTED}")
    offsets, values, data = arrays["indptr"].astype(np.int64), arrays["indices"], arrays["data"]
    num_rows, num_columns = (int(size) for size in arrays["shape"])
    if num_labels is not None and num_columns != num_labels:
        raise ValueError(
            f"{path}: the matrix has {num_columns} columns, and the data set has {num_labels} labels; expected a "
            "column for each label, in their order"
        )
    lengths = np.diff(offsets)
    sizes = (len(offsets) - 1, len(values), len(data))
    if len(offsets) == 0 or offsets[0] != 0 or (lengths < 0).any() or sizes != (num_rows, offsets[-1], offsets[-1]):
        raise ValueError(
            f"{path}: `indptr` ends at {offsets[-1]} after {sizes[0]} rows of {num_rows}, `indices` has {sizes[1]} "
            f"entries, `data` {sizes[2]}: not a CSR matrix; {_EXPECTED}"
        )
    _check_values(path, values, data)
    top_indices, top_scores = _empty(num_rows, k)
    for start in range(0, num_rows, _CHUNK):
        stop = min(start + _CHUNK, num_rows)
        labels, label_scores = values[offsets[start] : offsets[stop]], data[offsets[start] : offsets[stop]]
        rows = np.repeat(np.arange(start, stop), lengths[start:stop])
        # Rows stay in their place, so that `rows` and `rank` hold after sorting too.
        order = np.lexsort((labels, -label_scores.astype(np.float64), rows))
        rank = np.arange(offsets[start], offsets[stop]) - offsets[rows]
        best = rank < k
        top_indices[rows[best], rank[best]] = labels[order][best]
        top_scores[rows[best], rank[best]] = label_scores[order][best]
    return top_indices, top_scores


def _check_values(path: Path, indices: np.ndarray, scores: np.ndarray) -> None:
    if not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{path}: `indices` are {indices.dtype}; {_EXPECTED}")
    if not np.issubdtype(scores.dtype, np.number) or np.issubdtype(scores.dtype, np.complexfloating):
        raise ValueError(f"{path}: scores are {scores.dtype}; {_EXPECTED}")
    for wrong, array in (
        ((indices < -1) | (indices > np.iinfo(np.int32).max), indices),
        (np.isnan(scores), scores),
    ):
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"{path}: {array[place]} at position {place} is no label id or score; {_EXPECTED}")


def _empty(num_rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((num_rows, k), -1, dtype=np.int32), np.full((num_rows, k), -np.inf, dtype=np.float32)


def _descending(indices: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the rows that need it: labels before padding, then by descending score, ties by label id."""
    scores = np.where(indices < 0, -np.inf, scores)
    padding = indices < 0
    ordered = (scores[:, 1:] <= scores[:, :-1]).all(axis=1) & (padding[:, 1:] >= padding[:, :-1]).all(axis=1)
    rows = np.flatnonzero(~ordered)
    order = np.lexsort((indices[rows], -scores[rows], padding[rows]), axis=1)
    indices = indices.copy()
    indices[rows] = np.take_along_axis(indices[rows], order, axis=1)
    scores[rows] = np.take_along_axis(scores[rows], order, axis=1)
    return indices, scores
