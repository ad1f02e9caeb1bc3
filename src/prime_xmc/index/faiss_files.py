"""Index files of Faiss, read as far as it takes to know that Faiss can open and search them.

Faiss opens whatever kind of index a file names, lists on disk included, which open another file for writing, and walks
a graph without looking where its edges lead. So kind, sizes and edges are checked first.

Source: faiss/impl/index_write.cpp, version 1.15; the layout is that of the versions since 1.7.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

_KINDS = {b"IxFI": "IndexFlatIP", b"IHNf": "IndexHNSWFlat"}
_EXPECTED = {"flat": b"IxFI", "hnsw": b"IHNf"}
_HEADER = struct.Struct("<4siqqqBi")  # kind, dimension, number of vectors, two of no use, trained, metric
_INNER_PRODUCT = 0
_AGAIN = "copy or export the model again"


class _Graph(NamedTuple):
    levels: np.ndarray
    offsets: np.ndarray
    neighbours: np.ndarray
    per_level: np.ndarray
    entry_point: int
    max_level: int


def check_index_file(path: Path, kind: str) -> tuple[int, int]:
    """Return the number of vectors in an index file, and their dimension.

    Args:
        path: The file.
        kind: "flat" or "hnsw".

    Raises:
        ValueError: If it holds another kind of index, is cut off, or its graph leads to labels that there are not.
    """
    if not path.is_file():
        raise ValueError(f"{path} cannot be read as a Faiss index (there is no such file); {_AGAIN}")
    with path.open("rb") as file:
        begins = _KINDS.get(file.read(4))
        if begins is not None and begins != _KINDS[_EXPECTED[kind]]:
            raise ValueError(f"{path} holds a {begins}, expected {_KINDS[_EXPECTED[kind]]} (kind={kind}); {_AGAIN}")
        file.seek(0)
        try:
            size = _check_index(file, _EXPECTED[kind], path.stat().st_size)
        except (ValueError, struct.error) as error:
            raise ValueError(f"{path} cannot be read as a Faiss index of kind={kind} ({error}); {_AGAIN}") from error
        if file.read(1):
            raise ValueError(f"{path} cannot be read as a Faiss index of kind={kind} (it goes on after it); {_AGAIN}")
    return size


def _check_index(file: BinaryIO, expected: bytes, file_size: int) -> tuple[int, int]:
    kind, dim, count, _, _, _, metric = _HEADER.unpack(file.read(_HEADER.size))
    if kind != expected:
        raise ValueError(f"it begins with {_KINDS.get(kind, kind)!r}, expected {_KINDS[expected]!r}")
    if metric != _INNER_PRODUCT or not 0 < dim <= file_size or not 0 <= count <= file_size:
        raise ValueError(f"it has {count} vectors of dimension {dim} and the metric {metric}")
    if expected == _EXPECTED["hnsw"]:
        _check_graph(_read_graph(file, file_size), count)
        if _check_index(file, _EXPECTED["flat"], file_size) != (count, dim):
            raise ValueError("its graph and its vectors have other sizes")
        return count, dim
    (numbers,) = struct.unpack("<Q", file.read(8))
    if numbers != count * dim or 4 * numbers > file_size - file.tell():
        raise ValueError(f"it has {numbers} numbers, expected {count} x {dim}")
    file.seek(4 * numbers, 1)
    return count, dim


def _read_graph(file: BinaryIO, file_size: int) -> _Graph:
    def vector(dtype: str) -> np.ndarray:
        (length,) = struct.unpack("<Q", file.read(8))
        num_bytes = length * np.dtype(dtype).itemsize
        if num_bytes > file_size - file.tell():
            raise ValueError("it is cut off")
        return np.frombuffer(file.read(num_bytes), dtype=dtype)

    vector("<f8")  # probabilities of levels
    per_level, levels, offsets, neighbours = vector("<i4"), vector("<i4"), vector("<u8"), vector("<i4")
    entry_point, max_level, *_ = struct.unpack("<5i", file.read(20))
    return _Graph(levels, offsets, neighbours, per_level, entry_point, max_level)


def _check_graph(graph: _Graph, count: int) -> None:
    """Refuse edges to places that there are not; level 0 has all labels, a level above it fewer."""
    levels, offsets, neighbours = graph.levels, graph.offsets, graph.neighbours
    if len(levels) != count or len(offsets) != count + 1 or len(graph.per_level) < 2 or graph.per_level[0] != 0:
        raise ValueError("its graph is of other vectors")
    if count == 0:
        return
    highest = int(levels.max())
    if levels.min() < 1 or highest >= len(graph.per_level) or (np.diff(graph.per_level) < 0).any():
        raise ValueError("its graph has levels that there are not")
    room = graph.per_level[levels].astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(neighbours) or (np.diff(offsets.astype(np.int64)) != room).any():
        raise ValueError("the places of its edges do not ascend")
    if neighbours.size and not -1 <= neighbours.min() <= neighbours.max() < count:
        raise ValueError("its graph leads to vectors that there are not")
    if not 0 <= graph.entry_point < count or graph.max_level != levels[graph.entry_point] - 1:
        raise ValueError("its graph begins where there is none")
    for level in range(1, highest):
        for node in np.flatnonzero(levels > level):
            start = int(offsets[node])
            ends = neighbours[start + graph.per_level[level] : start + graph.per_level[level + 1]]
            if (levels[ends[ends >= 0]] <= level).any():
                raise ValueError("its graph leads to a level that a vector does not have")
