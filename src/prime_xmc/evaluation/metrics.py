"""Ranking metrics of extreme classification, from the top-k label ids of every query.

Each ``*_at_k`` function returns every query's part in the two sums whose quotient is the metric, so that chunks,
batches and processes are added up before anything is divided, and queries can be drawn again for a confidence interval.
A query without positives counts in the mean and gains nothing, as in the Extreme Classification Repository's own
evaluation. Where no query has any, there are no metrics: a 0 would look like a measurement.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num

from prime_xmc.data.corpus import Ragged

TOP_K = 100  # the largest k of all, and the labels of a query that are ranked and kept

METRICS = (
    *(f"P@{k}" for k in (1, 2, 3, 4, 5)),
    *(f"{name}@{k}" for name in ("nDCG", "PSP", "PSnDCG") for k in (1, 3, 5)),
    *(f"R@{k}" for k in (10, TOP_K)),
)
SHOWN = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@1", "PSP@3", "PSP@5", "R@10", f"R@{TOP_K}")
_DECIMALS = 12  # of a metric
_DEEPEST_GAIN = 5  # the largest k of the metrics that look at gains

# Queries whose predictions are sorted at once: the keys (8 bytes each) stay in the processor's cache.
_CHUNK = 1024

Parts = Float64[np.ndarray, "query 2"]


def hits(indices: Int[np.ndarray, "query k"], positives: Ragged) -> Bool[np.ndarray, "query k"]:
    """Say of every predicted label whether it is a positive of its query.

    One sort of the predicted labels of a chunk of queries serves two ends: equal neighbours are duplicates, and each
    positive is found by binary search. The cost hardly depends on the number of positives a query has.

    Args:
        indices: predicted label ids, >= 0, in any order within a row; -1 is padding and never hits.
        positives: label ids of each query, unique within a row.

    Raises:
        ValueError: when the two differ in their number of queries, or a row predicts a label twice (a hit would count
            twice), naming row and label.
    """
    if len(indices) != len(positives):
        raise ValueError(
            f"predictions for {len(indices)} queries, but there are {len(positives)} queries: expected one row per "
            "query, in the order of the split"
        )
    num_queries, width = indices.shape
    result = np.zeros((num_queries, width), dtype=bool)
    column_bits = width.bit_length()
    for start in range(0, num_queries, _CHUNK):
        chunk = indices[start : start + _CHUNK]
        num_rows = len(chunk)
        offsets = positives.offsets[start : start + num_rows + 1]
        answers = positives.values[offsets[0] : offsets[-1]].astype(np.int64)
        answer_rows = np.repeat(np.arange(num_rows), np.diff(offsets))

        # A key is (row, label + 1, column), the column in the lowest bits: sorted by label, the column comes along.
        labels_per_row = max(int(chunk.max(initial=-1)), int(answers.max(initial=-1))) + 2
        keys = np.arange(num_rows)[:, None] * labels_per_row + chunk + 1
        keys = (keys << column_bits) | np.arange(width)  # [rows, k]
        keys.sort(axis=1)
        columns = keys.ravel() & ((1 << column_bits) - 1)  # [rows * k]
        row_labels = keys.ravel() >> column_bits  # [rows * k], ascending

        twice = row_labels[1:][row_labels[1:] == row_labels[:-1]]
        twice = twice[twice % labels_per_row > 0]  # padding may repeat
        if twice.size:
            row, label = divmod(int(twice[0]), labels_per_row)
            raise ValueError(f"row {start + row} of the predictions holds label {label - 1} more than once")

        wanted = answer_rows * labels_per_row + answers + 1
        place = np.searchsorted(row_labels, wanted)
        is_hit = place < row_labels.size
        is_hit[is_hit] = row_labels[place[is_hit]] == wanted[is_hit]
        result[start + answer_rows[is_hit], columns[place[is_hit]]] = True
    return result


def best_weights(
    positives: Ragged, inverse_propensity: Float64[np.ndarray, " label"], k: int
) -> Float64[np.ndarray, "query k"]:
    """Return the k largest weights among each query's positives, descending, 0 where it has fewer.

    This is what a perfect ranking gains at each rank: the normaliser of the propensity-scored metrics.
    """
    num_labels = len(inverse_propensity)
    by_weight = np.argsort(-inverse_propensity, kind="stable")
    rank = np.empty(num_labels, dtype=np.int64)
    rank[by_weight] = np.arange(num_labels)
    # Sorting (row, rank of the label) leaves rows in place and orders the labels within each.
    keys = positives.row_ids() * num_labels + rank[positives.values]
    keys.sort()
    exists = np.arange(k) < positives.lengths[:, None]  # [query, k]
    places = (positives.offsets[:-1, None] + np.arange(k))[exists]
    best = np.zeros((len(positives), k))
    best[exists] = inverse_propensity[by_weight[keys[places] % num_labels]]
    return best


def precision_at_k(hit: Bool[np.ndarray, "query width"], k: int) -> Parts:
    """Return each query's part in the sums of precision at k.

    P@k = sum of the hits in the first k / (k * queries)

    Args:
        hit: whether the label at each rank is a positive. A row of fewer than k labels counts the rest as misses.
        k: ranks looked at.

    Returns:
        Numerator and denominator of each query.

    Example:
        >>> precision_at_k(np.array([[True, False], [True, True]]), k=2)
        array([[1., 2.],
               [2., 2.]])

    Source:
        Bhatia et al., The Extreme Classification Repository, "Performance metrics".
    """
    return _parts(hit[:, :k].sum(axis=1), k)


def recall_at_k(hit: Bool[np.ndarray, "query width"], num_positives: Int[np.ndarray, " query"], k: int) -> Parts:
    """Return each query's part in the sums of recall at k.

    R@k = sum over queries of (hits in the first k / positives of the query) / queries

    Args:
        hit: whether the label at each rank is a positive.
        num_positives: positives of each query, all of them; a query with 0 has recall 0.
        k: ranks looked at.

    Returns:
        Numerator and denominator of each query.

    Example:
        >>> recall_at_k(np.array([[True, False], [False, True]]), np.array([1, 4]), k=2)
        array([[1.  , 1.  ],
               [0.25, 1.  ]])

    Source:
        Bhatia et al., The Extreme Classification Repository, "Performance metrics".
    """
    return _parts(hit[:, :k].sum(axis=1) / np.maximum(num_positives, 1), 1)


def ndcg_at_k(hit: Bool[np.ndarray, "query width"], num_positives: Int[np.ndarray, " query"], k: int) -> Parts:
    """Return each query's part in the sums of normalised discounted cumulative gain at k.

    nDCG@k = sum over queries of (sum over ranks r <= k of hit_r / log2(r + 1)) / I / queries,
    I = sum over ranks r <= min(k, positives of the query) of 1 / log2(r + 1)

    Args:
        hit: whether the label at each rank is a positive.
        num_positives: positives of each query; a query with 0 has nDCG 0.
        k: ranks looked at.

    Returns:
        Numerator and denominator of each query.

    Example:
        >>> ndcg_at_k(np.array([[True, False], [False, True]]), np.array([1, 1]), k=2).round(3)
        array([[1.   , 1.   ],
               [0.631, 1.   ]])

    Source:
        Bhatia et al., The Extreme Classification Repository, "Performance metrics".
    """
    return _parts(_discounted(hit, num_positives, k), 1)


def psp_at_k(
    hit_weight: Float[np.ndarray, "query width"], best_weight: Float[np.ndarray, "query depth"], k: int
) -> Parts:
    """Return each query's part in the sums of propensity-scored precision at k.

    PSP@k = sum over queries and ranks <= k of hit_weight / the same sum of best_weight

    Both sums run over all queries before one is divided by the other; it is not a mean of ratios.

    Args:
        hit_weight: inverse propensity of the label at each rank where it is a positive, else 0.
        best_weight: the same for the best possible ranking, see ``best_weights``.
        k: ranks looked at.

    Returns:
        Numerator and denominator of each query, both 0 where it has no positive.

    Example:
        >>> psp_at_k(np.array([[0.0, 2.0], [3.0, 0.0]]), np.array([[4.0, 2.0], [3.0, 0.0]]), k=2)
        array([[2., 6.],
               [3., 3.]])

    Source:
        Jain et al. 2016, Extreme multi-label loss functions for recommendation, tagging, ranking & other missing label
        applications, section 4.
    """
    return _parts(hit_weight[:, :k].sum(axis=1), best_weight[:, :k].sum(axis=1))


def psndcg_at_k(
    hit_weight: Float[np.ndarray, "query width"],
    best_weight: Float[np.ndarray, "query depth"],
    num_positives: Int[np.ndarray, " query"],
    k: int,
) -> Parts:
    """Return each query's part in the sums of propensity-scored nDCG at k.

    PSnDCG@k = sum over queries of D(hit_weight) / sum over queries of D(best_weight),
    D(w) = (sum over ranks r <= k of w_r / log2(r + 1)) / I, with the I of ``ndcg_at_k``

    Args:
        hit_weight: inverse propensity of the label at each rank where it is a positive, else 0.
        best_weight: the same for the best possible ranking, see ``best_weights``.
        num_positives: positives of each query.
        k: ranks looked at.

    Returns:
        Numerator and denominator of each query, both 0 where it has no positive.

    Example:
        >>> psndcg_at_k(np.array([[0.0, 2.0]]), np.array([[4.0, 2.0]]), np.array([2]), k=1).round(3)
        array([[0., 4.]])

    Source:
        Jain et al. 2016, section 4; Bhatia et al., The Extreme Classification Repository, "Performance metrics".
    """
    return _parts(_discounted(hit_weight, num_positives, k), _discounted(best_weight, num_positives, k))


def evaluate(
    indices: Int[np.ndarray, "query width"],
    positives: Ragged,
    inverse_propensity: Float64[np.ndarray, " label"],
) -> dict[str, float]:
    """Return every metric of ``METRICS`` over all queries.

    Args:
        indices: the labels predicted for each query, best first, filtered pairs already removed; -1 pads. At least
            `TOP_K` columns, or as many as there are labels.
        positives: the true labels of each query, unique within a row.
        inverse_propensity: weight of each label, >= 1.

    Returns:
        Fractions in [0, 1] by name; nothing where no query has a positive.

    Raises:
        ValueError: for too few columns, another number of queries than ``positives`` has, a label id out of range, or a
            label twice in a row; the message names row and value.
    """
    return quotients(metric_sums(indices, positives, inverse_propensity))


def metric_sums(
    indices: Int[np.ndarray, "query width"],
    positives: Ragged,
    inverse_propensity: Float64[np.ndarray, " label"],
) -> Float64[np.ndarray, "metric 2"]:
    """Return numerator and denominator of each of ``METRICS``; arguments and errors are those of ``evaluate``."""
    sums = {name: parts.sum(axis=0) for name, parts in metric_parts(indices, positives, inverse_propensity)}
    return np.stack([sums[name] for name in METRICS])


def metric_parts(
    indices: Int[np.ndarray, "query width"],
    positives: Ragged,
    inverse_propensity: Float64[np.ndarray, " label"],
) -> Iterator[tuple[str, Parts]]:
    """Yield each of ``METRICS`` and every query's part in its two sums; arguments and errors are those of ``evaluate``.

    One after the other, so that the memory of one metric is enough for whoever adds them up.
    """
    num_labels = len(inverse_propensity)
    required = min(TOP_K, num_labels)
    if indices.shape[1] < required:
        raise ValueError(
            f"predictions have {indices.shape[1]} labels per query, expected at least {required}: R@{TOP_K} "
            f"looks at {TOP_K} (pad with -1 to count what is missing as misses)"
        )
    indices = indices[:, :TOP_K]
    if indices.size and not -1 <= indices.min() <= indices.max() < num_labels:
        row, column = np.argwhere((indices < -1) | (indices >= num_labels))[0]
        raise ValueError(
            f"row {row} of the predictions holds label {indices[row, column]}, expected 0 to {num_labels - 1} (or -1, "
            "padding)"
        )
    hit = hits(indices, positives)
    top = indices[:, :_DEEPEST_GAIN]
    hit_weight = hit[:, :_DEEPEST_GAIN] * inverse_propensity[np.maximum(top, 0)]  # [query, 5]
    best_weight = best_weights(positives, inverse_propensity, _DEEPEST_GAIN)  # [query, 5]
    num_positives = positives.lengths
    yield from ((f"P@{k}", precision_at_k(hit, k)) for k in (1, 2, 3, 4, 5))
    yield from ((f"nDCG@{k}", ndcg_at_k(hit, num_positives, k)) for k in (1, 3, 5))
    yield from ((f"PSP@{k}", psp_at_k(hit_weight, best_weight, k)) for k in (1, 3, 5))
    yield from ((f"PSnDCG@{k}", psndcg_at_k(hit_weight, best_weight, num_positives, k)) for k in (1, 3, 5))
    yield from ((f"R@{k}", recall_at_k(hit, num_positives, k)) for k in (10, TOP_K))


def quotients(sums: Float64[np.ndarray, "metric 2"]) -> dict[str, float]:
    """Divide the sums of `metric_sums`; nothing comes of them where no query has a positive.

    Inverse propensities are at least 1, so the denominator of PSP@1 is 0 only then. What is beyond the twelfth decimal
    depends on the order in which queries were added up, and is cut off, so that training and evaluation agree.
    """
    if sums[METRICS.index("PSP@1"), 1] == 0:
        return {}
    return {
        name: round(float(numerator / denominator), _DECIMALS)
        for name, (numerator, denominator) in zip(METRICS, sums, strict=True)
    }


def _parts(numerator: Num[np.ndarray, " query"], denominator: Num[np.ndarray, " query"] | int) -> Parts:
    parts = np.empty((len(numerator), 2))
    parts[:, 0], parts[:, 1] = numerator, denominator
    return parts


def _discounted(gain: np.ndarray, num_positives: np.ndarray, k: int) -> Float64[np.ndarray, " query"]:
    """Return the discounted gain of each query's first k, divided by that of all-ones in the ideal ranking."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    # ideal[n] for n positives; a query without any gains 0, whatever it is divided by.
    ideal = np.concatenate([[1.0], discount.cumsum()])
    gain = gain[:, :k]
    return gain @ discount[: gain.shape[1]] / ideal[np.minimum(num_positives, k)]
