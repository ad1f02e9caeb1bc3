"""Results in words: shares by hand, and the advice that they lead to."""

import re

import numpy as np
import pytest

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.in_words import print_in_words, put_in_words


def test_shares_by_hand():
    ranked = np.array([[0, 1, 2], [2, 1, -1], [3, 4, 0], [1, 2, 3]])
    positives = Ragged.from_rows([[0, 3], [1], [4], []])
    words = put_in_words(ranked, positives, np.array([25, 3, 0, 1, 1]))
    assert words.num_texts == 3
    assert words.first_right == pytest.approx(1 / 3)  # the first text's label 0
    assert words.found == pytest.approx(3 / 4)  # all but its label 3, of the first three answers
    assert [tuple(group) for group in words.groups] == [
        ("1", 2, 2, 0.5),
        ("2 to 4", 1, 1, 1.0),
        ("20 or more", 1, 1, 1.0),
    ]


def test_only_the_first_ten_answers_count():
    ranked = np.arange(12)[None]
    assert put_in_words(ranked, Ragged.from_rows([[9, 10]]), np.ones(30, dtype=np.int64)).found == 0.5


@pytest.mark.parametrize(
    ("num_labels", "found", "sentence"),
    [
        (30, 10 / 12, "83% of all right labels are among the first 10 answers (R@10 is the mean over texts)."),
        (29, 3 / 12, "25% of all right labels are among the first 3 answers."),
        (3, 1 / 3, "33% of all right labels are the first answer."),
    ],
)
def test_of_few_labels_fewer_answers_count(num_labels, found, sentence, capsys):
    """Of twelve labels, ten answers hold most whatever they are worth."""
    ids = np.arange(min(12, num_labels))
    words = put_in_words(ids[None], Ragged.from_rows([ids]), np.ones(num_labels, dtype=np.int64))
    assert words.found == pytest.approx(found)
    print_in_words(words, "test")
    printed = " ".join(capsys.readouterr().out.split())
    assert "of 1 test text: the first answer is right for 100%" in printed
    assert sentence in printed
    assert "Only 1 text was tested" in printed


def test_nothing_to_say_without_labels():
    assert put_in_words(np.array([[0]]), Ragged.from_rows([[]]), np.array([1])) is None


def many(of_rare: float, of_often: float, rare_frequency: int = 1):
    """500 texts with label 0, which is rare, and 500 with label 1, found for the given shares of them."""
    rows = [[0]] * 500 + [[1]] * 500
    ranked = np.full((1000, 2), 2)
    ranked[:, 1] = 3
    ranked[: round(500 * of_rare), 0] = 0
    ranked[500 : 500 + round(500 * of_often), 0] = 1
    return put_in_words(ranked, Ragged.from_rows(rows), np.array([rare_frequency, 30, 9, 9]))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (many(0.2, 0.8), "fewer than five, which are 50% of what is to be found, .* found 20% of the time, others 80%"),
        (
            many(0.2, 0.8, rare_frequency=0),
            "without a training text are found by their own text alone, 20% of the time",
        ),
        (many(0.45, 0.4), "look at wrong answers"),
        (many(0.8, 0.85), "a larger encoder may help"),
    ],
)
def test_advice(words, advice):
    assert re.search(advice, words.advice)


def test_few_texts_say_little():
    words = put_in_words(np.array([[0]] * 25), Ragged.from_rows([[0]] * 20 + [[1]] * 5), np.array([9, 9]))
    # twice the standard error of 22 of 29 is 0.159
    assert words.advice.startswith("Only 25 texts were tested, so that the share of right first answers is known to")
    assert "within about 16 points" in words.advice
    all_right = put_in_words(np.array([[0]] * 4), Ragged.from_rows([[0]] * 4), np.array([9]))
    assert "within about 31 points" in all_right.advice  # twice the standard error of 6 of 8


def test_what_is_printed(capsys):
    print_in_words(many(0.2, 0.8), "test")
    printed = " ".join(capsys.readouterr().out.split())
    assert "of 1,000 test texts: the first answer is right for 50%, and 50% of all right labels are among" in printed
    assert "│ 20 or more │ 1 │ 80% │" in printed
