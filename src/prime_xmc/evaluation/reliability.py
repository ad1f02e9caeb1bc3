"""Probabilities from scores: a monotone curve fitted to answers known to be right or wrong, and how far it holds.

An answer is a label among the best of a query. The probability of an answer with the score s is the share of right ones
among answers with such a score. The curve is an isotonic regression, the best fit that never falls, so the order of
labels stays as it is; between the centres of its steps it is linear, so different scores keep different probabilities.

Source: isotonic regression by pool adjacent violators, Ayer et al. 1955; as a calibration, Zadrozny and Elkan 2002;
    linear between the centres of the steps, Oron and Flournoy 2017; expected calibration error, Naeini et al. 2015.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import hits

DEPTH = 5  # answers of each query on which a curve is judged: those that predict shows by default
NUM_BINS = 10
_FOLDS = 5
_DECIMALS = 6  # of scores and probabilities that are kept, as predict writes them


class Curve(NamedTuple):
    """A piecewise linear curve, flat beyond its ends.

    Attributes:
        scores: Scores, ascending.
        probabilities: Probability at each score, in [0, 1], never falling.
    """

    scores: Float64[np.ndarray, " knot"]
    probabilities: Float64[np.ndarray, " knot"]

    def at(self, scores: Float[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
        """Return the probabilities of answers with these scores."""
        return np.interp(scores, self.scores, self.probabilities)


class Reliability(NamedTuple):
    """How far probabilities are those of answers that did not fit them.

    Attributes:
        num_answers: Number of answers.
        ece: Expected calibration error, the mean difference of probability and share of right answers over bins of
            equal width, weighted by their answers; in [0, 1], 0 where there are no answers.
        predicted: Mean probability in each bin that has answers.
        observed: Share of right answers in it.
        counts: Number of its answers.
    """

    num_answers: int
    ece: float
    predicted: Float64[np.ndarray, " bin"]
    observed: Float64[np.ndarray, " bin"]
    counts: Int[np.ndarray, " bin"]


class Threshold(NamedTuple):
    """A score from which on answers are given, with what comes of it, over all answers of all queries.

    Attributes:
        score: The lowest score of an answer that is given.
        precision: Share of right ones among the answers given, 0 where there are none.
        recall: Share of the true labels that are given, 0 where there are none.
        f1: Harmonic mean of both, micro-averaged F1.
    """

    score: float
    precision: float
    recall: float
    f1: float


class Calibrated(NamedTuple):
    """What `calibrate` found.

    Attributes:
        curve: Curve fitted to all answers.
        threshold: Score with the best F1; precision, recall and F1 are those of queries that did not choose it.
        reliability: Reliability of curves fitted to some queries, on others.
    """

    curve: Curve
    threshold: Threshold
    reliability: Reliability


def fit_curve(scores: Float[np.ndarray, " answer"], right: Bool[np.ndarray, " answer"]) -> Curve:
    """Return the curve of the probability that an answer is right.

    Each step of the isotonic regression has half a right and half a wrong answer more than there are, so that the few
    answers with the highest scores do not make a certainty.

    Args:
        scores: Scores of answers, at least one.
        right: Whether each is right.

    Example:
        >>> curve = fit_curve(np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, True]))
        >>> curve.scores, curve.probabilities
        (array([0.1 , 0.25, 0.4 ]), array([0.25, 0.5 , 0.75]))
    """
    values, place = np.unique(scores.astype(np.float64), return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    sums = np.bincount(place, weights=right.astype(np.float64))
    steps = _pool(values, sums, counts)
    steps = _pool(steps[:, 0] / steps[:, 2], steps[:, 1] + 0.5, steps[:, 2] + 1)  # the smoothed steps may fall again
    return Curve((steps[:, 0] / steps[:, 2]).round(_DECIMALS), (steps[:, 1] / steps[:, 2]).round(_DECIMALS))


def _pool(
    values: Float64[np.ndarray, " group"], sums: Float64[np.ndarray, " group"], counts: Float64[np.ndarray, " group"]
) -> Float64[np.ndarray, "step 3"]:
    """Return sums of value, of `sums` and of `counts` in the steps of the isotonic regression of sums / counts."""
    steps: list[list[float]] = []
    for value, total, count in zip(values.tolist(), sums.tolist(), counts.tolist(), strict=True):
        step = [value * count, total, count]
        while steps and steps[-1][1] * step[2] >= step[1] * steps[-1][2]:  # no higher than the one before
            step = [ours + theirs for ours, theirs in zip(step, steps.pop(), strict=True)]
        steps.append(step)
    return np.array(steps)


def measure_reliability(probabilities: Float[np.ndarray, " answer"], right: Bool[np.ndarray, " answer"]) -> Reliability:
    """Return how far the share of right answers is what their probabilities say.

    Example:
        >>> measure_reliability(np.array([0.1, 0.1, 0.9, 0.9]), np.array([False, True, True, True])).ece
        0.25
    """
    bins = np.minimum((probabilities * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    is_used = counts > 0
    counts = counts[is_used]
    predicted = np.bincount(bins, weights=probabilities, minlength=NUM_BINS)[is_used] / counts
    observed = np.bincount(bins, weights=right, minlength=NUM_BINS)[is_used] / counts
    ece = float((np.abs(predicted - observed) * counts).sum() / len(bins)) if len(bins) else 0.0
    return Reliability(len(bins), round(ece, 12), predicted, observed, counts)


def best_threshold(
    scores: Float[np.ndarray, " answer"], right: Bool[np.ndarray, " answer"], num_positives: int
) -> Threshold:
    """Return the threshold with the highest micro-averaged F1; of several, the one that gives more answers.

    F1 = 2 * right answers given / (answers given + true labels)

    Args:
        scores: Scores of answers, at least one.
        right: Whether each is right.
        num_positives: Number of true labels of all queries, whether or not they are among the answers.

    Example:
        >>> best_threshold(np.array([0.9, 0.8, 0.3]), np.array([True, True, False]), num_positives=3)
        Threshold(score=0.55, precision=1.0, recall=0.6666666666666666, f1=0.8)
    """
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order].astype(np.float64), right[order].cumsum()
    f1 = 2 * found / (np.arange(1, len(order) + 1) + num_positives)
    is_last = np.append(ranked[1:] < ranked[:-1], True)  # answers with one score are given together
    f1[~is_last] = -1
    last = len(f1) - 1 - int(np.argmax(f1[::-1]))
    # halfway to the next score, since scores of other queries lie in between
    score = (ranked[last] + ranked[last + 1]) / 2 if last + 1 < len(ranked) else ranked[last]
    return at_threshold(scores, right, num_positives, round(float(score), _DECIMALS))


def at_threshold(
    scores: Float[np.ndarray, " answer"], right: Bool[np.ndarray, " answer"], num_positives: int, score: float
) -> Threshold:
    """Return what comes of giving the answers with at least this score."""
    given = scores >= score
    num_given, num_right = int(given.sum()), int(right[given].sum())
    total = num_given + num_positives
    return Threshold(
        score,
        num_right / num_given if num_given else 0.0,
        num_right / num_positives if num_positives else 0.0,
        2 * num_right / total if total else 0.0,
    )


def calibrate(
    indices: Int[np.ndarray, "query k"], scores: Float32[np.ndarray, "query k"], positives: Ragged
) -> Calibrated | None:
    """Fit a curve and a threshold to the best labels of queries, and measure both on queries that did not fit them.

    For the measurement the queries are dealt out to five folds: the answers of each have the probabilities of a curve
    that was fitted to the other four. It looks at the `DEPTH` best labels of each query.

    Args:
        indices: Ids of each query's best labels, best first; -1 where it has no more.
        scores: Their scores.
        positives: True labels of each query.

    Returns:
        None where it cannot be done: fewer than two queries have a label, or no answer is right.
    """
    right = hits(indices, positives)
    num_folds = min(_FOLDS, int((positives.lengths > 0).sum()))
    if num_folds < 2 or not right.any():
        return None
    is_answer = indices >= 0
    is_labelled = (positives.lengths > 0).astype(np.int64)
    fold: Int[np.ndarray, " query"] = (is_labelled.cumsum() - is_labelled) % num_folds  # each has as many with labels
    probabilities, given = np.zeros(scores.shape), np.zeros(3, dtype=np.int64)
    for number in range(num_folds):
        own, rest = fold == number, fold != number
        known = is_answer & rest[:, None]
        probabilities[own] = fit_curve(scores[known], right[known]).at(scores[own])
        num_positives = int(positives.lengths[rest].sum())
        chosen = best_threshold(scores[known], right[known], num_positives).score
        is_given = is_answer & own[:, None] & (scores >= chosen)
        given += [int(is_given.sum()), int(right[is_given].sum()), int(positives.lengths[own].sum())]
    num_given, num_right, num_positives = given.tolist()
    threshold = best_threshold(scores[is_answer], right[is_answer], num_positives)._replace(
        precision=num_right / num_given if num_given else 0.0,
        recall=num_right / num_positives,
        f1=2 * num_right / (num_given + num_positives),
    )
    return Calibrated(
        fit_curve(scores[is_answer], right[is_answer]),
        threshold,
        measure_reliability(*shown(probabilities, right, is_answer)),
    )


def shown(
    values: Float[np.ndarray, "query k"], right: Bool[np.ndarray, "query k"], is_answer: Bool[np.ndarray, "query k"]
) -> tuple[Float[np.ndarray, " answer"], Bool[np.ndarray, " answer"]]:
    """Return values and truth of the `DEPTH` best answers of each query."""
    first = is_answer[:, :DEPTH]
    return values[:, :DEPTH][first], right[:, :DEPTH][first]


def measure(
    curve: Curve,
    threshold: float,
    indices: Int[np.ndarray, "query k"],
    scores: Float32[np.ndarray, "query k"],
    positives: Ragged,
) -> tuple[Reliability, Threshold]:
    """Return how far a curve and a threshold hold for other queries, such as those of the test split.

    Args:
        curve: Curve of the probability.
        threshold: Lowest score of an answer that is given.
        indices: Ids of each query's best labels, best first; -1 where it has no more.
        scores: Their scores.
        positives: True labels of each query.
    """
    right, is_answer = hits(indices, positives), indices >= 0
    reliability = measure_reliability(*shown(curve.at(scores), right, is_answer))
    num_positives = int(positives.lengths.sum())
    return reliability, at_threshold(scores[is_answer], right[is_answer], num_positives, threshold)
