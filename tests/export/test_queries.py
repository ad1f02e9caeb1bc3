import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from prime_xmc.export.queries import Query, TextFields, given_fields, open_queries, read_queries
from prime_xmc.tables.reader import table_of_lines


def queries_of(lines, fields=None, input_format="auto", name="queries"):
    wanted = () if fields is None else fields.wanted
    return read_queries(table_of_lines(lines, name, input_format=input_format, wanted=wanted), fields)


def read(content, fields=None, input_format="auto", name="queries"):
    content = content if isinstance(content, bytes) else content.encode()
    return list(queries_of(io.BytesIO(content), fields, input_format, name))


def texts(*arguments, **named):
    return [query.text for query in read(*arguments, **named)]


class TestText:
    def test_lines_are_taken_as_they_are(self):
        assert texts(b"a  b \r\n\n\tc\nd") == ["a  b ", "", "\tc", "d"]
        assert texts(b"\n \nd\n") == ["", " ", "d"]

    def test_byte_order_mark_is_no_text(self):
        assert texts("\ufeffa\nb\n") == ["a", "b"]

    @pytest.mark.parametrize("input_format", ["auto", "text", "jsonl", "csv", "tsv"])
    def test_nothing(self, input_format):
        assert read(b"", TextFields(given=("title",)), input_format) == []

    def test_bad_encoding(self):
        with pytest.raises(ValueError, match=r"queries, line 3: not UTF-8 .*0xe9.*; convert it to UTF-8"):
            read(b"a\nb\ncaf\xe9\n")
        with pytest.raises(ValueError, match="queries, line 1: the file begins with the mark of UTF-16"):
            read("id,title\n".encode("utf-16"))

    @pytest.mark.parametrize(
        "content",
        [gzip.compress(b"one\ntwo\n", mtime=0)[:-9], b"plain text", b"\x1f\x8b\x08" + bytes(40)],
        ids=["cut", "text", "damaged"],
    )
    def test_damaged_gzip(self, content):
        lines = gzip.GzipFile(fileobj=io.BytesIO(content))
        with pytest.raises(ValueError, match=r"queries, line \d: the gzip data are truncated or damaged"):
            list(queries_of(lines))

    def test_a_field_of_what_is_no_record(self):
        with pytest.raises(ValueError, match=r"queries is read as plain text, .*, and text_field=title names a field"):
            read(b"a red cat\n", TextFields(given=("title",)))

    def test_a_line_is_answered_before_the_next_one_comes(self):
        def lines():
            yield b"red cat\n"
            raise AssertionError("read ahead")

        assert next(queries_of(lines(), name="standard input")).text == "red cat"


class TestFields:
    MODEL = TextFields(trained=("title", "content"))
    CONVERTED = TextFields(trained=("title",), columns=("text",))

    @pytest.mark.parametrize(
        ("fields", "record", "query", "others"),
        [
            (None, {"text": "c", "title": "b", "query": "a"}, "a", ["text", "title"]),
            (None, {"text": "c", "title": "b"}, "b", ["text"]),
            (None, {"text": "c", "uid": 1}, "c", ["uid"]),
            (TextFields(given=("body",)), {"text": "c", "body": "d"}, "d", ["text"]),
            (TextFields(given=("body", "text")), {"text": "c", "body": "d"}, "d c", ["text", "body"]),
            (MODEL, {"content": "c", "uid": 1, "title": "b"}, "b c", ["content", "uid", "title"]),
            (MODEL, {"content": "c", "query": "a", "title": "b"}, "b c", ["content", "query", "title"]),
            (MODEL, {"query": "b c"}, "b c", []),
            (MODEL._replace(given=("title",)), {"content": "c", "title": "b"}, "b", ["content"]),
            (MODEL._replace(separator=" | "), {"content": "c", "title": "b"}, "b | c", ["content", "title"]),
            (TextFields(trained=("title",)), {"text": "c"}, "c", []),
            (CONVERTED, {"text": "c", "title": "Ticket 7"}, "c", ["title"]),
            (CONVERTED, {"title": "c"}, "c", []),  # of the raw files
            (MODEL, {"title": None, "content": "c"}, " c", ["title", "content"]),
            (None, {"query": None}, "", []),
        ],
    )
    def test_which(self, fields, record, query, others):
        (found,) = read(json.dumps(record), fields, "jsonl")
        assert found.text == query
        assert found.others == {name: record[name] for name in others}

    @pytest.mark.parametrize(
        ("fields", "record", "said"),
        [
            (MODEL, {"title": "b"}, "no field 'content', only title; the model was trained on title, content together"),
            (MODEL, {"uid": 1}, "no field 'title', only uid; name the field that holds the query by text_field="),
            (TextFields(trained=("body",)), {"title": "b"}, "no field 'body', only title; name the field"),
            (TextFields(given=("a", "b")), {"a": "x"}, "no field 'b', only a; expected those that text_field= names"),
            (MODEL, {}, "no field 'title', nothing in the record"),
            (MODEL, {"title": "b", "content": 7}, "field 'content' is 7; expected a string there"),
        ],
    )
    def test_none_that_fit(self, fields, record, said):
        with pytest.raises(ValueError, match=f"queries, line 1: {said}"):
            read(json.dumps(record), fields, "jsonl")


