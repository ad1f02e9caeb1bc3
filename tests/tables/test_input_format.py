import pytest

from prime_xmc.tables.input_format import delimiter_of, recognise

FIELDS = ("title", "content")
RECORD = '{"title": "a", "content": "b"}\n'


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("q.jsonl", RECORD, "jsonl"),
        ("q.ndjson", RECORD, "jsonl"),
        ("q.jl", RECORD, "jsonl"),
        ("q.json", RECORD, "jsonl"),
        ("Q.JSONL", RECORD, "jsonl"),
        ("q.jsonl.gz", RECORD, "jsonl"),
        ("q.JSON.GZ", RECORD, "jsonl"),
        ("q.jsonl", "not JSON", "jsonl"),  # an error of the line
        ("q.csv", "id,other\n", "csv"),
        ("q.csv", "title\n", "csv"),
        ("q.csv", "id\ttitle\tcontent\n", "csv"),
        ("q.TSV", "id\ttitle\tcontent\n", "tsv"),
        ("q.csv.gz", "", "csv"),
        ("q.txt", "a red cat\n", "text"),
        ("q.txt", "one,two\n", "text"),
        ("q.txt", "{no JSON\n", "text"),
        ("standard input", RECORD, "jsonl"),
        ("standard input", "id,content,title\n", "csv"),
        ("standard input", "id;content;title\n", "csv"),
        ("standard input", "id\tcontent\ttitle\n", "tsv"),
        ("standard input", "a red cat, and a blue one\n", "text"),
        ("standard input", "cat, dog\n", "text"),
        ("standard input", "3.5,4\n", "text"),
        ("standard input", '"cat", a dog\n', "text"),
        ("standard input", "[solved] no sound\n", "text"),
        ("standard input", "", "text"),
        ("standard input", "a red\rcat, and a blue one\n", "text"),
        ("standard input", "a " * 100_000, "text"),
        ("q.dat", "a red cat\n", "text"),
        ("v1.2 of my queries", RECORD, "jsonl"),
    ],
)
def test_recognised(name, line, expected):
    assert recognise(name, line, FIELDS) == expected


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("q.txt", RECORD, r"q\.txt ends in \.txt, and its first line is a JSON object, '{\"title\": .*'"),
        ("q.csv", RECORD, "q.csv ends in .csv, and its first line is a JSON object"),
        ("q.txt", "id,title,content\n", "first line is the header of a table, 'id,title,content'"),
        ("standard input", '{"title": "a"\n', "standard input: the first line begins like JSON and is none"),
        ("standard input", "[\n", "the beginning of a JSON array"),
        ("standard input", "[1, 2]\n", "the beginning of a JSON array"),
        ("standard input", "id,text\n", "may be a query or the header of a table, 'id,text'"),
        ("standard input", "id, text\n", "may be a query or the header of a table, 'id, text'"),
        ("standard input", '"id","body"\n', "may be a query or the header of a table"),
        ("standard input", '"title"\n', "may be a query or the header of a table"),
        ("standard input", "uid\tbody\n", "may be a query or the header of a table"),
        ("standard input", "title\n", "may be a query or the header of a table"),
        ("standard input", "content\n", "may be a query or the header of a table"),
    ],
)
def test_in_doubt(name, line, said):
    with pytest.raises(ValueError, match=f"{said}.*input_format=text"):
        recognise(name, line, FIELDS)


@pytest.mark.parametrize(
    ("header", "expected"),
    [("id;title,or;content", ";"), ("title", ","), ("a,b;c", ","), ("a\tb", "\t"), ("a|title|content", "|")],
)
def test_delimiter(header, expected):
    assert delimiter_of(header, FIELDS) == expected
