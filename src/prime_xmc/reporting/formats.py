"""How a table reads in Markdown, in LaTeX and in CSV."""

import csv
import io
import re
from collections.abc import Iterable

from prime_xmc.reporting.tables import Cell, Table

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


def to_markdown(table: Table) -> str:
    """Return a table in Markdown, below its caption."""

    def cell(content: Cell) -> str:
        text = content.text + (f" ± {content.deviation}" if content.deviation else "")
        text += f" {content.interval}" if content.interval else ""
        text = verbatim(text)
        return (f"**{text}**" if content.best else text) + (f" {_MARKS[content.mark]}" if content.mark else "")

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    aligned = ["---" if place < table.num_text_columns else "---:" for place in range(len(table.header))]
    lines = [line(cell(Cell(name)) for name in table.header), line(aligned)]
    lines += [line(map(cell, row)) for row in table.rows]
    return f"{verbatim(table.caption)}\n\n" + "\n".join(lines) + "\n"


def verbatim(text: str) -> str:
    """Return a text as Markdown that shows it as it is: no HTML, no links, no headings.

    Example:
        >>> verbatim("<b>bold</b>")
        '&lt;b&gt;bold&lt;/b&gt;'
    """
    text = re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", text.replace("&", "&amp;"))
    return " ".join(text.replace("<", "&lt;").replace(">", "&gt;").split())


def to_latex(table: Table, dataset: str = "") -> str:
    r"""Return a table in LaTeX; the document needs \usepackage{booktabs}.

    Args:
        table: The table.
        dataset: Name of its data set, for caption and label, where a report has several.
    """

    def cell(content: Cell) -> str:
        text = _tex(content.text)
        text = rf"\textbf{{{text}}}" if content.best else text
        text += rf" {{\scriptsize $\pm$ {_tex(content.deviation)}}}" if content.deviation else ""
        text += f" {_tex(content.interval)}" if content.interval else ""
        return text + (_TEX_MARKS[content.mark] if content.mark else "")

    def line(cells: Iterable[str]) -> str:
        text = " & ".join(cells)
        # below another line, LaTeX would take a bracket for an option of that line's end
        return f"    {'{}' if text.startswith('[') else ''}{text} \\\\"

    columns = "l" * table.num_text_columns + "r" * (len(table.header) - table.num_text_columns)
    caption = (
        _tex(f"{dataset}: {table.caption}" if dataset else table.caption)
        .replace("▲", _TEX_MARKS["better"])
        .replace("▼", _TEX_MARKS["worse"])
    )
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \label{{tab:{f'{dataset}:' if dataset else ''}{table.name}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        line(map(_tex, table.header)),
        r"    \midrule",
        *(line(map(cell, row)) for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Return the records of a table as CSV."""
    names = list(dict.fromkeys(name for record in table.records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return text.getvalue()


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
