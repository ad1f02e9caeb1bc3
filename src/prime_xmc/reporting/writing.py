"""Writing a report: the page, the same content as Markdown, each table as CSV and as LaTeX, and figures."""

import re
from pathlib import Path

from prime_xmc.files import write_text
from prime_xmc.reporting.contents import Chapter, Report
from prime_xmc.reporting.figures import against_cost
from prime_xmc.reporting.formats import to_csv, to_latex, to_markdown, verbatim
from prime_xmc.reporting.page import render
from prime_xmc.reporting.svg import draw_alone
from prime_xmc.reporting.tables import Table

_FILES = ("index.html", "report.md", "summary.md", "across.csv", "across.tex")
# What a data set's folder may have, of which not every report has all.
_TABLES = re.compile(
    r"(results|validation|comparison|bins_\w+|macro|coverage|cost|differences|examples|runs|unfinished)"
    r"\.(csv|tex)|\w+_against_\w+\.svg"
)
_SUMMARISED = ("results", "cost")  # tables of the summary


def write_report(report: Report, folder: Path) -> Path:
    """Write a report into a folder and return the path of the page; files of an earlier report are replaced."""
    page = folder / "index.html"
    write_text(page, render(report))
    write_text(folder / "report.md", _markdown(report))
    write_text(folder / "summary.md", _summary(report))
    if report.across is not None:
        _write_table(report.across, folder)
    else:  # of an earlier report
        for suffix in ("csv", "tex"):
            (folder / f"across.{suffix}").unlink(missing_ok=True)
    for chapter in report.chapters:
        tables = folder / _folder_name(chapter.study.runs.name)
        charts = against_cost(chapter.study)
        for table in chapter.tables:
            _write_table(table, tables, tables.name if len(report.chapters) > 1 else "")
        for chart in charts:
            write_text(tables / f"{chart.file}.svg", draw_alone(chart))
        written = {f"{table.name}.{suffix}" for table in chapter.tables for suffix in ("csv", "tex")}
        written |= {f"{chart.file}.svg" for chart in charts}
        for path in tables.glob("*.*"):
            if _TABLES.fullmatch(path.name) and path.name not in written:  # of an earlier report
                path.unlink()
    return page


def _write_table(table: Table, folder: Path, dataset: str = "") -> None:
    write_text(folder / f"{table.name}.csv", to_csv(table))
    write_text(folder / f"{table.name}.tex", to_latex(table, dataset))


def _folder_name(dataset: str) -> str:
    """Return a name for the folder of a data set that leads neither out of the report nor onto its files."""
    name = re.sub(r"[^\w.-]+", "_", dataset).strip(".")
    return f"{name or 'dataset'}_" if name in ("", *_FILES) else name


def _markdown(report: Report) -> str:
    parts = [f"# {verbatim(report.title)}\n", f"{verbatim(report.overview)} {verbatim(report.origin)}\n"]
    if report.command is not None:
        fence = "`" * (3 + report.command.count("`"))
        parts.append(f"{fence}\n{report.command}\n{fence}\n")
    parts += _across(report)
    for chapter in report.chapters:
        paragraphs = [" ".join(chapter.headline), *chapter.study.notes]
        parts += [f"## {verbatim(chapter.study.runs.name)}\n", *(f"{verbatim(text)}\n" for text in paragraphs)]
        parts += [*_figures(chapter), *map(_titled, chapter.tables)]
    return "\n".join([*parts, "## How to read this\n", *(f"{paragraph}\n" for paragraph in report.method)])


def _summary(report: Report) -> str:
    """Return what came out on each data set, its figures, metrics and cost: Markdown to be a part of another page."""
    parts = _across(report)
    for chapter in report.chapters:
        tables = [table for table in chapter.tables if table.name in _SUMMARISED]
        parts += [f"## {verbatim(chapter.study.runs.name)}\n", f"{verbatim(' '.join(chapter.headline))}\n"]
        parts += [*_figures(chapter), *map(_titled, tables)]
    return "\n".join(parts)


def _across(report: Report) -> list[str]:
    if report.across is None:
        return []
    return [f"## {verbatim(report.across.title)}\n", to_markdown(report.across)]


def _figures(chapter: Chapter) -> list[str]:
    folder = _folder_name(chapter.study.runs.name)
    return [f"![{verbatim(chart.title)}]({folder}/{chart.file}.svg)\n" for chart in against_cost(chapter.study)]


def _titled(table: Table) -> str:
    return f"### {verbatim(table.title)}\n\n{to_markdown(table)}"
