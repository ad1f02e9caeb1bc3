"""Writing a report: the page, the same content as Markdown, and each table as CSV and as LaTeX."""

import re
from pathlib import Path

from prime_xmc.files import write_text
from prime_xmc.reporting.contents import Report
from prime_xmc.reporting.formats import to_csv, to_latex, to_markdown
from prime_xmc.reporting.page import render


def write_report(report: Report, folder: Path) -> Path:
    """Write a report into a folder and return the path of the page; files of an earlier report are replaced."""
    page = folder / "index.html"
    write_text(page, render(report))
    write_text(folder / "report.md", _markdown(report))
    for chapter in report.chapters:
        tables = folder / re.sub(r"[^\w.-]+", "_", chapter.study.runs.name)
        for table in chapter.tables:
            write_text(tables / f"{table.name}.csv", to_csv(table))
            write_text(tables / f"{table.name}.tex", to_latex(table))
    return page


def _markdown(report: Report) -> str:
    parts = [f"# {report.title}\n", f"{report.overview} {report.origin}\n"]
    if report.command is not None:
        parts.append(f"```\n{report.command}\n```\n")
    for chapter in report.chapters:
        paragraphs = [" ".join(chapter.headline), *chapter.study.notes]
        parts += [f"## {chapter.study.runs.name}\n", *(f"{text}\n" for text in paragraphs)]
        parts += map(to_markdown, chapter.tables)
    return "\n".join([*parts, "## How to read this\n", *(f"{paragraph}\n" for paragraph in report.method)])
