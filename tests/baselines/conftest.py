"""A data set whose labels can be told by their words, so small that every method takes a moment."""

import numpy as np
import pytest

from prime_xmc.baselines.method import LabelledTexts, TextSet
from prime_xmc.data.corpus import Ragged

WORDS = ("red", "green", "blue", "cat", "house", "river", "engine", "violin", "apple", "castle")


def text_set(strings) -> TextSet:
    """Texts with token ids that stand for their words."""
    return TextSet(strings, Ragged.from_rows([[WORDS.index(word) for word in each.split()] for each in strings]))


@pytest.fixture(scope="session")
def words() -> LabelledTexts:
    """Two words are a query, and they are its labels."""
    rng = np.random.default_rng(0)
    pairs = [sorted(rng.choice(len(WORDS), size=2, replace=False).tolist()) for _ in range(120)]
    queries = text_set([" ".join(WORDS[i] for i in pair) for pair in pairs])
    return LabelledTexts(queries, text_set(list(WORDS)), Ragged.from_rows(pairs))


@pytest.fixture(scope="session")
def asked() -> TextSet:
    """Queries whose two labels are the words that they consist of."""
    return text_set(["cat river", "apple red", "house violin"])


@pytest.fixture(scope="session")
def expected() -> list[set[int]]:
    """The labels of these queries."""
    return [{3, 5}, {0, 8}, {4, 7}]
