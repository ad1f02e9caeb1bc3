"""Common parts of all fault injections: rows, their table, the command line and the folder of a part.

A part is a file fault_<part>.py in this folder with

    def rows(short, folder): ...    injects faults below `folder`, and yields a `Row` as soon as one is known
    main(__doc__, rows)             at the end, under `if __name__ == "__main__":`

`run.py` finds it by its name. `python tests/faults/fault_<part>.py` runs one part and prints its table.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
COMPLETE = "complete"  # last line of the rows of a part that has come to its end


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        what: What was injected or tried.
        faults: Number of faults that were injected.
        inputs: Number of inputs that were tried.
        lost: What did not survive, each in a line with how to repeat it.
        note: Circumstances, for people.
        skipped: Whether the machine does not allow it, as `note` says.
        seconds: Duration.
        cpu_seconds: Seconds of a processor, which do not depend on what else the machine does.
    """

    what: str
    faults: int = 0
    inputs: int = 0
    lost: Sequence[str] = ()
    note: str = ""
    skipped: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def survived(self) -> int:
        """Number of faults that were survived."""
        return max(0, self.faults - len(self.lost)) if self.faults else 0

    @property
    def verdict(self) -> str:
        """What came of it, for people."""
        return "skipped" if self.skipped else f"{len(self.lost)} LOST" if self.lost else "nothing lost"

    def to_json(self) -> dict[str, Any]:
        """Return the row as an object of results.json."""
        return self._asdict() | {"survived": self.survived, "lost": list(self.lost)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Row":
        """Return the row that an object of results.json describes."""
        return cls(**{name: content[name] for name in cls._fields})


def summary(rows: Sequence[Row]) -> str:
    """Return the figures of all rows in a sentence."""
    faults, survived, inputs = (sum(getattr(row, name) for row in rows) for name in ("faults", "survived", "inputs"))
    lost = sum(len(row.lost) for row in rows)
    text = f"{faults:,} faults injected, {survived:,} survived; {inputs:,} inputs tried; "
    return text + (f"{lost:,} LOST" if lost else "nothing lost")


def make_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """Return rows as a table for people."""
    table = Table(title=title)
    for column in ("what", "faults", "survived", "inputs", "", "how", "s", "CPU s"):
        table.add_column(column, justify="left" if column in ("what", "", "how") else "right", overflow="fold")
    for row in rows:
        style = "" if row.skipped else "bold red" if row.lost else "green"
        numbers = (f"{number:,}" if number else "" for number in (row.faults, row.survived, row.inputs))
        table.add_row(
            Text(row.what),
            *numbers,
            Text(row.verdict, style),
            Text(row.note),
            f"{row.seconds:.0f}",
            f"{row.cpu_seconds:.0f}",
        )
    return table


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as the documentation shows it."""
    lines = ["| what | faults | survived | inputs | | how |", "|---|---:|---:|---:|---|---|"]
    for row in rows:
        numbers = (f"{number:,}" if number else "" for number in (row.faults, row.survived, row.inputs))
        cells = (row.what, *numbers, row.verdict, row.note)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + f"\n\n{summary(rows)}.\n"


def make_console() -> Console:
    """Return a console as wide as the terminal; in a file, rows get a line each."""
    return Console(width=None if sys.stdout.isatty() else 200)


def _append(path: Path | None, content: Any) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")


def main(description: str | None, rows: Callable[[bool, Path], Iterator[Row]]) -> None:
    """Run a part from its command line: print the table and, with `--rows`, append each row to a JSON-lines file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer faults, in seconds rather than minutes")
    parser.add_argument("--rows", type=Path, help="file for the rows, one JSON object a line")
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays; a temporary one by default")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prime_xmc-faults-")) if arguments.keep is None else arguments.keep.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found, begun, used = [], time.monotonic(), 0.0
    try:
        for row in rows(arguments.short, folder):
            used_before, used = used, sum(os.times()[:4])  # of this process and of those that it has waited for
            found.append(row._replace(seconds=time.monotonic() - begun, cpu_seconds=used - used_before))
            begun = time.monotonic()
            print(f"{found[-1].what}: {found[-1].verdict}", flush=True)
            for line in row.lost:
                print(f"  LOST {line}", flush=True)
            _append(arguments.rows, found[-1].to_json())
        _append(arguments.rows, COMPLETE)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    make_console().print(make_table(found))
    sys.exit(int(any(row.lost for row in found)))
