import gzip
import io
import json
import zipfile
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from prime_xmc.tables.line_rows import Row
from prime_xmc.tables.reader import as_strings, open_table, table_of_lines

ROWS = [{"id": "1", "text": "a, b"}, {"id": "2", "text": "中文"}]
CSV = 'id,text\n1,"a, b"\n2,中文\n'.encode()
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write_zstd(path, content):
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", CSV),
        ("t.CSV", CSV),
        ("t.tsv", b"id\ttext\n1\ta, b\n2\t\xe4\xb8\xad\xe6\x96\x87\n"),
        ("t.jsonl", JSONL),
        ("t.json", JSONL),
        ("t.csv.gz", gzip.compress(CSV, mtime=0)),
        ("t.jsonl.gz", gzip.compress(JSONL, mtime=0)),
    ],
)
def test_files_of_lines(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with open_table(tmp_path / name) as table:
        assert table.columns == ["id", "text"]
        assert [row.values for row in table.rows()] == ROWS


@pytest.mark.parametrize(("name", "content"), [("t.csv.zst", CSV), ("t.jsonl.zst", JSONL)])
def test_zstd(tmp_path, name, content):
    write_zstd(tmp_path / name, content)
    with open_table(tmp_path / name) as table:
        assert [row.values for row in table.rows()] == ROWS


def test_zstd_of_several_frames(tmp_path):
    write_zstd(tmp_path / "a.zst", CSV[:12])
    write_zstd(tmp_path / "b.zst", CSV[12:])
    path = tmp_path / "t.csv.zst"
    path.write_bytes((tmp_path / "a.zst").read_bytes() + (tmp_path / "b.zst").read_bytes())
    with open_table(path) as table:
        assert [row.values for row in table.rows()] == ROWS


@pytest.mark.parametrize(("suffix", "said"), [("gz", "the gzip data"), ("zst", "the zstd data")])
def test_truncated_data(tmp_path, suffix, said):
    content = b"id,text\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(50_000))
    path = tmp_path / f"t.csv.{suffix}"
    if suffix == "gz":
        path.write_bytes(gzip.compress(content))
    else:
        write_zstd(path, content)
    path.write_bytes(path.read_bytes()[:-1000])
    with (
        pytest.raises(ValueError, match=rf"t\.csv\.{suffix}, line \d+: {said} are truncated or damaged"),
        open_table(path) as table,
    ):
        list(table.rows())


def write_arrow(path, table, kind):
    make = {"file": pa.ipc.new_file, "stream": pa.ipc.new_stream}[kind]
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_columnar_files(tmp_path, kind):
    content = pa.table({"id": [7, None], "labels": [["a", "b"], []], "text": ["x", None]})
    path = tmp_path / ("t.parquet" if kind == "parquet" else "t.arrow")
    if kind == "parquet":
        pa.parquet.write_table(content, path)
    else:
        write_arrow(path, content, kind)
    with open_table(path) as table:
        assert table.columns == ["id", "labels", "text"]
        assert table.place(2) == f"{path}, row 2"
        assert list(table.rows()) == [
            Row(1, {"id": 7, "labels": ["a", "b"], "text": "x"}),
            Row(2, {"id": None, "labels": [], "text": None}),
        ]
    with open_table(path) as table:
        assert [row.values for row in table.rows(strings=True)] == [
            {"id": "7", "labels": ["a", "b"], "text": "x"},
            {"id": "", "labels": [], "text": ""},
        ]


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_damaged_columnar_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"no such thing, but long enough")
    with pytest.raises(ValueError, match=f"{name} is not readable as {name[2:]}"), open_table(tmp_path / name):
        pass


def save_dataset(folder, texts):
    """A folder as `datasets.Dataset.save_to_disk` writes it, in two files."""
    folder.mkdir(parents=True)
    files = []
    for number, text in enumerate(texts):
        files.append(f"data-{number:05}-of-{len(texts):05}.arrow")
        write_arrow(folder / files[-1], pa.table({"text": [text], "label": [[number]]}), "stream")
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"feature": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "_type": "List"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))


