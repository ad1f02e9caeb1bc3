"""Rows of the formats that are made of lines: CSV and TSV with a header, JSON lines, and plain text.

Python's own `csv` reads tables: it keeps the number of the line in which a row begins, refuses quotes that are out of
place, and takes each line as it comes, from a terminal or a pipe too.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from prime_xmc.foreign import parse_json
from prime_xmc.tables.input_format import LONGEST_CELL, WHOLE_TEXT, delimiter_of

TEXT_COLUMN = "text"  # what the lines of plain text are called
_ENCODING = "convert it to UTF-8, or say what it is in, such as encoding=cp1252"


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        number: Line in which it begins, from 1; in Parquet and Arrow files, which have no lines, its row.
        values: Its cells by column, in the table's order.
    """

    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Unreadable:
    """What stands for a cell that cannot be read, which matters only where somebody reads it.

    Attributes:
        reason: Why it cannot.
    """

    reason: str


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a file in UTF-8, with or without a byte-order mark, line ends included.

    Raises:
        ValueError: With file and line, for bytes that are not UTF-8, and compressed data that are damaged or end early.
    """
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                found = f"{name}, line 1: the file begins with the mark of UTF-16; convert it to UTF-8, or "
                raise ValueError(f"{found}give encoding=utf-16")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeError as error:
                raise ValueError(f"{name}, line {number}: not UTF-8 ({error}); {_ENCODING}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name}, line {number + 1}: the gzip data are truncated or damaged ({error})") from error


def first_line(lines: Iterable[str]) -> tuple[str, Iterator[str]]:
    """Return the first line that is not blank, empty where there is none, and all lines again."""
    lines = iter(lines)
    blank: list[str] = []
    for line in lines:
        if line.strip():
            return line, chain(blank, [line], lines)
        blank.append(line)
    return "", iter(blank)


def read_text(lines: Iterable[str]) -> Iterator[Row]:
    """Yield each line as a row of the one column `TEXT_COLUMN`; blank lines too, as empty texts."""
    for number, line in enumerate(lines, start=1):
        yield Row(number, {TEXT_COLUMN: line.rstrip("\r\n")})


def read_json_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Yield the object of each line; blank lines at the end are passed over.

    Raises:
        ValueError: With file, line and its beginning, for a line that is not a JSON object.
    """
    blank = 0  # the line after which only blank ones came so far
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            blank = blank or number
            continue
        try:
            if blank:
                raise ValueError("blank, and not at the end; every line must be one JSON object")
            record = _parse(line)
        except ValueError as error:
            raise ValueError(f"{name}, line {blank or number}: {error}") from error
        yield Row(number, record)


def _parse(line: str) -> dict[str, Any]:
    try:
        record = parse_json(line)  # orjson turns integers of 20 digits, such as some identifiers, into floats
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error}): {_shorten(line)}; every line must be one JSON object, or give "
            "input_format=text, csv or tsv"
        ) from error
    if not isinstance(record, dict):
        hint = "; `jq -c '.[]'` writes the items of an array so" if isinstance(record, list) else ""
        raise ValueError(f"{_shorten(line)} is JSON but not an object; every line must be one JSON object{hint}")
    return record


