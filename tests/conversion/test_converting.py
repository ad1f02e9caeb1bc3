import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from scipy.sparse import csr_matrix, save_npz

from prime_xmc.conversion.columns import field_names
from prime_xmc.conversion.conversion_settings import Settings
from prime_xmc.conversion.converting import Conversion, convert
from prime_xmc.conversion.layouts import Inputs, find_inputs
from prime_xmc.data.raw import RawFiles, read_records

RECIPES = [
    ("red lentil soup", ["soup", "vegan"]),
    ("apple pie", ["dessert", "baking"]),
    ("tomato soup", ["soup", "vegan"]),
    ("chocolate cake", ["dessert", "baking"]),
]


def write_csv(path: Path, rows: list[list[str]], **options) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows(rows)
    return path


def recipes_csv(path: Path) -> Path:
    return write_csv(path, [["text", "labels"], *([text, ";".join(labels)] for text, labels in RECIPES)])


def run(queries: Path, labels: Path | None = None, test: Path | None = None, **settings) -> Conversion:
    inputs = find_inputs(Inputs(queries, labels, test))
    return convert(inputs, queries.parent / "out", Settings(**{"test_share": 0.0, "threads": 1} | settings))


def read(conversion: Conversion) -> dict[str, list]:
    """Return what the raw files hold: (text, names of labels) of each query, and (uid, text) of each label."""
    source = RawFiles(
        conversion.directory, "out", tuple(conversion.fields), tuple(conversion.label_fields), num_test=None
    )
    paths = source.paths()
    labels = list(read_records(paths["lbl"], source.label_fields or (), None))
    found: dict[str, list] = {"lbl": [(record.uid, record.text) for record in labels]}
    for split in ("trn", "tst"):
        if split in paths:
            records = read_records(paths[split], source.fields, len(labels))
            found[split] = [(record.text, [labels[label].uid for label in record.positives]) for record in records]
    return found


def test_csv_without_labels_gives_names_numbers_in_alphabetical_order(tmp_path):
    conversion = run(recipes_csv(tmp_path / "recipes.csv"))
    assert read(conversion) == {
        "lbl": [(name, name) for name in ("baking", "dessert", "soup", "vegan")],
        "trn": RECIPES,
    }
    assert conversion.command("train") == f"python -m prime_xmc.train dataset=custom dataset.dir={tmp_path / 'out'}"


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "jsonl.gz", "parquet", "arrow"])
def test_lists_of_labels(tmp_path, suffix):
    path = tmp_path / f"recipes.{suffix}"
    table = pa.table({"text": [text for text, _ in RECIPES], "labels": [labels for _, labels in RECIPES]})
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    if suffix == "tsv":
        write_csv(path, [["text", "labels"], *([text, json.dumps(labels)] for text, labels in RECIPES)], delimiter="\t")
    elif suffix == "jsonl":
        path.write_text(lines)
    elif suffix == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif suffix == "parquet":
        pa.parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert read(run(path))["trn"] == RECIPES


def test_labels_by_identifier_keep_the_order_of_their_file(tmp_path):
    write_csv(tmp_path / "q.csv", [["id", "text", "label_ids"], ["q1", "a", "7,9"], ["q2", "b", "9"]])
    write_csv(tmp_path / "l.csv", [["id", "name"], ["9", "nine"], ["8", "eight"], ["7", "seven"]])
    conversion = run(tmp_path / "q.csv", tmp_path / "l.csv")
    assert read(conversion) == {
        "lbl": [("9", "nine"), ("8", "eight"), ("7", "seven")],
        "trn": [("a", ["7", "9"]), ("b", ["9"])],
    }
    assert (tmp_path / "out" / "trn.json").read_text().startswith('{"uid":"q1","title":"a","target_ind":[2,0]}')


def test_labels_by_name_with_a_comma_in_it(tmp_path):
    write_csv(tmp_path / "q.csv", [["text", "city"], ["a", "Paris, France"], ["b", "Rome, Italy"]])
    write_csv(tmp_path / "l.csv", [["id", "name"], ["1", "Rome, Italy"], ["2", "Paris, France"]])
    assert read(run(tmp_path / "q.csv", tmp_path / "l.csv"))["trn"] == [("a", ["2"]), ("b", ["1"])]


def test_labels_by_the_number_of_their_row(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"title": "a", "target_ind": [1, 0]}\n')
    (tmp_path / "l.txt").write_text("zero\none\n")
    assert read(run(tmp_path / "q.jsonl", tmp_path / "l.txt")) == {
        "lbl": [("0", "zero"), ("1", "one")],
        "trn": [("a", ["1", "0"])],
    }


def test_rows_that_repeat_a_label_are_referred_to_as_well(tmp_path):
    """As where a label has a row for each of its names."""
    labels = write_csv(
        tmp_path / "labels.csv",
        [["id", "title", "alias"], ["1", "Cat", "cats"], ["1", "Cat", "kitty"], ["2", "Dog", "dogs"]],
    )
    queries = write_csv(
        tmp_path / "queries.csv", [["text", "labels"], ["a a", "cats"], ["b b", "kitty"], ["c c", "dogs;kitty;cow"]]
    )
    positives = [("a a", ["1"]), ("b b", ["1"]), ("c c", ["2", "1"])]
    assert read(run(queries, labels, unknown_labels="drop"))["trn"] == positives
    found = read(run(queries, labels, unknown_labels="add", overwrite=True))
    assert found["trn"] == [*positives[:2], ("c c", ["2", "1", "cow"])]
    assert found["lbl"] == [("1", "Cat"), ("2", "Dog"), ("cow", "cow")]


