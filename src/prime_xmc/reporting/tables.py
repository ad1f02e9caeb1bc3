"""The tables of a report, and how they read in Markdown, LaTeX and CSV."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prime_xmc.evaluation.metrics import METRICS, SHOWN
from prime_xmc.reporting.run_folders import Configuration, differences, negative_pool
from prime_xmc.reporting.statistics import bin_names
from prime_xmc.reporting.study import BINNED, COVERAGE_K, MACRO_K, Study

LEVEL = 0.05  # of the tests
_DASH = "–"
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "✓": r"$\surd$",
}
_MARKS = {"better": "▲", "worse": "▼"}
_TEX_MARKS = {"better": "$^{+}$", "worse": "$^{-}$"}


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: What it says.
        deviation: What comes after ±; empty: nothing.
        mark: Significantly better or worse than the baseline.
        best: The best of its column.
        note: What else there is to know, for who points at it.
    """

    text: str
    deviation: str = ""
    mark: Literal["", "better", "worse"] = ""
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its files.
        title: A few words.
        caption: What the numbers are.
        header: A name for each column.
        rows: Cells, as many as the header has names.
        records: The same for machines: fractions rather than percent, seconds, bytes.
        num_text_columns: Columns at the left that are text; the others are numbers.
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
        """Whether a cell is marked."""
        return any(cell.mark for row in self.rows for cell in row)


