"""How strong the competition among a query's labels is, which tells what a score is worth."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

DEPTH = 100  # best labels of a query that compete


def crowd(scores: Float[np.ndarray, "query k"], temperature: float) -> Float64[np.ndarray, " query"]:
    """Return t log sum over l of exp(s_l / t), a soft maximum: the best score, and more where others come close.

    Args:
        scores: Scores of each query's best labels; -inf where it has no more. Those beyond the best `DEPTH` are left
            out, as are the labels that do not get there: their part of the sum is small.
        temperature: t, in units of the score.

    Returns:
        -inf for a query without any score.

    Example:
        >>> crowd(np.array([[0.5, -np.inf], [0.5, 0.5]]), temperature=0.1).round(3)
        array([0.5  , 0.569])
    """
    first = scores[:, :DEPTH].astype(np.float64)
    return temperature * np.logaddexp.reduce(first / temperature, axis=1, initial=-np.inf)


def probabilities(
    scores: Float[np.ndarray, "query k"], crowding: Float[np.ndarray, " query"], coefficients: Sequence[float]
) -> Float64[np.ndarray, "query k"]:
    """Return 1 / (1 + exp(-(a score + b crowd + c))), 0 for a score of -inf.

    Args:
        scores: Scores of labels of each query.
        crowding: What `crowd` returns for each query.
        coefficients: a, b and c.
    """
    a, b, c = coefficients
    crowding = np.where(np.isfinite(crowding), crowding, 0.0)  # there, no label has a score
    return 1 / (1 + np.exp(-np.clip(a * scores + b * crowding[:, None] + c, -700, 700)))