def test_an_earlier_conversion_keeps_the_numbers_of_its_labels(tmp_path):
    run(recipes_csv(tmp_path / "recipes.csv"))
    labels = (tmp_path / "out" / "lbl.json").rename(tmp_path / "lbl.json")
    more = write_csv(tmp_path / "more.csv", [["text", "labels"], ["ale", "a new one;soup"]])
    conversion = run(more, labels, unknown_labels="add")
    assert [uid for uid, _ in read(conversion)["lbl"]] == ["baking", "dessert", "soup", "vegan", "a new one"]


@pytest.mark.parametrize("with_id", [True, False])
def test_several_rows_of_one_query(tmp_path, with_id):
    rows = [["q1", "a", "x"], ["q2", "b", "x"], ["q1", "a", "y"], ["q1", "a", "x"]]
    header = ["id", "text", "label"]
    cut = 0 if with_id else 1
    write_csv(tmp_path / "q.csv", [header[cut:], *(row[cut:] for row in rows)])
    conversion = run(tmp_path / "q.csv")
    assert read(conversion)["trn"] == [("a", ["x", "y"]), ("b", ["x"])]
    assert "are one query: 4 rows, 2 queries" in dict(conversion.notes)["  rows"]
    assert len(read(run(tmp_path / "q.csv", group_by="none"))["trn"]) == 4


def test_the_same_text_with_lists_of_labels_is_two_queries(tmp_path):
    write_csv(tmp_path / "q.csv", [["text", "labels"], ["a", "x;y"], ["a", "z"]])
    assert read(run(tmp_path / "q.csv"))["trn"] == [("a", ["x", "y"]), ("a", ["z"])]


def test_several_columns_make_up_a_text(tmp_path):
    write_csv(tmp_path / "q.csv", [["title", "body text", "tags"], ["a", "b", "x"]])
    write_csv(tmp_path / "l.csv", [["name"], ["x"]])
    conversion = run(tmp_path / "q.csv", tmp_path / "l.csv", text_column=("title", "body text"))
    assert read(conversion)["trn"] == [("a b", ["x"])]
    assert conversion.dataset_settings[2:] == ["dataset.fields=[title,body_text]", "dataset.label_fields=[title]"]


def test_names_of_the_columns_are_kept_where_fields_have_others(tmp_path, caplog):
    rows = [["question", "body text", "labels"], ["a", "b", "x"], ["c", "d", "y"]]
    conversion = run(write_csv(tmp_path / "q.csv", rows), text_column=("question", "body text"))
    assert conversion.fields == ["question", "body_text"]
    source = RawFiles(conversion.directory, "out", ("body_text", "question"))
    assert source.columns() == ("body text", "question")
    (tmp_path / "out" / "conversion.json").write_text('{"fields": 3}')
    assert source.columns() is None
    assert "conversion.json is none of prime_xmc.convert" in caplog.text


def test_columns_that_are_not_used_are_named(tmp_path):
    write_csv(tmp_path / "q.csv", [["text", "tags", "notes", "day"], ["a", "x", "b", "c"]])
    write_csv(tmp_path / "l.csv", [["name", "description"], ["x", "y"]])
    notes = [
        sentence for subject, sentence in run(tmp_path / "q.csv", tmp_path / "l.csv").notes if "not used" in subject
    ]
    assert notes == [
        "'notes', 'day'; text_column=[text,notes] adds a column to the text",
        "'description'; label_text_column=[name,description] adds a column to the text",
    ]


def test_field_names_that_mean_something_else():
    assert field_names(["uid", "title"]) == ["uid_", "title"]


def test_test_split_keeps_a_training_query_of_every_label(tmp_path):
    rows = [[f"text {n}", f"l{n % 10};m{n}" if n < 5 else f"l{n % 10}"] for n in range(100)]
    path = write_csv(tmp_path / "q.csv", [["text", "labels"], *rows])
    first = read(run(path, test_share=0.3))
    assert len(first["tst"]) == 30
    assert {label for _, labels in first["trn"] for label in labels} == {uid for uid, _ in first["lbl"]}
    assert read(run(path, test_share=0.3)) == first
    assert read(run(path, test_share=0.3, seed=1))["tst"] != first["tst"]
    all_spared = run(path, test_share=0.99)
    assert len(read(all_spared)["tst"]) == 90  # the queries with labels m and one of each other label l stay
    assert "90 rather than 99 queries: the others have a label of no other text" in dict(all_spared.notes)["test"]


def test_no_test_split_where_each_query_has_a_label_of_its_own(tmp_path):
    path = write_csv(tmp_path / "q.csv", [["text", "labels"], *([f"text {n}", f"l{n}"] for n in range(60))])
    found = run(path, test_share=0.2)
    assert "no query is split off for testing: each has a label of no other" in dict(found.notes)["test"]
    assert "tst" not in read(found)


def test_equal_texts_are_in_one_split(tmp_path):
    texts = ["soup", "pie", "cake", "bread"] * 5 + [f"dish {number}" for number in range(10)]
    rows = [["text", "labels"], *([text, "a;b" if row % 3 else "b;c"] for row, text in enumerate(texts))]
    conversion = run(write_csv(tmp_path / "q.csv", rows), test_share=0.4, seed=3)
    found = read(conversion)
    trained, tested = ({text for text, _ in found[split]} for split in ("trn", "tst"))
    assert not trained & tested
    assert len(found["tst"]) == 12
    assert len(found["trn"]) == 18


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels_column": ("tags",)}, r"q\.csv: labels_column=tags: there is no such column, only text, labels"),
        ({"text_column": ("text", "body")}, r"q\.csv: text_column=body: there is no such column, only text, labels"),
        ({"label_text_column": ("long",)}, r"l\.csv: label_text_column=long: there is no such column, only id, name"),
        ({"label_id_column": "code"}, r"l\.csv: label_id_column=code: there is no such column, only id, name"),
    ],
)
def test_a_missing_column_is_told_with_its_file(tmp_path, settings, said):
    queries = write_csv(tmp_path / "q.csv", [["text", "labels"], ["soup", "1"]])
    labels = write_csv(tmp_path / "l.csv", [["id", "name"], ["1", "hot"]])
    with pytest.raises(ValueError, match=said):
        run(queries, labels, **settings)


