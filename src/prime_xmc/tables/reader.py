"""A user's table, row by row in the order of the file, in memory that does not grow with the file."""

import codecs
import gzip
import importlib.util
import io
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from prime_xmc.tables.input_format import COLUMNAR, FORMATS, columnar_format, compression_of, recognise
from prime_xmc.tables.line_rows import (
    TEXT_COLUMN,
    DelimitedTable,
    Row,
    Unreadable,
    decode_lines,
    first_line,
    read_json_lines,
    read_text,
)

AUTO = "auto"
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")  # the first bytes of .xlsx and .ods, and of .xls
UTF_8 = "utf-8"


class OpenTable:
    """An open table, whose rows can be taken once.

    Attributes:
        name: Name of the file, or "standard input".
        input_format: One of `FORMATS` and `COLUMNAR`.
        columns: Names of its columns; those of the first record for JSON lines, whose records may differ.
        delimiter: What separates the cells of a CSV or TSV file; None for other formats.
        classes: Columns whose numbers are read as the names of classes that the file gives.
    """

    def __init__(
        self,
        name: str,
        input_format: str,
        columns: list[str],
        rows: Iterable[Row],
        delimiter: str | None = None,
        classes: Collection[str] = (),
    ):
        self.name, self.input_format, self.columns, self.delimiter = name, input_format, columns, delimiter
        self.classes = frozenset(classes)
        self._rows = rows

    def rows(
        self, *, strings: bool = False, columns: Collection[str] | None = None, lenient: bool = False
    ) -> Iterator[Row]:
        """Yield the rows.

        Args:
            strings: Whether all cells become strings or lists of strings, as `as_strings` makes them; otherwise they
                are what the file has: always strings in CSV, TSV and text, also numbers, lists and None in others.
            columns: Columns that are read as strings; cells of others may be empty. None: all.
            lenient: Whether cells that cannot be read are empty strings, rather than an error.

        Raises:
            ValueError: With file, line (row where a file has no lines) and value, for what cannot be read.
        """
        if self.input_format in ("csv", "tsv", "text") or (not strings and self.input_format not in COLUMNAR):
            yield from self._rows
            return
        wanted = columns if strings else None
        for row in self._rows:
            yield Row(
                row.number,
                {
                    column: self._cell(row.number, column, value, strings, lenient)
                    if wanted is None or column in wanted
                    else ""
                    for column, value in row.values.items()
                },
            )

    def _cell(self, number: int, column: str, value: Any, strings: bool, lenient: bool) -> Any:
        try:
            return as_strings(value) if strings else _readable(value)
        except ValueError as error:
            if lenient:
                return ""
            if isinstance(error, UnicodeEncodeError):
                # JSON can escape half a character ("\\ud800"), which no tokenizer takes
                raise ValueError(f"{self.place(number)}: half of a character ({error}); remove it") from error
            raise ValueError(f"{self.place(number)}: {column!r} cannot be read ({error})") from error

    def place(self, number: int) -> str:
        """Return how a message names a row: file and line, or file and row where the file has no lines."""
        return f"{self.name}, {'row' if self.input_format in COLUMNAR else 'line'} {number}"


@contextmanager
def open_table(
    path: Path | None,
    *,
    input_format: str = AUTO,
    delimiter: str | None = None,
    wanted: Collection[str] = (),
    encoding: str = UTF_8,
) -> Iterator[OpenTable]:
    """Open a file of a table, decompressed by its suffix (.gz, .zst), or standard input where no path is given.

    A folder that the library `datasets` wrote by `save_to_disk` is the table of its only split.

    Args:
        path: The file. CSV, TSV, JSON lines and text are with or without a byte-order mark, with line ends of Unix or
            Windows; CSV and TSV have a header.
        input_format: One of `FORMATS` and `COLUMNAR`; "auto": by suffix and first line, see `recognise`.
        delimiter: What separates the cells of CSV; None: comma, semicolon, tab or bar, by the header.
        wanted: Columns that the caller looks for, which help to recognise a format and a delimiter.
        encoding: Encoding of the files that are made of lines, by one of Python's names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such encoding, it is not clear what the file is, it is damaged, or needs a library
            that is not installed.
    """
    if input_format not in (AUTO, *FORMATS, *COLUMNAR):
        raise ValueError(f"expected input_format auto, {', '.join((*FORMATS, *COLUMNAR))}, got {input_format!r}")
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise ValueError(f"encoding={encoding}: there is no such encoding; common ones are cp1252, utf-16") from error
    if path is not None and path.is_dir():
        yield _open_folder(path)
        return
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    columnar = input_format if input_format in COLUMNAR else columnar_format(path.name) if path is not None else None
    if columnar is not None and input_format in (AUTO, columnar):
        if path is None:
            raise ValueError(f"{columnar} cannot be read from standard input; give a file")
        yield _open_columnar([path], columnar, str(path))
        return
    with ExitStack() as stack:
        name = str(path or "standard input")
        if path is not None:
            _refuse_workbooks(path)
        lines = sys.stdin.buffer if path is None else stack.enter_context(open_lines(path))
        if codecs.lookup(encoding) != codecs.lookup(UTF_8):
            lines = _recoded(lines, name, encoding)
        yield table_of_lines(lines, name, input_format=input_format, delimiter=delimiter, wanted=wanted)


