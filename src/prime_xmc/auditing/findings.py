"""The kinds of findings, from errors to remarks, with what each does to training and metrics and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "remark"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "remark")


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        severity: "error": training makes no sense; "warning": metrics or the model suffer; "remark": worth knowing.
        title: What was found, in a few words.
        effect: What it does to training and metrics.
        advice: What to do.
    """

    severity: Severity
    title: str
    effect: str
    advice: str


KINDS = {
    "no_labelled_query": Kind(
        "error",
        "No training query has a label",
        "There is nothing to learn from.",
        "Check the column of labels, or that target_ind holds line numbers of lbl.json.",
    ),
    "one_label": Kind(
        "error",
        "There is a single label",
        "Every answer is the same, so that there is nothing to rank.",
        "Add the labels that the queries do not have, or check how the labels of a cell are separated.",
    ),
    "all_empty": Kind(
        "error",
        "All texts are empty",
        "An encoder cannot distinguish them.",
        "Name the fields that hold the text by dataset.fields, those of labels by dataset.label_fields.",
    ),
    "no_labelled_test_query": Kind(
        "warning",
        "No test query has a label",
        "There are no metrics of the test split, whatever the model does.",
        "Give the test queries their labels, or leave the test file out: some training queries are then split off.",
    ),
    "empty_query": Kind(
        "warning",
        "Queries without text",
        "In training they pull the vectors of their labels to one place; in the test split they are misses.",
        "Remove them, or add another field to dataset.fields.",
    ),
    "empty_label": Kind(
        "warning",
        "Labels without text",
        "They are known by their training queries alone; of those with few queries the model knows nothing.",
        "Give each label a name that a person would understand.",
    ),
    "query_without_labels": Kind(
        "warning",
        "Queries without labels",
        "They are not trained on. In the test split each counts as a miss in P, nDCG and R, which lowers all of these.",
        "Remove them, unless “no label” is what you want to measure.",
    ),
    "conflicting_queries": Kind(
        "warning",
        "Training queries of one text with different labels",
        "Each teaches that the labels of the other are wrong, since a batch takes all other labels as negatives.",
        "Make them one query with all of the labels: prime_xmc.convert does so with group_by=text.",
    ),
    "duplicate_query": Kind(
        "remark",
        "Queries with the same text as an earlier one in the file",
        "What is repeated counts several times, in training and in the metrics.",
        "Remove the repetitions, unless your users ask them as often.",
    ),
    "near_duplicate_query": Kind(
        "remark",
        "Training queries that are nearly the same as an earlier one",
        "They share at least 80 % of their words. They count nearly twice, like repeated ones.",
        "Nothing where queries are short; otherwise look at the examples and remove what was copied.",
    ),
    "leaked_query": Kind(
        "warning",
        "Test queries whose text is in the training queries too",
        "The model has seen the answer, so that metrics are higher than for new queries.",
        "Remove them from one of the two files.",
    ),
    "nearly_leaked_query": Kind(
        "remark",
        "Test queries that are nearly the same as a training query",
        "They share at least 80 % of their words with it. Metrics are higher than for queries of another kind.",
        "Nothing if new queries will resemble old ones as much; otherwise split by time, author or source.",
    ),
    "label_without_queries": Kind(
        "remark",
        "Labels without a training query",
        "The model knows them by their text alone, and finds them less often; PSP@k weighs them most.",
        "Collect a few queries for them, and give them telling texts.",
    ),
    "unseen_test_label": Kind(
        "remark",
        "Labels of test queries that no training query has",
        "They can be found by their text alone, which lowers R@k.",
        "Move a query of each to the training file; prime_xmc.convert splits so that every label keeps one.",
    ),
    "label_text_repeated": Kind(
        "warning",
        "Labels with the same text as an earlier one",
        "The text encoder cannot distinguish them; only their training queries can.",
        "Merge those that mean the same; to others add what distinguishes them (dataset.label_fields).",
    ),
    "near_duplicate_label": Kind(
        "remark",
        "Labels that are nearly the same as an earlier one",
        "They share at least 80 % of their words and are easily taken for each other: a first answer may be the twin.",
        "Merge those that mean the same.",
    ),
    "label_uid_repeated": Kind(
        "warning",
        "Labels with the same uid as an earlier one",
        "Predictions name both by it, so that nobody can tell which one is meant.",
        "Give each label a uid of its own.",
    ),
    "self_pair": Kind(
        "warning",
        "Queries that have themselves as label",
        "Query and label have the same text or uid, so that copying the query is right. Metrics are too high.",
        "Filter these pairs: write_filters=true writes them to the filter files.",
    ),
    "unfiltered_self": Kind(
        "warning",
        "Queries that are labels themselves, without a filter",
        "The most similar label of such a query is itself. It is no label of the query, so that it counts as a miss.",
        "Filter these pairs: write_filters=true writes them to the filter files.",
    ),
    "reciprocal_pair": Kind(
        "warning",
        "Test pairs whose reverse is in the training data",
        "Where A has the label B in training, the test asks B for A: the answer has been seen. Metrics are too high.",
        "Filter these pairs (write_filters=true), if the relation of query and label holds in both directions.",
    ),
    "replacement_character": Kind(
        "warning",
        "Texts with the replacement character �",
        "Letters were lost when the text was decoded wrongly. Tokenizers make an unknown token of each.",
        "Read the source again with its right encoding, often cp1252 or latin-1.",
    ),
    "mojibake": Kind(
        "warning",
        "Texts whose letters were decoded wrongly",
        "Such as “cafÃ©” for “café”: the tokenizer makes several odd tokens of each letter, and words do not match.",
        "Read the source again as UTF-8; the library ftfy repairs most of what is left.",
    ),
    "control_character": Kind(
        "remark",
        "Texts with control characters",
        "Tokenizers drop them or make unknown tokens of them, and words may grow together.",
        "Replace them by blanks.",
    ),
    "long_text": Kind(
        "remark",
        "Texts with more tokens than are read",
        "What follows after dataset.max_length tokens is cut off, and does not count.",
        "If the end matters, raise dataset.max_length; twice the tokens take about twice the time.",
    ),
    "many_long_texts": Kind(
        "warning",
        "Files in which many texts have more tokens than are read",
        "What follows after dataset.max_length tokens is cut off, and does not count.",
        "Raise dataset.max_length, unless the beginning says it all; twice the tokens take about twice the time.",
    ),
    "byte_order_mark": Kind(
        "remark",
        "Files that begin with a byte-order mark",
        "It is passed over here. Other tools may take it for a part of the first line.",
        "Save the file as UTF-8 without a mark.",
    ),
    "windows_line_ends": Kind(
        "remark",
        "Files with line ends of Windows",
        "They are read like others.",
        "Nothing has to be done.",
    ),
}


