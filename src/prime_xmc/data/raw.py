"""The Extreme Classification Repository's raw text files, read line by line and checked."""

import codecs
import gzip
import json
import logging
import math
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson
from jaxtyping import Int64

from prime_xmc.foreign import check_depth, parse_json, shown

logger = logging.getLogger(__name__)

CONVERSION = "conversion.json"  # in the folder, where prime_xmc.convert has made the files
_PAIR = re.compile(rb"\s*(-?\d+)\s+(-?\d+)\s*")


class Record(NamedTuple):
    """One line of a raw file.

    Attributes:
        uid: Its `uid`, or its 0-based row number where the file gives none.
        title: Its first field.
        text: Its fields, joined by a space.
        positives: Its label ids as the file lists them, repetitions included; empty in a file of labels.
        num_irrelevant: Label ids that the file lists with a relevance of 0; they are not among the positives.
    """

    uid: str
    title: str
    text: str
    positives: tuple[int, ...]
    num_irrelevant: int = 0


@dataclass(frozen=True)
class RawFiles:
    """A folder of raw files: `trn`, `tst` and `lbl` (`.json.gz` or `.json`), `filter_labels_{train,test}.txt`.

    Attributes:
        directory: The folder; `~` is expanded.
        name: Name of the data set, used for the folder of the prepared data.
        fields: Fields of a query that make up its text, in this order; kept as a tuple, also where a single name is
            given.
        label_fields: Fields of a label that make up its text; None: those of a query.
        hint: Sentence on where to get the files, for the message of the error when they are missing.
        query_prompt: Text that the encoder wants before every query.
        label_prompt: Text that the encoder wants before every label.
        num_test: Queries to split off the training queries where the folder has no test file; None: as many as suit
            the size of the data; 0: a missing test file is an error.

    Raises:
        ValueError: when no field is named, or `num_test` is negative.
    """

    directory: str | Path
    name: str
    fields: Sequence[str] = ("title",)
    label_fields: Sequence[str] | None = None
    hint: str = ""
    query_prompt: str = ""
    label_prompt: str = ""
    num_test: int | None = 0

    def __post_init__(self) -> None:
        for key in ("fields", "label_fields"):
            fields = getattr(self, key)
            if fields is not None:
                if len(fields) == 0:
                    raise ValueError(f"dataset.{key} is empty; expected the fields that make up a text, as in [title]")
                object.__setattr__(self, key, (fields,) if isinstance(fields, str) else tuple(fields))
        if self.num_test is not None and self.num_test < 0:
            raise ValueError(f"expected dataset.num_test of at least 0, or null, got {self.num_test}")

    def columns(self) -> tuple[str, ...] | None:
        """Return the columns of the user's own tables that the fields were converted from; None: there were none."""
        path = Path(self.directory).expanduser() / CONVERSION
        if not path.is_file():
            return None
        try:
            record = self._conversion()
            columns = dict(zip(map(str, record["fields"]), map(str, record["columns"]["text"]), strict=True))
        except (TypeError, KeyError, ValueError) as error:  # nobody else needs it
            logger.warning("%s is none of prime_xmc.convert (%r): the model does not know your columns", path, error)
            return None
        return tuple(columns[name] for name in self.fields) if set(self.fields) <= columns.keys() else None

    def has_drawn_test(self) -> bool:
        """Return whether a conversion has drawn the test queries at random from those that it was given."""
        try:
            return bool(self._conversion()["split_off"])
        except (OSError, TypeError, KeyError, ValueError):  # there was none, or one that did not say it yet
            return False

    def _conversion(self) -> Any:
        return parse_json((Path(self.directory).expanduser() / CONVERSION).read_bytes())

    def paths(self) -> dict[str, Path]:
        """Return the files that exist, by their names without extensions.

        `trn` and `lbl` are always among them, and so is `tst` unless a test split may be split off; the two filters
        only if the folder has them.

        Raises:
            FileNotFoundError: when a file is missing that has to be there; it lists all that are, and the hint.
            ValueError: when a file is there both compressed and uncompressed, since nothing says which one is meant,
                or the filter of a test split has no test split.
        """
        directory = Path(self.directory).expanduser()
        paths, missing = {}, []
        for name in ("trn", "tst", "lbl"):
            candidates = [
                path for path in (directory / f"{name}.json.gz", directory / f"{name}.json") if path.is_file()
            ]
            if len(candidates) > 1:
                raise ValueError(
                    f"{self.name}: both {candidates[0].name} and {candidates[1].name} are in {directory.absolute()}, "
                    "and they need not hold the same; remove or rename the one that you do not mean"
                )
            if candidates:
                paths[name] = candidates[0]
            elif name != "tst" or self.num_test == 0:
                missing.append(f"{name}.json")
        if missing:
            message = f"{self.name}: {', '.join(missing)} (or .json.gz) not found in {directory.absolute()}"
            raise FileNotFoundError(f"{message}. {self.hint}" if self.hint else message)
        filters = {name: directory / f"{name}.txt" for name in ("filter_labels_train", "filter_labels_test")}
        paths |= {name: path for name, path in filters.items() if path.is_file()}
        if "filter_labels_test" in paths and "tst" not in paths:
            raise ValueError(
                f"{self.name}: {paths['filter_labels_test']} names rows of a test file, but there is neither "
                "tst.json.gz nor tst.json; add the test file, or remove the filter"
            )
        return paths


