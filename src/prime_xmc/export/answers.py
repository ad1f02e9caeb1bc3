"""What is predicted, as lines of JSON, and a sign of life while it takes long."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from prime_xmc.export.predictor import Prediction
from prime_xmc.files import replacing

logger = logging.getLogger(__name__)

_SECONDS = 30.0  # between two lines of the log


def to_json(prediction: Prediction, others: Mapping[str, Any] | None = None) -> str:
    """Return a prediction as a line of JSON: the record's other fields, then `query` and `labels`.

    A field of the record that is called `query` or `labels` itself becomes `input_query` or `input_labels`.

    Args:
        prediction: The query and its labels.
        others: Fields of the record beside its text.
    """
    others = others or {}
    line: dict[str, Any] = {}
    for field, value in others.items():
        name = field
        while name in ("query", "labels") or (name != field and name in others):
            name = f"input_{name}"
        line[name] = value
    line["query"] = prediction.query
    line["labels"] = [
        {"uid": label.uid, "text": label.text, "score": round(label.score, 6)} for label in prediction.labels
    ]
    text = json.dumps(line, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a character in another field, which has to stay escaped
        text = json.dumps(line)
    return f"{text}\n"


@contextmanager
def open_output(path: Path | None) -> Iterator[BinaryIO]:
    """Open standard output, or a file that appears under its name when it is complete."""
    if path is None:
        yield sys.stdout.buffer
    else:
        with replacing(path) as temporary, temporary.open("wb") as file:
            yield file


@contextmanager
def counting(*, on_terminal: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of queries that have just been answered.

    Args:
        on_terminal: Whether the count is kept up to date on standard error; otherwise the log has a line of it every
            half a minute.
    """
    if on_terminal:
        columns = TextColumn("{task.completed:,.0f} queries answered"), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("predict", total=None)
            yield lambda count: progress.advance(task, count)
        return
    total, last = 0, time.monotonic()

    def count_up(count: int) -> None:
        nonlocal total, last
        total += count
        if time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            logger.info("%s queries answered", f"{total:,}")

    yield count_up
