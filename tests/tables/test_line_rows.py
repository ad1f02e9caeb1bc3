import pytest

from prime_xmc.tables.line_rows import DelimitedTable, Row, decode_lines, read_json_lines, read_text


def table(content: bytes, delimiter: str | None = None, wanted: tuple[str, ...] = ()) -> DelimitedTable:
    return DelimitedTable(decode_lines(content.splitlines(keepends=True), "t.csv"), "t.csv", delimiter, wanted)


def values(content: bytes, **options) -> list[dict]:
    return [row.values for row in table(content, **options).rows()]


def test_rows_have_the_line_in_which_they_begin():
    content = b'\n\nid,text\n1,"two\nlines"\n\n2,last\n'
    assert list(table(content).rows()) == [
        Row(4, {"id": "1", "text": "two\nlines"}),
        Row(7, {"id": "2", "text": "last"}),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfid,text\n1,a\n", {"id": "1", "text": "a"}),
        (b"id,text\r\n1,a\r\n", {"id": "1", "text": "a"}),
        (b'id,text\r\n1,"a\r\nb"\r\n', {"id": "1", "text": "a\r\nb"}),
        (b"id;text\n1;a,b\n", {"id": "1", "text": "a,b"}),
        (b"id\ttext\n1\ta,b\n", {"id": "1", "text": "a,b"}),
        (b"id|text\n1|a,b\n", {"id": "1", "text": "a,b"}),
        (b'id,text\n1,"say ""hello"""\n', {"id": "1", "text": 'say "hello"'}),
        (b'id,text\n1,a 3.5" disk\n', {"id": "1", "text": 'a 3.5" disk'}),
        (b"id,\n1,a\n", {"id": "1", "column 2": "a"}),
        (b'"long\nname",text\n1,a\n', {"long name": "1", "text": "a"}),
        ("id,text\n1,中文 عربي 😀\n".encode(), {"id": "1", "text": "中文 عربي 😀"}),
        (b"id,text\n1," + b"x" * 200_000 + b"\n", {"id": "1", "text": "x" * 200_000}),
        (b"id,text\n1,", {"id": "1", "text": ""}),
        (b'monitor 5"\tlabel\na\tb\n', {'monitor 5"': "a", "label": "b"}),
        (b"sep=;\r\nid;text\r\n1;a,b\r\n", {"id": "1", "text": "a,b"}),
        (b'"sep=;"\n\nid;text\n1;a,b\n', {"id": "1", "text": "a,b"}),
        (b'"id" ,"text"\n1,a\n', {"id": "1", "text": "a"}),
    ],
)
def test_a_row(content, expected):
    assert values(content) == [expected]


def test_a_blank_line_of_a_single_column_is_an_empty_cell():
    assert values(b"text\na\n\nb\n") == [{"text": "a"}, {"text": ""}, {"text": "b"}]


def test_an_empty_file_has_no_columns_and_no_rows():
    empty = table(b"\n\n")
    assert (empty.columns, list(empty.rows())) == ([], [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"id,text\n1,a\n2,b,c\n", "t.csv, line 3: 3 cells, expected 2 as in the header, '2,b,c'"),
        (b'id,text\n1,"a\n2,b\n', "t.csv, line 2: not a row of a table .*a quoted cell has to be closed"),
        (b'id,text\n1,"a"b\n', "t.csv, line 2: not a row of a table"),
        (b"id,text\n1,a\n2,\xff\n", "t.csv, line 3: not UTF-8"),
        (b"id,id\n1,a\n", "t.csv: the header of the table has the column 'id' more than once"),
        (b'"id,text\n1,a\n', "t.csv: '\"id,text' is not the header of a table"),
        ("id,text\n".encode("utf-16"), "t.csv, line 1: the file begins with the mark of UTF-16"),
    ],
)
def test_errors_name_file_line_and_value(content, said):
    with pytest.raises(ValueError, match=said):
        values(content)


def test_line_ends_of_old_files_of_a_mac():
    with pytest.raises(
        ValueError, match=r"t\.csv: the header of the table has a carriage return in it, 'id,text.*r1,a'"
    ):
        DelimitedTable(["id,text\r1,a\r"], "t.csv", None)


def test_a_quote_that_is_never_closed_does_not_take_the_whole_file(monkeypatch):
    monkeypatch.setattr("prime_xmc.tables.line_rows.LONGEST_CELL", 1000)
    lines = iter([b"id,text\n", b'1,"a\n', *[b"x" * 100 + b"\n"] * 100])
    rows = DelimitedTable(decode_lines(lines, "t.csv"), "t.csv", ",").rows()
    with pytest.raises(ValueError, match=r"t\.csv, line 2: .*larger than field limit"):
        next(rows)
    assert len(list(lines)) > 85  # not read


def test_json_lines():
    lines = ['{"a": 1, "b": [2, null]}\n', '{"a": 123456789012345678901}\n', "\n"]
    assert list(read_json_lines(lines, "t")) == [
        Row(1, {"a": 1, "b": [2, None]}),
        Row(2, {"a": 123456789012345678901}),
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{}\n", "{\n"], r"t, line 2: not JSON \(.*\): '{'"),
        (["[1]\n"], "t, line 1: '\\[1\\]' is JSON but not an object.*jq -c"),
        (["{}\n", "\n", "{}\n"], "t, line 2: blank, and not at the end"),
    ],
)
def test_json_errors(lines, said):
    with pytest.raises(ValueError, match=said):
        list(read_json_lines(lines, "t"))


def test_lines_of_text():
    assert list(read_text(["a b\r\n", "\n", "c"])) == [
        Row(1, {"text": "a b"}),
        Row(2, {"text": ""}),
        Row(3, {"text": "c"}),
    ]


def test_quotes_that_are_letters_do_not_join_rows():
    with pytest.raises(
        ValueError, match=r"t\.csv, line 2: .* opens a quote that the line does not close, .* line 3, is"
    ):
        values(b'id\ttext\tlabel\n1\t"I will go.\ta\n2\tI will not come back."\tb\n')
    assert values(b'id\ttext\tlabel\n1\t"two\nlines"\ta\n') == [{"id": "1", "text": "two\nlines", "label": "a"}]
    assert values(b'text\tlabel\n"a\tb"\tc\n"d"\te\n') == [{"text": "a\tb", "label": "c"}, {"text": "d", "label": "e"}]
