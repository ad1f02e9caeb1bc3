"""The table of results that is shown to people."""

from collections.abc import Iterable, Mapping

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import SHOWN
from prime_xmc.printing import visible

_TABLE_WIDTH = 100  # characters that a line of the table of results needs


def format_table(methods: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table for people: one row per method, in percent, the best of each column in bold.

    Args:
        methods: metrics as ``evaluate`` returns them, by the name of the method. A missing one is shown as a dash.
    """
    table = Table()
    table.add_column("method")
    for name in SHOWN:
        table.add_column(name, justify="right")
    # Compared as shown: methods that read the same are both the best.
    percent = {method: {name: round(100 * value, 2) for name, value in row.items()} for method, row in methods.items()}
    best = {name: max(row.get(name, -np.inf) for row in percent.values()) for name in SHOWN} if percent else {}
    for method, row in percent.items():
        cells = [
            Text(f"{row[name]:.2f}", style="bold" if len(percent) > 1 and row[name] == best[name] else "")
            if name in row
            else Text("–")
            for name in SHOWN
        ]
        table.add_row(Text(visible(method)), *cells)
    return table


def print_table(methods: Mapping[str, Mapping[str, float]]) -> None:
    """Print the table that ``format_table`` makes; one without rows is left out."""
    if methods:
        # Where there is less room, lines that wrap are better than numbers that are cut.
        Console(width=max(Console().width, _TABLE_WIDTH)).print(format_table(methods))


def print_notes(notes: Iterable[str | None]) -> None:
    """Print sentences that belong to a table of results, a line each; None stands for none."""
    for note in notes:
        if note is not None:
            Console().print(visible(note), highlight=False, markup=False)


def describe_unlabelled(positives: Ragged, queries: str) -> str | None:
    """Return a sentence on the queries without labels, which shape the metrics; None where there are none of them.

    Args:
        positives: The true labels of each query.
        queries: What the queries are called, such as "test queries".

    Example:
        >>> describe_unlabelled(Ragged.from_rows([[3], [], [1]]), "test queries")
        '1 of 3 test queries has no label and counts as a miss in P, nDCG and R'
    """
    num_without = int((positives.lengths == 0).sum())
    if num_without == 0:
        return None
    if num_without == len(positives):
        return f"none of the {len(positives):,} {queries} has a label, so there are no metrics of them"
    rest = "has no label and counts as a miss" if num_without == 1 else "have no label and count as misses"
    return f"{num_without:,} of {len(positives):,} {queries} {rest} in P, nDCG and R"
