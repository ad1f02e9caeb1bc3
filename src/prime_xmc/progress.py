"""Progress of work that takes a while: a bar on standard error where that is a terminal, and nothing elsewhere."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def is_terminal() -> bool:
    """Return whether standard error is a terminal, on which a bar can be drawn again and again."""
    return sys.stderr.isatty()


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Return the items, with a bar that shows how many have been taken and goes when all have been.

    Args:
        items: What is worked on.
        description: What is done.
        total: Number of items; None: their length.
    """
    if not is_terminal():
        return items
    return _with_bar(items, description, total)


def _with_bar(items: Iterable[Item], description: str, total: int | None) -> Iterable[Item]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=description)