class TestJsonLines:
    @pytest.mark.parametrize(
        ("line", "field", "said"),
        [
            (
                b"not json",
                None,
                r"not JSON \(.*\): 'not json'; every line must be one JSON object, or give input_format",
            ),
            (b"[1]", None, r"'\[1\]' is JSON but not an object"),
            (b'{"uid": "a", "body": "b"}', None, "no field 'query', only uid, body; name the field"),
            (b'{"query": "a"}', "body", "no field 'body', only query"),
            (b'{"title": 7}', None, "field 'title' is 7"),
            (b'{"query": "\\ud800"}', None, "half of a character"),
            (b'{"query": "\xe9"}', None, "not UTF-8"),
            (b'\n{"query": "a"}', None, "blank, and not at the end"),
        ],
    )
    def test_bad_line(self, line, field, said):
        fields = None if field is None else TextFields(given=(field,))
        with pytest.raises(ValueError, match=f"queries, line 2: {said}"):
            read(b'{"query": "x", "body": "x"}\n' + line + b"\n", fields, "jsonl")

    def test_byte_order_mark_and_blank_lines_at_the_end(self):
        assert texts('\ufeff{"query": "a"}\n{"query": "b"}\n\n \n') == ["a", "b"]


class TestTable:
    def test_quoted_cells(self):
        content = 'id,title,note\n1,"a, ""b""\r\nc",x\n\n2,"","y"\n3,d,\n'
        assert read(content, name="q.csv") == [
            Query('a, "b"\r\nc', {"id": "1", "note": "x"}),
            Query("", {"id": "2", "note": "y"}),
            Query("d", {"id": "3", "note": ""}),
        ]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_delimiters(self, delimiter):
        content = f"\ufeffid{delimiter} title \n1{delimiter}a b\n"
        assert read(content, input_format="csv") == [Query("a b", {"id": "1"})]

    def test_one_column(self):
        assert texts("title\na, b\n".replace(", ", " "), name="q.csv") == ["a b"]
        assert texts("title\na\n\nb\n", name="q.csv") == ["a", "", "b"]

    def test_columns_without_a_name(self):
        assert read(",title\n0,a\n", name="q.csv") == [Query("a", {"column 1": "0"})]

    def test_a_long_cell(self):
        assert len(texts(f"title\n{'a' * 200_000}\n", name="q.csv")[0]) == 200_000

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("id,body\n1,a\n", "the header of the table: no field 'query', only id, body; name the field"),
            (
                "id,title\n1,a\n2,a,b\n",
                "line 3: 3 cells, expected 2 as in the header, '2,a,b'; a cell with ','",
            ),
            ('id,title\n1,"a\nb"\n2\n', "line 4: 1 cells, expected 2"),
            ('id,title\n1,a\n2,"a\nb\n', "line 3: not a row of a table"),
            ('id,title\n1,"a"b\n', "line 2: not a row of a table"),
            ("id,title,id\n1,a,2\n", "the header of the table has the column 'id' more than once"),
        ],
    )
    def test_bad_rows(self, content, said):
        with pytest.raises(ValueError, match=f"q.csv,? ?:? ?{said}"):
            read(content, name="q.csv")

    def test_a_row_is_answered_before_the_next_one_comes(self):
        def lines():
            yield b"id,title\n"
            yield b"1,red cat\n"
            raise AssertionError("read ahead")

        fields = TextFields(trained=("title",))
        assert next(queries_of(lines(), fields, name="standard input")).text == "red cat"


def test_a_field_by_either_name():
    assert given_fields(None, None) is None
    assert given_fields("body", None) == given_fields(None, "body") == ("body",)
    assert given_fields(None, ["a", 1]) == ("a", "1")
    with pytest.raises(ValueError, match="text_field= and text_column= are two names of one setting"):
        given_fields("a", "b")


def test_parquet(tmp_path):
    table = pyarrow.table({"id": [7, 8], "title": ["red cat", "blue river"], "when": [None, 1.5]})
    pyarrow.parquet.write_table(table, tmp_path / "queries.parquet")
    with open_queries(tmp_path / "queries.parquet", TextFields()) as queries:
        assert list(queries) == [Query("red cat", {"id": 7, "when": None}), Query("blue river", {"id": 8, "when": 1.5})]
    pyarrow.parquet.write_table(pyarrow.table({"title": ["a", None]}), tmp_path / "q.parquet")
    with open_queries(tmp_path / "q.parquet", TextFields()) as queries:
        assert [query.text for query in queries] == ["a", ""]
    pyarrow.parquet.write_table(pyarrow.table({"title": [1, 2]}), tmp_path / "q.parquet")
    with (
        open_queries(tmp_path / "q.parquet", TextFields()) as queries,
        pytest.raises(ValueError, match=r"q\.parquet, row 1: field 'title' is 1; expected a string"),
    ):
        list(queries)


def test_a_file_that_is_not_there(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"input=.*nowhere\.txt: there is no such file; leave input out"),
        open_queries(tmp_path / "nowhere.txt", TextFields()),
    ):
        pass
