"""Common parts of all benchmarks: targets and rows, the table, peak memory, interleaved timing, fresh processes.

A benchmark is a file bench_<topic>.py in this folder with

    TARGETS                         a tuple of `Target`, against which its rows are measured
    def rows(scale): ...            measures, and yields `TARGETS[i].row(value, note)` as soon as a value is known
    main(__doc__, TARGETS, rows)    at the end, under `if __name__ == "__main__":`

`run.py` finds it by its name. `python tests/benchmarks/bench_<topic>.py` prints the table of one benchmark, and
`--scale 0.01` shrinks its problem, to see that it works. Memory is read from /proc, so benchmarks need Linux.
"""

import argparse
import json
import os
import platform
import re
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
NOT_MEASURED = "not measured"  # note of a row that a benchmark has not come to


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        name: Name of the measured value.
        target: Target, for people.
        measured: Measured value in `unit`; None where the benchmark failed before it was known.
        unit: Unit of target and measured value, "" for a bare number.
        passed: Whether the target is met.
        note: Circumstances of the measurement, for people.
        details: Numbers behind the value, and the machine on which it was measured. `skipped`, where it is there, says
            that the machine lacks what is measured.
    """

    name: str
    target: str
    measured: float | None
    unit: str
    passed: bool
    note: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012 - never changed

    @property
    def skipped(self) -> bool:
        """Whether there was nothing to measure on this machine."""
        return bool(self.details.get("skipped"))

    @property
    def verdict(self) -> str:
        """Whether the target is met, for people."""
        return "skipped" if self.skipped else "pass" if self.passed else "fail"

    @property
    def value(self) -> str:
        """Measured value with its unit, for people."""
        return "not measured" if self.measured is None else f"{self.measured:.4g} {self.unit}".rstrip()

    def sentence(self) -> str:
        """Return the row in a line for people."""
        verdict = "FAIL" if self.verdict == "fail" else self.verdict
        return f"{verdict}  {self.name}: {self.value} ({self.target}); {self.note}"

    def to_json(self) -> dict[str, Any]:
        """Return the row as an object of results.json."""
        content = self._asdict()
        content["pass"] = content.pop("passed")
        return content | content.pop("details")

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Row":
        """Return the row that an object of results.json describes."""
        fields = {name: content[name] for name in ("name", "target", "measured", "unit", "note")}
        details = {name: value for name, value in content.items() if name not in fields and name != "pass"}
        return cls(**fields, passed=content["pass"], details=details)


class Target(NamedTuple):
    """Target of a row.

    Attributes:
        name: Name of the row.
        sign: Relation of the measured value to the bound; "shown" where there is no bound.
        bound: Bound in `unit`.
        unit: Unit such as "s", "GB", or "x" for ratios.
    """

    name: str
    sign: Literal["≤", "≥", ">", "shown"]
    bound: float
    unit: str

    @property
    def text(self) -> str:
        """Target, for people."""
        return self.sign if self.sign == "shown" else f"{self.sign} {self.bound:g} {self.unit}".rstrip()

    def row(self, measured: float, note: str = "", **details: Any) -> Row:
        """Return the row of a measured value."""
        met = {"≤": measured <= self.bound, "≥": measured >= self.bound, ">": measured > self.bound, "shown": True}
        return Row(self.name, self.text, float(measured), self.unit, bool(met[self.sign]), note, details)

    def failed(self, note: str) -> Row:
        """Return the row of a value that could not be measured."""
        return Row(self.name, self.text, None, self.unit, False, note)

    def skipped(self, note: str) -> Row:
        """Return the row of a value for which the machine lacks what `note` names."""
        return Row(self.name, self.text, None, self.unit, False, note, {"skipped": True})


def make_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """Return rows as a table for people."""
    table = Table(title=title)
    for column in ("what", "target", "measured", "", "how"):
        table.add_column(column, justify="right" if column in ("target", "measured") else "left", overflow="fold")
    for row in rows:
        verdict = Text(row.verdict, {"pass": "green", "skipped": "", "fail": "bold red"}[row.verdict])
        table.add_row(Text(row.name), Text(row.target), Text(row.value), verdict, Text(row.note))
    return table


def make_console() -> Console:
    """Return a console as wide as the terminal; in a file, rows get a line each."""
    return Console(width=None if sys.stdout.isatty() else 220)


def scale_argument(text: str) -> float:
    """Return the value of `--scale`."""
    scale = float(text)
    if not 0 < scale <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, got {text}")
    return scale


def main(description: str | None, targets: Sequence[Target], rows: Callable[[float], Iterator[Row]]) -> None:
    """Run a benchmark from its command line: print the table and, with `--rows`, append each row to a JSON-lines file.

    That file begins with a failed row for each target, and a later row replaces the one with its name. A benchmark
    that dies thus leaves the rows that it has measured, and failed rows for the rest.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=scale_argument, default=1.0, help="share of the problem's size, in (0, 1]")
    parser.add_argument("--rows", type=Path, help="file for the rows, one JSON object a line")
    arguments = parser.parse_args()

    def append(row: Row) -> None:
        if arguments.rows is not None:
            with arguments.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row.to_json()) + "\n")

    for target in targets:
        append(target.failed(NOT_MEASURED))
    measured = []
    start = time.perf_counter()
    for row in rows(arguments.scale):
        seconds, start = time.perf_counter() - start, time.perf_counter()
        measured.append(row._replace(details=row.details | {"seconds": seconds, "scale": arguments.scale} | machine()))
        append(measured[-1])
    make_console().print(make_table(measured))


