"""Published results to put beside one's own: those of the paper, which the package carries, or those of a file."""

import csv
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prime_xmc.evaluation.metrics import METRICS

logger = logging.getLogger(__name__)

PAPER = "paper"  # names the tables that the package carries
_CARRIED = Path(__file__).parent / "published.csv"
_NEEDED = ("dataset", "method", "metric", "value")
_ABLATIONS = {"5", "6", "9", "11"}  # tables of the paper that compare variants of a method rather than methods
PROTOTYPES = " (θ)"  # is put behind a method's name by the tables that have its classifiers too
CLASSIFIERS = " (W)"  # and behind that of these


@dataclass(frozen=True)
class PublishedResult:
    """What was published of a method on a data set.

    Attributes:
        dataset: Name of the data set.
        method: Name of the method; that of an encoder without the θ that some tables of the paper put behind it.
        kind: What scores the labels, such as "encoder"; empty if the file does not say.
        values: Metrics as fractions, where the file has percent. Of a metric that is in several tables of the paper,
            the first value.
        sources: Table that each metric is from, and what there is to say about the value; empty for nothing.
        is_variant: Whether only the paper's ablations have the method.
    """

    dataset: str
    method: str
    kind: str
    values: dict[str, float]
    sources: dict[str, str]
    is_variant: bool


def read_published(source: str) -> list[PublishedResult]:
    """Return published results, in the order of the file.

    Args:
        source: "paper": Tables 2 to 6, 8, 9 and 11 of the paper. Otherwise a CSV file with the columns `dataset`,
            `method`, `metric` (such as P@1) and `value` (in percent); it may have `table`, `kind` and `note` too. Rows
            of other metrics, such as sizes and hours, are passed over, with a warning where their names look like those
            of metrics of rankings.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a value is no number from 0 to 100, or another one of the same method,
            metric, data set and table stands before it; the message names file and line.
    """
    path = _CARRIED if source == PAPER else Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"published={source}: there is no such file; expected {PAPER}, or a CSV file of published results"
        )
    rows: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    values: dict[tuple[str, str], dict[str, float]] = {}
    unknown: set[str] = set()
    with _naming(path), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        if missing := [column for column in _NEEDED if column not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: no column {', '.join(missing)}; expected {', '.join(_NEEDED)}")
        for row in reader:
            metric, where = row["metric"], f"{path}, line {reader.line_num}"
            if metric not in METRICS:
                unknown |= {metric} if "@" in metric else set()
                continue
            method = row["method"].removesuffix(PROTOTYPES) if source == PAPER else row["method"]
            key, value = (row["dataset"], method), _percent(row["value"], where) / 100
            before = values.setdefault(key, {}).setdefault(metric, value)
            is_of_one_table = rows.get(key, {}).get(metric, row).get("table") == row.get("table")
            if before != value and is_of_one_table and source != PAPER:
                raise ValueError(
                    f"{where}: {metric} of {method} on {row['dataset']} is {row['value']}, and a line before says "
                    f"{100 * before:g}; give the method another name"
                )
            rows.setdefault(key, {}).setdefault(metric, row)
    if unknown and source != PAPER:
        logger.warning("%s: there are no metrics %s; expected %s", path, ", ".join(sorted(unknown)), ", ".join(METRICS))
    return [
        PublishedResult(
            dataset,
            method,
            kind=next(iter(by_metric.values())).get("kind", ""),
            values=values[dataset, method],
            sources={metric: _source(row) for metric, row in by_metric.items()},
            is_variant=source == PAPER and {row["table"] for row in by_metric.values()} <= _ABLATIONS,
        )
        for (dataset, method), by_metric in rows.items()
    ]


def find_result(results: Sequence[PublishedResult], dataset: str, method: str) -> PublishedResult:
    """Return what was published of a method on a data set.

    Raises:
        ValueError: If nothing was; the message names what there is.
    """
    on_dataset = [result for result in results if result.dataset == dataset]
    if not on_dataset:
        names = ", ".join(dict.fromkeys(result.dataset for result in results)) or "none"
        raise ValueError(f"there are no published results on {dataset}; the data sets with some are: {names}")
    for name in (method, method.removesuffix(PROTOTYPES), f"{method}{PROTOTYPES}"):
        for result in on_dataset:
            if result.method == name:
                return result
    names = "".join(f"\n  {result.method}" for result in on_dataset)
    raise ValueError(f"there are no published results of {method} on {dataset}; expected one of{names}")


def compared_methods(results: Iterable[PublishedResult], dataset: str) -> list[PublishedResult]:
    """Return the results on a data set to compare with, without the variants of the paper's ablations."""
    return [result for result in results if result.dataset == dataset and not result.is_variant]


def warn_of_names(results: Sequence[PublishedResult], datasets: Sequence[str], source: str) -> None:
    """Warn where there are no results on a data set, or where several data sets have the name that results are on."""
    for name, count in Counter(datasets).items():
        if not compared_methods(results, name):
            logger.warning("published=%s has no results on %s", source, name)
        elif count > 1:
            logger.warning(
                "published=%s: its results on %s stand with each of %d data sets of that name; dataset.name= gives "
                "them different ones",
                source,
                name,
                count,
            )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error}); save it as “CSV UTF-8”") from error


def _percent(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:  # neither is nan
        raise ValueError(f"{where}: expected a value from 0 to 100 percent, got {text!r}")
    return value


def _source(row: dict[str, str]) -> str:
    table = f"Table {row['table']}" if row.get("table") else ""
    return "; ".join(filter(None, (table, row.get("note"))))
