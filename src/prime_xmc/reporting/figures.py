"""The charts of a report as plain values: one series for each configuration, without any drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from prime_xmc.reporting.configurations import Configuration, negative_pool
from prime_xmc.reporting.statistics import bin_names, summary
from prime_xmc.reporting.study import BINNED, COVERAGE_K, LARGEST, Study

_LEARNING = ("train/loss", "val/P@1", "val/P@5", "val/PSP@1", "val/PSP@5", "val/R@100")
_AGAINST_COST = ("P@1", "PSP@5")
_LEAST_COST = 0.1  # CPU seconds, or passes
_SHARES = ("train/violators", "train/clipped_margins")  # between 0 and 1 for every loss, so they share a scale
_OTHER_SCALE = 10.0  # configurations whose losses differ by more than this factor get charts of their own
_WIDE_RANGE = 50.0  # an axis is logarithmic if the largest value is more than so many times the smallest
_NAMES = {"lr": "learning rate", "loss": "training loss"}


@dataclass(frozen=True)
class Point:
    """A value of a configuration.

    Attributes:
        x: Horizontal place; in a chart of bars the number of the group, in a chart of rows the value.
        y: Vertical place; unused in a chart of rows.
        low: Lower end of its bar or band; equal to the value where nothing is known of its spread.
        high: Upper end.
        note: Text for a reader who points at it.
    """

    x: float
    y: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Series:
    """What a chart shows of one configuration.

    Attributes:
        place: The configuration's place in the study, which chooses its colour, marker and dashes.
        name: The configuration's name.
        points: Its values from left to right.
        radius: Radius of its markers in pixels.
    """

    place: int
    name: str
    points: tuple[Point, ...]
    radius: float = 3.5


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: What it shows, with the unit of the values.
        kind: Lines with bands, points with error bars, bars side by side, or a row with one value for each series.
        series: One for each configuration that has values.
        x_title: Meaning of the horizontal axis.
        x_ticks: Places and texts of its ticks; empty: chosen by the values.
        x_log: Whether the horizontal axis is logarithmic.
        y_log: Whether the axis of the values is logarithmic.
        named: Whether each point has its name beside it, for which the chart is larger.
        file: Name of a file with the chart alone, without its ending; empty for none.
    """

    title: str
    kind: Literal["lines", "points", "bars", "rows"]
    series: tuple[Series, ...]
    x_title: str
    x_ticks: tuple[tuple[float, str], ...] = ()
    x_log: bool = False
    y_log: bool = False
    named: bool = False
    file: str = ""


def learning_curves(study: Study) -> list[Chart]:
    """Return loss and validation metrics by epoch: means over seeds, and the band from the lowest to the highest.

    What is no finite number, or a huge one, has no point in them.
    """
    return [chart for name in _LEARNING for chart in _by_epoch(study, name)]


def diagnostics(study: Study) -> list[Chart]:
    """Return the terms of the loss, violators, clipped margins, centroid drift and learning rate by epoch."""
    logged = [
        name
        for configuration in study.runs.configurations
        for run in configuration.runs
        for row in run.epochs
        for name in row
        if name is not None
    ]
    names = [name for name in dict.fromkeys(logged) if name.startswith("train/") and name not in _LEARNING]
    return [chart for name in (*names, "lr") for chart in _by_epoch(study, name)]


def cost(study: Study) -> list[Chart]:
    """Return accuracy against training time and, where configurations differ in it, against the pool of negatives."""
    configurations = study.runs.configurations
    minutes = [_minutes(configuration) for configuration in configurations]
    pools = [negative_pool(configuration) for configuration in configurations]
    distinct = sorted({pool for pool in pools if pool is not None})
    pool_ticks = tuple((float(pool), f"{pool:,}") for pool in distinct)
    charts = []
    for metric in _AGAINST_COST:
        of_time, of_pool = [], []
        for place, configuration in enumerate(configurations):
            values, time, pool = configuration.final(f"test/{metric}"), minutes[place], pools[place]
            if values and time is not None:
                of_time.append(_at(place, configuration, values, time, "minutes", radius=5.5))
            if values and pool is not None:
                of_pool.append(_at(place, configuration, values, float(pool), "negatives", radius=_blob(configuration)))
        if of_time:
            charts.append(
                Chart(f"{metric} (%) against training time", "points", tuple(of_time), x_title="minutes of training")
            )
        if of_pool and len(distinct) > 1:
            charts.append(
                Chart(
                    f"{metric} (%) against negatives",
                    "points",
                    tuple(of_pool),
                    x_title="negative pool of a query",
                    x_ticks=pool_ticks,
                    x_log=True,
                )
            )
    return charts


