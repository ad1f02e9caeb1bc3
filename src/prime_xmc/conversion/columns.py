"""Which columns of the tables hold what: as the user says, or as their names and first rows suggest."""

import re
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from prime_xmc.conversion.conversion_settings import Settings
from prime_xmc.conversion.guessing import (
    BITS,
    JSON,
    LABEL_ID_NAMES,
    LABEL_TEXT_NAMES,
    LIST,
    ROW,
    TAGS,
    Column,
    Reference,
    are_indicators,
    choose_column,
    choose_query_columns,
    describe_separator,
    fields_of_objects,
    guess_separator,
    match_references,
    numbered_alike,
    separators_within,
    split_cell,
)
from prime_xmc.conversion.layouts import Inputs, other_splits
from prime_xmc.conversion.sparse_files import read_sparse
from prime_xmc.tables.reader import OpenTable, open_table

_SAMPLE = 1000  # rows by which columns and separators are guessed
_RESERVED = ("uid", "target_ind", "target_rel")


@dataclass
class Columns:
    """What the columns of the tables hold.

    Attributes:
        text: Columns that make up the text of a query.
        uid: Column of a query's identifier; None: there is none.
        labels: Columns of a query's labels; none: they are in a file of their own.
        separator: What separates them in a cell.
        within: Separators that the first cells have within labels.
        classes: Columns of labels whose numbers are read as the names of classes, which are whole.
        fields: Fields of a query in the raw files.
        label_text: Columns that make up the text of a label; none where there is no file of labels.
        label_uid: Column of a label's identifier, likewise.
        reference: How queries refer to labels; None where there is no file of labels.
        label_fields: Fields of a label in the raw files.
        notes: What was found and decided, as (subject, sentence).
    """

    text: tuple[str, ...] = ()
    uid: str | None = None
    labels: tuple[str, ...] = ()
    separator: str = ""
    within: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()
    fields: list[str] = field(default_factory=list)
    label_text: tuple[str, ...] = ()
    label_uid: str = ""
    reference: Reference | None = None
    label_fields: list[str] = field(default_factory=lambda: ["title"])
    notes: list[tuple[str, str]] = field(default_factory=list)


def choose_columns(inputs: Inputs, settings: Settings) -> Columns:
    """Return what the columns of the tables hold, and the separator of labels.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: With the file, if a column that is named is not there, or none can be found.
    """
    return _Choice(inputs, settings).run()


def open_input(path: Path, settings: Settings) -> AbstractContextManager[OpenTable]:
    """Open a table of queries or labels."""
    return open_table(
        path,
        input_format=settings.input_format,
        delimiter=settings.delimiter,
        wanted=LABEL_TEXT_NAMES,
        encoding=settings.encoding,
    )