def make_tables(study: Study) -> list[Table]:
    """Return the tables of a data set, those without a row left out."""
    tables = [
        _results(study, "test"),
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


def to_markdown(table: Table) -> str:
    """Return a table in Markdown, its title as a heading."""

    def cell(content: Cell) -> str:
        text = content.text + (f" ± {content.deviation}" if content.deviation else "")
        text = re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text).replace("\n", " ")
        return (f"**{text}**" if content.best else text) + (f" {_MARKS[content.mark]}" if content.mark else "")

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    aligned = ["---" if place < table.num_text_columns else "---:" for place in range(len(table.header))]
    lines = [line(cell(Cell(name)) for name in table.header), line(aligned)]
    lines += [line(map(cell, row)) for row in table.rows]
    return f"### {table.title}\n\n{table.caption}\n\n" + "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    r"""Return a table in LaTeX, which needs \usepackage{booktabs}."""

    def cell(content: Cell) -> str:
        text = _tex(content.text)
        text = rf"\textbf{{{text}}}" if content.best else text
        text += rf" {{\scriptsize $\pm$ {_tex(content.deviation)}}}" if content.deviation else ""
        return text + (_TEX_MARKS[content.mark] if content.mark else "")

    columns = "l" * table.num_text_columns + "r" * (len(table.header) - table.num_text_columns)
    caption = _tex(table.caption).replace("▲", _TEX_MARKS["better"]).replace("▼", _TEX_MARKS["worse"])
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {' & '.join(map(_tex, table.header))} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(map(cell, row))} \\\\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Return the records of a table in CSV."""
    names = list(dict.fromkeys(name for record in table.records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return text.getvalue()


def summary(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Return mean and sample standard deviation, None for the latter of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _results(study: Study, stage: Literal["test", "val"]) -> Table:
    configurations = [c for c in study.runs.configurations if any(c.final(f"{stage}/{name}") for name in SHOWN)]
    rows, records = [], []
    means = {
        name: [round(100 * summary(values)[0], 2) for c in configurations if (values := c.final(f"{stage}/{name}"))]
        for name in SHOWN
    }
    for configuration in configurations:
        cells = []
        for name in SHOWN:
            values = configuration.final(f"{stage}/{name}")
            cell = _percent(values, best=len(configurations) > 1 and _is_best(values, means[name]))
            comparison = study.comparisons.get((configuration.name, name)) if stage == "test" else None
            if comparison is not None and comparison.p < LEVEL:
                mark: Literal["better", "worse"] = "better" if comparison.difference > 0 else "worse"
                cell = Cell(cell.text, cell.deviation, mark, cell.best, f"p = {comparison.p:.2g} against the baseline")
            cells.append(cell)
        rows.append((_name(study, configuration), Cell(str(len(configuration.runs))), *cells))
        for name in METRICS:
            if values := configuration.final(f"{stage}/{name}"):
                mean, deviation = summary(values)
                record = {"configuration": configuration.name, "seeds": len(values), "metric": name, "mean": mean}
                records.append(record | {"sd": "" if deviation is None else deviation})
    marks = ""
    if stage == "test" and study.comparisons and study.baseline is not None:
        marks = (
            f" ▲ and ▼: significantly better and worse than “{study.baseline.name}” (paired bootstrap, "
            f"p < {LEVEL} after Holm's correction)."
        )
    if stage == "test":
        title, split = "Test metrics", "the test split"
    else:
        title, split = "Validation metrics", "the queries held out of the training split, after the last epoch"
    return Table(
        name="results" if stage == "test" else "validation",
        title=title,
        caption=f"Percent, on {split}; mean ± standard deviation over seeds. Best of each column in bold.{marks}",
        header=("configuration", "seeds", *SHOWN),
        rows=rows,
        records=records,
    )


def _comparison(study: Study) -> Table:
    rows, records = [], []
    names = dict.fromkeys(name for name, _ in study.comparisons)
    for name in names:
        cells = []
        for metric in SHOWN:
            found = study.comparisons[name, metric]
            text = f"{_signed(found.difference)} [{_signed(found.low)}, {_signed(found.high)}]"
            mark: Literal["", "better", "worse"] = ""
            if found.p < LEVEL:
                mark = "better" if found.difference > 0 else "worse"
            cells.append(Cell(text, mark=mark, note=f"p = {found.p:.2g}"))
            records.append({"configuration": name, "metric": metric, **found._asdict()})
        rows.append((Cell(name), *cells))
    baseline = "" if study.baseline is None else study.baseline.name
    return Table(
        name="comparison",
        title="Differences from the baseline",
        caption=(
            f"Percentage points above “{baseline}”, with 95 % intervals of the paired bootstrap over queries and "
            f"seeds. ▲ and ▼: p < {LEVEL} after Holm's correction over the configurations."
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
            f"What labels contribute to {metric}, in percentage points that add up to it, by the number of their "
            f"training queries; mean ± standard deviation over seeds. Labels (test positives) of each bin: {sizes}."
        ),
        header=("configuration", *bin_names(), "all"),
        rows=rows,
        records=records,
    )


def _macro(study: Study) -> Table:
    return _of_labels(
        study,
        [f"macro-{name}@{k}" for name in ("P", "R", "F1") for k in MACRO_K],
        name="macro",
        title="Macro metrics",
        caption=(
            "Precision, recall and F1 of each label, when the first k labels are what is predicted for a query, "
            "averaged over the labels with a test positive; percent, mean ± standard deviation over seeds."
        ),
    )


def _coverage(study: Study) -> Table:
    return _of_labels(
        study,
        [f"coverage@{k}" for k in COVERAGE_K],
        name="coverage",
        title="Coverage",
        caption=(
            "Labels with a test positive that are found among the first k for at least one query; percent, mean ± "
            "standard deviation over seeds."
        ),
    )


def _of_labels(study: Study, metrics: Sequence[str], *, name: str, title: str, caption: str) -> Table:
    there = [c for c in study.runs.configurations if c.name in study.evaluations]
    found = {c.name: {m: [run.macro[m] for run in study.evaluations[c.name]] for m in metrics} for c in there}
    means = {m: [round(100 * summary(found[c.name][m])[0], 2) for c in there] for m in metrics}
    rows, records = [], []
    for configuration in there:
        values = found[configuration.name]
        cells = [_percent(values[m], best=len(there) > 1 and _is_best(values[m], means[m])) for m in metrics]
        rows.append((_name(study, configuration), *cells))
        for metric in metrics:
            mean, deviation = summary(values[metric])
            sd = "" if deviation is None else deviation
            records.append({"configuration": configuration.name, "metric": metric, "mean": mean, "sd": sd})
    return Table(
        name=name, title=title, caption=caption, header=("configuration", *metrics), rows=rows, records=records
    )


def _cost(study: Study) -> Table:
    columns = {
        "train/epochs": lambda value: f"{value:.0f}",
        "train/seconds": lambda value: f"{value / 60:.1f}",
        "train/queries_per_second": lambda value: f"{value:,.0f}",
        "peak_rss_bytes": lambda value: f"{value / 2**30:.2f}",
        "num_parameters": lambda value: f"{value / 1e6:.1f}",
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
            "Means ± standard deviation over seeds. Negative pool: labels that a batch draws, among which a query "
            "finds its negatives. Minutes are of training alone, memory is the highest of the process, parameters "
            "those that are trained, in millions."
        ),
        header=("configuration", "negative pool", "epochs", "minutes", "queries/s", "peak GiB", "million parameters"),
        rows=rows,
        records=records,
    )


def _differences(study: Study) -> Table:
    configurations = study.runs.configurations
    found = differences(configurations) if len(configurations) > 1 else {}
    return Table(
        name="differences",
        title="What configurations differ in",
        caption=f"Settings whose values differ, those that repeat another one left out. {_DASH}: there is no such key.",
        header=("key", *(configuration.name for configuration in configurations)),
        rows=[
            (
                Cell(key),
                *(
                    Cell(_setting(value) if key in c.settings else _DASH)
                    for c, value in zip(configurations, values, strict=True)
                ),
            )
            for key, values in found.items()
        ],
        records=[
            {"key": key} | {c.name: _setting(value) for c, value in zip(configurations, values, strict=True)}
            for key, values in found.items()
        ],
        num_text_columns=1 + len(configurations),
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
        caption="Test queries drawn at random, and the first five labels of each configuration's first seed; ✓: a hit.",
        header=("query", "labels", "configuration", "predicted"),
        rows=rows,
        records=records,
        num_text_columns=4,
    )


def _run_list(study: Study) -> Table:
    runs = [(configuration.name, run) for configuration in study.runs.configurations for run in configuration.runs]
    superseded = [(f"{_DASH} (a newer run counts)", run) for run in study.runs.repeated]
    rows, records = [], []
    for name, run in (*runs, *superseded):
        metrics = run.metrics or {}
        precision = run.export.get("config", {}).get("trainer", {}).get("precision", _DASH)
        record = {
            "run": str(run.path),
            "configuration": name,
            "seed": run.seed,
            "machine": run.export.get("machine", _DASH),
            "precision": precision,
            "train/seconds": metrics.get("train/seconds"),
            "peak_rss_bytes": metrics.get("peak_rss_bytes"),
            "torch_version": metrics.get("torch_version", _DASH),
            "prime_xmc_version": metrics.get("prime_xmc_version", _DASH),
            "git_commit": metrics.get("git_commit") or _DASH,
        }
        records.append(record)
        seconds, peak = record["train/seconds"], record["peak_rss_bytes"]
        shown = record | {
            "train/seconds": _DASH if seconds is None else f"{seconds / 60:.1f}",
            "peak_rss_bytes": _DASH if peak is None else f"{peak / 2**30:.2f}",
            "git_commit": record["git_commit"][:10],
        }
        rows.append(tuple(Cell(str(value)) for value in shown.values()))
    return Table(
        name="runs",
        title="Finished runs",
        caption=(
            "Finished runs and the machines they ran on. Of several with the same configuration and seed the newest "
            "counts."
        ),
        header=(
            *("run", "configuration", "seed", "machine", "precision"),
            *("minutes", "peak GiB", "torch", "prime_xmc", "commit"),
        ),
        rows=rows,
        records=records,
        num_text_columns=5,
    )


def _unfinished(study: Study) -> Table:
    rows, records = [], []
    for run in study.runs.unfinished:
        epochs = int(run.epochs[-1].get("epoch", -1)) + 1 if run.epochs else 0
        given = ", ".join(f"{key}={value}" for key, value in run.overrides.items()) or "default"
        rows.append((Cell(str(run.path)), Cell(given), Cell(str(run.seed)), Cell(run.status), Cell(str(epochs))))
        records.append(
            {"run": str(run.path), "overrides": given, "seed": run.seed, "status": run.status, "epochs": epochs}
        )
    return Table(
        name="unfinished",
        title="Unfinished runs",
        caption="Runs without metrics.json: still running, interrupted or failed. They count nowhere else.",
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
    return f"{100 * difference:+.2f}".replace("-", "−")


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
