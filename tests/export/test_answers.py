import pytest

from prime_xmc.export.answers import counting, to_record
from prime_xmc.export.explainer import Explanation, TrainingQuery
from prime_xmc.export.predictor import Prediction, ScoredLabel

LABELS = [ScoredLabel("l1", "über", 0.12345678, 1), ScoredLabel("l2", "b", -0.5, 2)]


def test_a_record():
    assert to_record(Prediction("q", LABELS)) == {
        "query": "q",
        "labels": [{"uid": "l1", "text": "über", "score": 0.123457}, {"uid": "l2", "text": "b", "score": -0.5}],
    }


def test_other_fields_come_first():
    record = to_record(Prediction("q", []), {"id": 7, "tags": ["a", None]})
    assert list(record.items()) == [("id", 7), ("tags", ["a", None]), ("query", "q"), ("labels", [])]


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
    assert to_record(Prediction("q", []), others) == names | {"query": "q", "labels": []}


def test_what_was_asked_for_besides():
    label = ScoredLabel("l1", "a", 0.5, 1)
    label.probability = 0.12345678
    near = [TrainingQuery(17, 0.87654321, "red cat"), TrainingQuery(None, 0.5, None)]
    label.why = Explanation({"theta": 0.45, "lexical": 0.05}, {"text": 0.123456789}, near)
    (record,) = to_record(Prediction("q", [label]))["labels"]
    assert record == {
        "uid": "l1",
        "text": "a",
        "score": 0.5,
        "probability": 0.123457,
        "why": {
            "scorers": {"theta": 0.45, "lexical": 0.05},
            "sources": {"text": 0.123457},
            "queries": [{"row": 17, "similarity": 0.876543, "text": "red cat"}, {"similarity": 0.5}],
        },
    }


def test_the_count_goes_to_standard_error(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich draws nothing where it sees no terminal
    with counting(on_terminal=True) as count:
        count(1500)
        count(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1,501 queries answered" in captured.err
