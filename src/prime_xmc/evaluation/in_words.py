"""Results for people who do not know the metrics: how often an answer is right, for frequent and for rare labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64
from rich.console import Console
from rich.table import Table

from prime_xmc.data.corpus import Ragged

FIRST = 10  # answers that a person is assumed to look at
_FEW_LABELS, _FIRST_OF_FEW = 30, 3  # where labels are fewer, most of them would be among ten answers
_GROUPS = ((0, 0), (1, 1), (2, 4), (5, 19), (20, None))  # training texts of a label, from and to
_FEW_TEXTS = 200  # below that, an accuracy is known to within several points
_WIDE = 0.1  # difference between frequent and rare labels that is worth a word


class LabelGroup(NamedTuple):
    """Labels with about as many training texts.

    Attributes:
        name: The number of their training texts, for people.
        num_labels: Labels of the group that are right for some text.
        num_pairs: Pairs of a text and a right label of the group.
        found: Share of these pairs whose label is among the first ten answers.
    """

    name: str
    num_labels: int
    num_pairs: int
    found: float


class InWords(NamedTuple):
    """What a ranking of labels is worth, for people.

    Attributes:
        num_texts: Texts with a right label.
        first_right: Share of them whose first answer is right.
        first: Answers that a person is assumed to look at: ten, or three or one where there are few labels.
        found: Share of all right labels that are among these.
        groups: The same by how often a label occurs in training, from rare to frequent; empty groups are left out.
        advice: A sentence on what to do next.
    """

    num_texts: int
    first_right: float
    first: int
    found: float
    groups: Sequence[LabelGroup]
    advice: str


def put_in_words(
    ranked: Int[np.ndarray, "query k"], positives: Ragged, frequency: Int64[np.ndarray, " label"]
) -> InWords | None:
    """Return what a ranking is worth; None if no query has a label.

    Args:
        ranked: Best labels of each query, -1 where there are fewer; k of at least 10, or of all labels.
        positives: True labels of each query.
        frequency: Number of training queries of each label.
    """
    num_texts = int((positives.lengths > 0).sum())
    if num_texts == 0:
        return None
    labels, rows = positives.values.astype(np.int64), positives.row_ids()
    num_labels = len(frequency)
    first = FIRST if num_labels >= _FEW_LABELS else _FIRST_OF_FEW if num_labels > _FIRST_OF_FEW else 1
    is_found = (ranked[rows, :first] == labels[:, None]).any(axis=1)
    first_right = int((ranked[rows, 0] == labels).sum()) / num_texts
    groups, texts = [], frequency[labels]
    for least, most in _GROUPS:
        is_in = (texts >= least) & (True if most is None else texts <= most)
        if is_in.any():
            name = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            size = len(np.unique(labels[is_in]))
            groups.append(LabelGroup(name, size, int(is_in.sum()), float(is_found[is_in].mean())))
    return InWords(
        num_texts, first_right, first, float(is_found.mean()), groups, _advise(num_texts, first_right, groups)
    )


def _advise(num_texts: int, first_right: float, groups: Sequence[LabelGroup]) -> str:
    if num_texts < _FEW_TEXTS:
        # Agresti and Coull's interval: two more right and two more wrong, so that 4 of 4 is not known exactly
        share = (first_right * num_texts + 2) / (num_texts + 4)
        error = 100 * (share * (1 - share) / (num_texts + 4)) ** 0.5
        return (
            f"Only {_count(num_texts)} tested, so that the share of right first answers is known to within about "
            f"{max(1, round(2 * error))} points: test on more texts before you compare settings."
        )
    rare = [group for group in groups if group.name in ("1", "2 to 4")]
    often = [group for group in groups if group.name in ("5 to 19", "20 or more")]
    unseen = [group for group in groups if group.name == "0"]
    of_rare, of_often, of_unseen = (_share(part) for part in (rare, often, unseen))
    if of_often is not None and of_rare is not None and of_often - of_rare > _WIDE:
        share = sum(group.num_pairs for group in rare) / sum(group.num_pairs for group in groups)
        return (
            f"More training texts for labels with fewer than five, which are {share:.0%} of what is to be found, would "
            f"help most: they are found {of_rare:.0%} of the time, others {of_often:.0%}."
        )
    if of_unseen is not None and of_often is not None and of_often - of_unseen > _WIDE:
        return (
            f"Labels without a training text are found by their own text alone, {of_unseen:.0%} of the time: one "
            "example of each would help most."
        )
    if first_right < 0.5:
        return (
            "Rare labels are found about as often as frequent ones: look at wrong answers, since labels that mean the "
            "same, or texts that lack some of their labels, count as mistakes."
        )
    return "Rare labels are found about as often as frequent ones: more epochs or a larger encoder may help."


def _count(num_texts: int) -> str:
    return f"{num_texts} texts were" if num_texts > 1 else "1 text was"


def _share(groups: Sequence[LabelGroup]) -> float | None:
    num_pairs = sum(group.num_pairs for group in groups)
    return sum(group.found * group.num_pairs for group in groups) / num_pairs if num_pairs else None


def _among(first: int) -> str:
    return f"among the first {first} answers" if first > 1 else "the first answer"


def print_in_words(words: InWords, split: str) -> None:
    """Print the sentences and the table.

    Args:
        words: What a ranking is worth.
        split: What the texts are called, such as "test".
    """
    console = Console()
    texts = f"{words.num_texts:,} {split} text{'s' * (words.num_texts > 1)}"
    mean = f" (R@{FIRST} is the mean over texts)" if words.first == FIRST else ""
    console.print(
        f"In words, of {texts}: the first answer is right for {words.first_right:.0%}, and {words.found:.0%} of all "
        f"right labels are {_among(words.first)}{mean}.",
        highlight=False,
        markup=False,
    )
    table = Table()
    for column in ("training texts of a label", "labels", f"found {_among(words.first)}"):
        table.add_column(column, justify="right")
    for group in words.groups:
        table.add_row(group.name, f"{group.num_labels:,}", f"{group.found:.0%}")
    console.print(table)
    console.print(words.advice, highlight=False, markup=False)