class _Choice:
    def __init__(self, inputs: Inputs, settings: Settings):
        self.inputs, self.settings = inputs, settings
        self.columns = Columns()

    def run(self) -> Columns:
        columns, inputs, given = self.columns, self.inputs, self.settings
        cells = self._choose_of_queries()
        if inputs.labels is None:
            columns.separator = guess_separator(cells) if given.label_separator is None else given.label_separator
        else:
            columns.reference = self._choose_of_labels(inputs.labels, cells)
            columns.separator = columns.reference.separator
        if inputs.positives is None:
            self._check_indicators(cells)
            self._check_objects(cells)
            columns.within = separators_within(cells, columns.separator)
            self._note_separator(cells, columns.separator)
        if inputs.labels is None:
            self.note("labels", "no file of labels: the names of labels are their texts")
        return columns

    def note(self, subject: str, sentence: str) -> None:
        self.columns.notes.append((subject, sentence))

    def _choose_of_queries(self) -> list[str | list[str]]:
        """Choose the columns of the queries, and return the first cells of labels."""
        given, inputs, chosen = self.settings, self.inputs, self.columns
        with open_input(inputs.queries, given) as table:
            sample, names = _sample(table)
            kind, classes = _kind(table), table.classes
        if not names:
            raise ValueError(f"{inputs.queries} has no columns; expected a row for each query, below a header in CSV")
        with _naming(inputs.queries):
            found = choose_query_columns(
                names,
                sample,
                texts=given.text_column,
                labels=given.labels_column[0] if given.labels_column else None,
                uid=given.id_column,
                needs_labels=inputs.positives is None,
            )
            _check_there("text_column", given.text_column, names)
            _check_there("labels_column", given.labels_column, names)
        chosen.text = given.text_column or (str(found["text"].column),)
        chosen.uid = found["uid"].column
        if inputs.positives is None:
            taken = {*chosen.text, *([] if chosen.uid is None else [chosen.uid])}
            chosen.labels = given.labels_column or numbered_alike(names, sample, str(found["labels"].column), taken)
        chosen.fields = field_names(chosen.text)
        self.note("queries", f"{inputs.queries} ({kind})")
        if others := other_splits(inputs):
            self.note("  not used", f"{', '.join(map(str, others))}; test= names the test queries")
        self._note_column("  text", found["text"], chosen.text)
        if chosen.uid is not None:
            self._note_column("  id", found["uid"], (chosen.uid,))
        cells: list[str | list[str]]
        if inputs.positives is None:
            self._note_column("  labels", found["labels"], chosen.labels)
            cells = [row.get(column, "") for row in sample for column in chosen.labels]
            chosen.classes = classes & {*chosen.labels}
            if chosen.classes:  # a name is whole, whatever is in it
                cells = [cell if isinstance(cell, list) or not cell else [cell] for cell in cells]
        else:
            self.note("  labels", f"{inputs.positives}, a line for each query")
            cells = [row.labels for row in islice(read_sparse(inputs.positives), _SAMPLE)]
        self._note_unused(names, {*chosen.text, chosen.uid, *chosen.labels}, "text_column", chosen.text)
        return cells

    def _choose_of_labels(self, path: Path, cells: Sequence[str | list[str]]) -> Reference:
        """Choose the columns of the labels, and return how queries refer to them."""
        given, chosen = self.settings, self.columns
        with open_input(path, given) as table:
            names = _sample(table)[1]
            kind = _kind(table)
        first = given.label_text_column[0] if given.label_text_column else None
        with _naming(path):
            key = "label_id_column"
            uid = choose_column(names, LABEL_ID_NAMES, given.label_id_column, key, given.label_text_column)
            _check_there("label_text_column", given.label_text_column, names)
            taken = () if uid.column is None else (uid.column,)
            text = choose_column(names, LABEL_TEXT_NAMES, first, "label_text_column", taken)
        if text.column is None:
            rest = [name for name in names if name != uid.column] or names
            if not rest:
                raise ValueError(f"{path} has no columns; expected one with the texts of the labels")
            text = Column(rest[0], "the first one left; label_text_column= names another")
        likely = [name for name in (uid.column, text.column) if name is not None]
        likely += [name for name in names if name not in likely]
        if self.inputs.positives is not None and all(label.isdigit() for row in cells for label in row):
            reference = Reference(ROW, LIST, 0, 0)
        else:
            with open_input(path, given) as table:
                rows = (row.values for row in table.rows(strings=True, lenient=True))
                # target_ind is the number of a row in the repository's raw files, whatever identifiers are
                are_rows = chosen.labels == ("target_ind",) and uid.reason != "given" and _are_numbers(cells)
                candidates, numbered = ([], None) if are_rows else (likely, uid.column)
                reference = match_references(cells, rows, candidates, given.label_separator, numbered)
        if uid.column is None:
            by = {ROW: "the number of its row, from 0"}.get(
                reference.column, f"{reference.column!r}, to which queries refer"
            )
            uid = Column(reference.column, by)
        chosen.label_uid = str(uid.column)
        chosen.label_text = given.label_text_column or (str(text.column),)
        chosen.label_fields = field_names(chosen.label_text)
        self.note("labels", f"{path} ({kind})")
        self._note_column("  text", text, chosen.label_text)
        if uid.column == reference.column and uid.reason.endswith(("from 0", "refer")):
            self.note("  id", uid.reason)
        else:
            self._note_column("  id", uid, (chosen.label_uid,))
        used = {*chosen.label_text, chosen.label_uid, reference.column}
        self._note_unused(names, used, "label_text_column", chosen.label_text)
        by = "the number of its row, from 0" if reference.column == ROW else repr(reference.column)
        if self.inputs.positives is None:
            self.note(
                "  reference",
                f"queries refer to a label by {by}; it has {reference.matched:,} of the {reference.total:,} different "
                "references in the first rows of queries",
            )
        return reference

    def _note_column(self, subject: str, choice: Column, columns: Sequence[str]) -> None:
        names = ", ".join(map(repr, columns))
        self.note(subject, f"{names} ({choice.reason})")

    def _note_unused(self, columns: Sequence[str], used: Set[str | None], key: str, texts: Sequence[str]) -> None:
        if unused := [name for name in columns if name not in used]:
            shown = f"{', '.join(map(repr, unused[:5]))}{', …' if len(unused) > 5 else ''}"
            self.note("  not used", f"{shown}; {key}=[{','.join([*texts, unused[0]])}] adds a column to the text")

    def _check_indicators(self, cells: Sequence[str | list[str]]) -> None:
        """Refuse rows of zeros and ones, which would become the labels 0 and 1.

        Raises:
            ValueError: If the cells are such rows.
        """
        chosen = self.columns
        if self.settings.label_separator is not None:
            return
        if len(chosen.labels) > 1 and {value for cell in cells for value in split_cell(cell, "")} <= {*BITS, ""}:
            names = f"[{', '.join(map(repr, chosen.labels[:2]))}{', …' if len(chosen.labels) > 2 else ''}]"
            raise ValueError(
                f"{self.inputs.queries}: {', '.join(map(repr, chosen.labels))} have zeros and ones, a column for each "
                "label, which would become the labels 0 and 1; make one column of them, of the names of each row's "
                f"labels: table['labels'] = [[name for name in {names} if row[name]] for _, row in table.iterrows()] "
                "in pandas, then table.to_json('queries.jsonl', orient='records', lines=True)"
            )
        if are_indicators(cells, chosen.separator):
            raise ValueError(
                f"{self.inputs.queries}: {', '.join(map(repr, chosen.labels))} has zeros and ones, such as "
                f"{next(filter(None, cells))!r}, a place for each label of the data (multi-hot); write the names or "
                "numbers of the labels instead: [name for name, one in zip(names, row) if one] in Python. If these are "
                "labels, give label_separator="
            )

    def _check_objects(self, cells: Sequence[str | list[str]]) -> None:
        """Refuse labels with fields, whose JSON would become their names and texts.

        Raises:
            ValueError: If the cells have such labels.
        """
        fields = fields_of_objects(cells)
        if fields and self.settings.label_separator is None:
            shown = ", ".join(map(repr, fields))
            column = self.columns.labels[0]
            raise ValueError(
                f"{self.inputs.queries}: {column!r} has labels with the fields {shown}; give a list of one of them, "
                f"row[{column!r}] = [label[{fields[0]!r}] for label in row[{column!r}]] in Python, and the others in a "
                "file of labels, labels=. If their JSON is to be the name of each, give label_separator=json"
            )

    def _note_separator(self, cells: Sequence[str | list[str]], separator: str) -> None:
        reason = "given" if self.settings.label_separator is not None else "label_separator= says otherwise"
        example = next((cell for cell in cells if len(split_cell(cell, separator)) > 1), None)
        if separator not in ("", LIST, JSON, TAGS) and self.settings.label_separator is not None and example is None:
            reason += "; no cell of the first rows has several labels"
        shown = "" if example is None else ", as in " + ", ".join(map(repr, split_cell(example, separator)[:3]))
        self.note("  separator", f"{describe_separator(separator)}{shown} ({reason})")


