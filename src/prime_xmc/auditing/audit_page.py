"""The page of an audit: one HTML file that loads nothing and runs no script."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from prime_xmc import reporting
from prime_xmc.auditing.audit_data import Audit, Distribution
from prime_xmc.auditing.findings import KINDS, SEVERITIES
from prime_xmc.files import write_json, write_text
from prime_xmc.reporting import svg
from prime_xmc.reporting.figures import Chart, Point, Series

_FOLDER = Path(__file__).parent
_TITLES = {"error": "What stops a training", "warning": "What lowers or falsifies metrics", "remark": "Worth knowing"}
_OF_TEST = ("no_labelled_test_query", "leaked_query", "nearly_leaked_query", "unseen_test_label", "reciprocal_pair")


def write_audit(audit: Audit, page: Path, record: Path, command: str | None) -> None:
    """Write an audit as a page for people and as JSON.

    Args:
        audit: The audit.
        page: File for the page.
        record: File for the JSON.
        command: Command that the page names as its origin; None: none.
    """
    write_text(page, render(audit, command))
    write_json(record, audit.to_json())


def render(audit: Audit, command: str | None) -> str:
    """Return the page; all text from the data is escaped."""
    found = {finding.kind for finding in audit.findings}
    counted = any(distribution.unit == "tokens" for distribution in audit.distributions)
    skipped = {*found} | (set() if counted else {"long_text", "many_long_texts"})
    if "test queries" not in audit.counts:
        skipped |= set(_OF_TEST)
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    styles = (Path(reporting.__file__).parent / "page.css", _FOLDER / "audit_page.css")
    return environment.get_template("audit_page.html.j2").render(
        audit=audit,
        command=command,
        verdict=verdict(audit),
        titles=_TITLES,
        charts=[_chart(distribution) for distribution in audit.distributions],
        clean=[kind.title for name, kind in KINDS.items() if name not in skipped],
        style=Markup("".join(path.read_text(encoding="utf-8") for path in styles)),
    )


def verdict(audit: Audit) -> str:
    """Return the audit in a sentence.

    Example:
        >>> verdict(Audit("toy", Path(), {}, [], [], {}, {}, {}))
        'Nothing was found.'
    """
    counts = {each: sum(finding.about.severity == each for finding in audit.findings) for each in SEVERITIES}
    parts = [f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count]
    if not parts:
        return "Nothing was found."
    end = "Training on these data makes no sense before the errors are mended." if counts["error"] else ""
    return " ".join([f"{', '.join(parts)} {'was' if sum(counts.values()) == 1 else 'were'} found.", end]).strip()


def _chart(distribution: Distribution) -> dict[str, Any]:
    series = []
    for place, (file, counts) in enumerate(distribution.counts.items()):
        total = max(1, sum(counts))
        points = [
            Point(float(x), share, share, share, f"{distribution.ranges[x]} {distribution.unit}: {count:,}")
            for x, count in enumerate(counts)
            for share in (100 * count / total,)
        ]
        series.append(Series(place, file, tuple(points)))
    ticks = tuple((float(x), name) for x, name in enumerate(distribution.ranges))
    title = f"{distribution.name}, % of lines"
    chart = Chart(title, "bars", tuple(series), distribution.unit, ticks)
    legend = [{"name": each.name, "colour": svg.colour(each.place)} for each in series]
    return {"title": title, "svg": Markup(svg.draw(chart)), "note": distribution.note, "legend": legend}
