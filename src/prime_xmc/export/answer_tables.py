"""Records of answers as a table, CSV, TSV or Parquet: a row for each answer."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prime_xmc.export.answers import without_clashes
from prime_xmc.tables.writer import open_writer

# Columns of an answer, in order; those after the score where they were asked for.
_ANSWER = ("rank", "label_uid", "label", "score", "probability")
_WHY = ("scorers", "sources")  # each share is a column, from_<name>
_QUERIES = "training_queries"  # as JSON
_INTEGERS = 2**63  # larger ones fit no column of a table
_EXACT = 2**53  # larger ones are rounded among numbers with a fraction


def write_answers(records: Path, target: Path, output_format: str) -> None:
    """Write the records of a file of JSON lines as a table, in memory that does not grow with it.

    Each answer is a row: the fields of the input's record, `query`, `rank` (from 1), `label_uid`, `label` (its text)
    and `score`; then `probability`, the shares `from_<scorer>` and `from_<source>`, and `training_queries` as JSON,
    where they were asked for. A query without an answer has one row, in which these are empty. A field of the input
    with one of these names gets `input_` before it. A field that holds values of several types, lists or objects is a
    string, and so is one with numbers that no type of a column holds: integers of 2**63 and more, or of more than 2**53
    among numbers with a fraction.

    Args:
        records: Records as `to_record` makes them.
        target: File to write.
        output_format: csv, tsv or parquet.
    """
    types = _column_types(_read(records))
    with open_writer(target, list(types), output_format=output_format, types=types) as writer:
        for record in _read(records):
            writer.write({name: _cell(row.get(name), kind) for name, kind in types.items()} for row in _rows(record))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        yield from map(json.loads, lines)


def _rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a record, without the columns that it says nothing about."""
    fields = {name: value for name, value in record.items() if name != "labels"}
    answers = [_answer(rank, label) for rank, label in enumerate(record["labels"], start=1)]
    for answer in answers or [{}]:
        yield without_clashes(fields, _reserved(fields)) | answer


def _reserved(fields: Iterable[str]) -> set[str]:
    """Return the names among some fields that are columns of answers."""
    return {name for name in fields if name in (*_ANSWER, _QUERIES) or name.startswith("from_")}


def _answer(rank: int, label: Mapping[str, Any]) -> dict[str, Any]:
    row = {"rank": rank, "label_uid": label["uid"], "label": label["text"], "score": label["score"]}
    if "probability" in label:
        row["probability"] = label["probability"]
    if "why" in label:
        why = label["why"]
        for part in _WHY:
            row |= {f"from_{name}": share for name, share in why[part].items()}
        row[_QUERIES] = json.dumps(why["queries"], ensure_ascii=False)
    return row


def _column_types(records: Iterable[Mapping[str, Any]]) -> dict[str, type]:
    """Return the columns of all rows, those of answers last, with the type that holds their values."""
    of_input: dict[str, type | None] = {}
    of_answers: dict[str, type | None] = dict.fromkeys(_ANSWER[:4])
    for record in records:
        for row in _rows(record):
            for name, value in row.items():
                is_own = name in (*_ANSWER, _QUERIES) or name.startswith("from_")
                types = of_answers if is_own else of_input
                types[name] = _wider(types.get(name), value)
    of_input.setdefault("query", None)  # of no record at all
    of_answers["rank"], of_answers["score"] = int, float
    if _QUERIES in of_answers:
        of_answers[_QUERIES] = of_answers.pop(_QUERIES)  # the last
    return {name: int if kind is _LargeInt else kind or str for name, kind in (of_input | of_answers).items()}


class _LargeInt(int):
    """Type of integers of which some are too large to be a float."""


def _wider(known: type | None, value: Any) -> type | None:
    """Return the type that holds values of a known type, None where there were none, and another value."""
    if value is None:
        return known
    kind = type(value) if isinstance(value, str | bool | int | float) else str
    if kind is int and abs(value) > _EXACT:
        kind = _LargeInt if -_INTEGERS <= value < _INTEGERS else str
    kinds = {kind if known is None else known, kind}
    if len(kinds) == 1:
        return kind
    return {frozenset({int, float}): float, frozenset({int, _LargeInt}): _LargeInt}.get(frozenset(kinds), str)


def _cell(value: Any, kind: type) -> Any:
    """Return a value as one of a column's type."""
    if value is None or isinstance(value, str):
        return value
    return kind(value) if kind is not str else json.dumps(value, ensure_ascii=False)
