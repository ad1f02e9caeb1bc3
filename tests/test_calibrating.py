import gzip
import json
import shutil

import numpy as np
import pytest

from prime_xmc.calibrating import OtherQueries, calibrate_rankings, calibrate_with
from prime_xmc.data.corpus import Ragged
from prime_xmc.export.calibration import read_calibration
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.index.fused import Weights


@pytest.fixture(scope="module")
def labelled(toy_dataset):
    with gzip.open(toy_dataset / "tst.json.gz") as lines:
        records = [json.loads(line) for line in lines]
    return [record["title"] for record in records], [[f"l{i}" for i in record["target_ind"]] for record in records]


def ranking(num_queries, seed):
    """Scores that say something: right answers have higher ones."""
    rng = np.random.default_rng(seed)
    positives = Ragged.from_rows([rng.permutation(20)[:2] for _ in range(num_queries)])
    scores = rng.uniform(size=(num_queries, 20))
    for row in range(num_queries):
        scores[row, positives[row]] += 0.5
    indices = np.argsort(-scores, axis=1)
    return (indices, np.take_along_axis(scores, indices, axis=1).astype(np.float32)), positives


def test_each_scorer_is_calibrated_and_measured(caplog):
    (first, positives), (second, of_test) = ranking(200, 0), ranking(300, 1)
    nothing = first[0], np.zeros_like(first[1])  # scores that say nothing
    found = calibrate_rankings(
        {"theta": first, "W": nothing},
        positives,
        queries="validation",
        weights=Weights(0.5, 0.5, 0.0),
        test=OtherQueries({"theta": second}, of_test),
    )
    assert found.fitted_on == "200 validation queries"
    assert list(found.scorers) == ["theta"]
    (warned,) = caplog.messages
    assert warned.startswith("W: no probabilities")
    assert "these 200 validation queries" in warned
    assert "more queries" in warned
    assert found.weights == {"theta": 0.5, "W": 0.5, "neighbours": 0.0, "lexical": 0.0}
    held = found.scorers["theta"].held
    assert [(name, each.num_queries, each.num_answers) for name, each in held.items()] == [
        ("validation", 200, 1000),
        ("test", 300, 1500),
    ]
    assert held["test"].ece == pytest.approx(held["validation"].ece, abs=0.03)
    assert sum(row["answers"] for row in held["test"].bins) == 1500
    assert found.default == "theta"  # the ensemble is not among them


def test_queries_given_later(toy_bundle, labelled, tmp_path):
    model = shutil.copytree(toy_bundle, tmp_path / "model")
    predictor = Predictor.load(model)
    made = calibrate_with(model, predictor, *labelled)
    assert read_calibration(model, encoder_digest(model)) == made
    assert (made.fitted_on, made.weights) == ("60 labelled queries", None)
    assert list(made.scorers["theta"].held) == ["labelled"]
    probabilities = [
        label.probability
        for prediction in predictor.predict(labelled[0], calibrate=True)
        for label in prediction.labels
    ]
    right = sum(
        len({f"l{label.id}" for label in prediction.labels} & set(uids))
        for prediction, uids in zip(predictor.predict(labelled[0]), labelled[1], strict=True)
    )
    assert sum(probabilities) == pytest.approx(right, rel=0.5)


def test_too_few_queries(toy_bundle):
    with pytest.raises(ValueError, match=r"does not follow from these queries, 1 in all: .* Give more queries"):
        calibrate_with(toy_bundle, Predictor.load(toy_bundle), ["a red cat"], [["l0"]])
