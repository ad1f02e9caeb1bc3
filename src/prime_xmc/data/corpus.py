"""A prepared data set: token ids, positives and filters as rows of different lengths, memory-mapped from disk."""

import hashlib
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64, Integer
from numpy.typing import DTypeLike

from prime_xmc.checksums import check_file, checksum_of
from prime_xmc.foreign import parse_json, shown

FORMAT_VERSION = 3  # of what is written; version 2 took labels with a relevance of 0 for positives
_READABLE = (2, FORMAT_VERSION)
MANIFEST = "manifest.json"
TEST_ROWS = "test_rows.npy"
LABELS = "labels.jsonl"


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths in one flat array.

    Attributes:
        values: The rows one after the other; may be a read-only memory map.
        offsets: Positions in `values` at which the rows start, and at the end the one at which the last row ends.

    Raises:
        ValueError: when the offsets do not begin at 0 and end at the number of values.

    Example:
        >>> ragged = Ragged.from_rows([[3, 1], [], [2]])
        >>> ragged[0], len(ragged)
        (array([3, 1]), 3)
    """

    values: Integer[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " bound"]

    def __post_init__(self) -> None:
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            ends = (int(self.offsets[0]), int(self.offsets[-1])) if len(self.offsets) else ()
            raise ValueError(
                f"offsets must run from 0 to {len(self.values)}, the number of values; their ends are {ends}"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: SupportsIndex) -> Integer[np.ndarray, " length"]:
        row = operator.index(row)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Int64[np.ndarray, " row"]:
        """Number of values of each row."""
        return np.diff(self.offsets)

    def row_ids(self) -> Int64[np.ndarray, " total"]:
        """Return the row that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: Integer[np.ndarray, " taken"] | Sequence[int]) -> "Ragged":
        """Return the given rows, in the given order, copied; a row may be asked for more than once.

        Raises:
            IndexError: when a row is negative or beyond the last one.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        offsets = _offsets(ends - starts)
        # Value i of the result, in row r, comes from place i - offsets[r] + starts[r].
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
        return Ragged(self.values[places], offsets)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int] | np.ndarray], dtype: DTypeLike = np.int64) -> "Ragged":
        """Return the given rows as one Ragged.

        Raises:
            OverflowError: when a value does not fit the dtype.
        """
        rows = list(rows)
        offsets = _offsets(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))
        return cls(np.fromiter(chain.from_iterable(rows), dtype=dtype, count=int(offsets[-1])), offsets)

    @classmethod
    def joined(cls, parts: Iterable["Ragged"]) -> "Ragged":
        """Return the rows of all parts, as int64.

        Example:
            >>> Ragged.joined([Ragged.from_rows([[3, 1], []]), Ragged.from_rows([[2]])]).offsets
            array([0, 2, 2, 3])
        """
        parts = [cls(np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64)), *parts]
        values = np.concatenate([part.values.astype(np.int64, copy=False) for part in parts])
        return cls(values, _offsets(np.concatenate([part.lengths for part in parts])))

    @classmethod
    def from_pairs(cls, pairs: Int64[np.ndarray, "pair 2"], num_rows: int, dtype: DTypeLike = np.int64) -> "Ragged":
        """Return (row, value) pairs, in any order, as rows of ascending values without repetition."""
        pairs = np.unique(pairs, axis=0)
        return cls(pairs[:, 1].astype(dtype), _offsets(np.bincount(pairs[:, 0], minlength=num_rows)))

    @classmethod
    def grouped(
        cls, rows: Integer[np.ndarray, " pair"], values: Integer[np.ndarray, " pair"], num_rows: int
    ) -> "Ragged":
        """Return pairs (row, value), in any order, as rows of values in the order of the pairs.

        Example:
            >>> Ragged.grouped(np.array([2, 0, 2]), np.array([5, 6, 4]), 3)[2]
            array([5, 4])
        """
        return cls(values[np.argsort(rows, kind="stable")], _offsets(np.bincount(rows, minlength=num_rows)))

    def without(self, other: "Ragged") -> "Ragged":
        """Return the rows less the values that the same row of `other` has; both ascend within rows without repetition.

        Example:
            >>> Ragged.from_rows([[1, 4], [4]]).without(Ragged.from_rows([[4, 5], [1]])).values
            array([1, 4])
        """
        bound = 1 + max(int(ragged.values.max(initial=0)) for ragged in (self, other))
        keys, unwanted = (ragged.row_ids() * bound + ragged.values for ragged in (self, other))  # ascending
        first, end = np.searchsorted(keys, unwanted), np.searchsorted(keys, unwanted, side="right")
        places = first[first < end]
        lengths = self.lengths - np.bincount(keys[places] // bound, minlength=len(self))
        return Ragged(np.delete(self.values, places), _offsets(lengths))


def _offsets(lengths: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " bound"]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True, eq=False)
class Split:
    """Queries of a prepared data set.

    Attributes:
        tokens: Token ids of each query with special tokens, at most max_length.
        positives: int32, each query's labels, ascending, without repetition.
        filtered: int32, ascending: labels that are never an answer to the query (its own label).
    """

    tokens: Ragged
    positives: Ragged
    filtered: Ragged

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared data set, opened from disk; its arrays are read-only memory maps.

    Attributes:
        train: Training queries.
        test: Test queries.
        label_tokens: Token ids of each label with special tokens, at most max_length.
        directory: Folder of the prepared data.
        manifest: Plain JSON with the sources, the settings, the counts and the warnings of the preparation.
    """

    train: Split
    test: Split
    label_tokens: Ragged
    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: Path, verify: str = "sampled") -> "Corpus":
        """Open the folder that `prime_xmc.data.preparation.prepare` returned.

        Args:
            directory: The folder.
            verify: How the files are compared with the checksums in the manifest, which folders of version 0.1.0 lack:
                "sampled" reads some blocks of those above 256 MiB, "full" all.

        Raises:
            FileNotFoundError: when the folder or one of its files is not there.
            ValueError: when a file is damaged or was written in another format; it names the file.
        """
        manifest = _read_manifest(directory, verify)
        arrays = {name: open_ragged(directory, name, shape) for name, shape in manifest["arrays"].items()}
        train, test = (
            Split(arrays[f"{split}_tokens"], arrays[f"{split}_positives"], arrays[f"{split}_filtered"])
            for split in ("train", "test")
        )
        return cls(train, test, arrays["label_tokens"], directory, manifest)

    @property
    def num_labels(self) -> int:
        """Number of labels."""
        return len(self.label_tokens)

    @property
    def test_rows(self) -> Int64[np.ndarray, " query"] | None:
        """Rows of the test queries in the raw training file, None where they have a file of their own."""
        path = self.directory / TEST_ROWS
        return np.load(path, allow_pickle=False) if path.is_file() else None

    @property
    def train_rows(self) -> Int64[np.ndarray, " query"] | None:
        """Rows of the training queries in the raw training file, None where they are all of it, in its order."""
        test_rows = self.test_rows
        if test_rows is None:
            return None
        return np.setdiff1d(np.arange(len(self.train) + len(test_rows)), test_rows)

    @property
    def source_hash(self) -> str:
        """What all data sets have in common that are made from these raw files with these queries to test on.

        The tokenizer and the length of texts have no part in it, which the fingerprint of the manifest depends on.
        """
        rows = self.test_rows
        return _hash_of([self.manifest["source"], None if rows is None else rows.tolist()])

    @property
    def training_hash(self) -> str:
        """What all data have in common that are prepared with the same tokens of the same training queries."""
        sums = self.manifest.get("checksums")
        if sums is None:  # version 0.1.0 wrote none
            return _hash_of(self.manifest["fingerprint"])
        return _hash_of({name: of_file for name, of_file in sums.items() if name.startswith("train_tokens")})

    @property
    def split_note(self) -> str | None:
        """A sentence on the test split where it was split off the training queries, None elsewhere."""
        split = self.manifest.get("split_off")
        if split is None:
            return None
        if split["queries"] == 0:
            return (
                f"there is no test file, and {split['file']} has too few queries of different texts to split some off: "
                "nothing is tested"
            )
        return (
            f"there is no test file: {split['queries']:,} of the {split['of']:,} queries of {split['file']}, drawn at "
            "random, are the test split"
        )

    @property
    def label_note(self) -> str | None:
        """A sentence on labels that share a uid, by which predictions name them; None where there are none."""
        repeated = [entry for entry in self.manifest.get("warnings", []) if entry["kind"] == "repeated label uid"]
        if not repeated:
            return None
        number, line = repeated[0]["count"], repeated[0]["first_line"]
        verb = "label has" if number == 1 else "labels have"
        return (
            f"{number:,} {verb} the uid of another (the first in line {line} of {repeated[0]['file']}): predictions "
            "name both by the same uid"
        )

    @property
    def label_frequency(self) -> Int64[np.ndarray, " label"]:
        """Number of training queries of each label."""
        return np.bincount(self.train.positives.values, minlength=self.num_labels)

    def labels(self) -> Iterator[tuple[str, str]]:
        """Yield uid and text of each label in order. The text is the label's first field, usually the title."""
        with (self.directory / LABELS).open(encoding="utf-8") as lines:
            for line in lines:
                label = json.loads(line)
                yield label["uid"], label["text"]