def test_folder_of_datasets(tmp_path):
    save_dataset(tmp_path / "d", ["bad", "good"])
    with open_table(tmp_path / "d") as table:
        assert list(table.rows()) == [
            Row(1, {"text": "bad", "label": ["neg"]}),
            Row(2, {"text": "good", "label": ["pos"]}),
        ]


def test_classes_that_are_not_known(tmp_path):
    save_dataset(tmp_path / "d", ["bad"])
    write_arrow(tmp_path / "d" / "data-00000-of-00001.arrow", pa.table({"text": ["a"], "label": [[-1, 1]]}), "stream")
    with open_table(tmp_path / "d") as table:
        assert [row.values["label"] for row in table.rows()] == [[None, "pos"]]
    write_arrow(tmp_path / "d" / "data-00000-of-00001.arrow", pa.table({"text": ["a"], "label": [[2]]}), "stream")
    with (
        open_table(tmp_path / "d") as table,
        pytest.raises(
            ValueError, match=r"d, row 1: 'label' cannot be read \(the class 2 is outside 0\.\.1, the classes that"
        ),
    ):
        list(table.rows())


def test_columns_that_are_not_read_need_not_be_readable(tmp_path):
    times = pa.array([2**60], pa.timestamp("s"))
    write_arrow(tmp_path / "t.arrow", pa.table({"text": ["a"], "sha": [b"\xff"], "at": times}), "file")
    with open_table(tmp_path / "t.arrow") as table:
        assert [row.values for row in table.rows(strings=True, columns={"text"})] == [
            {"text": "a", "sha": "", "at": ""}
        ]
    with open_table(tmp_path / "t.arrow") as table:
        assert [row.values["at"] for row in table.rows(strings=True, lenient=True)] == [""]
    for column, strings in (("sha", True), ("at", False)):
        with (
            open_table(tmp_path / "t.arrow") as table,
            pytest.raises(ValueError, match=rf"t\.arrow, row 1: '{column}' cannot be read"),
        ):
            list(table.rows(strings=strings))


def test_a_column_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["z", "z"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet has the column 'z' more than once"):
        open_table(tmp_path / "t.parquet").__enter__()


def test_folder_of_several_splits_asks_for_one(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        save_dataset(tmp_path / split, ["a"])
    with pytest.raises(ValueError, match="has the splits train, test: give the folder of one"), open_table(tmp_path):
        pass
    with open_table(tmp_path / "test") as table:
        assert [row.values["text"] for row in table.rows()] == ["a"]


def test_folder_of_datasets_is_not_left(tmp_path):
    save_dataset(tmp_path / "d", ["a"])
    (tmp_path / "d" / "state.json").write_text('{"_data_files": [{"filename": "../other.arrow"}]}')
    with (
        pytest.raises(ValueError, match=r"names '\.\./other\.arrow'; expected a file in the same folder"),
        open_table(tmp_path / "d"),
    ):
        pass


def test_any_other_folder(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder without dataset_dict\.json"), open_table(tmp_path):
        pass


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t\.csv: there is no such file"), open_table(tmp_path / "t.csv"):
        pass


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(CSV)))
    with open_table(None, wanted=("text",)) as table:
        assert (table.name, table.input_format) == ("standard input", "csv")
        assert [row.values for row in table.rows()] == ROWS
    with (
        pytest.raises(ValueError, match="parquet cannot be read from standard input"),
        open_table(None, input_format="parquet"),
    ):
        pass


@pytest.mark.parametrize(
    ("input_format", "lines"),
    [("csv", [b"id,text\n", b"1,a\n", b"2,b\n"]), ("jsonl", [b'{"id":"1","text":"a"}\n', b'{"id":"2","text":"b"}\n'])],
)
def test_rows_come_as_their_lines_do(input_format, lines):
    taken = []

    def stream():
        for line in lines:
            taken.append(line)
            yield line

    rows = table_of_lines(stream(), "stream", input_format=input_format).rows()
    assert next(rows).values == {"id": "1", "text": "a"}
    assert lines[-1] not in taken


def test_json_lines_may_differ_and_become_strings():
    lines = [b'{"id": 1, "labels": [2, "x", null]}\n', b'{"id": 2.5, "labels": {"k": true}, "more": false}\n']
    table = table_of_lines(lines, "t", input_format="jsonl")
    assert table.columns == ["id", "labels"]
    assert [row.values for row in table.rows(strings=True)] == [
        {"id": "1", "labels": ["2", "x", ""]},
        {"id": "2.5", "labels": '{"k": true}', "more": "false"},
    ]


def test_half_a_character():
    with pytest.raises(ValueError, match="t, line 1: half of a character"):
        list(table_of_lines([b'{"a": "\\ud800"}\n'], "t", input_format="jsonl").rows(strings=True))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (float("nan"), ""),
        ([1.0, float("nan")], ["1", ""]),
        (3.0, "3"),
        (0.5, "0.5"),
        (True, "true"),
        (b"ab", "ab"),
        ((1, "b"), ["1", "b"]),
        ("x", "x"),
    ],
)
def test_strings(value, expected):
    assert as_strings(value) == expected


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "latin-1", "utf-8-sig", "UTF8"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes('id;text\r\n1;"café\r\nnaïve"\r\n2;ñ'.encode(encoding))
    with open_table(path, encoding=encoding) as table:
        assert list(table.rows()) == [Row(2, {"id": "1", "text": "café\r\nnaïve"}), Row(4, {"id": "2", "text": "ñ"})]


