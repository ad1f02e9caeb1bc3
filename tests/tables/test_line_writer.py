import io
import math

import pytest

from prime_xmc.tables.line_writer import DelimitedWriter, JsonLinesWriter, check_columns


def test_a_stream_is_not_closed():
    stream = io.BytesIO()
    writer = DelimitedWriter(stream, ["a"], ",")
    writer.write([{"a": "\ud800"}])
    del writer
    assert stream.getvalue() == b"a\n\\ud800\n"


def test_cells():
    stream = io.BytesIO()
    DelimitedWriter(stream, ["a", "b"], "\t", header=False).write(
        [{"b": None, "a": 'x\t"y"'}, {"a": 1.5, "b": {"c": []}}]
    )
    assert stream.getvalue() == b'"x\t""y"""\t\n1.5\t"{""c"": []}"\n'


def test_half_a_character_stays_escaped_in_json():
    stream = io.BytesIO()
    JsonLinesWriter(stream).write([{"a": "\ud800"}, {"a": "é"}])
    assert stream.getvalue().decode() == '{"a": "\\ud800"}\n{"a": "é"}\n'


def test_numbers_that_are_not_finite_are_null_in_json():
    stream, cells = io.BytesIO(), io.BytesIO()
    value = {"c": [math.inf, (1.5, -math.inf)]}
    JsonLinesWriter(stream).write([{"a": math.nan, "b": value}, {"a": math.nan, "b": "\ud800"}])
    DelimitedWriter(cells, ["b"], ",", header=False).write([{"b": value}])
    assert stream.getvalue().decode() == ('{"a": null, "b": {"c": [null, [1.5, null]]}}\n{"a": null, "b": "\\ud800"}\n')
    assert cells.getvalue().decode() == '"{""c"": [null, [1.5, null]]}"\n'


def test_columns():
    check_columns({"b": 1, "a": 2}, ["a", "b"])
    with pytest.raises(ValueError, match="a row has the columns a; expected a, b"):
        check_columns({"a": 1}, ["a", "b"])
