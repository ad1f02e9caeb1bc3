"""The study of new labels: what is held out, which examples are shown, and what a ranking is worth."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def study():
    folder = Path(__file__).parent
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("new_labels", folder / "new_labels.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


@pytest.fixture
def data(study):
    labels = [{"uid": f"l{row}", "title": f"label {row}"} for row in range(5)]
    positives = [[0, 1], [1], [2, 4], [1, 3], [0]]
    queries = [{"uid": str(row), "title": f"q{row}", "target_ind": each} for row, each in enumerate(positives)]
    filters = {"train": np.array([[0, 2], [1, 2], [3, 1]]), "test": np.array([[2, 0]])}
    return study.Data(labels, queries, queries[:3], filters, np.array([False, True, False, True, False]))


def test_new_labels_and_their_pairs_are_held_out(study, data, tmp_path):
    study.write_without(data, tmp_path)

    def lines(name):
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    assert [label["uid"] for label in lines("lbl.json")] == ["l0", "l2", "l4"]
    assert [(query["uid"], query["target_ind"]) for query in lines("trn.json")] == [
        ("0", [0]),
        ("2", [1, 2]),
        ("4", [0]),
    ]
    assert [query["uid"] for query in lines("tst.json")] == ["0", "2"]
    assert (tmp_path / "filter_labels_train.txt").read_text() == "0 1\n"
    assert (tmp_path / "filter_labels_test.txt").read_text() == "1 0\n"


@pytest.mark.parametrize("most", [1, 2, 3])
def test_examples_are_training_queries_of_the_new_labels(study, data, most):
    examples = study.draw_examples(data, most, seed=0)
    shown = [uid for example in examples for uid in example.uids]
    assert shown.count("l1") == min(most, 3)
    assert shown.count("l3") == 1
    assert set(shown) == {"l1", "l3"}
    truth = {query["title"]: {f"l{label}" for label in query["target_ind"]} for query in data.train}
    assert all(set(example.uids) <= truth[example.text] for example in examples)


def test_recall_is_of_the_queries_that_have_such_labels(study, data):
    test = study.Test.__new__(study.Test)
    test.data, test.filters = data, data.filters["test"]
    test.emb, test.tokens = torch.eye(3), study.Ragged.from_rows([[1], [1], [1]])
    pairs = np.array([[0, 0], [0, 1], [1, 1], [2, 2], [2, 4]])
    test.truth = {"all": test._positives(pairs), "new": test._positives(pairs[[1, 2]])}
    test.truth["old"] = test._positives(pairs[[0, 3, 4]])
    vectors = torch.tensor([[0.9, 0, 0.9], [0, 0, 0], [0, 0, 0.5]])  # of labels 0, 2 and 4
    found = test.measure(study.exact(vectors), np.array([0, 2, 4]))
    assert found["P@1"] == pytest.approx(2 / 3), "label 0 is no answer to the last query, so that 4 is the first"
    assert (found["R@10 old"], found["R@10 new"]) == (1, 0)
    assert found["R@10 all"] == pytest.approx((1 / 2 + 0 + 1) / 3)


def test_the_table(study):
    rows = [study.Measured("not added", "theta", {"P@1": 0.5, "R@10 new": 0.0})]
    assert study.markdown(rows) == (
        "| new labels | scorer | P@1 | R@10 new |\n| --- | --- | ---: | ---: |\n| not added | `theta` | 50.0 | 0.0 |\n"
    )
