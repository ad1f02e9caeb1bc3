"""Files of labels and of example queries: columns that are guessed or named, and what is wrong with a file."""

import gzip
import json

import pytest

from prime_xmc.export.label_changes import Example, NewLabel
from prime_xmc.export.label_files import read_examples, read_labels, read_uids
from prime_xmc.export.queries import TextFields

KNOWN = {"n1", "n2", "l;3"}


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


class TestLabels:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.csv", 'uid,text\nn1,purple dragon\n7,"a, b"\n'),
            ("a.csv", "title;id\npurple dragon;n1\na, b;7\n"),
            ("a.tsv", "label_id\tname\nn1\tpurple dragon\n7\ta, b\n"),
            ("a.jsonl", '{"uid": "n1", "text": "purple dragon"}\n{"uid": 7, "text": "a, b"}\n'),
        ],
    )
    def test_columns_are_guessed(self, tmp_path, name, content):
        found = read_labels(write(tmp_path / name, content))
        assert found == [NewLabel("n1", "purple dragon"), NewLabel("7", "a, b")]

    def test_columns_that_are_named(self, tmp_path):
        path = write(tmp_path / "a.csv", "uid,text,code,long\nx,y,n1,purple dragon\n")
        assert read_labels(path, "code", ["long"]) == [NewLabel("n1", "purple dragon")]
        assert read_labels(path, text_columns=["text", "long"]) == [NewLabel("x", "y purple dragon")]

    def test_texts_are_their_own_identifiers(self, tmp_path):
        path = write(tmp_path / "a.txt", "purple dragon\norange boat\n")
        assert read_labels(path) == [NewLabel(text, text) for text in ("purple dragon", "orange boat")]

    def test_missing_columns(self, tmp_path):
        path = write(tmp_path / "a.csv", "code,long\nn1,purple dragon\n")
        with pytest.raises(
            ValueError, match=r"a.csv: no column for the text, the columns are code, long; name it by t"
        ):
            read_labels(path)
        with pytest.raises(
            ValueError, match=r"a.csv: no column 'x', the columns are code, long; expected .* uid_column="
        ):
            read_labels(path, "x", ["long"])

    def test_identifiers_that_are_empty(self, tmp_path):
        path = write(tmp_path / "a.csv", "uid,text\n n1,x\n,y\n")
        with pytest.raises(ValueError, match=r"a\.csv, line 3: 'uid' is empty; expected the identifier of a label"):
            read_labels(path)
        with pytest.raises(ValueError, match=r"a\.csv, line 3: 'uid' is empty"):
            read_uids(path)

    def test_identifiers_alone(self, tmp_path):
        assert read_uids(write(tmp_path / "a.txt", "n1\nn2\n")) == ["n1", "n2"]
        assert read_uids(write(tmp_path / "a.csv", "text,uid\nx,n1\n")) == ["n1"]
        assert read_uids(write(tmp_path / "a.csv", "uid\nn1\n")) == ["n1"]
        assert read_uids(write(tmp_path / "a.jsonl", '{"code": "n1"}\n')) == ["n1"]

    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
    def test_identifiers_without_a_header(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes((gzip.compress if name.endswith(".gz") else bytes)(b"n1\nn2\n"))
        with pytest.raises(ValueError, match=rf"{name}: the first line, 'n1', is no known name of a column: .* \.txt"):
            read_uids(path)
        assert read_uids(path, "n1") == ["n2"]


class TestExamples:
    @pytest.mark.parametrize("cell", ["n1;n2", "n1|n2", "n1 , n2", "n1;n2;"])
    def test_separated_labels(self, tmp_path, cell):
        path = write(tmp_path / "a.tsv", f"query\tlabels\na dragon\t{cell}\nb\tl;3\n")
        assert read_examples(path, KNOWN) == [Example("a dragon", ("n1", "n2")), Example("b", ("l;3",))]

    def test_lists_and_several_rows_of_a_query(self, tmp_path, caplog):
        rows = [{"text": "a", "label": ["n1"]}, {"text": "b", "label": "n2"}, {"text": "a", "label": ["n2", "n1"]}]
        path = write(tmp_path / "a.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        assert read_examples(path, KNOWN) == [Example("a", ("n1", "n2")), Example("b", ("n2",))]
        assert f"{path}: its 3 rows are 2 queries; rows of one text are one query" in caplog.text

    def test_a_separator_that_is_given(self, tmp_path):
        path = write(tmp_path / "a.tsv", "query\tlabels\na\tn1/n2\n")
        assert read_examples(path, KNOWN, separator="/") == [Example("a", ("n1", "n2"))]

    def test_queries_without_labels(self, tmp_path):
        path = write(tmp_path / "a.tsv", "query\tlabels\na\tn1;\nb\t \n")
        assert read_examples(path, KNOWN) == [Example("a", ("n1",)), Example("b", ())]

    @pytest.mark.parametrize("cell", ["n7", "n1;n7"])
    def test_labels_that_are_not_known(self, tmp_path, cell):
        path = write(tmp_path / "a.tsv", f"query\tlabels\nx\tn1\na\t{cell}\n")
        with pytest.raises(ValueError, match=f"a.tsv, line 3: there is no label '{cell}' in the model; correct it"):
            read_examples(path, KNOWN)
        with pytest.raises(ValueError, match=f"no label '{cell}' among those to add or in the model"):
            read_examples(path, KNOWN, where="among those to add or in the model")

    def test_several_columns_make_up_a_query(self, tmp_path):
        path = write(tmp_path / "a.csv", "title,body,labels\na dragon,purple,n1\n")
        fields = TextFields(trained=("title", "body"), separator=" | ", key="query_column")
        assert read_examples(path, KNOWN, fields) == [Example("a dragon | purple", ("n1",))]
        assert read_examples(path, KNOWN, fields._replace(given=("body",))) == [Example("purple", ("n1",))]
        write(path, "title,labels\na dragon,n1\n")
        said = (
            "a.csv, the header of the table: no field 'body', only title, labels; .* make up the text by query_column="
        )
        with pytest.raises(ValueError, match=said):
            read_examples(path, KNOWN, fields)

    def test_files_in_another_encoding(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_bytes("query,labels\ncafé,n1\n".encode("cp1252"))
        with pytest.raises(ValueError, match=r"a.csv, line 2: not UTF-8 .* such as encoding=cp1252"):
            read_examples(path, KNOWN)
        assert read_examples(path, KNOWN, encoding="cp1252") == [Example("café", ("n1",))]
        path.write_bytes("uid,text\né1,café\n".encode("cp1252"))
        assert read_labels(path, encoding="cp1252") == [NewLabel("é1", "café")]
        assert read_uids(path, encoding="cp1252") == ["é1"]