@pytest.mark.parametrize("name", ["t.xlsx", "t.csv"])
def test_workbooks(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("xl/workbook.xml", "<xml/>")
    with (
        pytest.raises(ValueError, match=rf"{name} is a workbook, .*; save its sheet as CSV"),
        open_table(tmp_path / name, encoding="cp1252"),
    ):
        pass


def test_wrong_encodings(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("id,text\n1,a\n2,\x81\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv, line 3: not cp1252"), open_table(path, encoding="cp1252") as table:
        list(table.rows())
    with (
        pytest.raises(ValueError, match="encoding=klingon: there is no such encoding"),
        open_table(path, encoding="klingon"),
    ):
        pass


def test_classes_in_a_file_that_datasets_has_written(tmp_path):
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    schema = pa.schema(
        [("text", pa.string()), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    data = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]}, schema=schema)
    pa.parquet.write_table(data, tmp_path / "q.parquet")
    write_arrow(tmp_path / "q.arrow", data, "file")
    for name in ("q.parquet", "q.arrow"):
        with open_table(tmp_path / name) as table:
            assert [row.values["label"] for row in table.rows()] == ["pos", "neg", None]
    pa.parquet.write_table(data.replace_schema_metadata({"huggingface": "{"}), tmp_path / "q.parquet")
    with open_table(tmp_path / "q.parquet") as table:
        assert [row.values["label"] for row in table.rows()] == [1, 0, -1]


def test_the_row_that_cannot_be_read_is_named(tmp_path):
    text = pa.array([b"a", b"b", b"\xff", b"d"]).view(pa.string())
    pa.parquet.write_table(pa.table({"text": text}), tmp_path / "q.parquet")
    with (
        open_table(tmp_path / "q.parquet") as table,
        pytest.raises(ValueError, match=r"q\.parquet, row 3: 'text' cannot"),
    ):
        list(table.rows())


def test_half_of_a_character_within_fields(tmp_path):
    (tmp_path / "q.json").write_text('{"labels": [{"a": "\\ud800"}]}\n')
    with open_table(tmp_path / "q.json") as table, pytest.raises(ValueError, match=r"line 1: half of a character"):
        list(table.rows(strings=True))
