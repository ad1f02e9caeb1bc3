"""Queries that are split off from those to train on: a test split, for data without one, and those to validate on."""

import logging

import numpy as np
from jaxtyping import Int, Int64

from prime_xmc.data.corpus import Ragged

logger = logging.getLogger(__name__)


def choose_test_queries(
    positives: Ragged,
    label_frequency: Int64[np.ndarray, " label"],
    num_test: int,
    seed: int,
    *,
    same_text: Int[np.ndarray, " query"] | None = None,
    spare_only: bool = False,
) -> Int64[np.ndarray, " chosen"]:
    """Choose queries at random such that every label keeps a training query, as far as that is possible.

    Queries that a label cannot spare are only chosen when there are too few others. Queries without labels are never
    chosen: nothing could be measured on them. Queries of the same text are chosen together or not at all: a text that
    is in both splits would be found by heart.

    Args:
        positives: Label ids of each query.
        label_frequency: Number of queries of each label.
        num_test: Number of queries to choose.
        seed: Seed of the choice; the same seed chooses the same queries of the same data.
        same_text: A number for each query, which those of the same text share; None: all texts differ.
        spare_only: Whether fewer are chosen where there are too few that all their labels can spare.

    Returns:
        Ascending ids of the queries, `num_test` of them or as many as have labels, but never all queries with labels;
        fewer where only texts are left that more queries share than are wanted.

    Example:
        >>> choose_test_queries(Ragged.from_rows([[0], [0], [1], []]), np.array([2, 1]), num_test=1, seed=0)
        array([0])
        >>> rows, same_text = Ragged.from_rows([[0], [1], [0], [1]]), np.array([7, 7, 8, 9])
        >>> choose_test_queries(rows, np.array([2, 2]), num_test=2, seed=1, same_text=same_text)
        array([0, 1])
    """
    order = np.random.default_rng(seed).permutation(len(positives))
    order = order[positives.lengths[order] > 0]
    together = {} if same_text is None else _repeated(np.sort(order), same_text)
    left = label_frequency.copy()
    num_test = min(num_test, max(0, len(order) - 1))
    chosen = np.zeros(len(positives), dtype=bool)
    for must_spare in (True,) if spare_only else (True, False):
        for row in order.tolist():
            if num_test == 0:
                break
            rows = together.get(row, [row])
            if chosen[row] or len(rows) > num_test:
                continue
            labels, counts = np.unique(np.concatenate([positives[each] for each in rows]), return_counts=True)
            if must_spare and (left[labels] <= counts).any():
                continue
            left[labels] -= counts
            chosen[rows] = True
            num_test -= len(rows)
    return np.flatnonzero(chosen)


def hold_out_queries(
    texts: Ragged, num_held_out: int, seed: int, *, one_by_one: bool = False
) -> Int64[np.ndarray, " chosen"]:
    """Choose queries at random to validate on; those with the same tokens together or not at all.

    A query whose text is trained on, too, would be found by heart, and whatever is chosen by it would be wrong.

    Args:
        texts: Tokens of each query.
        num_held_out: Number of queries to choose.
        seed: Seed of the choice; the same seed chooses the same queries of the same data.
        one_by_one: Whether to choose queries whatever their texts, as trainings of version 0.1.0 did.

    Returns:
        Ascending ids of the queries; a few less than are wanted where only texts are left that more queries share.
        Where these would be more than half, queries are chosen one by one after all, and the log says so.

    Example:
        >>> hold_out_queries(Ragged.from_rows([[5], [7, 8], [5], [9]]), 2, seed=1)
        array([0, 2])
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    if one_by_one or num_held_out == 0:
        return np.sort(order[:num_held_out])
    same_text = np.fromiter((hash(texts[row].tobytes()) for row in range(len(texts))), np.int64, len(texts))
    together = _repeated(np.arange(len(texts)), same_text)
    chosen, left = np.zeros(len(texts), dtype=bool), num_held_out
    for row in map(int, order):  # few of them are looked at
        if left == 0:
            break
        rows = together.get(row, [row])
        if not chosen[row] and len(rows) <= left:
            chosen[rows] = True
            left -= len(rows)
    if left > num_held_out // 2:
        logger.warning(
            "the %d queries held out for validation have texts that queries to train on have too, since few texts, as "
            "far as they are read, are shared by many queries: what is measured on them is too good",
            num_held_out,
        )
        return np.sort(order[:num_held_out])
    return np.flatnonzero(chosen)


def _repeated(queries: Int64[np.ndarray, " some"], same_text: Int[np.ndarray, " query"]) -> dict[int, list[int]]:
    """Return for each of some queries whose text is that of another of them all of that text, itself included."""
    _, text, counts = np.unique(same_text[queries], return_inverse=True, return_counts=True)
    is_repeated = counts[text] > 1
    by_text: dict[int, list[int]] = {}
    for query, number in zip(queries[is_repeated].tolist(), text[is_repeated].tolist(), strict=True):
        by_text.setdefault(number, []).append(query)
    return {query: rows for rows in by_text.values() for query in rows}
