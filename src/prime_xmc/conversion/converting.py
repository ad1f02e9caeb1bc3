"""Users' tables and the field's formats to a folder of raw files, with a record of what was read."""

import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Bool

from prime_xmc.conversion.columns import Columns, choose_columns, field_names, open_input
from prime_xmc.conversion.conversion_settings import SEPARATORS, Settings
from prime_xmc.conversion.guessing import JSON, LIST, ROW, TAGS, describe_separator, hidden_separator, split_cell
from prime_xmc.conversion.layouts import Inputs
from prime_xmc.conversion.sparse_files import read_sparse
from prime_xmc.conversion.store import TEST, TRAIN, LabelRow, Place, QueryRow, Store, open_store
from prime_xmc.data.fitting import size_of_test_split
from prime_xmc.data.raw import CONVERSION as RECORD
from prime_xmc.data.splitting import choose_test_queries
from prime_xmc.files import publishing, write_json
from prime_xmc.progress import track
from prime_xmc.tables.reader import OpenTable

FORMAT = 1  # of the record
_WRITTEN = ("trn.json", "tst.json", "lbl.json", RECORD)
_MADE_FROM = ("audit.html", "audit.json", "filter_labels_train.txt", "filter_labels_test.txt")  # from what is replaced
_DIGEST = {"id": "uid", "text": "digest"}


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
    for each query, or 64 where some queries have the same text.

    Args:
        inputs: The files; see `find_inputs` for folders.
        output: The folder; one of an earlier conversion is replaced, with the filter files that an audit made of it.
        settings: How to read the files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: With file, line and value, for what cannot be read or does not fit; if `output` is something else,
            or has files in it that would be lost.
    """
    _check_output(inputs, output, settings)
    if inputs.test_positives is not None and inputs.test is None:
        raise ValueError("test_positives= needs test=, the texts of the test queries")
    if (inputs.positives is None) != (inputs.test_positives is None) and inputs.test is not None:
        given, missing = (
            ("positives", "test_positives") if inputs.positives is not None else ("test_positives", "positives")
        )
        raise ValueError(
            f"{given}={getattr(inputs, given)} has labels by number, and there is no {missing}=: expected both "
            "positives= and test_positives=, or none of them, where there is test="
        )
    place = output.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as work,
        open_store(Path(work), memory_limit=settings.memory_limit, threads=settings.threads) as store,
    ):
        return _Converter(inputs, output, settings, store).run()


class _Converter:
    def __init__(self, inputs: Inputs, output: Path, settings: Settings, store: Store):
        self.inputs, self.output, self.settings, self.store = inputs, output, settings, store
        self.paths = {TRAIN: inputs.queries, TEST: inputs.test}
        self.columns: Columns = choose_columns(inputs, settings)
        self.conversion = Conversion(output, self.columns.fields, self.columns.label_fields, self.columns.notes)
        self.read: list[dict[str, Any]] = []
        self.grouped_by = settings.group_by
        self.num_labels: int | None = None  # of the file of labels
        self.num_split_off = 0  # queries drawn for the test split

    def run(self) -> Conversion:
        if self.inputs.labels is not None:
            self._read_labels(self.inputs.labels)
        for split, positives in ((TRAIN, self.inputs.positives), (TEST, self.inputs.test_positives)):
            if (path := self.paths[split]) is not None:
                self._read_queries(split, path, positives)
        if self.store.num_rows(TRAIN) == 0:
            raise ValueError(f"{self.inputs.queries} has no rows; expected a row for each query")
        self._group()
        num_labels = self._number_labels()
        is_test = self._split(num_labels)
        for path in sorted(self.output.glob("filter_labels_*.txt")):
            self.note("filters", f"{path} was of the earlier conversion and is gone; prime-xmc-audit writes a new one")
        with publishing(self.output.resolve(), replace=True) as temporary:
            counts = self._write(temporary, is_test, num_labels)
            self.conversion.record = self._record(counts)
            write_json(temporary / RECORD, self.conversion.record)
        return self.conversion

    def note(self, subject: str, sentence: str) -> None:
        self.conversion.notes.append((subject, sentence))

    def _read_labels(self, path: Path) -> None:
        with open_input(path, self.settings) as table:
            count = self.num_labels = self.store.add_labels(track(self._label_rows(table), "labels"))
        if count == 0:
            raise ValueError(f"{path} has no rows; expected a row for each label")
        self._describe(path, count)

    def _label_rows(self, table: OpenTable) -> Iterator[LabelRow]:
        columns = self.columns
        assert columns.reference is not None
        names = columns.label_uid, columns.reference.column
        for index, row in enumerate(table.rows(strings=True, columns={*names, *columns.label_text})):
            texts = [_text(row.values.get(column, "")).strip() for column in columns.label_text]
            values = {**row.values, ROW: str(index)}
            uid, reference = (_text(values.get(column, "")).strip() for column in names)
            if not uid:
                raise ValueError(
                    f"{table.place(row.number)}: the label has no identifier in {columns.label_uid!r}; give it one, or "
                    "name another column by label_id_column="
                )
            yield LabelRow(row.number, uid, reference, texts)

    def _read_queries(self, split: int, path: Path, positives: Path | None) -> None:
        with open_input(path, self.settings) as table:
            rows = self._query_rows(table, None if positives is None else read_sparse(positives), positives)
            count = self.store.add_queries(split, track(rows, "queries"))
        self._describe(path, count)

    def _query_rows(self, table: OpenTable, sparse: Iterator[Any] | None, positives: Path | None) -> Iterator[QueryRow]:
        columns, index, announced = self.columns, -1, None
        used = {*columns.text, *columns.labels, str(columns.uid)}
        has_labels = sparse is not None
        if table.classes & {*columns.labels} != columns.classes:
            raise ValueError(
                f"{table.name}: the labels are {'numbers' if columns.classes else 'classes with names'}, and those of "
                f"{self.inputs.queries} are not; write both files in the same way"
            )
        for index, row in enumerate(table.rows(strings=True, columns=used)):
            texts = []
            for column in columns.text:
                if column not in row.values:
                    raise ValueError(
                        f"{table.place(row.number)}: no column {column!r}, only {', '.join(row.values) or 'none'}"
                    )
                texts.append(_text(row.values[column]).strip())
            if sparse is None:
                cells = [row.values[column] for column in columns.labels if column in row.values]
                has_labels = has_labels or bool(cells)
                try:
                    for cell in cells:
                        self._check_separator(cell)
                    labels = [label for cell in cells for label in split_cell(cell, columns.separator)]
                except ValueError as error:
                    raise ValueError(f"{table.place(row.number)}: {error}") from error
            else:
                listed = next(sparse, None)
                if listed is None:
                    raise ValueError(f"{positives} ends after {index:,} rows, and {table.name} has more queries")
                labels, announced = listed.labels, listed.num_labels
            uid = str(index)
            if columns.uid is not None:  # a row without one must not get that of another
                uid = _text(row.values.get(columns.uid, "")).strip() or f"row-{index}"
            yield QueryRow(row.number, uid, texts, labels)
        if sparse is not None and next(sparse, None) is not None:
            raise ValueError(f"{table.name} ends after {index + 1:,} queries, and {positives} has more rows")
        # a matrix may be narrower, where the last labels have no query; a line more is a header
        is_text = positives is not None and positives.suffix != ".npz"
        if is_text and announced is not None and self.num_labels == announced + 1:
            raise ValueError(
                f"{positives} announces {announced:,} labels, and {self.inputs.labels} has {self.num_labels:,} rows; "
                "expected a row for each, without a header where it is plain text"
            )
        if index >= 0 and not has_labels:
            raise ValueError(
                f"{table.name}: no row has the column {', '.join(map(repr, columns.labels))}, which has the labels in "
                f"{self.inputs.queries}; give the columns of both tables the same names, or leave test= out"
            )

    def _check_separator(self, cell: str | list[str]) -> None:
        """Check that labels of a cell are not separated otherwise than in the first rows.

        With a file of labels, which may have such a name, only references that it lacks are checked, later.

        Raises:
            ValueError: If they are, as it seems.
        """
        columns = self.columns
        if columns.reference is None and isinstance(cell, str) and (problem := self._other_separator(cell)):
            raise ValueError(problem)

    def _other_separator(self, cell: str) -> str | None:
        """Return what is wrong with a cell in which something else separates labels, None where nothing does."""
        columns = self.columns
        if self.settings.label_separator is not None or columns.separator in (JSON, TAGS) or columns.classes:
            return None
        if columns.separator not in ("", LIST) and columns.separator in cell:
            return None
        separator = hidden_separator(cell, columns.within)
        if not separator:
            return None
        typed = next((name for name, meant in SEPARATORS.items() if meant == separator), f"'{separator}'")
        seems = f"{cell[:60]!r} seems to be several labels, {describe_separator(separator)}, and the first rows have "
        if columns.separator == "":
            return f"{seems}one label each; give label_separator={typed}, or label_separator='' if each cell is one"
        if columns.separator == LIST:
            return f"{seems}lists; give label_separator={typed}, or label_separator='' if a text is one label"
        return f"{seems}labels {describe_separator(columns.separator)}; write it alike, or give label_separator="

    def _group(self) -> None:
        by = self.settings.group_by
        if by == "id" and self.columns.uid is None:
            raise ValueError("group_by=id needs a column of identifiers; name it by id_column=")
        if by == "auto":
            by = "none"
            if self.inputs.positives is None and self.columns.uid is not None:
                if self.store.repeats("uid"):
                    by = self._by_identifier()
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
            what = {"id": f"the same {self.columns.uid!r}", "text": "the same text"}[by]
            self.note(
                "  rows",
                f"those with {what} are one query: {rows:,} rows, {queries:,} queries (group_by=none: each is one)",
            )
        self.grouped_by = by

    def _by_identifier(self) -> str:
        """Return "id", or "none" with a note where the texts of an identifier differ."""
        place = self.store.different_texts()
        if place is None:
            return "id"
        self.note(
            "  rows",
            f"each is a query, although identifiers repeat: those of {place.value!r} (first in {self._place(place)}) "
            f"have {place.times} different texts; group_by=text makes one query of rows with the same text",
        )
        return "none"

    def _number_labels(self) -> int:
        path = self.inputs.labels
        if path is not None:
            self._check_names()
            self._check_references(path)
        add = path is None or self.settings.unknown_labels == "add"
        num_labels, repeated = self.store.number_labels(add_unknown=add)
        if num_labels == 0:
            columns = ", ".join(map(repr, self.columns.labels)) or self.inputs.positives
            raise ValueError(
                f"{self.inputs.queries}: no query has a label in {columns}; name the column by labels_column="
            )
        if path is None and (names := self.store.written_twice()) is not None:
            self.note(
                "  alike",
                f"{names[0]!r} and {names[1]!r} are two labels, and may be one number that a tool has written in two "
                "ways; if so, write it alike in all rows",
            )
        if repeated:
            self.note("  repeated", f"{repeated:,} rows repeat a label word by word and are dropped")
        return num_labels

    def _check_names(self) -> None:
        """Check that labels which differ have different identifiers, and different names in the queries."""
        columns = self.columns
        assert columns.reference is not None
        for by, column, way in (
            ("uid", columns.label_uid, "name the column that distinguishes them by label_id_column="),
            ("reference", columns.reference.column, "let queries refer to labels by a column in which they differ"),
        ):
            if (place := self.store.conflicting_labels(by)) is not None:
                raise ValueError(
                    f"{self._label_place(place)}: {place.times} labels that differ are called {place.value!r} in "
                    f"{column!r}; give each a name of its own, or {way}"
                )

    def _check_references(self, path: Path) -> None:
        count, places = self.store.unknown_references(3)
        if not count:
            return
        listed = "; ".join(f"{place.value!r} in {self._place(place)}" for place in places)
        found = f"{count:,} labels of queries are not in {path}: {listed}"
        if self.settings.unknown_labels == "error":
            raise ValueError(
                f"{found}. {self._alike(places[0], path)}Add them there, or take unknown_labels=add (their names are "
                "their texts) or unknown_labels=drop; if all are unknown, label_separator= or label_id_column= may be "
                "meant otherwise"
            )
        # names that come from lists are whole
        for name in self.store.unknown_names() if self.columns.separator != LIST else ():
            if problem := self._other_separator(name):
                raise ValueError(f"{self.inputs.queries}: {problem}")
        done = {"add": "become labels, with their names as texts", "drop": "are dropped"}[self.settings.unknown_labels]
        self.note("  unknown", f"{found}; they {done}")

    def _alike(self, place: Place, path: Path) -> str:
        """Return a sentence on the label whose identifier is the same number as one that is not known, if any."""
        alike = self.store.same_number(place.value)
        return "" if alike is None else f"{path} has {alike!r} instead, the same number; write both alike. "

    def _split(self, num_labels: int) -> Bool[np.ndarray, " row"]:
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
        same_text = self.store.same_text(TRAIN)
        chosen = choose_test_queries(
            positives, frequency, wanted, self.settings.seed, same_text=same_text, spare_only=True
        )
        if len(chosen) == 0:
            self.note(
                "test",
                "no query is split off for testing: each has a label of no other text, which would lose its training "
                "query. Training draws a fifth of the queries nevertheless; test= gives others",
            )
            return is_test
        how = "a fifth, at most 2,000" if share is None else f"test_share={share}"
        short = ""
        if len(chosen) < wanted:
            short = f", so {len(chosen):,} rather than {wanted:,} queries: the others have a label of no other text"
        self.note(
            "test",
            f"split off the queries ({how}; seed={self.settings.seed}); every label keeps a training query{short}",
        )
        is_test[rows[chosen]] = True
        self.num_split_off = len(chosen)
        return is_test

    def _write(self, folder: Path, is_test: Bool[np.ndarray, " row"], num_labels: int) -> dict[str, Any]:
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
            reference = self._reference_field()
            for uid, named, texts in self.store.read_labels():
                if len(texts) < len(self.conversion.label_fields):  # an added label has its name alone
                    texts = [*texts, *[""] * (len(self.conversion.label_fields) - len(texts))]
                label = {"uid": uid, **dict(zip(self.conversion.label_fields, texts, strict=True))}
                file.write(orjson.dumps(label if reference is None else {**label, reference: named}) + b"\n")
        for name, what in (("trn", "queries"), ("tst", "test queries")):
            if name in names:
                mean = counts[name]["pairs"] / max(1, counts[name]["queries"])
                self.note(f"{name}.json", f"{counts[name]['queries']:,} {what} with {mean:.2f} labels on average")
        self.note("lbl.json", f"{num_labels:,} labels")
        return {**{name: counts[name] for name in sorted(names)}, "lbl": {"labels": num_labels}}

    def _reference_field(self) -> str | None:
        """Return the field of a label by which queries refer to it, where no other field has that."""
        columns = self.columns
        if columns.reference is None or columns.reference.column in (ROW, columns.label_uid, *columns.label_text):
            return None
        return field_names([*self.conversion.label_fields, columns.reference.column])[-1]

    def _describe(self, path: Path, rows: int) -> None:
        size = path.stat().st_size if path.is_file() else sum(each.stat().st_size for each in path.iterdir())
        self.read.append({"file": str(path), "bytes": size, "rows": rows})

    def _record(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        columns, labels = self.columns, {}
        if columns.reference is not None:
            reference = columns.reference.column
            labels = {"text": list(columns.label_text), "id": columns.label_uid, "reference": reference}
        return {
            "format": FORMAT,
            "read": self.read,
            "columns": {
                "text": list(columns.text),
                "labels": columns.labels[0] if len(columns.labels) == 1 else list(columns.labels) or None,
                "id": columns.uid,
                "label_separator": columns.separator,
                "group_by": self.grouped_by,
            },
            "label_columns": labels,
            "split_off": self.num_split_off,
            "fields": self.conversion.fields,
            "label_fields": self.conversion.label_fields,
            "written": dict(counts),
            "notes": [f"{subject.strip()}: {sentence}" for subject, sentence in self.conversion.notes],
        }

    def _place(self, place: Place) -> str:
        path = self.paths[place.split]
        assert path is not None
        with open_input(path, self.settings) as table:
            return table.place(place.number)

    def _label_place(self, place: Place) -> str:
        assert self.inputs.labels is not None
        with open_input(self.inputs.labels, self.settings) as table:
            return table.place(place.number)


def _text(cell: str | list[str]) -> str:
    return cell if isinstance(cell, str) else " ".join(cell)


def _check_output(inputs: Inputs, output: Path, settings: Settings) -> None:
    """Check that nothing is lost where a folder is replaced: neither what is read nor what others have put there.

    Raises:
        ValueError: If something would be.
    """
    is_ours, place = (output / RECORD).is_file(), output.resolve()
    if Path.cwd().is_relative_to(place):
        raise ValueError(
            f"output={output} holds the folder that you are in, and a new one takes its place; name another"
        )
    for path in inputs:
        if path is not None and path.resolve().is_relative_to(place):
            if is_ours and path is inputs.labels and path.resolve() == place / "lbl.json":
                continue  # the labels of the earlier conversion, to which those of the new one are added
            raise ValueError(f"output={output} is replaced, and {path} would be lost with it; name another folder")
    if settings.overwrite or not output.exists():
        return
    if not output.is_dir() or (not is_ours and any(output.iterdir())):
        raise ValueError(
            f"output={output} is there already and was not made by this command (no {RECORD} in it); name another "
            "folder, or replace it by overwrite=true"
        )
    known = (*_WRITTEN, *_MADE_FROM, ".DS_Store")
    others = [path for path in output.iterdir() if path.name not in known or path.is_dir()]
    if others:
        raise ValueError(
            f"output={output} is replaced, and {min(others)} was not made by this command; move it, name another "
            "folder, or replace all of it by overwrite=true"
        )
