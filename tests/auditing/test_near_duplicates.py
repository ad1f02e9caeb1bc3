import numpy as np
import pytest

from prime_xmc.auditing.near_duplicates import WordSets, across, within


def sets_of(texts: list[str]) -> tuple[WordSets, np.ndarray]:
    sets = WordSets()
    for text in texts:
        sets.add(text)
    return sets, np.array([hash(text) for text in texts], dtype=np.int64)


def test_texts_that_share_most_words():
    texts = [
        "a fast editor for plain text files in the terminal",
        "something else entirely",
        "A fast editor for plain-text files, in the terminal!",  # the same words
        "a very fast editor for plain text files in the terminal",  # 10 of 11 words
        "a fast editor for images",  # 4 of 11
        "something else entirely",  # the same text, which is no near duplicate
        "",
        "",
    ]
    assert within(*sets_of(texts)).tolist() == [[2, 0], [3, 0]]


def test_across_two_files():
    train = sets_of(["unrelated", "red green blue black white", "x"])
    test = sets_of(["white black blue green red", "red green", "x"])
    assert across(*test, *train).tolist() == [[0, 1]]


def test_scripts_without_blanks_go_by_pairs_of_characters():
    base = "机器学习是人工智能的一个分支领域研究"
    assert within(*sets_of([base, f"{base}了", "完全不同的另一个句子"])).tolist() == [[1, 0]]


@pytest.mark.parametrize("texts", [[], ["", "..."]])
def test_nothing_to_compare(texts):
    assert within(*sets_of(texts)).shape == (0, 2)


def test_as_many_are_found_as_by_comparing_all():
    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(60)])
    texts = [" ".join(rng.choice(words, 12, replace=False)) for _ in range(150)]
    for text in list(texts):
        kept = text.split()
        kept[0] = "new"
        texts.append(" ".join(kept))  # 11 of 13 words: 0.846
    found = {row for row, _ in within(*sets_of(texts)).tolist()}
    assert {row for row in found if row < 150} == set()
    assert len(found) >= 0.95 * 150


def test_many_copies_are_not_compared_with_one_another():
    texts = [f"the same five words here {number % 2}" for number in range(3000)]
    assert len(within(*sets_of(texts))) == 0  # five of seven words: 0.71
    texts = [f"one two three four five six seven eight nine ten {number}" for number in range(500)]
    assert within(*sets_of(texts))[:, 0].tolist() == list(range(1, 500))  # ten of twelve words: 0.83
