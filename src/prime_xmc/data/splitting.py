"""A test split from the training queries, for data that come without one."""

import numpy as np
from jaxtyping import Int64

from prime_xmc.data.corpus import Ragged


def choose_test_queries(
    positives: Ragged,
    label_frequency: Int64[np.ndarray, "label"],
    num_test: int,
    seed: int,
    *,
    spare_only: bool = False,
) -> Int64[np.ndarray, "chosen"]:
    """Choose queries at random such that every label keeps a training query, as far as that is possible.

    Queries that a label cannot spare are only chosen when there are too few others. Queries without labels are never
    chosen: nothing could be measured on them.

    Args:
        positives: Label ids of each query.
        label_frequency: Number of queries of each label.
        num_test: Number of queries to choose.
        seed: Seed of the choice; the same seed chooses the same queries of the same data.
        spare_only: Whether fewer are chosen where there are too few that all their labels can spare.

    Returns:
        Ascending ids of the queries, `num_test` of them or as many as have labels, but never all queries with labels.

    Example:
        >>> choose_test_queries(Ragged.from_rows([[0], [0], [1], []]), np.array([2, 1]), num_test=1, seed=0)
        array([0])
    """
    order = np.random.default_rng(seed).permutation(len(positives))
    left = label_frequency.copy()
    labelled = positives.lengths > 0
    num_test = min(num_test, max(0, int(labelled.sum()) - 1))
    chosen = np.zeros(len(positives), dtype=bool)
    for row in order[labelled[order]]:
        if num_test == 0:
            break
        labels = positives[row]
        if (left[labels] > 1).all():
            left[labels] -= 1
            chosen[row] = True
            num_test -= 1
    if not spare_only:
        rest = order[labelled[order] & ~chosen[order]]
        chosen[rest[:num_test]] = True
    return np.flatnonzero(chosen)
