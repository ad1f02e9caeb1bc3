import json
from dataclasses import replace

import numpy as np
import pytest

from prime_xmc.export.calibration import (
    CONFIG,
    Calibration,
    Held,
    ScorerCalibration,
    read_calibration,
    save_calibration,
)
from prime_xmc.export.model_sums import check_model
from prime_xmc.export.scorers import encoder_digest

HELD = Held(40, 200, 0.0123, [{"predicted": 0.05, "observed": 0.1, "answers": 200}], 0.6, 0.3, 0.4)
THETA = ScorerCalibration(10.0, -4.0, -2.0, 0.05, 0.31, {"validation": HELD, "test": HELD})
FOUND = Calibration("40 validation queries", {"theta": THETA}, None)


@pytest.fixture
def saved(copy):
    digest = encoder_digest(copy)
    save_calibration(copy, FOUND, digest=digest)
    return copy, digest


def test_it_is_read_as_it_was_written(saved):
    assert read_calibration(*saved) == FOUND
    assert FOUND.default == "theta"


def test_damage_shows(saved, caplog):
    model, digest = saved
    check_model(model)
    assert not caplog.messages
    content = (model / CONFIG).read_text()
    (model / CONFIG).write_text(content.replace('"bias": -2.0', '"bias": -3.0'))
    assert read_calibration(model, digest) != FOUND
    check_model(model)
    assert "calibration.json is not what was written (checksum)" in caplog.text


def test_probabilities_by_hand():
    (found,) = THETA.at(np.array([[0.5, 0.2]]), np.array([[0.5, 0.2, 0.2]]))
    competition = 0.5 + 0.05 * np.log(1 + 2 * np.exp(-6))
    assert found == pytest.approx([1 / (1 + np.exp(-(10 * s - 4 * competition - 2))) for s in (0.5, 0.2)])


def test_sentences_for_people():
    first, second = FOUND.describe("theta")
    assert first == (
        "probabilities of theta are fitted on 40 validation queries (calibrate=true); in percent, they are off by "
        "1.2 on validation queries, 1.2 on test queries, the expected calibration error, each on queries that did not "
        "fit them"
    )
    assert second == (
        "min_score=0.31 gives labels with the best F1 on those queries; on 40 test queries that did not choose it, F1 "
        "is 40.0: 60.0 of the labels given are right, and 30.0 of the true labels are given"
    )


def test_sentences_of_another_scorer_than_the_one_that_answers():
    """The ensemble is what answers, and it was not calibrated: its scores would be read by another's threshold."""
    found = replace(FOUND, weights={"theta": 0.5, "lexical": 0.5})
    assert (found.answering, found.default) == ("ensemble", "theta")
    first, second = found.describe("theta")
    assert first.startswith(
        "the ensemble, by which the model answers unless it is told another, has none; probabilities of theta are "
        "fitted on 40 validation queries (scorer=theta calibrate=true); "
    )
    assert second.startswith("scorer=theta min_score=0.31 gives labels with the best F1")


def test_a_model_without_one_says_how_to_get_it(copy):
    with pytest.raises(FileNotFoundError, match=r"no calibration.json.*prime-xmc-calibrate model=.* input=<queries"):
        read_calibration(copy, encoder_digest(copy))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "format_version is 2, this version reads 1"),
        ({"encoder": "another"}, "is of another model, with another encoder: remove it and fit it again"),
        ({"weights": {"theta": 1.0}}, "is of an ensemble with the weights {'theta': 1.0}, the model's are None"),
        ({"scorers": {"theta": {}}}, "is damaged"),
        ({"scorers": {"theta": {"score": -1, "crowd": 0, "bias": 0, "temperature": 1, "threshold": 0}}}, "is damaged"),
        ({"scorers": []}, "is damaged"),
    ],
)
def test_what_does_not_fit_is_refused(saved, change, said):
    model, digest = saved
    content = json.loads((model / CONFIG).read_text()) | change
    (model / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        read_calibration(model, digest)


def test_a_broken_file(saved):
    model, digest = saved
    (model / CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"calibration.json is damaged .*: remove it and fit it again"):
        read_calibration(model, digest)
