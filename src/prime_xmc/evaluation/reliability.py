"""Probabilities from scores: a logistic regression on answers known to be right or wrong, and how far it holds.

An answer is a label among the best of a query. A score alone does not say how probable it is: the same cosine means
much where no other label comes near, and little where twenty do. The regression therefore sees the competition too,

p = 1 / (1 + exp(-(a score + b crowd + c))),  crowd = t log sum over the best 100 labels of exp(score / t)

with a > 0, so that the order of a query's labels stays as it is. b is below 0 wherever competition counts.

Source: logistic regression as a calibration, Platt 1999; expected calibration error, Naeini et al. 2015.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import hits
from prime_xmc.index.crowd import crowd, probabilities

DEPTH = 5  # answers of each query on which probabilities are judged: those that predict shows by default
FITTED = 10  # answers of each query that fit them; many more would be easy ones, and bend the curve to themselves
NUM_BINS = 10
TEMPERATURES = (0.02, 0.05, 0.1, 0.2)  # t to choose among, by likelihood
_FOLDS = 5
_DECIMALS = 6  # of what is kept, as predict writes scores
_STEPS = 50  # of Newton's method, which needs about ten
_LARGEST = 1e4  # of a score in units of its deviation


class Logistic(NamedTuple):
    """A regression of the probability that an answer is right.

    Attributes:
        score: Coefficient a of the score, above 0.
        crowd: Coefficient b of the crowd.
        bias: Constant c.
        temperature: Temperature t of the crowd, in units of the score.
    """

    score: float
    crowd: float
    bias: float
    temperature: float

    def at(self, scores: Float[np.ndarray, "query k"]) -> Float64[np.ndarray, "query k"]:
        """Return the probabilities of each query's best labels."""
        return probabilities(scores, crowd(scores, self.temperature), self[:3])


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
        regression: Regression on all answers.
        threshold: Score with the best F1; precision, recall and F1 are those of queries that did not choose it.
        reliability: Reliability of regressions on some queries, for others.
    """

    regression: Logistic
    threshold: Threshold
    reliability: Reliability


def fit_logistic(
    scores: Float[np.ndarray, "query k"],
    right: Bool[np.ndarray, "query k"],
    temperatures: Sequence[float] = TEMPERATURES,
) -> Logistic | None:
    """Return the regression that makes what is known of the `FITTED` best answers most likely, by Newton's method.

    Score and crowd are brought to the same scale and their coefficients held back a little, as by a normal distribution
    of variance 1 around 0, so that few answers do not make certainties.

    Args:
        scores: Scores of each query's best labels, best first; -inf where it has no more.
        right: Whether each is right.
        temperatures: Temperatures of the crowd to choose among.

    Returns:
        None where it cannot be had: all answers are right, or none is, or higher scores are not more probable.
    """
    first = scores[:, :FITTED]
    is_answer = np.isfinite(first)
    known = right[:, :FITTED][is_answer].astype(np.float64)
    if not 0 < known.sum() < len(known):
        return None
    best: tuple[float, Logistic] | None = None
    for temperature in temperatures:
        crowding = np.broadcast_to(crowd(scores, temperature)[:, None], first.shape)
        features = np.stack([first[is_answer].astype(np.float64), crowding[is_answer]], axis=1)
        likelihood, (a, b, c) = _fit(features, known)
        if a > 0 and (best is None or likelihood > best[0]):
            best = likelihood, Logistic(round(a, _DECIMALS), round(b, _DECIMALS), round(c, _DECIMALS), temperature)
    return None if best is None else best[1]


def _fit(
    features: Float64[np.ndarray, "answer 2"], known: Float64[np.ndarray, " answer"]
) -> tuple[float, tuple[float, float, float]]:
    """Return the penalised log-likelihood and the coefficients, the constant last."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation < 1 / _LARGEST] = 1.0  # a feature that is the same everywhere says nothing
    design = np.column_stack([(features - mean) / deviation, np.ones(len(known))])
    penalty = np.array([1.0, 1.0, 0.0])
    weights = np.array([0.0, 0.0, np.log(known.mean() / (1 - known.mean()))])
    for _ in range(_STEPS):
        probability = np.exp(-np.logaddexp(0, -(design @ weights)))
        gradient = design.T @ (known - probability) - penalty * weights
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights += step / max(1.0, np.abs(step).max())  # a step of at most 1 does not run away
        if np.abs(step).max() < 1e-9:
            break
    logits = design @ weights
    likelihood = float((known * logits - np.logaddexp(0, logits)).sum() - (penalty * weights**2).sum() / 2)
    a, b = (weights[:2] / deviation).tolist()
    return likelihood, (a, b, float(weights[2] - (weights[:2] / deviation) @ mean))