def test_test_queries_of_their_own(tmp_path):
    write_csv(tmp_path / "q.csv", [["text", "label"], ["a", "x"], ["b", "y"]])
    write_csv(tmp_path / "t.csv", [["text", "label"], ["c", "y"], ["d", "z"]])
    found = read(run(tmp_path / "q.csv", test=tmp_path / "t.csv"))
    assert (found["trn"], found["tst"]) == ([("a", ["x"]), ("b", ["y"])], [("c", ["y"]), ("d", ["z"])])
    with pytest.raises(ValueError, match=r"test_share=0\.5 and test=.* are both given"):
        run(tmp_path / "q.csv", test=tmp_path / "t.csv", test_share=0.5)


def test_unknown_labels(tmp_path):
    write_csv(tmp_path / "q.csv", [["text", "labels"], ["a", "x;y"], ["b", "z;x"], ["c", "y"]])
    write_csv(tmp_path / "l.csv", [["name"], ["x"]])
    with pytest.raises(
        ValueError, match=r"2 labels of queries are not in .*l\.csv: 'y' in .*q\.csv, line 2; 'z' in .*line 3"
    ):
        run(tmp_path / "q.csv", tmp_path / "l.csv")
    assert not (tmp_path / "out").exists()
    assert read(run(tmp_path / "q.csv", tmp_path / "l.csv", unknown_labels="drop")) == {
        "lbl": [("x", "x")],
        "trn": [("a", ["x"]), ("b", ["x"]), ("c", [])],
    }
    added = read(run(tmp_path / "q.csv", tmp_path / "l.csv", unknown_labels="add"))
    assert added["lbl"] == [("x", "x"), ("y", "y"), ("z", "z")]


def test_labels_of_one_name(tmp_path):
    write_csv(tmp_path / "q.csv", [["text", "labels"], ["a", "x"]])
    labels = write_csv(tmp_path / "l.csv", [["name", "description"], ["x", "one"], ["x", "one"]])
    assert read(run(tmp_path / "q.csv", labels))["lbl"] == [("x", "x")]
    write_csv(labels, [["name", "description"], ["x", "one"], ["y", ""], ["x", "two"]])
    with pytest.raises(ValueError, match=r"l\.csv, line 2: 2 labels that differ are called 'x'"):
        run(tmp_path / "q.csv", labels, label_text_column=("name", "description"))


def test_identifier_of_different_texts(tmp_path):
    write_csv(tmp_path / "q.csv", [["id", "text", "label"], ["1", "a", "x"], ["1", "b", "x"]])
    with pytest.raises(ValueError, match=r"q\.csv, line 2: the queries of the identifier '1' have 2 different texts"):
        run(tmp_path / "q.csv", group_by="id")
    assert len(read(run(tmp_path / "q.csv"))["trn"]) == 2


def test_missing_identifier_of_a_label(tmp_path):
    write_csv(tmp_path / "q.csv", [["text", "labels"], ["a", "x"]])
    write_csv(tmp_path / "l.csv", [["id", "name"], ["x", "one"], ["", "two"]])
    with pytest.raises(ValueError, match=r"l\.csv, line 3: the label has no identifier in 'id'"):
        run(tmp_path / "q.csv", tmp_path / "l.csv")


def test_row_without_a_column(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"text": "a", "labels": ["x"]}\n{"labels": ["x"]}\n')
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2: no column 'text', only labels"):
        run(tmp_path / "q.jsonl")


@pytest.mark.parametrize("content", ["", "text,labels\n", "text,labels\na,\n"])
def test_nothing_to_convert(tmp_path, content):
    (tmp_path / "q.csv").write_text(content)
    with pytest.raises(ValueError, match=r"q\.csv has no columns|has no rows|no query has a label in 'labels'"):
        run(tmp_path / "q.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["q.csv"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    path = recipes_csv(tmp_path / "recipes.csv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is there already and was not made by this command"):
        run(path)
    run(path, overwrite=True)
    assert not (tmp_path / "out" / "thesis.txt").exists()
    run(path)  # an earlier conversion is


def test_record(tmp_path):
    conversion = run(recipes_csv(tmp_path / "recipes.csv"))
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record == conversion.record
    assert record["read"] == [{"file": str(tmp_path / "recipes.csv"), "bytes": 122, "rows": 4}]
    assert record["columns"] == {
        "text": ["text"],
        "labels": "labels",
        "id": None,
        "label_separator": ";",
        "group_by": "none",
    }
    assert record["written"] == {"trn": {"queries": 4, "pairs": 8}, "lbl": {"labels": 4}}
    assert RawFiles(tmp_path / "out", "out").columns() == ("text",)
    assert RawFiles(tmp_path / "out", "out", ("other",)).columns() is None


# Formats of the field: three training queries, one test query, three labels.

TEXTS, POSITIVES = ["a", "b", "c"], [["zero", "two"], [], ["one"]]
EXPECTED = {
    "lbl": [("0", "zero"), ("1", "one"), ("2", "two")],
    "trn": [("a", ["0", "2"]), ("b", []), ("c", ["1"])],
    "tst": [("d", ["1"])],
}


@pytest.fixture
def matrix():
    return csr_matrix(np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]]))


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def repository(tmp_path):
    """A folder of the Extreme Classification Repository."""
    folder = tmp_path / "LF-Toy"
    folder.mkdir()
    write_lines(folder / "train.raw.txt", TEXTS)
    write_lines(folder / "test.raw.txt", ["d"])
    write_lines(folder / "Y.txt", ["zero", "one", "two"])
    write_lines(folder / "trn_X_Y.txt", ["3 3", "0:1 2:1", "", "1:1"])
    write_lines(folder / "tst_X_Y.txt", ["1 3", "1:1.0"])
    return folder


