"""Queries from a file or standard input: the rows of a table, of which some fields are the text."""

import logging
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from prime_xmc.export.folder import query_columns, query_fields, query_separator
from prime_xmc.foreign import shown
from prime_xmc.tables.input_format import WHOLE_TEXT
from prime_xmc.tables.line_rows import Row
from prime_xmc.tables.reader import AUTO, UTF_8, OpenTable, open_table

logger = logging.getLogger(__name__)


class Query(NamedTuple):
    """A query of the input.

    Attributes:
        text: What is predicted for.
        others: Fields of the record that go to the output as they are: all but the one that is the text. Where several
            are joined to the text, they are among them too.
    """

    text: str
    others: dict[str, Any]


class TextFields(NamedTuple):
    """Which fields of a record make up a query's text.

    Attributes:
        given: Those that the user names; None: those of the model.
        trained: Those of the model's training; None where the model does not say.
        separator: What stands between them.
        key: Setting by which the user names fields, for messages.
        columns: What the fields of the training are called in the user's own tables; None: the same.
    """

    given: tuple[str, ...] | None = None
    trained: tuple[str, ...] | None = None
    separator: str = " "
    key: str = "text_field"
    columns: tuple[str, ...] | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """What the header of a table is likely to have."""
        return self.given or (*(self.columns or ()), *(self.trained or ()))

    def choose(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the fields to join, in order.

        Where the user names none, they are the model's, by their names in the tables that the raw files were converted
        from or by those in the raw files. A record with none of these may have its complete text in `query` or `text`;
        one for a model that does not say may have it in `query`, `title` or `text`.

        Args:
            names: Fields of the record.

        Raises:
            ValueError: If the record lacks one of them.
        """
        has = f"only {', '.join(names)}" if names else "nothing in the record"
        if self.given is not None:
            if missing := [field for field in self.given if field not in names]:
                raise ValueError(f"no field {missing[0]!r}, {has}; expected those that {self.key}= names")
            return self.given
        if self.columns is not None and all(column in names for column in self.columns):
            return self.columns
        trained = self.trained or ()
        missing = [field for field in trained if field not in names]
        if trained and not missing:
            return trained
        trained = self.columns or trained
        missing = [field for field in trained if field not in names]
        if len(missing) < len(trained):
            raise ValueError(
                f"no field {missing[0]!r}, {has}; the model was trained on {', '.join(trained)} together. Add what is "
                f"missing, or name the fields that make up the text by {self.key}="
            )
        whole = [field for field in WHOLE_TEXT if field in names and not (trained and field == "title")]
        if not whole:
            expected = trained or ("query",)
            raise ValueError(f"no field {expected[0]!r}, {has}; name the field that holds the query by {self.key}=")
        return (whole[0],)

    def split(self, record: dict[str, Any]) -> Query:
        """Return the query of a record, of whose text a field that is null is an empty part, as in a conversion.

        Raises:
            ValueError: If a field that makes up the text is missing or is no string.
        """
        fields = self.choose(record)
        texts = ["" if record[field] is None else record[field] for field in fields]
        for field, text in zip(fields, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"field {field!r} is {shown(text)}; expected a string there")
        others = record if len(fields) > 1 else {name: value for name, value in record.items() if name not in fields}
        return Query(self.separator.join(texts), others)


def text_fields(config: Mapping[str, Any], given: tuple[str, ...] | None, key: str = "text_field") -> TextFields:
    """Return which fields of a record make up a query's text.

    Args:
        config: Content of the model's prime_config.json.
        given: Those that the user names; None: those of the model.
        key: Setting by which users name them, for messages.
    """
    return TextFields(given, query_fields(config), query_separator(config), key, query_columns(config))


def given_fields(text_field: object, text_column: object) -> tuple[str, ...] | None:
    """Return the fields that `text_field=`, or its other name `text_column=`, gives: one, several or None.

    Raises:
        ValueError: If both are given.
    """
    if text_field is not None and text_column is not None:
        raise ValueError("text_field= and text_column= are two names of one setting: give one of them")
    return as_names(text_column if text_field is None else text_field)


def as_names(given: object) -> tuple[str, ...] | None:
    """Return the names of fields that a setting gives: one, several or None."""
    if given is None:
        return None
    return (given,) if isinstance(given, str) else tuple(map(str, given))  # type: ignore[call-overload]


def read_queries(table: OpenTable, fields: TextFields | None = None) -> Iterator[Query]:
    """Yield the queries of a table, one after the other as its rows come in.

    Args:
        table: The table; a line of plain text is a query.
        fields: Which fields of a record make up the text.

    Raises:
        ValueError: With file, line and value, for what cannot be read, and records without the fields.
    """
    fields = fields or TextFields()
    if table.input_format == "text":
        for row in table.rows():
            if fields.given is not None:
                raise ValueError(
                    f"{table.name} is read as plain text, a query a line, and text_field={','.join(fields.given)} "
                    "names a field of a record: leave text_field out, or say what the input is by input_format=jsonl, "
                    "csv or tsv"
                )
            yield Query(str(*row.values.values()), {})
        return
    check_header(table, fields)
    yield from (split_row(row, table, fields) for row in table.rows())


def check_header(table: OpenTable, fields: TextFields) -> None:
    """Check that a table has the fields of the text; records of JSON lines may differ, so that each is its own.

    Raises:
        ValueError: If it lacks one of them.
    """
    if table.input_format != "jsonl" and table.columns:
        try:
            fields.choose(table.columns)
        except ValueError as error:
            raise ValueError(f"{table.name}, the header of the table: {error}") from error


def split_row(row: Row, table: OpenTable, fields: TextFields) -> Query:
    """Return the query of a row.

    Raises:
        ValueError: With file and line, if a field is missing or is no text.
    """
    try:
        query = fields.split(row.values)
        query.text.encode("utf-8")  # JSON can escape half a character, which no tokenizer takes
    except UnicodeError as error:
        raise ValueError(f"{table.place(row.number)}: half of a character ({error}); remove it") from error
    except ValueError as error:
        raise ValueError(f"{table.place(row.number)}: {error}") from error
    return query


@contextmanager
def open_queries(
    path: Path | None, fields: TextFields, input_format: str = AUTO, encoding: str = UTF_8
) -> Iterator[Iterator[Query]]:
    """Open a file of queries, decompressed if need be, or standard input where no path is given.

    Args:
        path: The file.
        fields: Which fields of a record make up the text.
        input_format: What it is, see `open_table`.
        encoding: Encoding of what is made of lines, likewise.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `open_table` and `read_queries`.
    """
    if path is None and sys.stdin.isatty():
        logger.warning("reading queries from the terminal, one a line; Ctrl-D ends")
    if path is not None and not path.exists():
        raise FileNotFoundError(f"input={path}: there is no such file; leave input out to read standard input")
    with open_table(path, input_format=input_format, wanted=fields.wanted, encoding=encoding) as table:
        yield _or_say_none(read_queries(table, fields), table.name)


def _or_say_none(queries: Iterable[Query], name: str) -> Iterator[Query]:
    query: Query | None = None
    for query in queries:
        yield query
    if query is None:
        logger.warning("%s: 0 queries, so that there are no answers", name)
