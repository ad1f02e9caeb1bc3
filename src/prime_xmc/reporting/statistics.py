"""The statistics of a report: a bootstrap over seeds and queries, bins of label frequency, macro metrics, coverage."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64

from prime_xmc.data.corpus import Ragged

# Numbers of training queries of a label, both bounds included; the last bin has no upper bound.
BINS = ((0, 0), (1, 1), (2, 5), (6, 20), (21, 100), (101, None))
_CELLS = 4_000_000  # queries times resamples that are drawn at once, to bound the memory


class Comparison(NamedTuple):
    """A difference between two configurations.

    Attributes:
        difference: The first minus the second.
        low: 2.5 % quantile of the resampled differences.
        high: 97.5 % quantile of the resampled differences.
        p: Two-sided p-value of the hypothesis that there is no difference.
    """

    difference: float
    low: float
    high: float
    p: float


def bootstrap(
    numerators: Float32[np.ndarray, "query run metric"],
    denominators: Float32[np.ndarray, " query #run metric"],
    configuration_of_run: Int[np.ndarray, " run"],
    num_resamples: int,
    seed: int,
) -> Float64[np.ndarray, "resample configuration metric"]:
    """Resample queries and seeds; return each configuration's metrics in every resample.

    A resample draws as many queries as there are, with replacement. All runs get the same draw, so that configurations
    are compared on the same queries (a paired bootstrap). A metric is the quotient of its sums over the drawn queries.
    For each configuration, the resample also draws as many runs as there are, independently of the other
    configurations, and takes their mean. Deviations from the mean over all S runs are scaled by sqrt(S / (S - 1));
    without this factor the variance between seeds would come out too small by (S - 1) / S. A configuration with a
    single run has no variance between seeds to draw from.

    Args:
        numerators: Contribution of each query to the numerator of each metric, by run.
        denominators: Contribution of each query to the denominator, by run or once for all of them.
        configuration_of_run: Configuration of each run, 0 to configurations - 1, each at least once.
        num_resamples: Number of resamples.
        seed: Seed of the draws.

    Source:
        Sellam et al. 2022, The MultiBERTs, section 3 (the Multi-Bootstrap); the scale is that of Rao and Wu 1988,
        Resampling inference with complex survey data.
    """
    num_queries, num_runs, num_metrics = numerators.shape
    rng = np.random.default_rng(seed)
    columns = np.concatenate([each.reshape(num_queries, -1) for each in (numerators, denominators)], axis=1)
    values = np.empty((num_resamples, num_runs, num_metrics))
    chunk = max(1, _CELLS // max(num_queries, 1))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        drawn = rng.integers(num_queries, size=(size, num_queries)) + np.arange(size)[:, None] * num_queries
        counts = np.bincount(drawn.ravel(), minlength=size * num_queries).reshape(size, num_queries)
        sums = (counts.astype(np.float32) @ columns).astype(np.float64)
        top, bottom = (each.reshape(size, -1, num_metrics) for each in np.split(sums, [num_runs * num_metrics], axis=1))
        values[start : start + size] = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    result = np.empty((num_resamples, configuration_of_run.max() + 1, num_metrics))
    for configuration in range(result.shape[1]):
        runs = np.flatnonzero(configuration_of_run == configuration)
        weight = _seed_weights(len(runs), num_resamples, rng)
        result[:, configuration] = np.einsum("rs,rsm->rm", weight, values[:, runs])
    return result


def compare(
    resampled: Float64[np.ndarray, " resample"], resampled_baseline: Float64[np.ndarray, " resample"], difference: float
) -> Comparison:
    """Return the interval and the p-value of a difference, from resamples of two configurations.

    p = min(1, 2 (min(resamples at or below 0, at or above 0) + 1) / (resamples + 1))

    Example:
        >>> compare(np.array([3.0, 4.0, 5.0]), np.array([1.0, 1.0, 1.0]), 3.0)
        Comparison(difference=3.0, low=2.05, high=3.95, p=0.5)
    """
    differences = resampled - resampled_baseline
    low, high = np.quantile(differences, (0.025, 0.975))
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return Comparison(difference, float(low), float(high), min(1.0, 2 * float(rarer + 1) / (len(differences) + 1)))


def holm(p_values: Float[np.ndarray, " test"]) -> Float64[np.ndarray, " test"]:
    """Return p-values corrected for several tests by the method of Holm.

    Example:
        >>> holm(np.array([0.04, 0.01, 0.03])).round(3)
        array([0.06, 0.03, 0.06])

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def summary(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation; the latter is None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def bin_names() -> list[str]:
    """Return the names of the bins of label frequency."""
    return [str(low) if low == high else f"> {low - 1}" if high is None else f"{low}–{high}" for low, high in BINS]


def bin_of_label(label_frequency: Int64[np.ndarray, " label"]) -> Int64[np.ndarray, " label"]:
    """Return the index into `BINS` for each label.

    Example:
        >>> bin_of_label(np.array([0, 1, 5, 6, 1000]))
        array([0, 1, 2, 3, 5])
    """
    return np.searchsorted([low for low, _ in BINS], label_frequency, side="right") - 1


def binned_precision(
    hit: Bool[np.ndarray, "query k"],
    indices: Int[np.ndarray, "query k"],
    bins: Int64[np.ndarray, " label"],
    weights: Float64[np.ndarray, " label"],
    attainable: float,
) -> Float64[np.ndarray, "bin"]:
    """Return the contribution of each bin of labels to P@k or PSP@k; the contributions add up to the metric.

    Args:
        hit: Whether the label at each rank is a positive.
        indices: Label ids at each rank, padded with -1.
        bins: Bin of each label.
        weights: Weight of a hit: 1 for P@k, the inverse propensity of the label for PSP@k.
        attainable: Denominator of the metric: k times the queries for P@k, the sum over the best ranking for PSP@k.
    """
    labels = indices[hit]
    return np.bincount(bins[labels], weights=weights[labels], minlength=len(BINS)) / max(attainable, 1e-300)


def macro_metrics(
    hit: Bool[np.ndarray, "query width"],
    indices: Int[np.ndarray, "query width"],
    positives: Ragged,
    num_labels: int,
    k: int,
) -> dict[str, float]:
    """Return precision, recall and F1 at k of each label, averaged over labels, and the coverage at k.

    The first k labels of a query count as predicted. The averages are over the labels that are a positive of at least
    one query; a label that is never predicted has a precision of 0. Coverage is the fraction of those labels that are
    predicted correctly for at least one query.

    Args:
        hit: Whether the label at each rank is a positive.
        indices: Label ids at each rank, padded with -1.
        positives: True labels of each query.
        num_labels: Number of labels.
        k: Number of ranks that count.

    Returns:
        `macro-P@k`, `macro-R@k`, `macro-F1@k` and `coverage@k` as fractions in [0, 1]; 0 if no label is a positive.

    Source:
        Schultheis et al. 2023, Generalized test utilities for long-tail performance in extreme multi-label
        classification; their averages are over all labels.
    """
    top, hit_top = indices[:, :k], hit[:, :k]
    true = np.bincount(positives.values, minlength=num_labels)
    predicted = np.bincount(top[top >= 0], minlength=num_labels)
    correct = np.bincount(top[hit_top], minlength=num_labels)
    occurs = true > 0
    true, predicted, correct = true[occurs], predicted[occurs], correct[occurs]
    by_label = {
        f"macro-P@{k}": correct / np.maximum(predicted, 1),
        f"macro-R@{k}": correct / true,
        f"macro-F1@{k}": 2 * correct / (predicted + true),
        f"coverage@{k}": correct > 0,
    }
    return {name: float(values.mean()) if len(values) else 0.0 for name, values in by_label.items()}


def _seed_weights(num_runs: int, num_resamples: int, rng: np.random.Generator) -> Float64[np.ndarray, "resample run"]:
    """Return the weight of each run of a configuration in each resample; the weights of a resample sum to 1."""
    if num_runs == 1:
        return np.ones((num_resamples, 1))
    counts = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=num_resamples)
    return (1 + (counts - 1) * np.sqrt(num_runs / (num_runs - 1))) / num_runs