def measure_reliability(predicted: Float[np.ndarray, " answer"], right: Bool[np.ndarray, " answer"]) -> Reliability:
    """Return how far the share of right answers is what their probabilities say.

    Example:
        >>> measure_reliability(np.array([0.1, 0.1, 0.9, 0.9]), np.array([False, True, True, True])).ece
        0.25
    """
    bins = np.minimum((predicted * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    is_used = counts > 0
    counts = counts[is_used]
    mean = np.bincount(bins, weights=predicted, minlength=NUM_BINS)[is_used] / counts
    observed = np.bincount(bins, weights=right, minlength=NUM_BINS)[is_used] / counts
    ece = float((np.abs(mean - observed) * counts).sum() / len(bins)) if len(bins) else 0.0
    return Reliability(len(bins), round(ece, 12), mean, observed, counts)


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
    rounded = round(float(score), _DECIMALS)
    # rounding must neither leave the last answer out nor let the next one in
    is_between = rounded <= ranked[last] and (last + 1 == len(ranked) or rounded > ranked[last + 1])
    return at_threshold(scores, right, num_positives, rounded if is_between else float(ranked[last]))


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
    """Fit probabilities and a threshold to the best labels of queries; measure both on queries that did not fit them.

    For the measurement the queries are dealt out to five folds: the answers of each have the probabilities that were
    fitted to the other four. It looks at the `DEPTH` best labels of each query.

    Args:
        indices: Ids of each query's best labels, best first; -1 where it has no more.
        scores: Their scores.
        positives: True labels of each query.

    Returns:
        None where it cannot be done, see `fit_logistic`: with very few queries, or where scores say nothing.
    """
    right = hits(indices, positives)
    is_answer = indices >= 0
    scores = np.where(is_answer, scores, -np.inf)
    regression = fit_logistic(scores, right)
    num_folds = min(_FOLDS, int((positives.lengths > 0).sum()))
    if regression is None or num_folds < 2:
        return None
    is_labelled = (positives.lengths > 0).astype(np.int64)
    fold: Int[np.ndarray, " query"] = (is_labelled.cumsum() - is_labelled) % num_folds  # each has as many with labels
    predicted, given = np.zeros(scores.shape), np.zeros(3, dtype=np.int64)
    for number in range(num_folds):
        own, rest = fold == number, fold != number
        known = is_answer & rest[:, None]
        of_rest = fit_logistic(scores[rest], right[rest], [regression.temperature])
        if of_rest is None:
            return None
        predicted[own] = of_rest.at(scores[own])
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
    return Calibrated(regression, threshold, measure_reliability(*shown(predicted, right, is_answer)))


def shown(
    values: Float[np.ndarray, "query k"], right: Bool[np.ndarray, "query k"], is_answer: Bool[np.ndarray, "query k"]
) -> tuple[Float[np.ndarray, " answer"], Bool[np.ndarray, " answer"]]:
    """Return values and truth of the `DEPTH` best answers of each query."""
    first = is_answer[:, :DEPTH]
    return values[:, :DEPTH][first], right[:, :DEPTH][first]


def measure(
    regression: Logistic,
    threshold: float,
    indices: Int[np.ndarray, "query k"],
    scores: Float32[np.ndarray, "query k"],
    positives: Ragged,
) -> tuple[Reliability, Threshold]:
    """Return how far probabilities and a threshold hold for other queries, such as those of the test split.

    Args:
        regression: Regression of the probability.
        threshold: Lowest score of an answer that is given.
        indices: Ids of each query's best labels, best first; -1 where it has no more.
        scores: Their scores.
        positives: True labels of each query.
    """
    right, is_answer = hits(indices, positives), indices >= 0
    scores = np.where(is_answer, scores, -np.inf)
    reliability = measure_reliability(*shown(regression.at(scores), right, is_answer))
    num_positives = int(positives.lengths.sum())
    return reliability, at_threshold(scores[is_answer], right[is_answer], num_positives, threshold)
