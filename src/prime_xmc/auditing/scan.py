"""One pass over each raw file: what the audit has to know of its lines, in some bytes a line."""

import codecs
import gzip
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from prime_xmc.auditing.near_duplicates import WordSets
from prime_xmc.data.corpus import Ragged
from prime_xmc.data.raw import RawFiles, read_filter, read_records
from prime_xmc.progress import track

SAMPLED = 10_000  # texts whose tokens are counted
LONGEST = 20_000  # characters of them that are
_SHOWN = 90  # characters of a text in an example
# What UTF-8 looks like when it is read as cp1252 or latin-1: é as Ã©, ” as â€, a hard blank as Â and a blank.
# Ã before a quotation mark, a dash or an ellipsis is one within a word alone: Portuguese words end in Ã.
_MOJIBAKE = re.compile(
    "Ã[\u0080-\u00bf\u0152-\u0178\u02c6\u02dc\u2020\u2021\u2030-\u20ac]|Ã[\u2013-\u201e\u2022\u2026\u2122](?=\\w)|â€|Â[\u00a0-\u00bf]|ï»¿|Ð[\u0080-\u00bf]Ñ|ðŸ"
)
_NUMBER = re.compile(r"\d+(\.0+)?")  # as identifiers, such as 7 of a query and 7 of a label, which say nothing
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")


@dataclass
class FirstRows:
    """Numbers of lines of one kind, and how many there are; only the first ones are kept.

    Attributes:
        count: How many.
        first: Rows of the first three, from 0.
    """

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        """Count a row."""
        self.count += 1
        if len(self.first) < 3:
            self.first.append(row)


@dataclass
class FileScan:
    """What is known of a raw file.

    Attributes:
        path: The file.
        texts: A hash of the complete text of each line, blanks at its ends aside.
        titles: A hash of the first field of each line.
        uids: A hash of the uid of each line; 0 for mere numbers, which name nothing.
        all_uids: The same with the numbers.
        positives: Label ids of each query, without those that the filter leaves out as training does; none for labels.
        words: Words of the first lines, as many as are compared.
        sample: Texts drawn at random, cut.
        sample_rows: Their rows.
        kinds: Rows by kind of finding.
        has_mark: Whether it begins with a byte-order mark.
        has_windows_ends: Whether its first lines end as in Windows.
    """

    path: Path
    texts: Int64[np.ndarray, " row"]
    titles: Int64[np.ndarray, " row"]
    uids: Int64[np.ndarray, " row"]
    all_uids: Int64[np.ndarray, " row"]
    positives: Ragged
    words: WordSets
    sample: list[str]
    sample_rows: list[int]
    kinds: dict[str, FirstRows]
    has_mark: bool
    has_windows_ends: bool

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class DataScan:
    """What is known of a data set.

    Attributes:
        source: Its raw files.
        labels: The file of labels.
        train: That of training queries.
        test: That of test queries; None where there is none.
        filters: Pairs of row and label that are filtered, by "train" and "test", for the filters that there are.
    """

    source: RawFiles
    labels: FileScan
    train: FileScan
    test: FileScan | None
    filters: dict[str, Int64[np.ndarray, "pair 2"]]

    @property
    def splits(self) -> dict[str, FileScan]:
        """The files of queries by split."""
        return {"train": self.train} | ({} if self.test is None else {"test": self.test})


def scan(source: RawFiles, max_compared: int) -> DataScan:
    """Read the raw files of a data set.

    Args:
        source: The files.
        max_compared: Lines of each file whose words are kept, to be compared for near duplicates.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: With file, line and value, for a malformed one.
    """
    paths = source.paths()
    label_fields = source.fields if source.label_fields is None else source.label_fields
    labels = _scan_file(paths["lbl"], label_fields, None, max_compared)
    queries: dict[str, FileScan] = {
        name: _scan_file(paths[name], source.fields, len(labels), max_compared)
        for name in ("trn", "tst")
        if name in paths
    }
    sizes = {"train": "trn", "test": "tst"}
    filters = {
        split: read_filter(paths[f"filter_labels_{split}"], len(queries[name]), len(labels))
        for split, name in sizes.items()
        if f"filter_labels_{split}" in paths
    }
    for split, name in sizes.items():
        if name in queries:
            _leave_out(queries[name], filters.get(split))
    return DataScan(source, labels, queries["trn"], queries.get("tst"), filters)