def read_records(
    path: Path, fields: Sequence[str], num_labels: int | None, *, stream: BinaryIO | None = None
) -> Iterator[Record]:
    """Yield the records of a raw file: one JSON object a line, UTF-8, gzip where the name ends in `.gz`.

    A byte-order mark at the beginning and blank lines at the end are passed over. A label whose `target_rel` is 0 is
    not a positive. Odd but harmless records are yielded as they are (an empty text, no label, a repeated label): it is
    for the caller to count and handle them.

    Args:
        path: The file.
        fields: Fields that make up a text.
        num_labels: Number of labels, of which `target_ind` lists some by their 0-based line in the file of labels;
            None: the file is the one of labels itself, and `target_ind` is not read.
        stream: The file, already open for binary reading, where the caller wants to follow its position.

    Raises:
        FileNotFoundError: when the file is not there.
        ValueError: with file, line and value, for gzip data that end early or are damaged, bytes that are not UTF-8,
            a line that is not a JSON object (a blank one too, unless only blank ones follow), a missing field, a field
            of the wrong type, a label id that is no integer or out of range, a `target_rel` that does not fit the
            labels.
    """
    for number, line in _lines(path, stream):
        try:
            record = _parse(line, number - 1, fields, num_labels)
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            bad = error.object[error.start : error.end]
            raise ValueError(f"{path}, line {number}: {bad!r} is not valid UTF-8; convert the file to UTF-8") from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}): {_shorten(line)}; every line must be one JSON object"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        yield record


def read_filter(path: Path, num_rows: int, num_labels: int) -> Int64[np.ndarray, "pair 2"]:
    """Read a filter file: one `row label` a line, both 0-based; the label is never an answer to the query of the row.

    Args:
        path: The file; an empty one means no pairs.
        num_rows: Number of queries of the split.
        num_labels: Number of labels.

    Raises:
        ValueError: with file, line and value, for a line that is not two integers, or a row or label out of range.
    """
    pairs = array("q")  # 16 bytes a pair, a fifth of a list's
    for number, line in _lines(path, None):
        match = _PAIR.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}, line {number}: {_shorten(line)} is not two integers, `row label`")
        pair = int(match[1]), int(match[2])
        for what, value, bound in zip(("row", "label"), pair, (num_rows, num_labels), strict=True):
            if not 0 <= value < bound:
                raise ValueError(
                    f"{path}, line {number}: {what} {value} is outside 0..{bound - 1}; "
                    "is the file that of another split or data set?"
                )
        pairs.extend(pair)
    return np.frombuffer(pairs, dtype=np.int64).reshape(-1, 2)


