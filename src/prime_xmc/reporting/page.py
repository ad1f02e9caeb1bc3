"""The page of a report: one HTML file that loads nothing and runs no script but its own."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import OmegaConf
from plotly.offline import get_plotlyjs

from prime_xmc.reporting import figures
from prime_xmc.reporting.figures import Panel
from prime_xmc.reporting.run_folders import Configuration
from prime_xmc.reporting.study import Study
from prime_xmc.reporting.tables import Table

_FOLDER = Path(__file__).parent
_LEARNING = "By epoch: the mean over seeds, and the band from the lowest to the highest of them."
_COST = (
    "Final test metrics, a point a configuration, bars of a standard deviation over seeds. Blobs grow with the batch; "
    "the negative pool is what a batch draws, queries times positives (Fig. 1 and Table 5 of the paper)."
)
_FREQUENCY = "Which labels the metrics owe their height to, from those that training has never seen to frequent ones."
_DIAGNOSTICS = (
    "By epoch, as logged in training: the terms of the loss, violators (triplets with a loss above 0), clipped margins "
    "(those cut at gamma_min or gamma_max) and centroid drift."
)
_EXAMPLES = "Test queries drawn at random, their labels, and the first five of each configuration (its first seed)."
_CONFIGURATIONS = "Resolved, without seed, paths and loggers; in angle brackets what the machine answers."


def render(studies: Sequence[Study], tables: Sequence[Sequence[Table]], *, title: str, method: Sequence[str]) -> str:
    """Return the page.

    Everything from the runs is escaped; beyond that, the page's policy lets no script run whose hash it does not name,
    and nothing be loaded.

    Args:
        studies: The data sets.
        tables: The tables of each.
        title: Of the page.
        method: Paragraphs on how to read it.
    """
    charts: list[dict[str, Any]] = []
    shown = [_study(place, study, own, charts) for place, (study, own) in enumerate(zip(studies, tables, strict=True))]
    plotly, script = get_plotlyjs(), (_FOLDER / "page.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html.j2").render(
        title=title,
        summary=_summary(studies),
        studies=shown,
        method=method,
        figures=Markup(_json(charts)),
        plotly=Markup(plotly),
        script=Markup(script),
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        script_hashes=Markup(" ".join(map(_source_hash, (plotly, script)))),
    )


def _study(place: int, study: Study, tables: Sequence[Table], charts: list[dict[str, Any]]) -> dict[str, Any]:
    identifier = f"dataset-{place + 1}"
    by_name = {table.name: table for table in tables}

    def section(
        name: str,
        title: str,
        text: str = "",
        *,
        panels: Sequence[Panel] = (),
        names: Sequence[str] = (),
        **more: Any,
    ) -> dict[str, Any]:
        shown_panels = []
        for panel in panels:
            shown_panels.append({"id": len(charts), "title": panel.title})
            charts.append({"study": identifier, **json.loads(panel.figure.to_json())})
        return {
            "id": f"{identifier}-{name}",
            "title": title,
            "text": text,
            "panels": shown_panels,
            "tables": [
                {"anchor": f"{identifier}-{name}-{table}", "content": by_name[table]}
                for table in names
                if table in by_name
            ],
            "examples": more.get("examples", []),
            "configurations": more.get("configurations", []),
        }

    configurations = study.runs.configurations
    sections = [
        section("results", "Results", names=("results", "comparison", "validation")),
        section("learning", "Learning curves", _LEARNING, panels=figures.learning_curves(study)),
        section("cost", "Accuracy and cost", _COST, panels=figures.cost(study), names=("cost",)),
        section(
            "frequency",
            "Rare and frequent labels",
            _FREQUENCY,
            panels=[*figures.label_frequency(study), *figures.coverage(study)],
            names=("bins_P5", "bins_PSP5", "macro", "coverage"),
        ),
        section("diagnostics", "Inside the loss", _DIAGNOSTICS, panels=figures.diagnostics(study)),
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
    filled = ("panels", "tables", "examples", "configurations")
    return {
        "id": identifier,
        "name": study.runs.name,
        "notes": study.notes,
        "legend": [
            {"name": c.name, "colour": figures.colour(i), "symbol": figures.symbol(i), "line": figures.line_style(i)}
            for i, c in enumerate(configurations)
        ],
        "sections": [section for section in sections if any(section[key] for key in filled)],
    }


def _summary(studies: Sequence[Study]) -> str:
    def count(number: int, what: str) -> str:
        return f"{number} {what}{'' if number == 1 else 's'}"

    finished = sum(len(c.runs) for study in studies for c in study.runs.configurations)
    unfinished = sum(len(study.runs.unfinished) for study in studies)
    configurations = sum(len(study.runs.configurations) for study in studies)
    text = f"{count(finished, 'finished run')} of {count(configurations, 'configuration')}"
    text += f" on {count(len(studies), 'data set')}."
    return text + (f" {count(unfinished, 'unfinished run')}, listed at the end." if unfinished else "")


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
    """Return a text whose lines may end within names such as loss.gamma_min=0.3."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_.=])", text))


def _json(content: Any) -> str:
    r"""Return JSON for a script element: < is written as \u003c, so that no text in it can end the element."""
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(content, ensure_ascii=False))


def _source_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