class DelimitedTable:
    """A table with a header whose cells are separated by one character; cells may be quoted, and then hold line breaks.

    Attributes:
        columns: Names of the columns without surrounding blanks; one without a name is called by its place.
        delimiter: What separates the cells.
    """

    def __init__(self, lines: Iterable[str], name: str, delimiter: str | None, wanted: Collection[str] = ()):
        """Read the header.

        Args:
            lines: Lines of the table.
            name: Name of the file for errors.
            delimiter: What separates the cells; None: recognised by the header.
            wanted: Columns that the header is likely to have.

        Raises:
            ValueError: If the header has a column more than once, or is not one.
        """
        self._name = name
        self._lines = iter(lines)
        self._skipped, header = 0, ""
        for header in self._lines:
            if header.strip():
                break
            self._skipped += 1  # blank lines before the header
        if said := re.fullmatch(r'"?sep=(.)"?', header.strip("\r\n")):  # which tells Excel what separates the cells
            delimiter = said[1]
            for header in self._lines:
                self._skipped += 1
                if header.strip():
                    break
        self._is_empty = not header.strip()
        self.delimiter = delimiter or delimiter_of(header, wanted or WHOLE_TEXT)
        self.columns = [] if self._is_empty else self._read_header(header)

    def _read_header(self, line: str) -> list[str]:
        if "\r" in line.replace("\r\n", "").strip("\r"):
            raise ValueError(
                f"{self._name}: the header of the table has a carriage return in it, {_shorten(line)}; if lines end in "
                "one, as in old files of a Mac, write the file with line feeds"
            )
        csv.field_size_limit(LONGEST_CELL)
        reader = csv.reader(chain([line], self._lines), delimiter=self.delimiter)
        reason = "a quoted name has to be closed, and a quote within it written twice"
        try:
            cells = next(reader)  # of several lines, if there is a line break within a quoted name
        except csv.Error as error:
            raise ValueError(
                f"{self._name}: {_shorten(line)} is not the header of a table ({error}); {reason}"
            ) from error
        if reader.line_num > 1:
            following = next(self._lines, None)
            if following is None:  # the name has taken the rest of the file
                raise ValueError(f"{self._name}: {_shorten(line)} is not the header of a table; {reason}")
            self._lines = chain([following], self._lines)
            self._skipped += reader.line_num - 1
        columns = [" ".join(cell.split()) or f"column {place}" for place, cell in enumerate(cells, start=1)]
        if repeated := [column for column in columns if columns.count(column) > 1]:
            raise ValueError(
                f"{self._name}: the header of the table has the column {repeated[0]!r} more than once; rename one"
            )
        return columns

    def rows(self) -> Iterator[Row]:
        """Yield the rows, whose cells are strings; blank lines are passed over where there are several columns.

        Raises:
            ValueError: With file, line and value, for a row that is malformed or has more or fewer cells than columns.
        """
        if self._is_empty:
            return
        csv.field_size_limit(LONGEST_CELL)
        num_columns, lines = len(self.columns), list[str]()  # of the row
        reader = csv.reader(_noted(self._lines, lines), delimiter=self.delimiter, strict=True)
        first = self._skipped + 2  # the line in which the next row begins
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(
                    f"{self._name}, line {first}: not a row of a table ({error}); a quoted cell has to be closed, and "
                    "a quote within it written twice"
                ) from error
            if not row and num_columns == 1:
                row = [""]
            if row:
                if len(row) != num_columns:
                    raise ValueError(
                        f"{self._name}, line {first}: {len(row)} cells, expected {num_columns} as in the header, "
                        f"{_shorten(self.delimiter.join(row))}; a cell with {self.delimiter!r}, a quote or a line "
                        "break in it must be quoted"
                    )
                if self.delimiter == "\t" and num_columns > 1 and _are_rows(lines, num_columns):
                    raise ValueError(
                        f"{self._name}, line {first}: {_shorten(lines[0])} opens a quote that the line does not close, "
                        f"and each line up to the one that does, line {first + len(lines) - 1}, is a row by its tabs; "
                        "if quotes are letters here, put the cell into quotes and write those within it twice"
                    )
                yield Row(first, dict(zip(self.columns, row, strict=True)))
            lines.clear()
            first = self._skipped + 2 + reader.line_num


def _noted(lines: Iterable[str], notes: list[str]) -> Iterator[str]:
    """Yield lines, and put each into a list."""
    for line in lines:
        notes.append(line)
        yield line


def _are_rows(lines: list[str], num_columns: int) -> bool:
    """Return whether lines that a quoted cell has made one row look like a row each."""
    return len(lines) > 1 and all(line.count("\t") == num_columns - 1 for line in lines)


def _shorten(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
