"""Probabilities of answers whose true probability is known, because they were drawn by it."""

import numpy as np
import pytest

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.reliability import (
    FITTED,
    Logistic,
    at_threshold,
    best_threshold,
    calibrate,
    fit_logistic,
    measure,
    measure_reliability,
)
from prime_xmc.index.crowd import crowd

NUM_LABELS, TRUE = 30, Logistic(score=9.0, crowd=-6.0, bias=-0.5, temperature=0.05)


def drawn(num_queries, seed):
    """Scores of all labels, and whether each is right, drawn with the probabilities of `TRUE`."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.uniform(0, 1, (num_queries, NUM_LABELS)), axis=1).astype(np.float32)
    return scores, rng.uniform(size=scores.shape) < TRUE.at(scores)


def as_ranking(scores, right):
    indices = np.tile(np.arange(NUM_LABELS), (len(scores), 1))
    return indices, scores, Ragged.from_rows([np.flatnonzero(row) for row in right])


def test_the_probabilities_that_answers_were_drawn_by_are_found():
    scores, right = drawn(20_000, 0)
    found = fit_logistic(scores, right)
    assert found is not None
    assert found.temperature == TRUE.temperature
    np.testing.assert_allclose(found[:3], TRUE[:3], rtol=0.15, atol=0.25)
    np.testing.assert_allclose(found.at(scores)[:, :FITTED], TRUE.at(scores)[:, :FITTED], atol=0.02)


def test_the_order_of_labels_stays():
    found = fit_logistic(*drawn(200, 1))
    scores, _ = drawn(50, 2)
    assert (np.diff(found.at(scores), axis=1) <= 0).all()


def test_few_answers_make_no_certainty():
    scores = np.array([[0.9, 0.1], [0.8, 0.2]])
    found = fit_logistic(scores, np.array([[True, False], [True, False]]))
    assert 0.5 < found.at(scores)[0, 0] < 0.9
    assert 0.1 < found.at(scores)[0, 1] < 0.5


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ([[0.9, 0.1]], [[False, False]]),
        ([[0.9, 0.1]], [[True, True]]),
        ([[0.9, 0.1]] * 9, [[False, True]] * 9),  # the worse the better
    ],
)
def test_scores_that_say_nothing(scores, right):
    assert fit_logistic(np.array(scores), np.array(right)) is None


def test_expected_calibration_error_by_hand():
    found = measure_reliability(np.array([0.05, 0.15, 0.15, 0.95, 1.0]), np.array([False, False, True, True, True]))
    assert found.num_answers == 5
    assert found.counts.tolist() == [1, 2, 2]
    assert found.predicted == pytest.approx([0.05, 0.15, 0.975])
    assert found.observed == pytest.approx([0, 0.5, 1])
    assert found.ece == pytest.approx((0.05 * 1 + 0.35 * 2 + 0.025 * 2) / 5)
    assert measure_reliability(np.empty(0), np.empty(0, dtype=bool)).ece == 0


def test_rounding_leaves_no_answer_out_of_those_above_a_threshold():
    scores = np.array([0.9, 0.8, 0.5, 0.1813878])
    found = best_threshold(scores, np.ones(4, dtype=bool), num_positives=4)
    assert (found.score, found.f1) == (0.1813878, 1.0)
    close = best_threshold(np.array([0.5, 0.50000008]), np.array([False, True]), num_positives=1)
    assert (close.score, close.f1) == (0.50000008, 1.0)


def test_the_best_threshold_among_all():
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 20, 200) / 20, rng.uniform(size=200) < 0.4
    found = best_threshold(scores, right, num_positives=100)
    tried = [at_threshold(scores, right, 100, score).f1 for score in np.unique(scores)]
    assert found.f1 == max(tried)
    given, hits = (scores >= found.score).sum(), right[scores >= found.score].sum()
    assert found[1:] == pytest.approx((hits / given, hits / 100, 2 * hits / (given + 100)))


def test_nothing_given():
    assert at_threshold(np.array([0.5]), np.array([True]), 1, 0.6) == (0.6, 0, 0, 0)
    assert at_threshold(np.array([0.5]), np.array([False]), 0, 0.6) == (0.6, 0, 0, 0)


def test_measured_on_queries_that_did_not_fit():
    found = calibrate(*as_ranking(*drawn(1000, 3)))
    other = as_ranking(*drawn(4000, 4))
    reliability, threshold = measure(found.regression, found.threshold.score, *other)
    assert found.reliability.num_answers == 5 * 1000
    assert reliability.num_answers == 5 * 4000
    assert found.reliability.ece < 0.03
    assert reliability.ece < 0.03
    assert found.threshold.f1 == pytest.approx(threshold.f1, abs=0.03)
    # without the competition, the same scores are not to be trusted
    alone = Logistic(found.regression.score, 0.0, -4.0, 0.05)
    assert measure(alone, 0.0, *other)[0].ece > 3 * reliability.ece


def test_answers_of_a_fold_do_not_fit_it():
    """Each query is right about a label that no other query is right about: nothing can be learned from others."""
    scores, right = drawn(10, 5)
    found = calibrate(*as_ranking(scores, right))
    in_sample = measure(found.regression, 0.0, *as_ranking(scores, right))[0]
    assert found.reliability.num_answers == in_sample.num_answers
    assert found.reliability.ece != in_sample.ece


def test_labels_that_are_not_there_are_no_answers():
    indices, scores, positives = as_ranking(*drawn(100, 6))
    found = calibrate(indices, scores, positives)
    padded = np.pad(indices, ((0, 0), (0, 70)), constant_values=-1)
    padded_scores = np.pad(scores, ((0, 0), (0, 70)), constant_values=-np.inf)
    again = calibrate(padded, padded_scores, positives)
    assert again.regression == found.regression
    assert again.threshold == found.threshold


@pytest.mark.parametrize("labels", [[[], []], [[0], []]])
def test_too_few_queries(labels):
    scores = np.array([[0.9, 0.1], [0.8, 0.2]], dtype=np.float32)
    assert calibrate(np.array([[0, 1], [0, 1]]), scores, Ragged.from_rows(labels)) is None


def test_crowd_is_that_of_the_answers():
    scores, _ = drawn(3, 7)
    logits = 9.0 * scores - 6.0 * crowd(scores, 0.05)[:, None] - 0.5
    np.testing.assert_allclose(TRUE.at(scores), 1 / (1 + np.exp(-logits)))