@dataclass(frozen=True)
class Occurrence:
    """Where something was found.

    Attributes:
        file: Name of the file.
        line: Line, from 1.
        text: Beginning of the text there.
        other: The other part of a pair: file, line and text of an earlier query, or the label; empty if there is none.
    """

    file: str
    line: int
    text: str
    other: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that was found in a file.

    Attributes:
        kind: A key of `KINDS`.
        file: Name of the file.
        count: How often.
        total: Number that could have been found.
        examples: At most three.
        note: Further numbers, a sentence; empty for none.
    """

    kind: str
    file: str
    count: int
    total: int
    examples: tuple[Occurrence, ...] = ()
    note: str = ""

    @property
    def about(self) -> Kind:
        """The kind, with what it does and what to do."""
        return KINDS[self.kind]

    @property
    def share(self) -> float:
        """Part that it makes up, from 0 to 1."""
        return self.count / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON."""
        return {
            "kind": self.kind,
            "severity": self.about.severity,
            "title": self.about.title,
            "file": self.file,
            "count": self.count,
            "total": self.total,
            "share": self.share,
            "examples": [vars(example) for example in self.examples],
            "note": self.note,
            "effect": self.about.effect,
            "advice": self.about.advice,
        }

    def sentence(self) -> str:
        """Return the finding in a line for people."""
        said = f"{self.file}: {self.about.title[0].lower()}{self.about.title[1:]}"
        return said if self.total <= 1 else f"{said}: {self.amount()}"

    def amount(self) -> str:
        """Return count and share for people."""
        if self.total <= 1:
            return "yes"
        share = 100 * self.share
        shown = f"{share:.1f}" if share >= 0.05 else "< 0.1"
        return f"{self.count:,} of {self.total:,} ({shown} %)"


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with the worst first, and among equals those of the largest share."""
    return sorted(findings, key=lambda each: (SEVERITIES.index(each.about.severity), -each.share))