def _read_manifest(directory: Path, verify: str) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; {directory} is no prepared data set. Run prepare first")
    damaged = f"is damaged; delete {directory} and prepare the data set again"
    try:
        manifest = parse_json(path.read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError(f"{shown(manifest)} is no object")
    except ValueError as error:
        raise ValueError(f"{path} {damaged} ({error})") from error
    if manifest.get("format_version") not in _READABLE:
        version = manifest.get("format_version")
        raise ValueError(
            f"{path}: format_version is {version}, this version of the package reads {FORMAT_VERSION}; "
            f"delete {directory} and prepare the data set again"
        )
    for name, size in manifest["files"].items():
        file = directory / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: not found; {directory} {damaged}")
        if file.stat().st_size != size:
            raise ValueError(f"{file} {damaged} ({file.stat().st_size} bytes instead of {size})")
    sums = dict(manifest.get("checksums", {}))  # version 0.1.0 wrote none
    own = sums.pop(MANIFEST, None)
    if own is not None and own != checksum_of(manifest | {"checksums": sums}):
        raise ValueError(f"{path} {damaged} (checksum)")
    for name, expected in sums.items():
        check_file(directory / name, expected, f"delete {directory} and prepare the data set again", verify)
    return manifest


def open_ragged(directory: Path, name: str, shape: dict[str, Any]) -> Ragged:
    """Map the array that a `RaggedWriter` has written.

    Args:
        directory: The folder of the data set.
        name: Name of the array.
        shape: What `RaggedWriter.shape` returned.

    Raises:
        ValueError: when its offsets are damaged.
    """
    values, offsets = ragged_paths(directory, name)
    dtype, total = np.dtype(shape["dtype"]), shape["values"]
    # An empty file cannot be mapped. Views as plain arrays: results of indexing np.memmap would stay np.memmap.
    mapped = np.asarray(np.memmap(values, dtype=dtype, mode="r", shape=(total,))) if total else np.empty(0, dtype)
    try:
        return Ragged(mapped, np.asarray(np.load(offsets, mmap_mode="r", allow_pickle=False)))
    except ValueError as error:
        raise ValueError(f"{offsets} is damaged; delete {directory}, prepare the data set again ({error})") from error


def ragged_paths(directory: Path, name: str) -> tuple[Path, Path]:
    """Return the files of an array: values and offsets."""
    return directory / f"{name}.bin", directory / f"{name}.offsets.npy"


class RaggedWriter:
    """Writes a Ragged to a prepared data set piece by piece; nothing of it stays in memory.

    Values go to `<name>.bin`, little-endian without a header; offsets to `<name>.offsets.npy`, whose header tells their
    number only when the writer is closed.

    Args:
        directory: The folder of the data set.
        name: Name of the array.
        dtype: Integer type of the values.
    """

    def __init__(self, directory: Path, name: str, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._num_rows = self._num_values = 0
        values, offsets = ragged_paths(directory, name)
        self._values, self._offsets = values.open("wb"), offsets.open("wb")
        self._write_header()
        self._offsets.write(np.zeros(1, dtype="<i8").tobytes())

    def extend(self, rows: Ragged) -> None:
        """Append rows, whose values must fit the writer's dtype."""
        self._values.write(rows.values.astype(self.dtype, copy=False).tobytes())
        self._offsets.write((self._num_values + rows.offsets[1:]).astype("<i8", copy=False).tobytes())
        self._num_rows += len(rows)
        self._num_values += len(rows.values)

    def shape(self) -> dict[str, Any]:
        """Return what the manifest records of the array."""
        return {"dtype": self.dtype.str, "rows": self._num_rows, "values": self._num_values}

    def _write_header(self) -> None:
        """Write the header of the offsets as `np.save` does; NumPy pads it, so that the number has room to grow."""
        header = {"descr": "<i8", "fortran_order": False, "shape": (self._num_rows + 1,)}
        np.lib.format.write_array_header_1_0(self._offsets, header)

    def __enter__(self) -> "RaggedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values.close()
        self._offsets.seek(0)
        self._write_header()
        self._offsets.close()


def _hash_of(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
