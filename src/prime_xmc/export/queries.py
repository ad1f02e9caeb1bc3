"""Queries from a file or standard input, and the lines of what was predicted for them."""

import gzip
import json
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from prime_xmc.export.predictor import Prediction
from prime_xmc.files import replacing

logger = logging.getLogger(__name__)

_FIELDS = ("query", "title", "text")  # of a JSON line, the first that it has


def read_queries(lines: Iterable[bytes], name: str, text_field: str | None, *, as_json: bool) -> Iterator[str]:
    """Yield the query of each line.

    Args:
        lines: UTF-8 text.
        name: What to call it in an error.
        text_field: Field of a JSON line that holds the query; None: `query`, `title` or `text`, the first there is.
        as_json: Whether a line is a JSON object, or the query itself.

    Raises:
        ValueError: With name, line and value, for damaged gzip data, bytes that are not UTF-8, and lines that are no
            JSON object with a string in that field.
    """
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8")
                query = _query(text, text_field) if as_json else text.rstrip("\r\n")
                query.encode("utf-8")  # JSON can escape half a character, which no tokenizer takes
            except UnicodeError as error:
                raise ValueError(f"{name}, line {number}: not UTF-8 ({error}); convert it to UTF-8") from error
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: {error}") from error
            yield query
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name}, line {number + 1}: the gzip data are truncated or damaged ({error})") from error


def _query(line: str, text_field: str | None) -> str:
    shown = repr(line.strip()[:60])
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}): {shown}; every line must be one JSON object") from error
    if not isinstance(item, dict):
        raise ValueError(f"{shown} is JSON but not an object; every line must be one JSON object")
    field = text_field or next((field for field in _FIELDS if field in item), "query")
    if not isinstance(item.get(field), str):
        what = f"field {field!r} is {item[field]!r}" if field in item else f"no field {field!r}, only {', '.join(item)}"
        raise ValueError(f"{what}; expected a string there, or another field named by text_field=")
    return item[field]


def to_json(prediction: Prediction, min_score: float | None) -> str:
    """Return a prediction as a line of JSON, without the labels whose score is below `min_score`."""
    labels = [
        {"uid": label.uid, "text": label.text, "score": round(label.score, 6)}
        for label in prediction.labels
        if min_score is None or label.score >= min_score
    ]
    return json.dumps({"query": prediction.query, "labels": labels}, ensure_ascii=False) + "\n"


@contextmanager
def open_input(path: Path | None) -> Iterator[Iterable[bytes]]:
    """Open a file of queries, decompressed if need be, or standard input where no path is given.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if path is None:
        if sys.stdin.isatty():
            logger.warning("reading queries from the terminal, one a line; Ctrl-D ends")
        yield sys.stdin.buffer
    elif not path.is_file():
        raise FileNotFoundError(f"input={path}: there is no such file; leave input out to read standard input")
    else:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            yield lines


@contextmanager
def open_output(path: Path | None) -> Iterator[BinaryIO]:
    """Open standard output, or a file that appears under its name when it is complete."""
    if path is None:
        yield sys.stdout.buffer
    else:
        with replacing(path) as temporary, temporary.open("wb") as file:
            yield file
