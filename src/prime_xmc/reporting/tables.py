"""The tables of a report."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from prime_xmc.evaluation.metrics import METRICS, SHOWN
from prime_xmc.reporting.configurations import Configuration, differences, negative_pool
from prime_xmc.reporting.published import PublishedResult, compared_methods
from prime_xmc.reporting.run_folders import precision_of
from prime_xmc.reporting.statistics import bin_names, summary
from prime_xmc.reporting.study import BINNED, COVERAGE, MACRO, Study

LEVEL = 0.05  # p-values below it count as significant
ACROSS = ("P@1", "PSP@5", "R@100")  # metrics of the table across data sets
_DASH = "–"
_ON_GPU = "peak_device_memory_bytes"  # only runs on a GPU have it
# What trainings and baselines measure, and runs of version 0.1.0 do not: header of the column, how a value is shown.
_MEASURED: dict[str, tuple[str, Callable[[Any], str]]] = {
    "train/cpu_seconds": ("CPU s", lambda value: f"{value:.1f}"),
    "model_bytes": ("model MB", lambda value: f"{value / 1e6:.1f}"),
    "predict/milliseconds_per_query": ("ms a query", lambda value: f"{value:.2f}"),
}
_ABOUT_MEASURED = (
    " CPU s are the seconds of all processors from the prepared texts to the finished model, model MB what it takes to "
    "predict, and ms a query the milliseconds of one processor from a text to its ranking, where no GPU has computed."
)
_PASSES = (
    " Passes measure all that leads to the finished model, from the start on and without the test, in units of the "
    "time that the bare encoder takes forward and backward over all training and label texts on the same machine."
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Text or number.
        deviation: Number after the sign ±; empty for none.
        mark: Whether the value is significantly better or worse than that of the baseline.
        best: Whether it is the best value of its column.
        note: Further information, shown to a reader who points at the cell.
        interval: Interval, which may stand in a second line; empty for none.
    """

    text: str
    deviation: str = ""
    mark: Literal["", "better", "worse"] = ""
    best: bool = False
    note: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Name of its files.
        title: Title of a few words.
        caption: Explanation of the numbers.
        header: Name of each column.
        rows: Cells of each row, one for each column.
        records: The same content for machines, in fractions rather than percent, seconds and bytes.
        num_text_columns: Number of columns at the left that hold text; the others hold numbers.
    """

    name: str
    title: str
    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    records: list[dict[str, Any]]
    num_text_columns: int = 1

    @property
    def marked(self) -> bool:
        """Whether at least one cell is marked as better or worse."""
        return any(cell.mark for row in self.rows for cell in row)


def make_tables(study: Study, published: Sequence[PublishedResult] = ()) -> list[Table]:
    """Return the tables of a data set; a table without rows is left out.

    Args:
        study: The data set's runs, compared.
        published: Published results, of which those on this data set stand below the test metrics.
    """
    tables = [
        _with_published(_results(study, "test"), compared_methods(published, study.runs.dataset)),
        _comparison(study),
        _results(study, "val"),
        *(_bins(study, metric) for metric in BINNED),
        _macro(study),
        _coverage(study),
        _cost(study),
        _differences(study),
        _examples(study),
        _run_list(study),
        _unfinished(study),
    ]
    return [table for table in tables if table.rows]


def _results(study: Study, stage: Literal["test", "val"]) -> Table:
    configurations = [c for c in study.runs.configurations if any(c.final(f"{stage}/{name}") for name in SHOWN)]
    columns = [_column(study, configurations, stage, name) for name in SHOWN]
    rows, records = [], []
    for configuration in configurations:
        cells = [column[configuration.name] for column in columns]
        counts = [len(configuration.final(f"{stage}/{name}")) for name in SHOWN]
        seeds = str(max(counts)) if len({*counts} - {0}) == 1 else f"{min(filter(None, counts))} to {max(counts)}"
        rows.append((_name(study, configuration), Cell(seeds), *cells))
        about = {"configuration": configuration.name}
        records += [about | record for name in METRICS for record in _record(configuration, stage, name)]
    marks = ""
    if stage == "test" and study.comparisons and study.baseline is not None:
        marks = f"{_about_marks(f'“{study.baseline.name}”')}."
    if stage == "test":
        title, split = "Test metrics", "on the test split"
    else:
        title, split = "Validation metrics", "on the queries held out of the training split, after the last epoch"
    return Table(
        name="results" if stage == "test" else "validation",
        title=title,
        caption=(
            f"Percent {split}, as mean ± standard deviation over seeds. The best value of each column is bold.{marks}"
        ),
        header=("configuration", "seeds", *SHOWN),
        rows=rows,
        records=records,
    )


def across(studies: Sequence[Study]) -> Table | None:
    """Return the table of test metrics of several data sets side by side; None if no configuration is in two of them.

    Configurations with the same name stand in one row: a name has those settings of the command line that not all
    configurations of the data set share. Published results have no part in it.

    Args:
        studies: Data sets with their runs, compared.
    """
    tested = {
        study.runs.name: (study, {c.name: c for c in study.runs.configurations if c.final("test/P@1")})
        for study in studies
    }
    tested = {dataset: (study, known) for dataset, (study, known) in tested.items() if known}
    names = list(dict.fromkeys(name for _, known in tested.values() for name in known))
    if all(sum(name in known for _, known in tested.values()) < 2 for name in names):
        return None
    baselines = {study.baseline.name for study, _ in tested.values() if study.baseline and study.comparisons}
    shared = baselines if len(baselines) == 1 else set()
    cells = {name: [Cell(f"{name} (baseline)" if name in shared else name)] for name in names}
    records = []
    for dataset, (study, known) in tested.items():
        for metric in ACROSS:
            column = _column(study, list(known.values()), "test", metric)
            for name in names:
                cells[name].append(column.get(name, Cell(_DASH)))
            for name, configuration in known.items():
                about = {"configuration": name, "dataset": dataset}
                records += [about | record for record in _record(configuration, "test", metric)]
    marks = ""
    if baselines:
        reference = f"“{next(iter(shared))}” on the same data set" if shared else "the baseline of the data set"
        untested = [dataset for dataset, (study, _) in tested.items() if not study.comparisons]
        marks = _about_marks(reference) + (f"; {', '.join(untested)}: not tested." if untested else ".")
    return Table(
        name="across",
        title="Across data sets",
        caption=(
            "Percent on the test splits, as mean ± standard deviation over seeds. The best value of each column is "
            f"bold.{marks} A configuration is known by its name: rows hold what has the same one on several data sets. "
            "Where a configuration has no such value, there is a dash."
        ),
        header=("configuration", *(f"{dataset}: {metric}" for dataset in tested for metric in ACROSS)),
        rows=[tuple(row) for row in cells.values()],
        records=records,
    )


def _column(
    study: Study, configurations: Sequence[Configuration], stage: Literal["test", "val"], metric: str
) -> dict[str, Cell]:
    """Return a metric of configurations by their names: the best is bold, on the test split differences are marked."""
    values = {c.name: c.final(f"{stage}/{metric}") for c in configurations}
    means = [round(100 * summary(each)[0], 2) for each in values.values() if each]
    column = {}
    for name, each in values.items():
        column[name] = _percent(each, best=len(configurations) > 1 and _is_best(each, means))
        comparison = study.comparisons.get((name, metric)) if stage == "test" else None
        if comparison is not None and comparison.p < LEVEL:
            mark: Literal["better", "worse"] = "better" if comparison.difference > 0 else "worse"
            column[name] = replace(column[name], mark=mark, note=f"p = {comparison.p:.2g} against the baseline")
    return column


def _record(configuration: Configuration, stage: Literal["test", "val"], metric: str) -> list[dict[str, Any]]:
    """Return what machines read of a metric of a configuration; nothing if it has no such value."""
    values = configuration.final(f"{stage}/{metric}")
    if not values:
        return []
    mean, deviation = summary(values)
    sd = "" if deviation is None else deviation
    return [{"seeds": len(values), "metric": metric, "mean": mean, "sd": sd}]


def _about_marks(reference: str) -> str:
    return (
        f" ▲ and ▼ mark values that are significantly better and worse than those of {reference} "
        f"(paired bootstrap, p < {LEVEL} after Holm's correction)"
    )


def _with_published(results: Table, published: Sequence[PublishedResult]) -> Table:
    """Return the table of test metrics with published results below those of the runs, if there are both."""
    published = [result for result in published if result.values.keys() & {*SHOWN}]
    if not published or not results.rows:
        return results
    rows, records = [], []
    for result in published:
        name = f"{result.method} (published)"
        cells = [
            Cell(f"{100 * result.values[metric]:.2f}", note=result.sources[metric])
            if metric in result.values
            else Cell(_DASH)
            for metric in SHOWN
        ]
        rows.append((Cell(name, note=result.kind), Cell(_DASH), *cells))
        records += [
            {"configuration": name, "seeds": "", "metric": metric, "mean": value, "sd": ""}
            | {"published": "; ".join(filter(None, (result.kind, result.sources[metric])))}
            for metric, value in result.values.items()
        ]
    caption = (
        f"{results.caption} Rows marked “published” are numbers as printed, not computed here: they have no deviation "
        "and take no part in bold type and comparisons."
    )
    return replace(results, caption=caption, rows=[*results.rows, *rows], records=[*results.records, *records])


def _comparison(study: Study) -> Table:
    rows, records = [], []
    names = dict.fromkeys(name for name, _ in study.comparisons)
    for name in names:
        cells = []
        for metric in SHOWN:
            comparison = study.comparisons[name, metric]
            interval = f"[{_signed(comparison.low)}, {_signed(comparison.high)}]"
            mark: Literal["", "better", "worse"] = ""
            if comparison.p < LEVEL:
                mark = "better" if comparison.difference > 0 else "worse"
            note = f"p = {comparison.p:.2g}"
            cells.append(Cell(_signed(comparison.difference), interval=interval, mark=mark, note=note))
            records.append({"configuration": name, "metric": metric, **comparison._asdict()})
        rows.append((Cell(name), *cells))
    baseline = "" if study.baseline is None else study.baseline.name
    return Table(
        name="comparison",
        title="Differences from the baseline",
        caption=(
            f"Percentage points above “{baseline}”, with the 95 % interval of a paired bootstrap over queries and "
            f"seeds. ▲ and ▼ mark differences with p < {LEVEL} after Holm's correction over the configurations."
        ),
        header=("configuration", *SHOWN),
        rows=rows,
        records=records,
    )


def _bins(study: Study, metric: str) -> Table:
    rows, records = [], []
    for configuration in study.runs.configurations:
        evaluations = study.evaluations.get(configuration.name, [])
        if not evaluations:
            continue
        by_bin = np.stack([evaluation.by_bin[metric] for evaluation in evaluations])  # [run, bin]
        cells = [_percent(column) for column in by_bin.T]
        rows.append((_name(study, configuration), *cells, _percent(by_bin.sum(axis=1))))
        for place, (bin_name, column) in enumerate(zip(bin_names(), by_bin.T, strict=True)):
            mean, deviation = summary(column)
            records.append(
                {
                    "configuration": configuration.name,
                    "metric": metric,
                    "training queries of the label": bin_name,
                    "labels": study.labels_of_bin[place],
                    "test positives": study.positives_of_bin[place],
                    "mean": mean,
                    "sd": "" if deviation is None else deviation,
                }
            )
    sizes = "; ".join(
        f"{name}: {labels:,} ({positives:,})"
        for name, labels, positives in zip(bin_names(), study.labels_of_bin, study.positives_of_bin, strict=False)
    )
    return Table(
        name=f"bins_{metric.replace('@', '')}",
        title=f"{metric} by label frequency",
        caption=(
            f"Contribution of labels to {metric} by the number of their training queries, in percentage points that "
            f"add up to {metric}; mean ± standard deviation over seeds. Labels in each bin, with their test positives "
            f"in parentheses: {sizes}."
        ),
        header=("configuration", *bin_names(), "all"),
        rows=rows,
        records=records,
    )


def _macro(study: Study) -> Table:
    return _of_labels(
        study,
        MACRO,
        name="macro",
        title="Macro metrics",
        caption=(
            "Precision, recall and F1 of each label if the first k labels of a query count as predicted, averaged "
            "over the labels that occur in the test split. Percent, as mean ± standard deviation over seeds."
        ),
    )


def _coverage(study: Study) -> Table:
    return _of_labels(
        study,
        COVERAGE,
        name="coverage",
        title="Coverage",
        caption=(
            "Share of the labels of the test split that are found among the first k for at least one query that has "
            "them. Percent, as mean ± standard deviation over seeds."
        ),
    )


def _of_labels(study: Study, metrics: Sequence[str], *, name: str, title: str, caption: str) -> Table:
    evaluated = [c for c in study.runs.configurations if c.name in study.evaluations]
    measured = {c.name: {m: [run.macro[m] for run in study.evaluations[c.name]] for m in metrics} for c in evaluated}
    means = {m: [round(100 * summary(measured[c.name][m])[0], 2) for c in evaluated] for m in metrics}
    rows, records = [], []
    for configuration in evaluated:
        values = measured[configuration.name]
        cells = [_percent(values[m], best=len(evaluated) > 1 and _is_best(values[m], means[m])) for m in metrics]
        rows.append((_name(study, configuration), *cells))
        for metric in metrics:
            mean, deviation = summary(values[metric])
            sd = "" if deviation is None else deviation
            records.append({"configuration": configuration.name, "metric": metric, "mean": mean, "sd": sd})
    return Table(
        name=name, title=title, caption=caption, header=("configuration", *metrics), rows=rows, records=records
    )


def _cost(study: Study) -> Table:
    shows_passes = any(c.final("train/passes") for c in study.runs.configurations)  # older runs do not know them
    on_gpu = any(c.final(_ON_GPU) for c in study.runs.configurations)
    measured = {
        name: column for name, column in _MEASURED.items() if any(c.final(name) for c in study.runs.configurations)
    }
    columns: dict[str, Callable[[Any], str]] = {
        "train/epochs": lambda value: f"{value:.0f}",
        "train/seconds": lambda value: f"{value / 60:.1f}",
        **({"train/passes": lambda value: f"{value:.1f}"} if shows_passes else {}),
        "train/queries_per_second": lambda value: f"{value:,.0f}",
        "peak_rss_bytes": lambda value: f"{value / 2**30:.2f}",
        **({_ON_GPU: lambda value: f"{value / 2**30:.2f}"} if on_gpu else {}),
        "num_parameters": lambda value: f"{value / 1e6:.1f}",
        **{name: shown for name, (_, shown) in measured.items()},
    }
    rows, records = [], []
    for configuration in study.runs.configurations:
        pool = negative_pool(configuration)
        cells: list[Cell] = []
        record: dict[str, Any] = {"configuration": configuration.name, "negative pool": pool}
        for key, shown in columns.items():
            values = configuration.final(key)
            mean, deviation = summary(values) if values else (None, None)
            varies = deviation is not None and shown(deviation).strip("0.") != ""
            cells.append(Cell(_DASH if mean is None else shown(mean), shown(deviation) if varies else ""))
            record[key] = mean
        rows.append((_name(study, configuration), Cell(_DASH if pool is None else f"{pool:,}"), *cells))
        records.append(record)
    return Table(
        name="cost",
        title="Cost",
        caption=(
            "Mean ± standard deviation over seeds. The negative pool is the number of labels that a batch draws, those "
            "included that a search has found, among which each query finds its negatives. Minutes are those of "
            "training alone, memory is the peak of the process, and parameters are those that are trained."
            + (_PASSES if shows_passes else "")
            + (_ABOUT_MEASURED if measured else "")
        ),
        header=(
            *("configuration", "negative pool", "epochs", "minutes"),
            *(("passes",) if shows_passes else ()),
            *("queries/s", "peak GiB", *(("GPU GiB",) if on_gpu else ()), "million parameters"),
            *(header for header, _ in measured.values()),
        ),
        rows=rows,
        records=records,
    )


def _differences(study: Study) -> Table:
    configurations = study.runs.configurations
    differing = differences(configurations) if len(configurations) > 1 else {}
    header = ["key", *(configuration.name for configuration in configurations)]
    rows = [
        [
            Cell(key),
            *(
                Cell(_setting(value) if key in c.settings else _DASH)
                for c, value in zip(configurations, values, strict=True)
            ),
        ]
        for key, values in differing.items()
    ]
    if len(configurations) > len(rows) > 0:  # the longer side goes down the page, so that the table is not too wide
        header, rows = (
            ["configuration", *differing],
            [[Cell(name), *(row[column] for row in rows)] for column, name in enumerate(header[1:], start=1)],
        )
    return Table(
        name="differences",
        title="How the configurations differ",
        caption=(
            "Settings whose values differ, without those that are computed from other settings or that only watch a "
            f"run. {_DASH} means that the configuration has no such key."
        ),
        header=tuple(header),
        rows=[tuple(row) for row in rows],
        records=[
            {"key": key} | {c.name: _setting(value) for c, value in zip(configurations, values, strict=True)}
            for key, values in differing.items()
        ],
        num_text_columns=len(header),
    )


def _examples(study: Study) -> Table:
    rows, records = [], []
    for example in study.examples:
        query = f"test query {example.row}" if example.text is None else example.text
        for name, predicted in example.predictions.items():
            shown = "; ".join(f"✓ {label}" if hit else label for label, hit in predicted)
            rows.append((Cell(query), Cell("; ".join(example.positives)), Cell(name), Cell(shown)))
            records += [
                {
                    "test query": example.row,
                    "query": query,
                    "configuration": name,
                    "rank": rank,
                    "label": label,
                    "hit": hit,
                }
                for rank, (label, hit) in enumerate(predicted, start=1)
            ]
    return Table(
        name="examples",
        title="Predictions",
        caption=(
            "Test queries drawn at random, with the first five labels that the first run of each configuration "
            "predicts. ✓ marks a label of the query."
        ),
        header=("query", "labels", "configuration", "predicted"),
        rows=rows,
        records=records,
        num_text_columns=4,
    )


def _run_list(study: Study) -> Table:
    runs = [(configuration.name, run) for configuration in study.runs.configurations for run in configuration.runs]
    superseded = [(f"{_DASH} (a newer run counts)", run) for run in study.runs.repeated]
    on_gpu = any(_ON_GPU in (run.metrics or {}) for _, run in runs)
    rows, records = [], []
    for name, run in (*runs, *superseded):
        metrics = run.metrics or {}
        precision = precision_of(run.export) or _DASH
        record = {
            "run": str(run.path),
            "configuration": name,
            "seed": run.seed,
            "machine": run.export.get("machine", _DASH),
            "precision": precision,
            "train/seconds": metrics.get("train/seconds"),
            "peak_rss_bytes": metrics.get("peak_rss_bytes"),
            **({"device": metrics.get("device", _DASH), _ON_GPU: metrics.get(_ON_GPU)} if on_gpu else {}),
            "torch_version": metrics.get("torch_version", _DASH),
            "prime_xmc_version": metrics.get("prime_xmc_version", _DASH),
            "git_commit": str(metrics.get("git_commit") or _DASH),
        }
        records.append(record)
        seconds, peak = record["train/seconds"], record["peak_rss_bytes"]
        shown = record | {
            "train/seconds": _DASH if seconds is None else f"{seconds / 60:.1f}",
            "peak_rss_bytes": _DASH if peak is None else f"{peak / 2**30:.2f}",
            **({_ON_GPU: f"{record[_ON_GPU] / 2**30:.2f}" if record[_ON_GPU] else _DASH} if on_gpu else {}),
            "git_commit": record["git_commit"][:10],
        }
        rows.append(tuple(Cell(str(value)) for value in shown.values()))
    return Table(
        name="runs",
        title="Finished runs",
        caption=(
            "Finished runs and the machines they ran on. Where several have the same configuration and seed, only the "
            "newest counts."
        ),
        header=(
            *("run", "configuration", "seed", "machine", "precision"),
            *("minutes", "peak GiB", *(("GPU", "GPU GiB") if on_gpu else ()), "torch", "prime_xmc", "commit"),
        ),
        rows=rows,
        records=records,
        num_text_columns=5,
    )


def _unfinished(study: Study) -> Table:
    rows, records, early = [], [], 0
    for run in study.runs.unfinished:
        epochs = int(run.epochs[-1].get("epoch", -1)) + 1 if run.epochs else 0
        given = ", ".join(f"{key}={value}" for key, value in run.overrides.items()) or "default"
        if epochs or run.status != "unfinished":
            rows.append((Cell(str(run.path)), Cell(given), Cell(str(run.seed)), Cell(run.status), Cell(str(epochs))))
        else:
            early += 1
        records.append(
            {"run": str(run.path), "overrides": given, "seed": run.seed, "status": run.status, "epochs": epochs}
        )
    if early:
        name = f"{early} run{' has' if early == 1 else 's have'} no epoch yet"
        rows.append((Cell(name), Cell(_DASH), Cell(_DASH), Cell("unfinished"), Cell("0")))
    return Table(
        name="unfinished",
        title="Unfinished runs",
        caption=(
            "Runs without metrics.json: still running, interrupted or failed. They count nowhere else. Those that "
            "ended before their first epoch, such as mistyped commands, share a row; unfinished.csv lists each of them."
        ),
        header=("run", "overrides", "seed", "status", "epochs done"),
        rows=rows,
        records=records,
        num_text_columns=4,
    )


def _name(study: Study, configuration: Configuration) -> Cell:
    is_baseline = bool(study.comparisons) and configuration is study.baseline
    return Cell(configuration.name + (" (baseline)" if is_baseline else ""))


def _percent(values: Sequence[float] | np.ndarray, *, best: bool = False) -> Cell:
    if len(values) == 0:
        return Cell(_DASH)
    mean, deviation = summary(values)
    return Cell(f"{100 * mean:.2f}", "" if deviation is None else f"{100 * deviation:.2f}", best=best)


def _is_best(values: Sequence[float], means: Sequence[float]) -> bool:
    return len(values) > 0 and round(100 * summary(values)[0], 2) == max(means)


def _signed(difference: float) -> str:
    return f"{round(100 * difference, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: without it, −0 would be shown


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