def machine() -> dict[str, Any]:
    """Return a description of the machine, the threads and the version of torch."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "machine": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} processors",
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),  # torch's default
        "torch_version": version("torch"),
    }


class PeakMemory:
    """Measures the peak of this process's resident memory within a `with` block.

    Attributes:
        peak: Peak in bytes.
        growth: Difference of the peak and the memory at the start of the block, in bytes.
    """

    peak: int
    growth: int

    def __enter__(self) -> "PeakMemory":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = self._read("VmHWM")
        self.growth = max(0, self.peak - self._before)  # of little work: the system takes pages back meanwhile

    @staticmethod
    def _read(name: str) -> int:
        line = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert line is not None
        return int(line[1]) * 1024


def seconds_of(action: Callable[[], Any]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleave(rounds: int, *actions: Callable[[], Any], warm_up: int = 1) -> list[list[float]]:
    """Time actions in turn, round after round, so that a slow minute of the machine slows all of them.

    Args:
        rounds: Number of rounds that count.
        actions: Functions in the order in which a round calls them.
        warm_up: Number of rounds before, which do not count.

    Returns:
        Seconds of each action in each round.
    """
    times = [[seconds_of(action) for action in actions] for _ in range(warm_up + rounds)]
    return [list(column) for column in zip(*times[warm_up:], strict=True)]


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of the quotient within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def fresh_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call a benchmark's function in a new process.

    Args:
        function: Function at the top level of a benchmark.
        arguments: Arguments, plain JSON.

    Returns:
        Its result, also plain JSON, and the seconds of the whole process, including its start and imports.

    Raises:
        subprocess.CalledProcessError: If the process fails.
    """
    module = Path(function.__code__.co_filename).stem  # __module__ is __main__ in a benchmark that is run
    code = f"import json, sys, {module}; print(json.dumps({module}.{function.__name__}(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start


def environment() -> dict[str, str]:
    """Return the environment of a process that can import the benchmarks."""
    path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def clustering_tests() -> dict[str, Any]:
    """Return the names in the tests of clustering: `nested_groups` makes rows, `mean_similarity` judges clusters."""
    return runpy.run_path(str(FOLDER.parent / "index" / "test_clustering.py"))
