"""Users' files of labels to add or rename, of labels that there are, and of queries with their labels."""

import json
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from prime_xmc.export.label_changes import Example, NewLabel
from prime_xmc.export.queries import TextFields, check_header, split_row
from prime_xmc.files import replacing
from prime_xmc.printing import visible_json
from prime_xmc.tables.line_rows import Row
from prime_xmc.tables.reader import AUTO, UTF_8, OpenTable, open_table
from prime_xmc.tables.writer import open_writer, written_format

logger = logging.getLogger(__name__)

# Names of columns, the likeliest first.
_UIDS = ("uid", "id", "label_id", "label_uid", "label", "name")
_TEXTS = ("text", "title", "name", "description", "label")
_LABELS = ("labels", "label", "uids", "uid", "label_id", "label_ids")
_SEPARATORS = (";", "|", ",")


def read_labels(
    path: Path,
    uid_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    *,
    input_format: str = AUTO,
    encoding: str = UTF_8,
) -> list[NewLabel]:
    """Return the labels of a file: CSV, TSV, JSON lines, Parquet or Arrow, or a label a line in a text file.

    Args:
        path: The file.
        uid_column: Column of identifiers; None: the first there is of uid, id, label_id, label_uid, label and
            name, else the texts are their own identifiers.
        text_columns: Columns that make up the text, joined by a space as in training; None: the first there is of
            text, title, name, description and label.
        input_format: What the file is, see `open_table`.
        encoding: Encoding of the file, if it is made of lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, or the file cannot be read, with its line.
    """
    labels = []
    with open_table(
        path, wanted=[uid_column or "uid", *(text_columns or ["text"])], input_format=input_format, encoding=encoding
    ) as table:
        given: Sequence[str | None] = text_columns or [None]
        texts = [_column(table, each, _TEXTS, "text", "text_column") for each in given]
        uid = _column(table, uid_column, _UIDS, "identifier", "uid_column", fallback=texts[0])
        for row in table.rows(strings=True):
            text = " ".join(_cell(table, row, column) for column in texts)
            labels.append(NewLabel(_identifier(table, row, uid), text))
    return labels