def field_names(columns: Sequence[str]) -> list[str]:
    """Return the fields of the raw files for columns: `title` for one alone, the names of several, all different.

    Example:
        >>> field_names(["question"]), field_names(["title", "body text", "body-text"])
        (['title'], ['title', 'body_text', 'body_text_'])
    """
    if len(columns) == 1:
        return ["title"]
    names: list[str] = []
    for column in columns:
        name = "".join(letter if letter.isalnum() else "_" for letter in column)
        while name in (*_RESERVED, *names):
            name += "_"
        names.append(name)
    return names


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of a file before the messages of errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _are_numbers(cells: Sequence[str | list[str]]) -> bool:
    parts = (part for cell in cells for part in (cell if isinstance(cell, list) else [cell]) if part)
    return all(re.fullmatch(r"[\d\s,;\[\]]+", part) for part in parts)


def _check_there(key: str, given: Sequence[str], names: Sequence[str]) -> None:
    if missing := [name for name in given if name not in names]:
        raise ValueError(f"{key}={missing[0]}: there is no such column, only {', '.join(names)}")


def _sample(table: OpenTable) -> tuple[list[dict[str, Any]], list[str]]:
    sample = [row.values for row in islice(table.rows(strings=True, lenient=True), _SAMPLE)]
    columns = dict.fromkeys([*table.columns, *(column for row in sample for column in row)])
    return sample, list(columns)


def _kind(table: OpenTable) -> str:
    names = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "text": "lines of text", "parquet": "Parquet"}
    kind = names.get(table.input_format, "Arrow")
    return f"{kind} with {table.delimiter!r}" if table.input_format == "csv" and table.delimiter != "," else kind
