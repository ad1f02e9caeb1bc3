import csv
import json

import pyarrow.parquet
import pytest

from prime_xmc.export.answer_tables import write_answers

LABELS = [{"uid": "l1", "text": "rot, grün", "score": 0.5}, {"uid": "l2", "text": "b", "score": -1.0}]


@pytest.fixture
def write(tmp_path):
    def write(records, output_format):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        target = tmp_path / f"answers.{output_format}"
        write_answers(path, target, output_format)
        if output_format == "parquet":
            return pyarrow.parquet.read_table(target).to_pylist()
        with target.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t" if output_format == "tsv" else ","))

    return write


def test_a_row_for_each_answer(write):
    records = [
        {"id": "7", "query": "a\rb\n", "labels": LABELS},
        {"id": "8", "query": "c", "labels": []},
    ]
    first = {"id": "7", "query": "a\rb\n", "rank": 1, "label_uid": "l1", "label": "rot, grün", "score": 0.5}
    second = first | {"rank": 2, "label_uid": "l2", "label": "b", "score": -1.0}
    none = {"id": "8", "query": "c", "rank": None, "label_uid": None, "label": None, "score": None}
    assert write(records, "parquet") == [first, second, none]
    as_texts = [{name: "" if value is None else str(value) for name, value in row.items()} for row in (first, second)]
    assert write(records, "csv")[:2] == write(records, "tsv")[:2] == as_texts
    assert set(write(records, "csv")[2].values()) == {"8", "c", ""}


def test_no_record_at_all(write, tmp_path):
    assert write([], "parquet") == write([], "csv") == []
    columns = ["query", "rank", "label_uid", "label", "score"]
    assert (tmp_path / "answers.csv").read_text() == ",".join(columns) + "\n"
    assert pyarrow.parquet.read_schema(tmp_path / "answers.parquet").names == columns


def test_types_are_those_of_all_values(write):
    records = [
        {"whole": 1, "mixed": 1, "number": 1, "flag": True, "rare": None, "list": [1], "query": "a", "labels": []},
        {"whole": 2, "mixed": "b", "number": 1.5, "flag": False, "query": "b", "big": 2**70, "labels": LABELS},
    ]
    first, second, _ = write(records, "parquet")
    assert (first["whole"], first["mixed"], first["number"], first["flag"], first["list"]) == (1, "1", 1.0, True, "[1]")
    assert (second["mixed"], second["number"], second["rare"], second["big"]) == ("b", 1.5, None, str(2**70))
    assert isinstance(first["number"], float)
    assert list(first)[-4:] == ["rank", "label_uid", "label", "score"]


@pytest.mark.parametrize("order", [1, -1])
def test_large_integers_among_numbers_with_a_fraction_are_texts(write, order):
    large = 2**53 + 1
    values = [{"small": 2**53, "large": large, "whole": large}, {"small": 1.5, "large": 1.5, "whole": 1}]
    records = [each | {"query": "a", "labels": []} for each in values][::order]
    first, second = write(records, "parquet")[::order]
    assert (first["small"], first["large"], first["whole"]) == (2.0**53, str(large), large)
    assert (second["small"], second["large"], second["whole"]) == (1.5, "1.5", 1)
    assert write(records, "csv")[::order][0]["large"] == "9007199254740993"


def test_what_was_asked_for_besides(write):
    why = {"scorers": {"theta": 0.4, "lexical": 0.1}, "sources": {"text": 0.4}, "queries": [{"row": 3, "text": "ü"}]}
    label = LABELS[0] | {"probability": 0.75, "why": why}
    (row,) = write([{"query": "a", "labels": [label]}], "parquet")
    assert list(row) == [
        *("query", "rank", "label_uid", "label", "score", "probability"),
        *("from_theta", "from_lexical", "from_text", "training_queries"),
    ]
    assert (row["probability"], row["from_lexical"]) == (0.75, 0.1)
    assert row["training_queries"] == '[{"row": 3, "text": "ü"}]'


def test_names_that_clash(write):
    record = {"score": "5", "label": "x", "from_x": "y", "query": "a", "labels": LABELS[:1]}
    (row,) = write([record], "csv")
    assert (row["input_score"], row["input_label"], row["input_from_x"]) == ("5", "x", "y")
    assert (row["score"], row["label"]) == ("0.5", "rot, grün")


def test_no_queries(write):
    assert write([], "csv") == []
    assert write([], "parquet") == []