def test_folder_of_the_repository(repository):
    assert read(run(repository)) == EXPECTED


def test_test_queries_of_ones_own_have_labels_of_their_own(repository, tmp_path):
    own = recipes_csv(tmp_path / "own.csv")
    assert find_inputs(Inputs(repository, test=own)).test_positives is None
    with pytest.raises(ValueError, match="expected both positives= and test_positives="):
        run(repository, test=own)
    labels = write_lines(tmp_path / "own.txt", ["1 3", "0:1"])
    texts = write_lines(tmp_path / "texts.txt", ["e"])
    inputs = find_inputs(Inputs(repository, test=texts, test_positives=labels))
    conversion = convert(inputs, tmp_path / "out", Settings(threads=1))
    assert read(conversion) == EXPECTED | {"tst": [("e", ["0"])]}


@pytest.mark.parametrize(("split", "name"), [("trn", "positives"), ("tst", "test_positives")])
def test_a_folder_without_labels_that_are_given(repository, tmp_path, split, name):
    elsewhere = (repository / f"{split}_X_Y.txt").rename(tmp_path / "labels.txt")
    inputs = find_inputs(Inputs(repository)._replace(**{name: elsewhere}))
    assert read(convert(inputs, tmp_path / "out", Settings(threads=1))) == EXPECTED


def test_folder_of_pecos(tmp_path, matrix):
    folder = tmp_path / "toy"
    folder.mkdir()
    write_lines(folder / "X.trn.txt", TEXTS)
    write_lines(folder / "X.tst.txt", ["d"])
    write_lines(folder / "output-items.txt", ["zero", "one", "two"])
    save_npz(folder / "Y.trn.npz", matrix)
    save_npz(folder / "Y.tst.npz", matrix[2:])
    assert read(run(folder)) == EXPECTED


def test_libsvm_with_texts_beside(tmp_path):
    texts = write_lines(tmp_path / "texts.txt", TEXTS)
    positives = write_lines(tmp_path / "train.svm", ["3 5 3", "0,2 4:0.5", " 3:1", "1 3:1"])
    labels = write_lines(tmp_path / "labels.txt", ["zero", "one", "two"])
    conversion = convert(Inputs(texts, labels, positives=positives), tmp_path / "out", Settings(test_share=0.0))
    assert read(conversion) == {name: EXPECTED[name] for name in ("lbl", "trn")}


def test_names_of_labels_beside_texts(tmp_path):
    texts = write_lines(tmp_path / "texts.txt", TEXTS)
    positives = write_lines(tmp_path / "train_labels.txt", ["zero two", "", "one"])
    labels = write_csv(tmp_path / "l.csv", [["name", "text"], ["two", "2"], ["one", "1"], ["zero", "0"]])
    conversion = convert(Inputs(texts, labels, positives=positives), tmp_path / "out", Settings(test_share=0.0))
    assert read(conversion)["trn"] == list(zip(TEXTS, POSITIVES, strict=True))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["0:1"] * 2, "ends after 2 rows, and .*texts.txt has more"),
        (["0:1"] * 4, "ends after 3 queries, and .*Y.txt has more"),
    ],
)
def test_texts_and_labels_of_different_length(tmp_path, rows, said):
    texts = write_lines(tmp_path / "texts.txt", TEXTS)
    positives = write_lines(tmp_path / "Y.txt", rows)
    with pytest.raises(ValueError, match=said):
        convert(Inputs(texts, positives=positives), tmp_path / "out", Settings())


def test_unknown_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder without a file of the texts of training queries"):
        find_inputs(Inputs(tmp_path))