def list_labels(records: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Write labels as JSON lines to standard output, or as a file, of which the suffix says what it is.

    Args:
        records: Labels of a model, see `prime_xmc.export.folder.read_labels`.
        path: The file, which appears when it is complete; None: standard output.

    Raises:
        ValueError: If the suffix is none of `prime_xmc.tables.writer.WRITTEN`.
    """
    if path is None:
        lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        sys.stdout.write(visible_json(lines))
        return
    columns = dict.fromkeys(chain.from_iterable(records))
    if written_format(path) != "jsonl":  # whose rows may lack some
        records = [columns | dict(record) for record in records]
    with replacing(path) as temporary, open_writer(temporary, list(columns), target=path) as writer:
        writer.write(records)


def read_uids(
    path: Path, uid_column: str | None = None, *, input_format: str = AUTO, encoding: str = UTF_8
) -> list[str]:
    """Return the identifiers of a file of labels, see `read_labels`; of a text file, its lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the column is missing, or the file cannot be read, with its line.
    """
    with open_table(path, wanted=[uid_column or "uid"], input_format=input_format, encoding=encoding) as table:
        only = table.columns[0] if len(table.columns) == 1 else None
        if only is not None and table.input_format in ("csv", "tsv") and uid_column is None and only not in _UIDS:
            # it may be the first identifier of a file without a header, which would be left out without a word
            raise ValueError(
                f"{table.name}: the first line, {only!r}, is no known name of a column: if it is one, name it by "
                f"uid_column=; if it is an identifier, put a line before it, {_UIDS[0]}, or name the file .txt"
            )
        uid = _column(table, uid_column, _UIDS, "identifier", "uid_column", fallback=only)
        return [_identifier(table, row, uid) for row in table.rows(strings=True)]


def read_examples(
    path: Path,
    known: Collection[str],
    fields: TextFields | None = None,
    label_column: str | None = None,
    separator: str | None = None,
    *,
    where: str = "in the model",
    input_format: str = AUTO,
    encoding: str = UTF_8,
) -> list[Example]:
    """Return the queries of a file with their labels; rows with the same query are one query.

    A cell has the identifier of a label, or several in a list or separated, or none where it is empty.

    Args:
        path: The file.
        known: Identifiers of all labels, new ones included.
        fields: Which columns make up the text of a query; None: the first there is of query, title and text.
        label_column: Column of their labels; None: the first there is of labels, label, uids, uid, label_id
            and label_ids.
        separator: What separates the labels in a cell; None: semicolon, bar or comma, where that makes labels of a cell
            that is none itself.
        where: Where the known labels are, for messages.
        input_format: What the file is, see `open_table`.
        encoding: Encoding of the file, if it is made of lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a label is not known, or the file cannot be read, with its line.
    """
    examples: dict[str, dict[str, None]] = {}  # by query, its labels in order
    num_rows = 0
    fields = fields or TextFields()
    wanted = [*(fields.wanted or ("query",)), label_column or "labels"]
    with open_table(path, wanted=wanted, input_format=input_format, encoding=encoding) as table:
        check_header(table, fields)
        labels = _column(table, label_column, _LABELS, "labels", "label_column", others=fields.given or ())
        for row in table.rows(strings=True):
            uids = _split(_value(table, row, labels), known, separator)
            if unknown := [uid for uid in uids if uid not in known]:
                raise ValueError(
                    f"{table.place(row.number)}: there is no label {unknown[0]!r} {where}; correct it, or say by "
                    "separator= how the labels of a cell are separated"
                )
            num_rows += 1
            examples.setdefault(split_row(row, table, fields).text, {}).update(dict.fromkeys(uids))
    if num_rows > len(examples):
        logger.warning(
            "%s: its %s rows are %s queries; rows of one text are one query, which has the labels of all of them",
            path,
            f"{num_rows:,}",
            f"{len(examples):,}",
        )
    return [Example(text, tuple(uids)) for text, uids in examples.items()]


def _column(
    table: OpenTable,
    given: str | None,
    names: Sequence[str],
    what: str,
    key: str,
    *,
    fallback: str | None = None,
    others: Collection[str] = (),
) -> str:
    """Return the column that is meant: the one that is given, the likeliest, or another to fall back to."""
    has = f"the columns are {', '.join(table.columns)}" if table.columns else "it is empty"
    if given is not None:
        if given not in table.columns:
            raise ValueError(f"{table.name}: no column {given!r}, {has}; expected the one that {key}= names")
        return given
    found = [name for name in names if name in table.columns and name not in others]
    if found or fallback is not None:
        return found[0] if found else str(fallback)
    raise ValueError(f"{table.name}: no column for the {what}, {has}; name it by {key}=")


def _value(table: OpenTable, row: Row, column: str) -> str | list[str]:
    if column not in row.values:
        raise ValueError(f"{table.place(row.number)}: no field {column!r}, only {', '.join(row.values)}")
    return row.values[column]


def _cell(table: OpenTable, row: Row, column: str) -> str:
    value = _value(table, row, column)
    if isinstance(value, list):
        raise ValueError(f"{table.place(row.number)}: {column!r} is the list {value!r}; expected a text")
    return value


def _identifier(table: OpenTable, row: Row, column: str) -> str:
    uid = _cell(table, row, column)
    if not uid.strip():
        raise ValueError(f"{table.place(row.number)}: {column!r} is empty; expected the identifier of a label")
    return uid


def _split(value: str | list[str], known: Collection[str], separator: str | None) -> list[str]:
    if isinstance(value, list):
        return value
    if separator is not None:
        return [part.strip() for part in value.split(separator) if part.strip()]
    if value in known or not value.strip():
        return [value] if value in known else []
    for candidate in _SEPARATORS:
        parts = [part.strip() for part in value.split(candidate) if part.strip()]
        if parts and all(part in known for part in parts):
            return parts
    return [value]