def _lines(path: Path, stream: BinaryIO | None) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each line, without a byte-order mark and without the blank lines at the end."""
    number = 0
    blank: list[tuple[int, bytes]] = []  # they are only yielded, and then refused, if something follows
    with path.open("rb") if stream is None else nullcontext(stream) as raw:
        reader = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            for number, line in enumerate(reader, start=1):
                content = _without_mark(path, line) if number == 1 else line
                if not content.strip():
                    blank = blank or [(number, content)]
                    continue
                yield from blank
                yield number, content
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path}, line {number + 1}: the gzip data are truncated or damaged ({error}); get the file again"
            ) from error


def _without_mark(path: Path, line: bytes) -> bytes:
    """Return the first line of a file without the byte-order mark of UTF-8."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}, line 1: the file begins with the mark of UTF-16; convert it to UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def _parse(line: bytes, row: int, fields: Sequence[str], num_labels: int | None) -> Record:
    item = _load(line)
    if not isinstance(item, dict):
        raise ValueError(f"{_shorten(line)} is JSON but not an object; every line must be one JSON object")
    uid = item.get("uid", row)
    if type(uid) not in (str, int):
        raise ValueError(f"uid is {shown(uid)}; a string or an integer is expected")
    texts = [_field(item, name) for name in fields]
    for name, text in zip(fields, texts, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"field {name!r} is {shown(text)}; a string is expected")
    positives, num_irrelevant = ((), 0) if num_labels is None else _positives(item, num_labels)
    record = Record(str(uid), texts[0], " ".join(texts), positives, num_irrelevant)
    # JSON can escape half a character ("\ud800"), which no tokenizer takes: fail here, where the line is known.
    (record.uid + record.text).encode("utf-8")
    return record


def _load(line: bytes) -> Any:
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError:
        # Python's own is slower, says better what is wrong, and takes NaN in a field that is not asked for.
        return parse_json(line.decode("utf-8"))
    check_depth(line, item)
    return item


def _field(item: dict[str, Any], name: str) -> Any:
    if name not in item:
        has = ", ".join(str(each)[:60] for each in list(item)[:20])
        raise ValueError(
            f"no field {name!r}, only {has}; add it, or name other fields: dataset.fields= of "
            "queries, and dataset.label_fields= of labels, which has the same fields unless it is given"
        )
    return item[name]


def _positives(item: dict[str, Any], num_labels: int) -> tuple[tuple[int, ...], int]:
    """Return the label ids of a query, and how many others have a relevance of 0."""
    positives = _field(item, "target_ind")
    if not isinstance(positives, list):
        raise ValueError(f"target_ind is {shown(positives)}; a list of label ids is expected")
    for label in positives:
        if type(label) is not int:  # isinstance would let True and False pass
            raise ValueError(f"label id {shown(label)} in target_ind is not an integer")
        if not 0 <= label < num_labels:
            raise ValueError(
                f"label id {shown(label)} in target_ind is outside 0..{num_labels - 1}; "
                "ids are the 0-based lines of the file of labels"
            )
    relevance = item.get("target_rel")
    if relevance is None:
        return tuple(positives), 0
    if not isinstance(relevance, list) or len(relevance) != len(positives):
        given = f"{len(relevance)} numbers" if isinstance(relevance, list) else shown(relevance)
        raise ValueError(f"target_rel is {given} for {len(positives)} labels in target_ind; expected one for each")
    if relevance.count(1) == len(relevance):  # as in all published files
        return tuple(positives), 0
    for value in relevance:
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{shown(value)} in target_rel is no relevance; expected a number of at least 0")
    relevant = [label for label, value in zip(positives, relevance, strict=True) if value > 0]
    return tuple(relevant), len(positives) - len(relevant)


def _shorten(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
