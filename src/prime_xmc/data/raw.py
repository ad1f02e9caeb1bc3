"""The Extreme Classification Repository's raw text files, read line by line and checked."""

import gzip
import json
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

_PAIR = re.compile(rb"\s*(-?\d+)\s+(-?\d+)\s*")


class Record(NamedTuple):
    """One line of a raw file.

    Attributes:
        uid: Its `uid`, or its 0-based row number where the file gives none.
        title: Its first field.
        text: Its fields, joined by a space.
        positives: Its label ids as the file lists them, repetitions included; empty in a file of labels.
    """

    uid: str
    title: str
    text: str
    positives: tuple[int, ...]


@dataclass(frozen=True)
class RawFiles:
    """A folder of raw files: `trn`, `tst` and `lbl` (`.json.gz` or `.json`), `filter_labels_{train,test}.txt`.

    Attributes:
        directory: The folder; `~` is expanded.
        name: Name of the data set, used for the folder of the prepared data.
        fields: Fields of a query that make up its text, in this order.
        label_fields: The same of a label; None: as `fields`.
        hint: Where to get the files, for the message of the error when they are missing.
        query_prompt: Text that the encoder wants before every query.
        label_prompt: Text that the encoder wants before every label.
    """

    directory: str | Path
    name: str
    fields: Sequence[str] = ("title",)
    label_fields: Sequence[str] | None = None
    hint: str = ""
    query_prompt: str = ""
    label_prompt: str = ""

    def paths(self) -> dict[str, Path]:
        """Return the files that are there, by their names without extensions.

        `trn`, `tst` and `lbl` are there always, `filter_labels_train` and `filter_labels_test` only if the folder has
        them. A compressed file goes before an uncompressed one of the same name.

        Raises:
            FileNotFoundError: when one of the first three is missing; it lists all that are, and the hint.
        """
        directory = Path(self.directory).expanduser()
        found, missing = {}, []
        for name in ("trn", "tst", "lbl"):
            candidates = [directory / f"{name}.json.gz", directory / f"{name}.json"]
            path = next(filter(Path.is_file, candidates), None)
            if path is None:
                missing.append(candidates[0].name)
            else:
                found[name] = path
        if missing:
            message = f"{self.name}: {', '.join(missing)} not found in {directory.absolute()}"
            raise FileNotFoundError(f"{message}. {self.hint}" if self.hint else message)
        filters = {name: directory / f"{name}.txt" for name in ("filter_labels_train", "filter_labels_test")}
        return found | {name: path for name, path in filters.items() if path.is_file()}


def read_records(
    path: Path, fields: Sequence[str], num_labels: int | None, *, stream: BinaryIO | None = None
) -> Iterator[Record]:
    """Yield the records of a raw file: one JSON object a line, UTF-8, gzip where the name ends in `.gz`.

    Odd but harmless records are yielded as they are (an empty text, no label, a repeated label): it is for the caller
    to count and handle them.

    Args:
        path: The file.
        fields: Fields that make up a text.
        num_labels: Number of labels, of which `target_ind` lists some by their 0-based line in the file of labels;
            None: the file is the one of labels itself, and `target_ind` is not read.
        stream: The file, already open for binary reading, where the caller wants to follow its position.

    Raises:
        FileNotFoundError: when the file is not there.
        ValueError: with file, line and value, for gzip data that end early or are damaged, bytes that are not UTF-8,
            a line that is not a JSON object (a blank one too), a missing field, a field of the wrong type, a label id
            that is no integer or out of range.
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
    number = 0
    with path.open("rb") if stream is None else nullcontext(stream) as raw:
        reader = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            for number, line in enumerate(reader, start=1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path}, line {number + 1}: the gzip data are truncated or damaged ({error}); get the file again"
            ) from error


def _parse(line: bytes, row: int, fields: Sequence[str], num_labels: int | None) -> Record:
    item = _load(line)
    if not isinstance(item, dict):
        raise ValueError(f"{_shorten(line)} is JSON but not an object; every line must be one JSON object")
    uid = item.get("uid", row)
    if type(uid) not in (str, int):
        raise ValueError(f"uid is {uid!r}; a string or an integer is expected")
    texts = [_field(item, name) for name in fields]
    for name, text in zip(fields, texts, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"field {name!r} is {text!r}; a string is expected")
    record = Record(str(uid), texts[0], " ".join(texts), () if num_labels is None else _positives(item, num_labels))
    # JSON can escape half a character ("\ud800"), which no tokenizer takes: fail here, where the line is known.
    (record.uid + record.text).encode("utf-8")
    return record


def _load(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        # Python's own is slower, says better what is wrong, and takes NaN in a field that is not asked for.
        return json.loads(line.decode("utf-8"))


def _field(item: dict[str, Any], name: str) -> Any:
    if name not in item:
        has = ", ".join(item)
        raise ValueError(f"no field {name!r}, only {has}; add it, or name other fields in the data set's configuration")
    return item[name]


def _positives(item: dict[str, Any], num_labels: int) -> tuple[int, ...]:
    positives = _field(item, "target_ind")
    if not isinstance(positives, list):
        raise ValueError(f"target_ind is {positives!r}; a list of label ids is expected")
    for label in positives:
        if type(label) is not int:  # isinstance would let True and False pass
            raise ValueError(f"label id {label!r} in target_ind is not an integer")
        if not 0 <= label < num_labels:
            raise ValueError(
                f"label id {label} in target_ind is outside 0..{num_labels - 1}; "
                "ids are the 0-based lines of the file of labels"
            )
    return tuple(positives)


def _shorten(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
