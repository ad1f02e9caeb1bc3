"""What is odd but harmless in raw files: how often it occurs, in which line first, and what is done about it."""

from typing import Any

HANDLING = {
    "empty text": "kept, although it consists of special tokens alone",
    "text without tokens": "kept, although the tokenizer leaves nothing of it but special tokens",
    "text of unknown tokens alone": "kept, although the tokenizer knows none of its words",
    "many unknown tokens": "kept; an encoder whose tokenizer knows the language and its signs would see more",
    "repeated label in a query": "the repetition is dropped",
    "label with a relevance of 0": "dropped, since it is not relevant to its query",
    "own label among the positives": "dropped, as the filter demands",
    "query without labels": "kept, but not trained on, and a miss where it is ranked",
    "label without training queries": "kept, although nothing but its text describes it",
    "test query with the text of a training query": (
        "kept, although the model has seen the answer, which makes metrics too high; prime-xmc-audit shows them"
    ),
    "repeated label text": "kept as a label of its own, although its text does not distinguish it from an earlier one",
    "label whose tokens are those of another": (
        "kept, although the encoder cannot distinguish its text from that of an earlier label"
    ),
    "repeated label uid": "kept, although predictions name both labels by the same uid; give each label its own",
    "no filter file": "no label is filtered in this split, although the other split has a filter",
}
"""What happens to each kind of oddity."""


class Oddities:
    """Counts of what is odd, by file and kind, in the order in which they were first met."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, file: str, kind: str, line: int | None, count: int = 1, share: float | None = None) -> None:
        """Count an oddity.

        Args:
            file: Name of the raw file.
            kind: A key of `HANDLING`.
            line: Line of the first of them, from 1; None: no single line.
            count: Number of them.
            share: Part that they make up of all there are, where that says more than their number.
        """
        entry = {"file": file, "kind": kind, "count": 0, "first_line": line, "handling": HANDLING[kind]}
        if share is not None:
            entry["share"] = share
        self._entries.setdefault((file, kind), entry)["count"] += count

    def update(self, later: "Oddities") -> None:
        """Append oddities of other files or kinds."""
        self._entries |= later._entries

    def to_list(self) -> list[dict[str, Any]]:
        """Return them as plain JSON."""
        return list(self._entries.values())


def sentence(oddity: dict[str, Any]) -> str:
    """Return an entry of `Oddities.to_list` for people."""
    details = []
    if oddity["first_line"] is not None:
        details.append(f"{oddity['count']:,}, the first in line {oddity['first_line']}")
    if "share" in oddity:
        details.append(f"{oddity['count']:,}, {100 * oddity['share']:.0f} % of all")
    where = f" ({'; '.join(details)})" if details else ""
    return f"{oddity['file']}: {oddity['kind']}{where}: {oddity['handling']}"
