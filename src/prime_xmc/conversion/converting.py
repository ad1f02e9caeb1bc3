"""Users' tables and the field's formats to a folder of raw files, with a record of what was read."""

import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Bool

from prime_xmc.conversion.guessing import (
    LABEL_ID_NAMES,
    LABEL_TEXT_NAMES,
    LIST,
    ROW,
    Column,
    Reference,
    choose_column,
    choose_query_columns,
    describe_separator,
    guess_separator,
    match_references,
    split_cell,
)
from prime_xmc.conversion.layouts import Inputs
from prime_xmc.conversion.sparse_files import read_sparse
from prime_xmc.conversion.store import TEST, TRAIN, LabelRow, Place, QueryRow, Store, open_store
from prime_xmc.data.fitting import size_of_test_split
from prime_xmc.data.splitting import choose_test_queries
from prime_xmc.files import publishing, write_json
from prime_xmc.progress import track
from prime_xmc.tables.reader import AUTO, UTF_8, OpenTable, open_table

RECORD = "conversion.json"
FORMAT = 1  # of the record
GROUPINGS = ("auto", "id", "text", "none")
UNKNOWN = ("error", "add", "drop")
_SAMPLE = 1000  # rows by which columns and separators are guessed
_RESERVED = ("uid", "target_ind", "target_rel")
_DIGEST = {"id": "uid", "text": "digest"}


@dataclass(frozen=True)
class Settings:
    """How files are read.

    Attributes:
        text_column: Columns that make up the text of a query; empty: guessed.
        labels_column: Column of a query's labels.
        id_column: Column of a query's identifier.
        label_text_column: Columns that make up the text of a label; empty: guessed.
        label_id_column: Column of a label's identifier.
        label_separator: What separates labels in a cell; None: guessed.
        group_by: Which rows are one query, one of `GROUPINGS`.
        unknown_labels: What is done with labels that the file of labels lacks, one of `UNKNOWN`.
        input_format: Format of all tables, or "auto".
        delimiter: What separates the cells of CSV; None: by the header.
        encoding: Encoding of the files that are made of lines.
        test_share: Share of the queries to split off where no test queries are given; None: a fifth, at most 2,000.
        seed: Seed of the split.
        memory_limit: Memory for the engine that groups and joins.
        threads: Its threads; None: as many as cores.
        overwrite: Whether a folder that no conversion has made may be replaced.

    Raises:
        ValueError: If a value is out of range.
    """

    text_column: tuple[str, ...] = ()
    labels_column: str | None = None
    id_column: str | None = None
    label_text_column: tuple[str, ...] = ()
    label_id_column: str | None = None
    label_separator: str | None = None
    group_by: str = "auto"
    unknown_labels: str = "error"
    input_format: str = AUTO
    delimiter: str | None = None
    encoding: str = UTF_8
    test_share: float | int | None = None
    seed: int = 0
    memory_limit: str = "1GB"
    threads: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for key, known in (("group_by", GROUPINGS), ("unknown_labels", UNKNOWN)):
            if getattr(self, key) not in known:
                raise ValueError(f"expected {key} {', '.join(known)}, got {getattr(self, key)!r}")
        if self.test_share is not None and not 0 <= self.test_share < 1:
            raise ValueError(f"expected test_share of at least 0 and below 1, or null, got {self.test_share}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"expected threads of at least 1, or null, got {self.threads}")


@dataclass
class Conversion:
    """What was read and written.

    Attributes:
        directory: The new folder.
        fields: Fields of a query in its files.
        label_fields: Fields of a label.
        notes: What was found and decided, a sentence each, as (subject, sentence).
        record: What `RECORD` holds.
    """

    directory: Path
    fields: list[str] = field(default_factory=list)
    label_fields: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def dataset_settings(self) -> list[str]:
        """The settings by which commands read the folder."""
        settings = ["dataset=custom", f"dataset.dir={self.directory}"]
        if self.fields != ["title"]:
            settings.append(f"dataset.fields=[{','.join(self.fields)}]")
        if self.label_fields != self.fields:
            settings.append(f"dataset.label_fields=[{','.join(self.label_fields)}]")
        return settings

    def command(self, name: str) -> str:
        """Return the command line that runs another command on the folder."""
        return shlex.join(["python", "-m", f"prime_xmc.{name}", *self.dataset_settings])


def convert(inputs: Inputs, output: Path, settings: Settings) -> Conversion:
    """Write the raw files of `inputs` to the folder `output`, which appears when it is complete.

    Rows are read one after the other into a database on disk that groups and joins them, so that memory does not grow
    with the files. Only while a test split is chosen, it holds 8 bytes for each pair of a query and a label, and 24
    for each query.

    Args:
        inputs: The files; see `find_inputs` for folders.
        output: The folder; one of an earlier conversion is replaced.
        settings: How to read the files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: With file, line and value, for what cannot be read or does not fit; if `output` is something else.
    """
    if not settings.overwrite and output.exists() and not (output / RECORD).is_file() and _is_used(output):
        raise ValueError(
            f"output={output} is there already and was not made by this command (no {RECORD} in it); name another "
            "folder, or replace it by overwrite=true"
        )
    if inputs.test_positives is not None and inputs.test is None:
        raise ValueError("test_positives= needs test=, the texts of the test queries")
    if (inputs.positives is None) != (inputs.test_positives is None) and inputs.test is not None:
        raise ValueError("expected both positives= and test_positives=, or none of them, where there is test=")
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as work,
        open_store(Path(work), memory_limit=settings.memory_limit, threads=settings.threads) as store,
    ):
        try:
            return _Converter(inputs, output, settings, store).run()
        except ValueError as error:
            if isinstance(error.__cause__, UnicodeError) and settings.encoding == UTF_8:
                raise ValueError(f"{error}, or say what it is in, such as encoding=cp1252") from error
            raise


