import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from prime_xmc.tables.reader import open_table
from prime_xmc.tables.writer import open_writer

ROWS = [{"id": 1, "text": 'say "a", b\nc'}, {"id": 2, "text": "中文 😀"}, {"id": 3, "text": None}]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.csv.gz", "t.jsonl.zst"])
def test_what_is_written_is_read_again(tmp_path, name):
    with open_writer(tmp_path / name, ["id", "text"]) as writer:
        writer.write(ROWS[:1])
        writer.write(iter(ROWS[1:]))
    with open_table(tmp_path / name) as table:
        read = [row.values for row in table.rows(strings=True)]
    assert read == [{"id": str(row["id"]), "text": row["text"] or ""} for row in ROWS]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.csv.gz"])
def test_append(tmp_path, name):
    for row in ROWS[:2]:
        with open_writer(tmp_path / name, ["id", "text"], append=True) as writer:
            writer.write([row])
    with open_table(tmp_path / name) as table:
        assert [row.values["text"] for row in table.rows()] == [row["text"] for row in ROWS[:2]]


def test_rows_are_in_the_file_before_it_is_closed(tmp_path):
    with open_writer(tmp_path / "t.csv", ["id"]) as writer:
        writer.write([{"id": 1}])
        assert (tmp_path / "t.csv").read_text() == "id\n1\n"


def test_lists_are_json_in_csv_and_lists_elsewhere(tmp_path):
    row = {"labels": [{"uid": "a", "score": 0.5}]}
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        with open_writer(tmp_path / name, ["labels"]) as writer:
            writer.write([row])
    assert json.loads(list(csv.reader(io.StringIO((tmp_path / "t.csv").read_text())))[1][0]) == row["labels"]
    assert json.loads((tmp_path / "t.jsonl").read_text()) == row
    assert pa.parquet.read_table(tmp_path / "t.parquet").to_pylist() == [row]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_half_a_character_stays_readable(tmp_path, name):
    with open_writer(tmp_path / name, ["a\ud800"]) as writer:
        writer.write([{"a\ud800": "b\udfff"}, {"a\ud800": "é"}])
    with open_table(tmp_path / name) as table:
        assert [row.values for row in table.rows()] == [{"a\\ud800": "b\\udfff"}, {"a\\ud800": "é"}]


def test_compressed_files_have_no_date(tmp_path):
    with open_writer(tmp_path / "t.jsonl.gz", []) as writer:
        writer.write([{"a": 1}])
    assert (tmp_path / "t.jsonl.gz").read_bytes()[4:8] == bytes(4)
    assert gzip.decompress((tmp_path / "t.jsonl.gz").read_bytes()) == b'{"a": 1}\n'


def test_parquet_groups_bound_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("prime_xmc.tables.parquet_writer._GROUP", 2)
    with open_writer(tmp_path / "t.parquet", ["id"]) as writer:
        writer.write({"id": number} for number in range(5))
    assert pa.parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3


def test_parquet_of_no_rows(tmp_path):
    with open_writer(tmp_path / "t.parquet", ["id"]):
        pass
    with open_table(tmp_path / "t.parquet") as table:
        assert (table.columns, list(table.rows())) == (["id"], [])


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("t.csv", [{"a": 1, "b": 2}], "a row has the columns a, b; expected a as in the first one"),
        ("t.parquet", [{"b": 2}], "a row has the columns b; expected a"),
        ("t.parquet", [{"a": 2}, {"a": "x"}], "column 'a' has values of several types"),
        ("t.parquet", [{"a": 2**63}], "column 'a' has values of several types or too large"),
        ("t.xlsx", [], r"t\.xlsx: expected a name that ends in \.csv"),
        ("t.txt", [], r"t\.txt: expected a name that ends in \.csv"),
    ],
)
def test_errors(tmp_path, name, rows, said):
    with pytest.raises(ValueError, match=said), open_writer(tmp_path / name, ["a"]) as writer:
        writer.write(rows)


def test_parquet_cannot_be_appended_to(tmp_path):
    with (
        pytest.raises(ValueError, match="cannot be added to a Parquet file"),
        open_writer(tmp_path / "t.parquet", ["a"], append=True),
    ):
        pass
