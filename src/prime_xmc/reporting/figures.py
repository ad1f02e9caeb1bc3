"""The figures of a report: small panels, a trace for each configuration, in the same colour in all of them."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from prime_xmc.reporting.run_folders import Configuration, negative_pool
from prime_xmc.reporting.statistics import bin_names
from prime_xmc.reporting.study import BINNED, COVERAGE_K, Study
from prime_xmc.reporting.tables import summary

# Each reads on white and on near black; then the same again with other dashes and patterns.
COLOURS = ("#3b82f6", "#e8710a", "#16a34a", "#d6409f", "#8b5cf6", "#0d9488", "#b08900", "#ef4444")
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲"}
_HOVER = "%{{fullData.name}}<br>{}<extra></extra>"
_LEARNING = ("train/loss", "val/P@1", "val/P@5", "val/PSP@1", "val/PSP@5", "val/R@100")
_AGAINST_COST = ("test/P@1", "test/PSP@5")
_NOT_DIAGNOSTIC = ("train/loss",)


@dataclass(frozen=True)
class Panel:
    """A figure.

    Attributes:
        title: What the vertical axis shows.
        figure: Its traces; `meta` of each is the place of its configuration. Colours of text and grid, and the size,
            are the page's.
    """

    title: str
    figure: go.Figure


def line_style(place: int) -> str:
    """Return what CSS calls the lines of a configuration."""
    return _cycle(("solid", "dashed", "dotted", "double"), place)


def colour(place: int) -> str:
    """Return the colour of a configuration."""
    return COLOURS[place % len(COLOURS)]


def symbol(place: int) -> str:
    """Return the character that looks like the markers of a configuration."""
    return list(_SYMBOLS.values())[place % len(_SYMBOLS)]


def learning_curves(study: Study) -> list[Panel]:
    """Return loss and validation metrics by epoch: means over seeds, and the band from the lowest to the highest."""
    return [panel for name in _LEARNING if (panel := _by_epoch(study, name)) is not None]


def diagnostics(study: Study) -> list[Panel]:
    """Return the terms of the loss, violators, clipped margins, centroid drift and learning rate by epoch."""
    logged = [
        name
        for configuration in study.runs.configurations
        for run in configuration.runs
        for row in run.epochs
        for name in row
    ]
    names = [name for name in dict.fromkeys(logged) if name.startswith("train/") and name not in _NOT_DIAGNOSTIC]
    return [panel for name in (*names, "lr") if (panel := _by_epoch(study, name)) is not None]


def cost(study: Study) -> list[Panel]:
    """Return accuracy against training time, and against negatives with blobs of the size of the batch (Fig. 1)."""
    panels = []
    for metric in _AGAINST_COST:
        shown = metric.removeprefix("test/")
        for title, axis, kind in (
            (f"{shown} against training time", "minutes", "train/seconds"),
            (f"{shown} against negatives", "negative pool of a query", "pool"),
        ):
            figure = _figure(axis, f"{shown} (%)")
            for place, configuration in enumerate(study.runs.configurations):
                values, at = configuration.final(metric), _at(configuration, kind)
                if values and at is not None:
                    _add_point(figure, place, configuration, at, values, sized=kind == "pool")
            if figure.data:
                if kind == "pool":
                    pools = sorted({point for trace in figure.data for point in trace.x})
                    figure.update_xaxes(type="log", tickvals=pools, ticktext=[f"{pool:,.0f}" for pool in pools])
                panels.append(Panel(title, figure))
    return panels


def label_frequency(study: Study) -> list[Panel]:
    """Return what each bin of labels contributes to P@5 and PSP@5."""
    panels = []
    for metric in BINNED:
        figure = _figure("training queries of the label", f"contribution to {metric} (points)")
        for place, configuration in enumerate(study.runs.configurations):
            if evaluations := study.evaluations.get(configuration.name):
                by_bin = 100 * np.stack([evaluation.by_bin[metric] for evaluation in evaluations])
                means, deviations = zip(*(summary(column) for column in by_bin.T), strict=True)
                figure.add_bar(
                    x=bin_names(),
                    y=means,
                    error_y=_error_bars(deviations),
                    name=html.escape(configuration.name),
                    meta=place,
                    marker={"color": colour(place), "pattern": {"shape": _pattern(place)}},
                    hovertemplate=_HOVER.format("%{x} training queries: %{y:.2f}"),
                )
        if figure.data:
            figure.update_xaxes(type="category")
            panels.append(Panel(f"{metric} by label frequency", figure))
    return panels


def coverage(study: Study) -> list[Panel]:
    """Return the share of labels that are found at least once among the first k."""
    figure = _figure("k", "labels found (%)")
    for place, configuration in enumerate(study.runs.configurations):
        if evaluations := study.evaluations.get(configuration.name):
            found = 100 * np.array([[run.macro[f"coverage@{k}"] for k in COVERAGE_K] for run in evaluations])
            _add_curve(figure, place, configuration.name, COVERAGE_K, found)
    if not figure.data:
        return []
    figure.update_xaxes(type="log", tickvals=COVERAGE_K)
    return [Panel("Coverage at k", figure)]


def _by_epoch(study: Study, name: str) -> Panel | None:
    scale, unit = (100, " (%)") if name.startswith("val/") else (1, "")
    shown = name.removeprefix("val/").removeprefix("train/").replace("_", " ")
    shown = {"lr": "learning rate", "loss": "training loss"}.get(shown, shown)
    figure, longest = _figure("epoch", f"{shown}{unit}"), 0.0
    for place, configuration in enumerate(study.runs.configurations):
        by_run = [
            {row["epoch"] + 1: scale * row[name] for row in run.epochs if name in row} for run in configuration.runs
        ]
        by_run = [values for values in by_run if values]
        epochs = sorted(set.intersection(*(set(values) for values in by_run))) if by_run else []
        if epochs:
            _add_curve(figure, place, configuration.name, epochs, np.array([[v[e] for e in epochs] for v in by_run]))
            longest = max(longest, *epochs)
    figure.update_xaxes(tick0=0, dtick=max(1, round(longest / 6)))  # whole epochs
    return Panel(f"validation {shown}" if name.startswith("val/") else shown, figure) if figure.data else None


def _add_curve(figure: go.Figure, place: int, name: str, x: Sequence[float | int], by_run: np.ndarray) -> None:
    """Add the mean over runs and, of several, the band between lowest and highest."""
    if len(by_run) > 1:
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*by_run.max(axis=0), *by_run.min(axis=0)[::-1]],
            fill="toself",
            fillcolor=_transparent(colour(place)),
            mode="none",
            hoverinfo="skip",
            meta=place,
        )
    figure.add_scatter(
        x=list(x),
        y=by_run.mean(axis=0).tolist(),
        name=html.escape(name),  # plotly reads tags
        meta=place,
        mode="lines+markers",
        line={"color": colour(place), "dash": _cycle(_DASHES, place), "width": 2},
        marker={"symbol": list(_SYMBOLS)[place % len(_SYMBOLS)], "size": 6},
        hovertemplate=_HOVER.format("%{y:.4~g}"),
    )


def _add_point(
    figure: go.Figure, place: int, configuration: Configuration, at: float, values: Sequence[float], *, sized: bool
) -> None:
    mean, deviation = summary([100 * value for value in values])
    batch = configuration.settings.get("sampling.batch_size")
    size = 6 + np.sqrt(batch) / 2 if sized and isinstance(batch, int) else 11
    figure.add_scatter(
        x=[at],
        y=[mean],
        error_y=_error_bars([deviation]),
        name=html.escape(configuration.name),
        meta=place,
        mode="markers",
        marker={
            "color": colour(place),
            "symbol": list(_SYMBOLS)[place % len(_SYMBOLS)],
            "size": float(size),
            "opacity": 0.85,
        },
        hovertemplate=_HOVER.format("%{y:.2f} % at %{x:,.1f}" + ("" if batch is None else f", batch of {batch}")),
    )


def _at(configuration: Configuration, kind: str) -> float | None:
    if kind == "pool":
        pool = negative_pool(configuration)
        return None if pool is None else float(pool)
    seconds = configuration.final(kind)
    return summary(seconds)[0] / 60 if seconds else None


def _figure(x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(template="none", showlegend=False, barmode="group", hovermode="closest")
    figure.update_xaxes(title=x_title, automargin=True)
    figure.update_yaxes(title=y_title, automargin=True, exponentformat="e")
    return figure


def _error_bars(deviations: Sequence[float | None]) -> dict[str, Any]:
    return {"array": [deviation or 0.0 for deviation in deviations], "visible": any(deviations), "thickness": 1.2}


def _cycle(options: Sequence[str], place: int) -> str:
    return options[place // len(COLOURS) % len(options)]


def _pattern(place: int) -> str:
    return _cycle(("", "/", ".", "x"), place)


def _transparent(hexadecimal: str) -> str:
    red, green, blue = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
