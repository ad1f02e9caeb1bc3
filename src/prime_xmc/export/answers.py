"""What is predicted, as records, and a sign of life while it takes long."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from prime_xmc.export.predictor import Prediction, ScoredLabel

logger = logging.getLogger(__name__)

_SECONDS = 30.0  # between two lines of the log


def to_record(prediction: Prediction, others: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a prediction as a record: the other fields of the input's record, then `query` and `labels`.

    A field of the input that is called `query` or `labels` itself becomes `input_query` or `input_labels`.

    Args:
        prediction: The query and its labels.
        others: Fields of the input's record that are to be kept.
    """
    record = without_clashes(others or {}, ("query", "labels"))
    record["query"] = prediction.query
    record["labels"] = [_label_record(label) for label in prediction.labels]
    return record


def without_clashes(fields: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Return fields of the input under names of which none is taken: those that are begin with `input_`."""
    renamed = {}
    for field, value in fields.items():
        name = field
        while name in taken or (name != field and name in fields):
            name = f"input_{name}"
        renamed[name] = value
    return renamed


def _label_record(label: ScoredLabel) -> dict[str, Any]:
    record: dict[str, Any] = {"uid": label.uid, "text": label.text, "score": round(label.score, 6)}
    if label.probability is not None:
        record["probability"] = round(label.probability, 6)
    if label.why is not None:
        why = label.why
        record["why"] = {
            "scorers": {name: round(share, 6) for name, share in why.scorers.items()},
            "sources": {name: round(share, 6) for name, share in why.sources.items()},
            "queries": [
                {name: value for name, value in query._asdict().items() if value is not None}
                | {"similarity": round(query.similarity, 6)}
                for query in why.queries
            ],
        }
    return record


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