class _Converter:
    def __init__(self, inputs: Inputs, output: Path, settings: Settings, store: Store):
        self.inputs, self.output, self.settings, self.store = inputs, output, settings, store
        self.paths = {TRAIN: inputs.queries, TEST: inputs.test}
        self.conversion = Conversion(output)
        self.read: list[dict[str, Any]] = []

    def run(self) -> Conversion:
        reference, separator = self._plan()
        self._read_labels(reference)
        for split, positives in ((TRAIN, self.inputs.positives), (TEST, self.inputs.test_positives)):
            if (path := self.paths[split]) is not None:
                self._read_queries(split, path, positives, separator)
        if self.store.num_rows(TRAIN) == 0:
            raise ValueError(f"{self.inputs.queries} has no rows; expected a row for each query")
        self._group()
        num_labels = self._number_labels(reference)
        is_test = self._split(num_labels)
        with publishing(self.output, replace=True) as temporary:
            counts = self._write(temporary, is_test, num_labels)
            self.conversion.record = self._record(counts)
            write_json(temporary / RECORD, self.conversion.record)
        return self.conversion

    def note(self, subject: str, sentence: str) -> None:
        self.conversion.notes.append((subject, sentence))

    def _plan(self) -> tuple[Reference | None, str]:
        """Choose all columns and the separator, and say so."""
        given, inputs = self.settings, self.inputs
        with self._open(inputs.queries) as table:
            sample, columns = _sample(table)
            kind = _kind(table)
        chosen = choose_query_columns(
            columns,
            sample,
            text=given.text_column[0] if given.text_column else None,
            labels=given.labels_column,
            uid=given.id_column,
            needs_labels=inputs.positives is None,
        )
        if missing := [name for name in given.text_column if name not in columns]:
            raise ValueError(f"text_column={missing[0]}: there is no such column, only {', '.join(columns)}")
        self.text_columns = given.text_column or (str(chosen["text"].column),)
        self.labels_column, self.uid_column = chosen["labels"].column, chosen["uid"].column
        self.conversion.fields = field_names(self.text_columns)
        self.note("queries", f"{inputs.queries} ({kind})")
        self._note_column("  text", chosen["text"], self.text_columns)
        if self.uid_column is not None:
            self._note_column("  id", chosen["uid"], (self.uid_column,))
        if inputs.positives is None:
            self._note_column("  labels", chosen["labels"], (str(self.labels_column),))
            cells = [row.get(str(self.labels_column), "") for row in sample]
        else:
            self.note("  labels", f"{inputs.positives}, a line for each query")
            cells = [row.labels for row in islice(read_sparse(inputs.positives), _SAMPLE)]
        self._note_unused(
            columns, {*self.text_columns, self.uid_column, self.labels_column}, "text_column", self.text_columns
        )
        if inputs.labels is None:
            separator = guess_separator(cells) if given.label_separator is None else given.label_separator
            reference = None
        else:
            reference = self._plan_labels(inputs.labels, cells)
            separator = reference.separator
        if inputs.positives is None:
            self._note_separator(cells, separator)
        if inputs.labels is None:
            self.note("labels", "no file of labels: the names of labels are their texts")
        self.columns: dict[str, Any] = {
            "text": list(self.text_columns),
            "labels": self.labels_column,
            "id": self.uid_column,
            "label_separator": separator,
        }
        return reference, separator

    def _plan_labels(self, path: Path, cells: Sequence[str | list[str]]) -> Reference:
        given = self.settings
        with self._open(path) as table:
            columns = _sample(table)[1]
            kind = _kind(table)
        uid = choose_column(columns, LABEL_ID_NAMES, given.label_id_column, "label_id_column", given.label_text_column)
        if missing := [name for name in given.label_text_column if name not in columns]:
            raise ValueError(f"label_text_column={missing[0]}: there is no such column, only {', '.join(columns)}")
        first = given.label_text_column[0] if given.label_text_column else None
        text = choose_column(columns, LABEL_TEXT_NAMES, first, "label_text_column", _names({uid.column}))
        if text.column is None:
            rest = [name for name in columns if name != uid.column] or columns
            if not rest:
                raise ValueError(f"{path} has no columns; expected one with the texts of the labels")
            text = Column(rest[0], "the first one left; label_text_column= names another")
        likely = [name for name in (uid.column, text.column) if name is not None]
        likely += [name for name in columns if name not in likely]
        if self.inputs.positives is not None and all(label.isdigit() for row in cells for label in row):
            reference = Reference(ROW, LIST, 0, 0)
        else:
            with self._open(path) as table:
                rows = (row.values for row in table.rows(strings=True))
                reference = match_references(cells, rows, likely, given.label_separator)
        if uid.column is None:
            by = {ROW: "the number of its row, from 0"}.get(
                reference.column, f"{reference.column!r}, to which queries refer"
            )
            uid = Column(reference.column, by)
        self.label_uid, self.reference = str(uid.column), reference.column
        self.label_text_columns = given.label_text_column or (str(text.column),)
        self.conversion.label_fields = field_names(self.label_text_columns)
        self.note("labels", f"{path} ({kind})")
        self._note_column("  text", text, self.label_text_columns)
        if uid.column == reference.column and uid.reason.endswith(("from 0", "refer")):
            self.note("  id", uid.reason)
        else:
            self._note_column("  id", uid, (str(uid.column),))
        used = {*self.label_text_columns, self.label_uid, self.reference}
        self._note_unused(columns, used, "label_text_column", self.label_text_columns)
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

    def _note_separator(self, cells: Sequence[str | list[str]], separator: str) -> None:
        reason = "given" if self.settings.label_separator is not None else "label_separator= says otherwise"
        example = next((cell for cell in cells if len(split_cell(cell, separator)) > 1), None)
        shown = "" if example is None else ", as in " + ", ".join(map(repr, split_cell(example, separator)[:3]))
        self.note("  separator", f"{describe_separator(separator)}{shown} ({reason})")

    def _open(self, path: Path) -> Any:
        given = self.settings
        return open_table(
            path,
            input_format=given.input_format,
            delimiter=given.delimiter,
            wanted=LABEL_TEXT_NAMES,
            encoding=given.encoding,
        )

    def _read_labels(self, reference: Reference | None) -> None:
        path = self.inputs.labels
        if path is None or reference is None:
            self.conversion.label_fields = ["title"]
            return
        with self._open(path) as table:
            count = self.store.add_labels(track(self._label_rows(table), "labels"))
        if count == 0:
            raise ValueError(f"{path} has no rows; expected a row for each label")
        self._describe(path, count)

    def _label_rows(self, table: OpenTable) -> Iterator[LabelRow]:
        for index, row in enumerate(table.rows(strings=True)):
            cells = {column: _text(row.values.get(column, "")) for column in self.label_text_columns}
            values = {**row.values, ROW: str(index)}
            uid, reference = (_text(values.get(column, "")).strip() for column in (self.label_uid, self.reference))
            if not uid:
                raise ValueError(
                    f"{table.place(row.number)}: the label has no identifier in {self.label_uid!r}; give it one, or "
                    "name another column by label_id_column="
                )
            yield LabelRow(row.number, uid, reference, list(cells.values()))

    def _read_queries(self, split: int, path: Path, positives: Path | None, separator: str) -> None:
        with self._open(path) as table:
            rows = self._query_rows(table, None if positives is None else read_sparse(positives), separator, positives)
            count = self.store.add_queries(split, track(rows, "queries"))
        self._describe(path, count)

    def _query_rows(
        self, table: OpenTable, sparse: Iterator[Any] | None, separator: str, positives: Path | None
    ) -> Iterator[QueryRow]:
        index = -1
        for index, row in enumerate(table.rows(strings=True)):
            texts = []
            for column in self.text_columns:
                if column not in row.values:
                    raise ValueError(
                        f"{table.place(row.number)}: no column {column!r}, only {', '.join(row.values) or 'none'}"
                    )
                texts.append(_text(row.values[column]))
            if sparse is None:
                try:
                    labels = split_cell(row.values.get(str(self.labels_column), ""), separator)
                except ValueError as error:
                    raise ValueError(f"{table.place(row.number)}: {error}") from error
            else:
                listed = next(sparse, None)
                if listed is None:
                    raise ValueError(f"{positives} ends after {index:,} rows, and {table.name} has more queries")
                labels = listed.labels
            uid = _text(row.values.get(self.uid_column, "")).strip() if self.uid_column is not None else ""
            yield QueryRow(row.number, uid or str(index), texts, labels)
        if sparse is not None and next(sparse, None) is not None:
            raise ValueError(f"{table.name} ends after {index + 1:,} queries, and {positives} has more rows")

    def _group(self) -> None:
        by = self.settings.group_by
        if by == "id" and self.uid_column is None:
            raise ValueError("group_by=id needs a column of identifiers; name it by id_column=")
        if by == "auto":
            by = "none"
            if self.inputs.positives is None and self.uid_column is not None:
                if self.store.repeats("uid") and self.store.different_texts() is None:
                    by = "id"
            elif self.inputs.positives is None and self.store.most_labels() <= 1 and self.store.repeats("digest"):
                by = "text"
        elif by == "id" and (place := self.store.different_texts()) is not None:
            raise ValueError(
                f"{self._place(place)}: the queries of the identifier {place.value!r} have {place.times} different "
                "texts; give each its own, or take group_by=text or none"
            )
        self.store.group_queries(_DIGEST.get(by))
        if by != "none":
            rows = sum(self.store.num_rows(split) for split in (TRAIN, TEST))
            queries = sum(self.store.num_queries(split) for split in (TRAIN, TEST))
            what = {"id": f"the same {self.uid_column!r}", "text": "the same text"}[by]
            self.note(
                "  rows",
                f"those with {what} are one query: {rows:,} rows, {queries:,} queries (group_by=none: each is one)",
            )
        self.columns["group_by"] = by

    def _number_labels(self, reference: Reference | None) -> int:
        path = self.inputs.labels
        if path is not None:
            for by, key in (("uid", "label_id_column"), ("reference", "label_id_column")):
                if (place := self.store.conflicting_labels(by)) is not None:
                    raise ValueError(
                        f"{self._label_place(place)}: {place.times} labels that differ are called {place.value!r}; "
                        f"give each a name of its own, or name the column that distinguishes them by {key}="
                    )
            self._check_references(path)
        add = path is None or self.settings.unknown_labels == "add"
        num_labels, repeated = self.store.number_labels(add_unknown=add)
        if num_labels == 0:
            raise ValueError(
                f"{self.inputs.queries}: no query has a label in {self.labels_column!r}; name the column by "
                "labels_column="
            )
        if repeated:
            self.note("  repeated", f"{repeated:,} rows repeat a label word by word and are dropped")
        return num_labels

    def _check_references(self, path: Path) -> None:
        count, places = self.store.unknown_references(3)
        if not count:
            return
        listed = "; ".join(f"{place.value!r} in {self._place(place)}" for place in places)
        found = f"{count:,} labels of queries are not in {path}: {listed}"
        if self.settings.unknown_labels == "error":
            raise ValueError(
                f"{found}. Add them there, or take unknown_labels=add (their names are their texts) or "
                "unknown_labels=drop; if all are unknown, label_separator= or label_id_column= may be meant otherwise"
            )
        done = {"add": "become labels, with their names as texts", "drop": "are dropped"}[self.settings.unknown_labels]
        self.note("  unknown", f"{found}; they {done}")

    def _split(self, num_labels: int) -> Bool[np.ndarray, "row"]:
        """Return which rows of the training queries become the test split."""
        is_test = np.zeros(self.store.num_rows(TRAIN), dtype=bool)
        share = self.settings.test_share
        if self.inputs.test is not None:
            if share:
                raise ValueError(f"test_share={share} and test={self.inputs.test} are both given; leave one out")
            return is_test
        num_queries = self.store.num_queries(TRAIN)
        wanted = size_of_test_split(num_queries) if share is None else round(share * num_queries)
        if wanted == 0:
            self.note("test", "no test queries are split off" + (", since there are too few" if share is None else ""))
            return is_test
        rows, positives = self.store.positives(TRAIN)
        frequency = np.bincount(positives.values, minlength=num_labels)
        chosen = choose_test_queries(positives, frequency, wanted, self.settings.seed, spare_only=True)
        how = "a fifth, at most 2,000" if share is None else f"test_share={share}"
        short = (
            "" if len(chosen) == wanted else f", {len(chosen):,} of {wanted:,}: others have a label of no other query"
        )
        self.note(
            "test",
            f"split off the queries ({how}; seed={self.settings.seed}); every label keeps a training query{short}",
        )
        is_test[rows[chosen]] = True
        return is_test

    def _write(self, folder: Path, is_test: Bool[np.ndarray, "row"], num_labels: int) -> dict[str, Any]:
        counts = {name: {"queries": 0, "pairs": 0} for name in ("trn", "tst")}
        names = {"trn"} | ({"tst"} if is_test.any() or self.inputs.test is not None else set())
        files = {name: (folder / f"{name}.json").open("wb") for name in sorted(names)}
        try:
            for split, path in self.paths.items():
                if path is None:
                    continue
                rows = self.store.read_queries(split)
                for row, uid, texts, labels in track(rows, "writing", self.store.num_queries(split)):
                    name = "tst" if split == TEST or is_test[row] else "trn"
                    fields = dict(zip(self.conversion.fields, texts, strict=True))
                    files[name].write(orjson.dumps({"uid": uid, **fields, "target_ind": labels}) + b"\n")
                    counts[name]["queries"] += 1
                    counts[name]["pairs"] += len(labels)
        finally:
            for file in files.values():
                file.close()
        with (folder / "lbl.json").open("wb") as file:
            for uid, texts in self.store.read_labels():
                if len(texts) < len(self.conversion.label_fields):  # an added label has its name alone
                    texts = [*texts, *[""] * (len(self.conversion.label_fields) - len(texts))]
                file.write(
                    orjson.dumps({"uid": uid, **dict(zip(self.conversion.label_fields, texts, strict=True))}) + b"\n"
                )
        for name, what in (("trn", "queries"), ("tst", "test queries")):
            if name in names:
                mean = counts[name]["pairs"] / max(1, counts[name]["queries"])
                self.note(f"{name}.json", f"{counts[name]['queries']:,} {what} with {mean:.2f} labels on average")
        self.note("lbl.json", f"{num_labels:,} labels")
        return {**{name: counts[name] for name in sorted(names)}, "lbl": {"labels": num_labels}}

    def _describe(self, path: Path, rows: int) -> None:
        size = path.stat().st_size if path.is_file() else sum(each.stat().st_size for each in path.iterdir())
        self.read.append({"file": str(path), "bytes": size, "rows": rows})

    def _record(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        labels = {}
        if self.inputs.labels is not None:
            labels = {"text": list(self.label_text_columns), "id": self.label_uid, "reference": self.reference}
        return {
            "format": FORMAT,
            "read": self.read,
            "columns": self.columns,
            "label_columns": labels,
            "fields": self.conversion.fields,
            "label_fields": self.conversion.label_fields,
            "written": dict(counts),
            "notes": [f"{subject.strip()}: {sentence}" for subject, sentence in self.conversion.notes],
        }

    def _place(self, place: Place) -> str:
        path = self.paths[place.split]
        assert path is not None
        with self._open(path) as table:
            return table.place(place.number)

    def _label_place(self, place: Place) -> str:
        assert self.inputs.labels is not None
        with self._open(self.inputs.labels) as table:
            return table.place(place.number)


def field_names(columns: Sequence[str]) -> list[str]:
    """Return the fields of the raw files for columns: `title` for one alone, the names of several.

    Example:
        >>> field_names(["question"]), field_names(["title", "body text"])
        (['title'], ['title', 'body_text'])
    """
    if len(columns) == 1:
        return ["title"]
    plain = ["".join(letter if letter.isalnum() else "_" for letter in column) for column in columns]
    return [f"{name}_" if name in _RESERVED else name for name in plain]


def _names(columns: Iterable[str | None]) -> set[str]:
    return {column for column in columns if column is not None}


def _text(cell: str | list[str]) -> str:
    return cell if isinstance(cell, str) else " ".join(cell)


def _sample(table: OpenTable) -> tuple[list[dict[str, Any]], list[str]]:
    sample = [row.values for row in islice(table.rows(strings=True), _SAMPLE)]
    columns = dict.fromkeys([*table.columns, *(column for row in sample for column in row)])
    return sample, list(columns)


def _kind(table: OpenTable) -> str:
    names = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "text": "lines of text", "parquet": "Parquet"}
    kind = names.get(table.input_format, "Arrow")
    return f"{kind} with {table.delimiter!r}" if table.input_format == "csv" and table.delimiter != "," else kind


def _is_used(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())
