import gzip
import json

import numpy as np
import pytest

from prime_xmc.data.raw import Record
from prime_xmc.evaluation.predicted_lines import is_json_lines, load_predicted_lines

INF = np.inf
LABELS = [("a", "red cat"), ("b", "green dog"), ("c", "house")]
QUERIES = [Record("q0", "first", "first text", (0,)), Record("q1", "second", "second  text", (1,))]
LINES = [
    {"query": "first text", "labels": [{"uid": "c", "text": "house", "score": 0.5}, {"uid": "a", "score": 0.25}]},
    {"query": "second", "labels": [{"uid": "b", "text": "green dog", "score": -1}], "id": 7},
]


def write(path, lines):
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def load(path, k=3, labels=LABELS):
    return load_predicted_lines(path, labels, QUERIES, k)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_labels_by_uid_in_the_order_of_their_scores(tmp_path, name):
    path = write(tmp_path / name, LINES)
    assert is_json_lines(path)
    indices, scores = load(path)
    assert indices.tolist() == [[2, 0, -1], [1, -1, -1]]
    assert scores.tolist() == [[0.5, 0.25, -INF], [-1, -INF, -INF]]
    assert load(path, k=1)[0].tolist() == [[2], [1]]


def test_unordered_labels_are_sorted(tmp_path):
    line = LINES[0] | {"labels": LINES[0]["labels"][::-1]}
    assert load(write(tmp_path / "a.jsonl", [line, LINES[1]]))[0][0].tolist() == [2, 0, -1]


def test_lines_that_do_not_name_their_query(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"labels": line["labels"]} for line in LINES])
    assert load(path)[0].tolist() == [[2, 0, -1], [1, -1, -1]]


def test_other_files_are_none_of_these(tmp_path):
    np.savez(tmp_path / "a.npz", indices=np.zeros((1, 1)), scores=np.zeros((1, 1)))
    (tmp_path / "a.csv").write_text("id,text\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{" * 1000)[:10])
    assert not any(is_json_lines(tmp_path / name) for name in ("a.npz", "a.csv", "cut.gz"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([1], "no list of labels"),
        ({"query": "second"}, "no list of labels"),
        ({"labels": [{"uid": "b"}]}, "has no score"),
        ({"labels": [{"uid": "z", "score": 1}]}, "no label with the uid 'z'"),
        ({"labels": [{"uid": "b", "score": 1}, {"uid": "b", "score": 0.5}]}, "a label is named twice"),
        (
            {"query": "second text and body"},
            r"of this line is 'second  text' \(one is a part of .* dataset\.fields= has",
        ),
        (LINES[0], r"the query is 'first text', and the test query of this line is 'second  text'"),
    ],
)
def test_error_names_line_and_commands(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", [LINES[0], line])
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}.*prime_xmc\.predict .*prime_xmc\.evaluate"):
        load(path)


def test_not_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": \n')
    with pytest.raises(ValueError, match=r"line 1: Expecting value"):
        load(tmp_path / "a.jsonl")


def test_labels_that_share_a_uid(tmp_path):
    with pytest.raises(ValueError, match=r"labels 0 and 3 of the data set share the uid 'a'"):
        load(write(tmp_path / "a.jsonl", LINES), labels=[*LABELS, ("a", "again")])