def table_of_lines(
    lines: Iterable[bytes],
    name: str,
    *,
    input_format: str = AUTO,
    delimiter: str | None = None,
    wanted: Collection[str] = (),
) -> OpenTable:
    """Return the table that lines of CSV, TSV, JSON or text make, from a stream such as standard input.

    Rows come as their lines do: no line is waited for that does not belong to a row. Arguments and errors are those of
    `open_table`.
    """
    decoded = decode_lines(lines, name)
    if input_format in (AUTO, "jsonl"):
        first, decoded = first_line(decoded)
        if input_format == AUTO:
            input_format = recognise(name, first, wanted)
    if input_format == "text":
        return OpenTable(name, "text", [TEXT_COLUMN], read_text(decoded))
    if input_format == "jsonl":
        rows = read_json_lines(decoded, name)
        head = next(rows, None) if first else None
        columns = [] if head is None else list(head.values)
        return OpenTable(name, "jsonl", columns, rows if head is None else _chain(head, rows))
    table = DelimitedTable(decoded, name, "\t" if input_format == "tsv" else delimiter, wanted)
    return OpenTable(name, input_format, table.columns, table.rows(), table.delimiter)


@contextmanager
def open_lines(path: Path) -> Iterator[Iterable[bytes]]:
    """Open a file to be read line by line, decompressed by its suffix.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If .zst is asked for without PyArrow, or its data are damaged.
    """
    compression = compression_of(path.name)
    if compression == "gzip":
        with gzip.open(path, "rb") as lines:
            yield lines
    elif compression == "zstd":
        need_pyarrow(path)
        import pyarrow as pa

        with pa.input_stream(str(path), compression="zstd") as stream, io.BufferedReader(stream) as lines:
            yield _undamaged(lines, path)
    else:
        with path.open("rb") as lines:
            yield lines


def as_strings(value: Any) -> str | list[str]:
    """Return a cell as a string, or a list as a list of strings.

    None, of a null, and NaN are empty; a float without a fraction loses its ".0", since tools turn integers into
    floats where one is missing; what has fields becomes JSON.

    Raises:
        UnicodeError: If a string has half of a character, or bytes are not UTF-8.
        ValueError: If the cell is `Unreadable`.
    """
    if isinstance(value, list | tuple):
        return [each if isinstance(each, str) else _as_string(each) for each in map(_checked, value)]
    return _as_string(_checked(value))


def need_pyarrow(path: Path) -> None:
    """Check that PyArrow is there to read or write a file.

    Raises:
        ValueError: If it is not.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path}: this format needs pyarrow: pip install '.[tables]' in the clone")


def _checked(value: Any) -> Any:
    if isinstance(value, str):
        value.encode("utf-8")
    return _readable(value)


def _readable(value: Any) -> Any:
    if isinstance(value, Unreadable):
        raise ValueError(value.reason)
    return value


def _as_string(value: Any) -> str:
    if value is None or value != value:  # NaN is what pandas has where nothing is
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8")
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)
    text.encode("utf-8")  # what has fields may have half of a character, too
    return text


def _chain(head: Row, rows: Iterator[Row]) -> Iterator[Row]:
    yield head
    yield from rows


def _recoded(lines: Iterable[bytes], name: str, encoding: str) -> Iterator[bytes]:
    """Yield lines in UTF-8 from those of another encoding, in which a line break may be more than one byte."""
    decode = codecs.getincrementaldecoder(encoding)().decode
    number, rest = 1, ""
    for block in chain(lines, [b""]):
        try:
            rest += decode(block, final=not block)
        except UnicodeError as error:
            raise ValueError(f"{name}, line {number}: not {encoding} ({error}); give another encoding") from error
        *complete, rest = rest.split("\n")
        number += len(complete)
        yield from (f"{line}\n".encode() for line in complete)
    if rest:
        yield rest.encode()


def _refuse_workbooks(path: Path) -> None:
    """Refuse spreadsheets, of which some bytes would pass for text in an encoding such as cp1252."""
    with path.open("rb") as file:
        if file.read(8).startswith(_WORKBOOKS):
            raise ValueError(
                f"{path} is a workbook, as Excel saves it, or a ZIP archive; save its sheet as CSV in UTF-8"
            )


def _undamaged(lines: Iterable[bytes], path: Path) -> Iterator[bytes]:
    number = 0  # of lines so far
    try:
        for line in lines:
            number += 1
            yield line
    except OSError as error:
        raise ValueError(f"{path}, line {number + 1}: the zstd data are truncated or damaged ({error})") from error


def _open_columnar(paths: list[Path], file_format: str, name: str) -> OpenTable:
    need_pyarrow(paths[0])
    from prime_xmc.tables.columnar_rows import ColumnarFiles

    files = ColumnarFiles(paths, file_format)
    return OpenTable(name, file_format, files.columns, files.rows(), classes=files.classes)


def _open_folder(folder: Path) -> OpenTable:
    need_pyarrow(folder)
    from prime_xmc.tables.columnar_rows import dataset_splits

    splits = dataset_splits(folder)
    if len(splits) != 1:
        raise ValueError(f"{folder} has the splits {', '.join(splits)}: give the folder of one, {folder}/<split>")
    return _open_columnar(next(iter(splits.values())), "arrow", str(folder))