def against_cost(study: Study) -> list[Chart]:
    """Return accuracy against what training cost, with the name of each configuration, on a logarithmic axis.

    The cost is that in seconds of all processors, where at least two configurations have measured it, and in passes of
    the encoder, where at least two have. What costs less than a tenth of either is left out: it would push all others
    into a corner of the axis. Of configurations that a GPU has trained, only the passes say something.
    """
    kinds = (
        ("train/cpu_seconds", "cpu", "CPU seconds of training", "CPU seconds"),
        ("train/passes", "passes", "passes of the bare encoder", "passes"),
    )
    charts = []
    for key, short, title, unit in kinds:
        for metric in _AGAINST_COST:
            series = []
            for place, configuration in enumerate(study.runs.configurations):
                values, costs = configuration.final(f"test/{metric}"), configuration.final(key)
                on_gpu = key == "train/cpu_seconds" and configuration.final("peak_device_memory_bytes")
                if values and costs and not on_gpu and (spent := summary(costs)[0]) >= _LEAST_COST:
                    series.append(_at(place, configuration, values, spent, unit, radius=4.5))
            if len(series) > 1:
                charts.append(
                    Chart(
                        f"{metric} (%) against {title}",
                        "points",
                        tuple(series),
                        x_title=f"{title} (logarithmic)",
                        x_log=True,
                        named=True,
                        file=f"{metric.replace('@', '')}_against_{short}",
                    )
                )
    return charts


def label_frequency(study: Study) -> list[Chart]:
    """Return what each bin of labels contributes to P@5 and PSP@5."""
    charts = []
    for metric in BINNED:
        series = []
        for place, configuration in enumerate(study.runs.configurations):
            if evaluations := study.evaluations.get(configuration.name):
                by_bin = 100 * np.stack([evaluation.by_bin[metric] for evaluation in evaluations])
                points = []
                for group, (column, bin_name) in enumerate(zip(by_bin.T, bin_names(), strict=True)):
                    mean, deviation = summary(column)
                    spread = deviation or 0.0
                    note = f"labels with {bin_name} training queries: {_with_deviation(mean, deviation)} points"
                    points.append(Point(float(group), mean, mean - spread, mean + spread, note))
                series.append(Series(place, configuration.name, tuple(points)))
        if series:
            charts.append(
                Chart(
                    f"Contribution to {metric} (points)",
                    "bars",
                    tuple(series),
                    x_title="training queries of the label",
                    x_ticks=tuple((float(group), name) for group, name in enumerate(bin_names())),
                )
            )
    return charts


def coverage(study: Study) -> list[Chart]:
    """Return the share of labels that are found at least once among the first k."""
    series = []
    for place, configuration in enumerate(study.runs.configurations):
        if evaluations := study.evaluations.get(configuration.name):
            by_run = 100 * np.array([[run.macro[f"coverage@{k}"] for k in COVERAGE_K] for run in evaluations])
            points = [_over_runs(k, column, f"k = {k}", " %") for k, column in zip(COVERAGE_K, by_run.T, strict=True)]
            series.append(Series(place, configuration.name, tuple(points)))
    if not series:
        return []
    ticks = tuple((float(k), str(k)) for k in COVERAGE_K)
    return [Chart("Coverage at k (%)", "lines", tuple(series), x_title="k", x_ticks=ticks, x_log=True)]