def test_folder_of_datasets(tmp_path):
    folder = tmp_path / "hub"
    for split, texts, labels in (("train", TEXTS, [[0, 2], [], [1]]), ("test", ["d"], [[1]])):
        (folder / split).mkdir(parents=True)
        table = pa.table({"text": texts, "labels": pa.array(labels, pa.list_(pa.int64()))})
        with (
            pa.OSFile(str(folder / split / "data.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        (folder / split / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        classes = {"feature": {"names": ["zero", "one", "two"], "_type": "ClassLabel"}, "_type": "List"}
        (folder / split / "dataset_info.json").write_text(json.dumps({"features": {"labels": classes}}))
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read(run(folder)) == {
        "lbl": [("one", "one"), ("two", "two"), ("zero", "zero")],
        "trn": list(zip(TEXTS, POSITIVES, strict=True)),
        "tst": [("d", ["one"])],
    }


# Ten awkward little files.

AWKWARD = {
    "one label": (b"text,label\na,x\nb,x\n", [("a", ["x"]), ("b", ["x"])]),
    "one query": (b"text,labels\na,x;y\n", [("a", ["x", "y"])]),
    "Windows line ends": (b"text,labels\r\na,x;y\r\nb,y\r\n", [("a", ["x", "y"]), ("b", ["y"])]),
    "byte-order mark": (b"\xef\xbb\xbftext,labels\na,x\n", [("a", ["x"])]),
    "quotes with newlines": (b'text,labels\n"a ""b""\nc, d","x\ny"\n', [('a "b"\nc, d', ["x", "y"])]),
    "tabs": (b"text\tlabels\na b, c\tx;y\n", [("a b, c", ["x", "y"])]),
    "Arabic and Chinese": (
        "text,labels\nمرحبا بالعالم,تحية;عالم\n你好,问候\n".encode(),
        [("مرحبا بالعالم", ["تحية", "عالم"]), ("你好", ["问候"])],
    ),
    "emoji": ("text,labels\n👩‍👩‍👧 family 🏳️‍🌈,👪;❤️\n".encode(), [("👩‍👩‍👧 family 🏳️‍🌈", ["👪", "❤️"])]),
    "100,000 characters in a cell": (
        b"text,labels\n" + b"ab " * 50_000 + b"," + b"x" * 100_000 + b"\n",
        [(("ab " * 50_000).strip(), ["x" * 100_000])],
    ),
    "300 labels on one query": (
        f"text,labels\na,{';'.join(f'l{n:03}' for n in range(300))}\n".encode(),
        [("a", [f"l{n:03}" for n in range(300)])],
    ),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_files(tmp_path, name):
    content, expected = AWKWARD[name]
    (tmp_path / "q.csv").write_bytes(content)
    found = read(run(tmp_path / "q.csv"))
    assert found["trn"] == expected
    names = sorted({label for _, labels in expected for label in labels})
    assert found["lbl"] == [(label, label) for label in names]


def test_a_table_of_excel(tmp_path):
    (tmp_path / "q.csv").write_bytes("text;labels\r\ncafé – naïve;ä,ö\r\nthé;ö\r\nañil;ä\r\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"q\.csv, line 2: not UTF-8.*encoding=cp1252"):
        run(tmp_path / "q.csv")
    assert read(run(tmp_path / "q.csv", encoding="cp1252"))["trn"][0] == ("café – naïve", ["ä", "ö"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"group_by": "uid"}, "expected group_by auto, id, text, none, got 'uid'"),
        ({"unknown_labels": "keep"}, "expected unknown_labels error, add, drop, got 'keep'"),
        ({"test_share": 1.0}, "expected test_share of at least 0 and below 1"),
        ({"threads": 0}, "expected threads of at least 1"),
        ({"memory_limit": "lots"}, "memory_limit=lots: expected a size such as 1GB"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        run(recipes_csv(tmp_path / "recipes.csv"), **settings)


def test_a_folder_with_files_of_others_is_not_replaced(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    queries = recipes_csv(folder / "train.csv")
    with pytest.raises(ValueError, match=r"train\.csv would be lost with it; name another folder"):
        convert(Inputs(queries), folder, Settings(overwrite=True))
    assert [path.name for path in folder.iterdir()] == ["train.csv"]
    queries = queries.rename(tmp_path / "train.csv")
    run(queries)
    for name in ("notes.txt", ".env", "audit.md"):
        (folder / name).write_text("mine")
        with pytest.raises(ValueError, match=rf"out/{re.escape(name)} was not made by this command; move it"):
            run(queries)
        assert (folder / name).read_text() == "mine"
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"out/trn\.json would be lost with it"):
        convert(Inputs(folder / "trn.json", folder / "lbl.json"), folder, Settings(labels_column=("target_ind",)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(ValueError, match=r"output=\. holds the folder that you are in"):
            convert(Inputs(queries), Path("."), Settings())
    (folder / "filter_labels_train.txt").write_text("0 0\n")
    again = run(queries, folder / "lbl.json", unknown_labels="add")
    assert any("filter_labels_train.txt was of the earlier conversion" in note for _, note in again.notes)
    assert sorted(path.name for path in folder.iterdir()) == ["conversion.json", "lbl.json", "trn.json"]


def test_a_link_to_a_folder_keeps_its_place(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    conversion = run(recipes_csv(tmp_path / "train.csv"))
    assert conversion.directory == tmp_path / "out"
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "trn.json").is_file()


def test_nothing_where_pandas_has_nan(tmp_path):
    rows = [{"id": None, "text": "a", "labels": "x"}, {"id": None, "text": "b", "labels": None}]
    content = "".join(json.dumps(row) + "\n" for row in rows).replace("null", "NaN")
    (tmp_path / "q.jsonl").write_text(content)
    conversion = run(tmp_path / "q.jsonl")
    assert read(conversion) == {"lbl": [("x", "x")], "trn": [("a", ["x"]), ("b", [])]}
    uids = [json.loads(line)["uid"] for line in (conversion.directory / "trn.json").read_text().splitlines()]
    assert uids == ["row-0", "row-1"]


def test_identifiers_that_repeat_but_name_several_texts_are_told(tmp_path):
    rows = [["id", "text", "labels"], ["5", "a", "x"], ["5", "b", "y"], ["6", "c", "x"], ["6", "c ", "y"]]
    conversion = run(write_csv(tmp_path / "q.csv", rows))
    assert len(read(conversion)["trn"]) == 4
    (note,) = [note for subject, note in conversion.notes if subject == "  rows"]
    assert "those of '5' (first in " in note
    assert "q.csv, line 2) have 2 different texts; group_by=text" in note
    rows[2][1] = "a\t"
    assert read(run(write_csv(tmp_path / "q.csv", rows)))["trn"] == [("a", ["x", "y"]), ("c", ["x", "y"])]


def test_a_separator_that_the_first_rows_do_not_have(tmp_path):
    rows = [["text", "labels"], *([f"t{n}", f"L{n % 7}"] for n in range(1001)), ["z", "L1;L2"]]
    queries = write_csv(tmp_path / "q.csv", rows)
    said = r"q\.csv, line 1003: 'L1;L2' seems to be several labels, separated by ';', .* give label_separator=';'"
    with pytest.raises(ValueError, match=said):
        run(queries)
    assert read(run(queries, label_separator=";"))["trn"][-1] == ("z", ["L1", "L2"])
    assert read(run(queries, label_separator=""))["trn"][-1] == ("z", ["L1;L2"])
    rows[-1][1] = "L1\tL2"
    with pytest.raises(ValueError, match="give label_separator=tab, or"):
        run(write_csv(tmp_path / "q.csv", rows))
    assert read(run(queries, label_separator="tab"))["trn"][-1] == ("z", ["L1", "L2"])
    lines = [*({"text": f"t{n}", "labels": None} for n in range(1001)), {"text": "z", "labels": ["L1", "L2"]}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(run(tmp_path / "q.jsonl"))["trn"][-1] == ("z", ["L1", "L2"])


def test_first_rows_that_separate_labels_in_two_ways(tmp_path):
    """Each way has as many rows; one of them is taken, and rows of the other are not labels with long names."""
    pairs = [(f"L{n % 7}", f"L{(n + 1) % 7}") for n in range(40)]
    rows = [["text", "labels"], *([f"t{n}", ";|"[n >= 20].join(pair)] for n, pair in enumerate(pairs))]
    with pytest.raises(ValueError, match=r"q\.csv, line 22: 'L6\|L0' seems to be several labels, separated by '\|'"):
        run(write_csv(tmp_path / "q.csv", rows))
    rows[21:] = [[f"t{n}", "phones | tablets;L1"] for n in range(20)]
    assert read(run(write_csv(tmp_path / "q.csv", rows)))["trn"][-1] == ("t19", ["phones | tablets", "L1"])
    rows[21:] = [["a", "phones | L1"], ["b", "tablets | L1"], ["c", "L1"]]  # not all of their parts are labels
    assert read(run(write_csv(tmp_path / "q.csv", rows)))["trn"][-3] == ("a", ["phones | L1"])
    rows[21:] = [["a", "L2 | L1"], ["b", "L2 | L1;L3"]]
    assert read(run(write_csv(tmp_path / "q.csv", rows)))["trn"][-2] == ("a", ["L2 | L1"])


def test_labels_that_queries_know_by_a_code_can_grow(tmp_path):
    """The code stays with the label; labels without one share none."""
    labels = write_csv(
        tmp_path / "l.csv",
        [["id", "code", "text"], ["1", "A", "soup"], ["2", "B", "pie"], ["3", "", "x"], ["4", "", "y"]],
    )
    queries = write_csv(tmp_path / "q.csv", [["text", "labels"], ["a", "A"], ["b", "A;B"]])
    first = run(queries, labels)
    assert read(first)["trn"] == [("a", ["1"]), ("b", ["1", "2"])]
    lines = (first.directory / "lbl.json").read_text().splitlines()
    assert json.loads(lines[1]) == {"uid": "2", "title": "pie", "code": "B"}
    write_csv(tmp_path / "q.csv", [["text", "labels"], ["a", "A"], ["c", "B;new"]])
    grown = read(run(queries, first.directory / "lbl.json", unknown_labels="add"))
    assert grown["lbl"] == [("1", "soup"), ("2", "pie"), ("3", "x"), ("4", "y"), ("new", "new")]
    assert grown["trn"] == [("a", ["1"]), ("c", ["2", "new"])]


def test_a_column_that_nobody_uses_need_not_be_readable(tmp_path):
    table = pa.table({"text": ["a", "b"], "labels": [["x"], ["y"]], "sha": [b"\xff", b"\xfe"]})
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
    assert read(run(tmp_path / "q.parquet"))["trn"] == [("a", ["x"]), ("b", ["y"])]


def table(path: Path, header: str, *rows: str) -> Path:
    """Write a CSV file from its lines."""
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def test_numbers_are_identifiers_where_labels_have_numbers(tmp_path):
    labels = table(tmp_path / "l.csv", "code,name", "003,Apple", "001,Banana", "002,Cherry", "000,Date")
    queries = table(tmp_path / "q.csv", "text,labels", "a,3;1", "b,2", "c,0")
    said = r"4 labels .* are not in .*l\.csv: '3' in .*q\.csv, line 2.* has '003' instead, the same number; write both"
    with pytest.raises(ValueError, match=said):
        run(queries, labels, label_id_column="code")
    table(tmp_path / "l.csv", "id,name", "1,Apple", "2,Banana", "3,Cherry", "4,Date", "5,Elder")
    table(tmp_path / "q.csv", "text,labels", *["a,0"] * 9, "b,1", "c,2;4", "d,3")
    kept = run(queries, labels, unknown_labels="drop")
    assert [names for _, names in read(kept)["trn"][-3:]] == [["1"], ["2", "4"], ["3"]]


def test_target_ind_is_the_number_of_a_row_whatever_identifiers_are(tmp_path):
    (tmp_path / "l.json").write_text("".join(json.dumps({"uid": uid, "title": f"t{uid}"}) + "\n" for uid in "210"))
    (tmp_path / "q.json").write_text('{"uid": "a", "title": "x", "target_ind": [0, 1]}\n')
    assert read(run(tmp_path / "q.json", tmp_path / "l.json"))["trn"] == [("x", ["2", "1"])]


@pytest.mark.parametrize("cells", [([0, 1, 0, 1], [1, 0, 0, 0]), ("[0, 1, 0, 1]", "[1, 0, 0, 0]"), ("0 1 0", "1 0 0")])
def test_a_place_for_each_label_is_no_list_of_labels(tmp_path, cells):
    path = tmp_path / "q.json"
    path.write_text("".join(json.dumps({"text": f"a{row}", "labels": cell}) + "\n" for row, cell in enumerate(cells)))
    with pytest.raises(ValueError, match=r"q\.json: 'labels' has zeros and ones, .* a place for each label"):
        run(path)
    labels = table(tmp_path / "l.csv", "name", "a", "b", "c", "d")
    with pytest.raises(ValueError, match="a place for each label"):
        run(path, labels)


def test_tags_as_stack_exchange_writes_them(tmp_path):
    queries = table(tmp_path / "q.csv", "Title,Tags", "t1,<python><pandas>", "t2,<c++>", "t3,<python>", "t4,")
    made = read(run(queries, text_column=("Title",), labels_column=("Tags",)))
    assert made["trn"] == [("t1", ["python", "pandas"]), ("t2", ["c++"]), ("t3", ["python"]), ("t4", [])]
    table(tmp_path / "q.csv", "Title,Tags", *["t1,<python><pandas>"] * 1001, "t2,go")
    with pytest.raises(ValueError, match=r"q\.csv, line 1003: 'go' is not labels that are each in < and >"):
        run(queries, text_column=("Title",), labels_column=("Tags",), overwrite=True)


def test_labels_with_fields_are_refused_with_the_way_out(tmp_path):
    path, labels = tmp_path / "q.jsonl", [[{"id": 1, "name": "soup"}], [{"id": 2, "name": "pie"}]]
    path.write_text("".join(json.dumps({"text": f"t{row}", "labels": each}) + "\n" for row, each in enumerate(labels)))
    with pytest.raises(ValueError, match=r"q\.jsonl: 'labels' has labels with the fields 'id', 'name'; give a list of"):
        run(path)
    for cells in ([{"id": 1, "name": "soup"}], json.dumps(labels[0]), str(labels[0])):
        other = tmp_path / "other.jsonl"
        other.write_text("".join(json.dumps({"text": f"t{row}", "labels": cells}) + "\n" for row in range(2)))
        with pytest.raises(ValueError, match="'labels' has labels with the fields 'id', 'name'"):
            run(other)
    other.write_text("".join(json.dumps({"text": f"t{row}", "labels": labels[0][0]}) + "\n" for row in range(2)))
    with pytest.raises(ValueError, match="'labels' has labels with the fields 'id', 'name'"):
        run(other)
    kept = read(run(path, label_separator="json"))
    assert kept["trn"][0] == ("t0", ['{"id": 1, "name": "soup"}'])


@pytest.mark.parametrize("cells", ["0,1,0", "False,True,True", "1.0,0.0,"])
def test_a_column_for_each_label_is_no_column_of_labels(tmp_path, cells):
    queries = table(tmp_path / "q.csv", "text,toxic,rude,mild", *(f"t{row},{cells}" for row in range(4)))
    said = r"q\.csv: 'toxic', 'rude', 'mild' have zeros and ones, a column for each label, .*\['toxic', 'rude', …\]"
    with pytest.raises(ValueError, match=said):
        run(queries, labels_column=("toxic", "rude", "mild"))
    kept = read(run(queries, labels_column=("toxic", "rude", "mild"), label_separator=";"))
    assert {label for _, labels in kept["trn"] for label in labels} == {cell for cell in cells.split(",") if cell}


def test_names_of_labels_are_whole_where_the_data_grow(tmp_path):
    labels = table(tmp_path / "l.csv", "name", "learning", "deep learning", "vision")
    names = ["deep learning", "learning", "reinforcement learning", "vision"]
    queries = table(tmp_path / "q.csv", "text,labels", *(f"t{name},{name}" for name in names))
    found = read(run(queries, labels, unknown_labels="add"))
    assert [labels for _, labels in found["trn"]] == [[name] for name in names]
    assert found["lbl"][-1] == ("reinforcement learning", "reinforcement learning")


@pytest.mark.parametrize("done", ["add", "drop"])
def test_labels_separated_otherwise_later_are_not_lost(tmp_path, done):
    labels = table(tmp_path / "l.csv", "name", "a", "b", "x;y")
    queries = table(tmp_path / "q.csv", "text,labels", *(f"t{i},a" for i in range(1000)), "u,x;y", "v,a;b")
    with pytest.raises(ValueError, match=r"q\.csv: 'a;b' seems to be several labels, separated by ';'"):
        run(queries, labels, unknown_labels=done)
    kept = run(queries, labels, unknown_labels=done, label_separator="")
    assert read(kept)["trn"][-1][1] == (["a;b"] if done == "add" else [])


@pytest.mark.parametrize(
    ("queries", "test", "said"),
    [
        (["a"], "x;y", "have lists; give label_separator=';'"),
        (["a"], '["x", "y"]', "have lists; give label_separator='json'"),
        ("a;b", "x|y", "have labels separated by ';'; write it alike"),
        ("a;b", "12 13", "have labels separated by ';'; write it alike"),
    ],
)
def test_labels_separated_otherwise_in_the_test_queries(tmp_path, queries, test, said):
    for name, cell in (("q", queries), ("t", test)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": name, "labels": cell}) + "\n")
    with pytest.raises(ValueError, match=rf"t\.json, line 1: .* seems to be several labels, .* {re.escape(said)}"):
        run(tmp_path / "q.json", test=tmp_path / "t.json")


def test_separators_within_labels_are_let_be(tmp_path):
    rows = ["AC|DC;rock", "rock;pop"]
    test = table(tmp_path / "t.csv", "text,labels", "c,AC|DC")
    kept = run(table(tmp_path / "q.csv", "text,labels", *(f"t{row},{row}" for row in rows)), test=test)
    assert read(kept)["tst"] == [("c", ["AC|DC"])]


def test_test_queries_without_the_column_of_labels(tmp_path):
    test = table(tmp_path / "t.csv", "text,label", "x,soup")
    with pytest.raises(ValueError, match=r"t\.csv: no row has the column 'labels', which has the labels in .*q\.csv"):
        run(recipes_csv(tmp_path / "q.csv"), test=test)


def test_one_number_written_in_two_ways_is_told(tmp_path):
    test = table(tmp_path / "t.csv", "text,labels", "x,3", "y,10")
    conversion = run(table(tmp_path / "q.csv", "text,labels", "a,3.0", "b,4.0"), test=test)
    said = [said for subject, said in conversion.notes if subject == "  alike"]
    assert [each[:28] for each in said] == ["'3' and '3.0' are two labels"]
    plain = run(table(tmp_path / "q.csv", "text,labels", "a,3", "b,4"), test=test)
    assert "alike" not in {subject.strip() for subject, _ in plain.notes}


def test_labels_of_another_number_than_announced(tmp_path):
    (tmp_path / "train.raw.txt").write_text("a\nb\n")
    (tmp_path / "trn_X_Y.txt").write_text("2 2\n0:1\n1:1\n")
    (tmp_path / "Y.txt").write_text("name\nx\ny\n")
    with pytest.raises(ValueError, match=r"trn_X_Y\.txt announces 2 labels, and .*Y\.txt has 3 rows"):
        run(tmp_path)
    (tmp_path / "Y.txt").write_text("x\ny\n")
    assert read(run(tmp_path))["lbl"] == [("0", "x"), ("1", "y")]


def test_rows_without_a_text_are_not_one_query(tmp_path):
    queries = table(tmp_path / "q.csv", "text,label", ",a", ",b", "x,a", "x,b", " ,c")
    assert read(run(queries))["trn"] == [("", ["a"]), ("", ["b"]), ("x", ["a", "b"]), ("", ["c"])]


@pytest.mark.parametrize("columns", [("label", "label2", "label3"), ("tag_1", "tag_2", "tag_3")])
def test_labels_in_several_columns(tmp_path, columns):
    queries = table(tmp_path / "q.csv", ",".join(["text", *columns, "other"]), "a,x,y,,o", "b,y,,,o", "c,z,y,x,o")
    expected = [("a", ["x", "y"]), ("b", ["y"]), ("c", ["z", "y", "x"])]
    conversion = run(queries)
    assert read(conversion)["trn"] == expected
    assert conversion.record["columns"]["labels"] == list(columns)
    given = run(queries, labels_column=columns[:2])
    assert [labels for _, labels in read(given)["trn"]] == [["x", "y"], ["y"], ["z", "y"]]
    with pytest.raises(ValueError, match=r"labels_column=label9: there is no such column"):
        run(queries, labels_column=(columns[0], "label9"))


def test_columns_of_the_text_are_no_labels(tmp_path):
    queries = table(tmp_path / "q.csv", "title,keywords,mesh", "a,k1,m1", "b,k2,m2")
    assert read(run(queries, text_column=("title", "keywords")))["trn"] == [("a k1", ["m1"]), ("b k2", ["m2"])]


@pytest.mark.parametrize("word", ["tab", "\t", r"\t"])
def test_words_for_separators(tmp_path, word):
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"text": "a", "labels": "x\ty"}) + "\n")
    assert read(run(path, label_separator=word))["trn"] == [("a", ["x", "y"])]


def test_a_given_separator_that_nothing_has_is_told(tmp_path):
    conversion = run(table(tmp_path / "q.csv", "text,labels", "a,x/y"), label_separator="comma")
    assert ("separator", "separated by ',' (given; no cell of the first rows has several labels)") in [
        (subject.strip(), said) for subject, said in conversion.notes
    ]


def test_splits_that_are_not_read_are_told(tmp_path):
    for split in ("train", "test", "validation"):
        (tmp_path / "d" / split).mkdir(parents=True)
        data = pa.table({"text": [split], "labels": [[f"of {split}"]]})
        with pa.ipc.new_stream(str(tmp_path / "d" / split / "data.arrow"), data.schema) as writer:
            writer.write_table(data)
        (tmp_path / "d" / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "validation"]}))
    conversion = run(tmp_path / "d")
    assert ("not used", f"{tmp_path}/d/validation; test= names the test queries") in [
        (subject.strip(), said) for subject, said in conversion.notes
    ]


def test_lists_whose_labels_have_separators_in_them_can_grow(tmp_path):
    labels = table(tmp_path / "l.csv", "name", "a", "b")
    (tmp_path / "q.json").write_text('{"text": "t", "labels": ["x;y", "b"]}\n{"text": "u", "labels": ["a"]}\n')
    assert read(run(tmp_path / "q.json", labels, unknown_labels="add"))["trn"] == [("t", ["x;y", "b"]), ("u", ["a"])]


def test_entities_are_no_separators_of_the_first_rows(tmp_path):
    queries = table(tmp_path / "q.csv", "text,labels", *(f"t{i},R&amp;D" for i in range(1000)), "u,x;y")
    with pytest.raises(ValueError, match="'x;y' seems to be several labels"):
        run(queries)


def test_a_matrix_may_be_narrower_than_the_labels(tmp_path):
    (tmp_path / "q.txt").write_text("a\nb\n")
    (tmp_path / "l.txt").write_text("x\ny\nz\n")
    save_npz(tmp_path / "y.npz", csr_matrix(np.eye(2)))
    inputs = Inputs(tmp_path / "q.txt", tmp_path / "l.txt", positives=tmp_path / "y.npz")
    conversion = convert(inputs, tmp_path / "out", Settings(test_share=0.0))
    assert [labels for _, labels in read(conversion)["trn"]] == [["0"], ["1"]]


def test_target_ind_may_have_identifiers(tmp_path):
    labels = table(tmp_path / "l.csv", "id,text", "b,B", "a,A")
    (tmp_path / "q.json").write_text('{"title": "x", "target_ind": ["a", "b"]}\n')
    assert read(run(tmp_path / "q.json", labels))["trn"] == [("x", ["a", "b"])]


def test_names_of_classes_are_whole_and_not_mixed_with_numbers(tmp_path):
    features = {"label": {"names": ["Arts; Crafts", "Books"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    data = pa.table({"text": ["a", "b"], "label": [0, 1]})
    pa.parquet.write_table(data.replace_schema_metadata(metadata), tmp_path / "q.parquet")
    assert read(run(tmp_path / "q.parquet"))["trn"] == [("a", ["Arts; Crafts"]), ("b", ["Books"])]
    pa.parquet.write_table(data, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: the labels are numbers, and those of .*q\.parquet are not"):
        run(tmp_path / "q.parquet", test=tmp_path / "t.parquet")