def _leave_out(queries: FileScan, pairs: Int64[np.ndarray, "pair 2"] | None) -> None:
    """Take filtered pairs out of the positives, and note the queries that have none."""
    if pairs is not None and len(pairs):
        filtered = Ragged.from_pairs(pairs, len(queries), dtype=np.int32)
        queries.positives = queries.positives.without(filtered)
    rows = np.flatnonzero(queries.positives.lengths == 0)
    if len(rows):
        queries.kinds["query_without_labels"] = FirstRows(len(rows), rows[:3].tolist())


def texts_of(path: Path, fields: Sequence[str], rows: set[int]) -> dict[int, str]:
    """Return the beginnings of the texts of some rows."""
    found: dict[int, str] = {}
    if rows:
        records = islice(read_records(path, fields, None), max(rows) + 1)
        found = {row: shorten(record.text) for row, record in enumerate(records) if row in rows}
    return found


def shorten(text: str) -> str:
    """Return the beginning of a text in one line."""
    text = " ".join(text[: 4 * _SHOWN].split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _scan_file(path: Path, fields: Sequence[str], num_labels: int | None, max_compared: int) -> FileScan:
    arrays = {name: array("q") for name in ("texts", "titles", "uids", "all_uids")}
    values, ends = array("i"), array("q", [0])
    words, kinds = WordSets(), dict[str, FirstRows]()
    sample: list[tuple[int, str]] = []
    rng = np.random.default_rng(0)

    def count(kind: str, row: int) -> None:
        kinds.setdefault(kind, FirstRows()).add(row)

    for row, record in enumerate(track(read_records(path, fields, num_labels), path.name)):
        text = record.text.strip()
        arrays["texts"].append(hash(text))
        arrays["titles"].append(hash(record.title.strip()))
        arrays["all_uids"].append(hash(record.uid))
        arrays["uids"].append(0 if _NUMBER.fullmatch(record.uid) else hash(record.uid))
        values.extend(sorted(set(record.positives)))
        ends.append(len(values))
        if row < max_compared:
            words.add(text)
        if not text:
            count("empty", row)
        elif not text.isascii() or not text.isprintable():
            for kind in _damages(text):
                count(kind, row)
        place = row if row < SAMPLED else int(rng.integers(row + 1))
        if place < SAMPLED:
            sample[place : place + 1] = [(row, text[:LONGEST])]
    if not arrays["texts"]:
        raise ValueError(f"{path} is empty; it needs a line for each text")
    mark, windows = _beginning(path)
    return FileScan(
        path,
        **{name: np.frombuffer(each, dtype=np.int64) for name, each in arrays.items()},
        positives=Ragged(np.frombuffer(values, dtype=np.int32), np.frombuffer(ends, dtype=np.int64)),
        words=words,
        sample=[text for _, text in sample],
        sample_rows=[row for row, _ in sample],
        kinds=kinds,
        has_mark=mark,
        has_windows_ends=windows,
    )


def _damages(text: str) -> Iterator[str]:
    if "\N{REPLACEMENT CHARACTER}" in text:
        yield "replacement_character"
    if _MOJIBAKE.search(text):
        yield "mojibake"
    if _CONTROL.search(text):
        yield "control_character"


def _beginning(path: Path) -> tuple[bool, bool]:
    """Return whether a file begins with a byte-order mark, and whether its first lines end as in Windows."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        line = file.readline()
    return line.startswith(codecs.BOM_UTF8), line.endswith(b"\r\n")
