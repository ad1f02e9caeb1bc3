"""The page of a report: one HTML file that loads nothing and runs no script but its own."""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from omegaconf import OmegaConf

from prime_xmc.reporting import figures, svg
from prime_xmc.reporting.configurations import Configuration
from prime_xmc.reporting.contents import Chapter, Report
from prime_xmc.reporting.figures import Chart

_FOLDER = Path(__file__).parent
_LEARNING = "By epoch: the mean over seeds, with a band from the lowest to the highest seed."
_SCALES = " Losses that are more than ten times apart are on charts of their own."
_COST = "Final test metrics, one point for each configuration, with bars of one standard deviation over seeds."
_NEGATIVES = (
    " The negative pool is what a batch draws, queries times labels for each, and points grow with the batch, as in "
    "Figure 1 and Table 5 of the paper."
)
_FREQUENCY = (
    "Which labels the metrics come from, from labels that training has never seen to frequent ones. Bars show one "
    "standard deviation over seeds."
)
_DIAGNOSTICS = (
    "By epoch, as logged during training: the terms of the loss, violators (the share of triplets with a loss above "
    "0), clipped margins (the share cut off at gamma_min or gamma_max) and centroid drift."
)
_EXAMPLES = (
    "Test queries drawn at random, with their labels and the first five labels that the first run of each "
    "configuration predicts."
)
_CONFIGURATIONS = (
    "Resolved, without seed, paths and loggers. Angle brackets hold expressions whose values come from the machine."
)
_NUMBER = re.compile(r"([-+−]?\d[\d.,]*(?:e[-+]?\d+)?)")
_BREAK = re.compile(r"(?<=[/_.])")  # a line may end here within a name such as loss.gamma_min=0.3
_TOGETHER = re.compile(r"(?<=\d) (?=%)|(?<=\bp) (?=<)|(?<=[<>]) (?=\d)")


def render(report: Report) -> str:
    """Return the page.

    All text from the runs is escaped. Beyond that, the policy of the page allows no script whose hash it does not name,
    and allows nothing to be loaded.
    """
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.filters["breakable"] = _breakable
    environment.filters["together"] = _together
    return environment.get_template("page.html.j2").render(
        report=report,
        studies=[_chapter(place, chapter) for place, chapter in enumerate(report.chapters)],
        script=Markup(script),
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        script_hash=Markup(_source_hash(script)),
    )


def _chapter(place: int, chapter: Chapter) -> dict[str, Any]:
    identifier = f"dataset-{place + 1}"
    study = chapter.study
    by_name = {table.name: table for table in chapter.tables}

    def section(
        name: str,
        title: str,
        text: str = "",
        *,
        charts: Sequence[Chart] = (),
        names: Sequence[str] = (),
        **more: Any,
    ) -> dict[str, Any]:
        return {
            "id": f"{identifier}-{name}",
            "title": title,
            "text": text,
            "charts": [
                {"title": chart.title, "svg": Markup(svg.draw(chart)), "is_wide": chart.named} for chart in charts
            ],
            "tables": [
                {
                    "anchor": f"{identifier}-{name}-{table}",
                    "content": by_name[table],
                    "is_folded": table == "unfinished",
                }
                for table in names
                if table in by_name
            ],
            "examples": more.get("examples", []),
            "configurations": more.get("configurations", []),
        }

    configurations = study.runs.configurations
    learning, cost = figures.learning_curves(study), figures.cost(study)
    of_loss = [chart for chart in learning if chart.title.startswith("Training loss")]
    about_learning = _LEARNING + (_SCALES if len(of_loss) > 1 else "")
    about_cost = _COST + (_NEGATIVES if any("negatives" in chart.title for chart in cost) else "")
    cost = [*figures.against_cost(study), *cost]
    sections = [
        section("results", "Results", names=("results", "comparison", "validation")),
        section("learning", "Learning curves", about_learning, charts=learning),
        section("cost", "Accuracy and cost", about_cost, charts=cost, names=("cost",)),
        section(
            "frequency",
            "Rare and frequent labels",
            _FREQUENCY,
            charts=[*figures.label_frequency(study), *figures.coverage(study)],
            names=("bins_P5", "bins_PSP5", "macro", "coverage"),
        ),
        section("diagnostics", "Inside the loss", _DIAGNOSTICS, charts=figures.diagnostics(study)),
        section("examples", "Predictions", _EXAMPLES, examples=study.examples),
        section(
            "configurations",
            "Configurations",
            _CONFIGURATIONS,
            names=("differences",),
            configurations=[{"name": c.name, "yaml": _yaml(c)} for c in configurations],
        ),
        section("runs", "Runs", names=("runs", "unfinished")),
    ]
    filled = ("charts", "tables", "examples", "configurations")
    return {
        "id": identifier,
        "name": study.runs.name,
        "headline": chapter.headline,
        "notes": study.notes,
        "legend": [
            {"name": c.name, "colour": svg.colour(i), "symbol": svg.symbol(i), "line": svg.line_style(i)}
            for i, c in enumerate(configurations)
        ],
        "sections": [section for section in sections if any(section[key] for key in filled)],
    }


def _yaml(configuration: Configuration) -> str:
    tree: dict[str, Any] = {}
    for key, value in configuration.settings.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def _breakable(text: str) -> Markup:
    """Return a text whose lines may end within names such as loss.gamma_min=0.3, but never within a number."""
    parts = _NUMBER.split(text)  # every second part is a number
    return Markup().join(
        Markup('<span class="whole">{}</span>').format(part)
        if place % 2
        else Markup("<wbr>").join(map(escape, _BREAK.split(part)))
        for place, part in enumerate(parts)
    )


def _together(text: str) -> str:
    """Return a text whose lines do not end within expressions such as 62.2 % and p < 0.05."""
    return _TOGETHER.sub("\N{NO-BREAK SPACE}", text)


def _source_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
