import json

import pytest

from prime_xmc.export.answers import counting, to_json
from prime_xmc.export.predictor import Prediction, ScoredLabel

LABELS = [ScoredLabel("l1", "über", 0.12345678, 1), ScoredLabel("l2", "b", -0.5, 2)]


def test_a_line_of_output():
    assert to_json(Prediction("q", LABELS)) == (
        '{"query": "q", "labels": [{"uid": "l1", "text": "über", "score": 0.123457}, '
        '{"uid": "l2", "text": "b", "score": -0.5}]}\n'
    )


def test_other_fields_come_first():
    line = json.loads(to_json(Prediction("q", []), {"id": 7, "tags": ["a", None]}))
    assert list(line.items()) == [("id", 7), ("tags", ["a", None]), ("query", "q"), ("labels", [])]


@pytest.mark.parametrize(
    ("others", "names"),
    [
        ({"query": 1, "labels": 2}, {"input_query": 1, "input_labels": 2}),
        ({"labels": 1, "input_labels": 2}, {"input_input_labels": 1, "input_labels": 2}),
        ({"input_labels": 2, "labels": 1}, {"input_input_labels": 1, "input_labels": 2}),
        ({"input_id": 1}, {"input_id": 1}),
    ],
)
def test_names_that_clash(others, names):
    assert json.loads(to_json(Prediction("q", []), others)) == names | {"query": "q", "labels": []}


def test_half_a_character_in_another_field_stays_escaped():
    line = to_json(Prediction("ü", []), {"note": "\ud800"})
    assert json.loads(line.encode("utf-8")) == {"note": "\ud800", "query": "ü", "labels": []}


def test_the_count_goes_to_standard_error(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich draws nothing where it sees no terminal
    with counting(on_terminal=True) as count:
        count(1500)
        count(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1,501 queries answered" in captured.err
