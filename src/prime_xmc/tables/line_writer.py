"""Rows written to a stream as CSV, TSV or JSON lines."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ByteStream(Protocol):
    """What bytes are written to: a file, compressed or not, or standard output's buffer."""

    def write(self, content: bytes, /) -> object:
        """Write bytes."""

    def flush(self) -> None:
        """Hand what is buffered to the system."""


class JsonLinesWriter:
    """Writes a JSON object a line; NaN and infinities, which JSON does not have, are null."""

    def __init__(self, file: ByteStream):
        self._file = file

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows."""
        for row in rows:
            text = _json(dict(row))
            try:
                line = text.encode("utf-8")
            except UnicodeEncodeError:  # half a character, which has to stay escaped
                line = _json(dict(row), ascii_only=True).encode("ascii")
            self._file.write(line + b"\n")
        self._file.flush()


class DelimitedWriter:
    """Writes a table with a header; a list or an object in a cell is written as JSON, None as an empty cell."""

    def __init__(self, file: ByteStream, columns: Sequence[str], delimiter: str, *, header: bool = True):
        self._file, self._columns = file, list(columns)
        self._csv = csv.writer(_Encoding(file), delimiter=delimiter, lineterminator="\r\n")
        if header:
            self._csv.writerow(self._columns)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows.

        Raises:
            ValueError: If one lacks a column or has another one.
        """
        for row in rows:
            check_columns(row, self._columns)
            self._csv.writerow([_cell(row[column]) for column in self._columns])
        self._file.flush()


class _Encoding:
    """A text stream as far as `csv` needs one, for a row at once; unlike Python's, it does not close what it writes to.

    Rows end in a line feed. To `csv`, their end is a carriage return, too, so that it quotes cells with either of them.
    """

    def __init__(self, file: ByteStream):
        self._file = file

    def write(self, text: str) -> object:
        text = text.removesuffix("\r\n") + "\n"
        return self._file.write(readable(text).encode())


def readable(text: str) -> str:
    """Return a text that UTF-8 can write, in which half a character stays readable, by its number."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def check_columns(row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Check that a row has all columns of the table, and no others.

    Raises:
        ValueError: If not; it names them.
    """
    if len(row) != len(columns) or any(column not in row for column in columns):
        raise ValueError(f"a row has the columns {', '.join(row)}; expected {', '.join(columns)} as in the first one")


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, list | tuple | dict) else value


def _json(value: Any, *, ascii_only: bool = False) -> str:
    try:
        return json.dumps(value, ensure_ascii=ascii_only, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=ascii_only, default=str)


def _finite(value: Any) -> Any:
    """Return a value of JSON with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