def _by_epoch(study: Study, name: str) -> list[Chart]:
    """Return the charts of one logged value: several if the scales of the configurations are far apart."""
    is_metric = name.startswith("val/")
    scale, unit = (100, " %") if is_metric else (1, "")
    series = []
    for place, configuration in enumerate(study.runs.configurations):
        by_run = [
            {
                int(row["epoch"]) + 1: scale * row[name]
                for row in run.epochs
                if abs(row.get(name, math.inf)) <= LARGEST and math.isfinite(row.get("epoch", math.nan))
            }
            for run in configuration.runs
        ]
        by_run = [values for values in by_run if values]
        epochs = sorted(set.intersection(*(set(values) for values in by_run))) if by_run else []
        points = [
            _over_runs(epoch, np.array([values[epoch] for values in by_run]), f"epoch {epoch}", unit)
            for epoch in epochs
        ]
        if points:
            series.append(Series(place, configuration.name, tuple(points)))
    if not series:
        return []
    shown = name.removeprefix("val/").removeprefix("train/").replace("_", " ")
    title = f"Validation {shown} (%)" if is_metric else _NAMES.get(shown, shown).capitalize()
    groups = [series] if is_metric or name in _SHARES else _by_scale(series)
    charts = []
    for group in groups:
        highest = max(point.high for member in group for point in member.points)
        shown = f"{highest:,.0f}" if highest >= 100 else f"{highest:.3g}"
        suffix = "" if len(groups) == 1 else f", values up to {shown}"
        charts.append(_curves(f"{title}{suffix}", group, may_be_log=not is_metric))
    return charts


def _curves(title: str, series: Sequence[Series], *, may_be_log: bool) -> Chart:
    """Return curves by epoch, or rows with one value each where no configuration has a second epoch."""
    points = [point for member in series for point in member.points]
    lowest, highest = min(point.low for point in points), max(point.high for point in points)
    is_log = may_be_log and lowest > 0 and highest > _WIDE_RANGE * lowest
    if any(len(member.points) > 1 for member in series):
        return Chart(title, "lines", tuple(series), x_title="epoch", y_log=is_log)
    epochs = {int(point.x) for point in points}
    when = f"after epoch {epochs.pop()}" if len(epochs) == 1 else "after the only epoch that has a value"
    rows = tuple(
        Series(member.place, member.name, tuple(Point(p.y, 0.0, p.low, p.high, p.note) for p in member.points), 5.0)
        for member in series
    )
    return Chart(f"{title} {when}", "rows", rows, x_title="", y_log=is_log)


def _by_scale(series: Sequence[Series]) -> list[list[Series]]:
    """Divide curves into groups of similar size; within a group they keep the order of the configurations."""

    def size(member: Series) -> float:
        return float(np.median([abs(point.y) for point in member.points]))

    ordered = sorted(series, key=size)
    groups = [[ordered[0]]]
    for smaller, larger in pairwise(ordered):
        if 0 < _OTHER_SCALE * size(smaller) < size(larger):
            groups.append([])
        groups[-1].append(larger)
    return [sorted(group, key=lambda member: member.place) for group in groups]


def _over_runs(x: int, values: np.ndarray, at: str, unit: str) -> Point:
    """Return the mean over runs, with the band from the lowest to the highest."""
    mean, low, high = float(values.mean()), float(values.min()), float(values.max())
    spread = f" (seeds: {low:.4g} to {high:.4g})" if len(values) > 1 else ""
    return Point(float(x), mean, low, high, f"{at}: {mean:.4g}{unit}{spread}")


def _at(
    place: int, configuration: Configuration, values: Sequence[float], x: float, unit: str, *, radius: float
) -> Series:
    mean, deviation = summary([100 * value for value in values])
    spread = deviation or 0.0
    batch = configuration.settings.get("sampling.batch_size")
    note = f"{_with_deviation(mean, deviation)} % at {x:,.4g} {unit}" + ("" if batch is None else f", batch of {batch}")
    return Series(place, configuration.name, (Point(x, mean, mean - spread, mean + spread, note),), radius)


def _with_deviation(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _minutes(configuration: Configuration) -> float | None:
    seconds = configuration.final("train/seconds")
    return summary(seconds)[0] / 60 if seconds else None


def _blob(configuration: Configuration) -> float:
    """Return a radius that grows with the batch, as in Figure 1 of the paper."""
    batch = configuration.settings.get("sampling.batch_size")
    return 3 + float(np.sqrt(batch)) / 4 if isinstance(batch, int) else 5.5
