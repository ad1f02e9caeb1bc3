"""Queries from a file or standard input: lines of text, JSON lines, or the rows of a table."""

import csv
import gzip
import json
import logging
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from prime_xmc.tables.input_format import FORMATS, WHOLE_TEXT, delimiter_of, recognise, split_header

logger = logging.getLogger(__name__)

_LONGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131,072


class Query(NamedTuple):
    """A query of the input.

    Attributes:
        text: What is predicted for.
        others: The record's other fields, which go to the output as they are.
    """

    text: str
    others: dict[str, Any]


class TextFields(NamedTuple):
    """Which fields of a record make up a query's text.

    Attributes:
        given: Those that the user names; None: those of the model.
        trained: Those of the model's training; None where the model does not say.
        separator: What stands between them.
    """

    given: tuple[str, ...] | None = None
    trained: tuple[str, ...] | None = None
    separator: str = " "

    def choose(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the fields to join, in order.

        Where the user names none, they are the model's. A record with none of these may have its complete text in
        `query` or `text`; one for a model that does not say may have it in `query`, `title` or `text`.

        Args:
            names: Fields of the record.

        Raises:
            ValueError: If the record lacks one of them.
        """
        has = f"only {', '.join(names)}" if names else "nothing in the record"
        if self.given is not None:
            if missing := [field for field in self.given if field not in names]:
                raise ValueError(f"no field {missing[0]!r}, {has}; expected those that text_field= names")
            return self.given
        trained = self.trained or ()
        missing = [field for field in trained if field not in names]
        if trained and not missing:
            return trained
        if len(missing) < len(trained):
            raise ValueError(
                f"no field {missing[0]!r}, {has}; the model was trained on {', '.join(trained)} together. Add what is "
                "missing, or name the fields to predict from by text_field="
            )
        whole = [field for field in WHOLE_TEXT if field in names and not (trained and field == "title")]
        if not whole:
            expected = trained or ("query",)
            raise ValueError(f"no field {expected[0]!r}, {has}; name the field that holds the query by text_field=")
        return (whole[0],)

    def split(self, record: dict[str, Any]) -> Query:
        """Return the query of a record.

        Raises:
            ValueError: If a field that makes up the text is missing or is no string.
        """
        fields = self.choose(record)
        for field in fields:
            if not isinstance(record[field], str):
                raise ValueError(f"field {field!r} is {record[field]!r}; expected a string there")
        others = {name: value for name, value in record.items() if name not in fields}
        return Query(self.separator.join(record[field] for field in fields), others)


def read_queries(
    lines: Iterable[bytes], name: str, fields: TextFields | None = None, input_format: str = "auto"
) -> Iterator[Query]:
    """Yield the queries of an input, one after the other as its lines come in.

    Args:
        lines: UTF-8 text, with or without a byte-order mark.
        name: Name of the file, or what to call the input in an error.
        fields: Which fields of a record make up the text.
        input_format: "text": a line is a query. "jsonl": a line is a JSON object. "csv", "tsv": a table with a header,
            whose cells may be quoted and then hold line breaks. "auto": one of these, see `recognise`.

    Raises:
        ValueError: With name, line and value, for damaged gzip data, bytes that are not UTF-8, lines and rows that are
            malformed or without the fields, or an input of which it is not clear what it is.
    """
    fields = fields or TextFields()
    if input_format not in ("auto", *FORMATS):
        raise ValueError(f"expected input_format auto, {', '.join(FORMATS)}, got {input_format!r}")
    decoded = _decode(lines, name)
    blank, first_line = [], ""
    for line in decoded:
        if line.strip():
            first_line = line
            break
        blank.append(line)
    decoded = chain(blank, [first_line] if first_line else [], decoded)
    if input_format == "auto":
        input_format = recognise(name, first_line, fields.given or fields.trained or ())
    if input_format == "text":
        if fields.given is not None and first_line:
            raise ValueError(
                f"{name} is read as plain text, a query a line, and text_field={','.join(fields.given)} names a field "
                "of a record: leave text_field out, or say what the input is by input_format=jsonl, csv or tsv"
            )
        yield from (Query(line.rstrip("\r\n"), {}) for line in decoded)
    elif input_format == "jsonl":
        yield from _read_json_lines(decoded, name, fields)
    else:
        yield from _read_table(decoded, name, fields, "\t" if input_format == "tsv" else None)


def _decode(lines: Iterable[bytes], name: str) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeError as error:
                raise ValueError(f"{name}, line {number}: not UTF-8 ({error}); convert it to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name}, line {number + 1}: the gzip data are truncated or damaged ({error})") from error


def _read_json_lines(lines: Iterable[str], name: str, fields: TextFields) -> Iterator[Query]:
    blank = 0  # the line after which only blank ones came so far
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            blank = blank or number
            continue
        try:
            if blank:
                raise ValueError("blank, and not at the end; every line must be one JSON object")
            query = fields.split(_parse(line))
            query.text.encode("utf-8")  # JSON can escape half a character, which no tokenizer takes
        except UnicodeError as error:
            raise ValueError(f"{name}, line {number}: not UTF-8 ({error}); convert it to UTF-8") from error
        except ValueError as error:
            raise ValueError(f"{name}, line {blank or number}: {error}") from error
        yield query


def _parse(line: str) -> dict[str, Any]:
    shown = repr(line.strip()[:60])
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error}): {shown}; every line must be one JSON object, or give input_format=text, csv or tsv"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{shown} is JSON but not an object; every line must be one JSON object")
    return record


def _read_table(lines: Iterable[str], name: str, fields: TextFields, delimiter: str | None) -> Iterator[Query]:
    lines = iter(lines)
    skipped, header = 0, ""
    while not header.strip():  # blank lines before the header
        try:
            header = next(lines)
        except StopIteration:
            return
        skipped += not header.strip()
    delimiter = delimiter or delimiter_of(header, fields.given or fields.trained or WHOLE_TEXT)
    columns = _column_names(split_header(header, delimiter), name)
    try:
        fields.choose(columns)
    except ValueError as error:
        raise ValueError(f"{name}, line {skipped + 1}, the header of a table: {error}") from error
    csv.field_size_limit(_LONGEST_CELL)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    first = skipped + 2  # the line in which the next row begins
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{name}, line {first}: not a row of a table ({error}); write a quote within a quoted cell twice"
            ) from error
        if not row and len(columns) == 1:
            row = [""]
        if row:
            if len(row) != len(columns):
                raise ValueError(
                    f"{name}, line {first}: {len(row)} cells, expected {len(columns)} as in the header; a cell with "
                    f"{delimiter!r}, a quote or a line break in it must be quoted"
                )
            yield fields.split(dict(zip(columns, row, strict=True)))
        first = skipped + 2 + rows.line_num


def _column_names(cells: Sequence[str], name: str) -> list[str]:
    columns = [cell or f"column {place}" for place, cell in enumerate(cells, start=1)]
    if repeated := [column for column in columns if columns.count(column) > 1]:
        raise ValueError(f"{name}: the header of the table has the column {repeated[0]!r} more than once")
    return columns


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
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as lines:
            yield lines
