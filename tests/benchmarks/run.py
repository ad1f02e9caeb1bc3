"""Run the benchmarks, each in a new process, print their table and write outputs/bench/results.json.

    python tests/benchmarks/run.py                        # all
    python tests/benchmarks/run.py clustering evaluation  # some
    python tests/benchmarks/run.py --scale 0.01           # small problems, to see that everything works

The file is a list of objects with `name`, `target`, `measured` (null where a benchmark failed), `unit`, `pass`, `note`,
the `seconds` that the measurement took, and the machine. In the same folder, results.md is the table in Markdown and
<topic>.log the output of a benchmark. The exit status is 1 if a benchmark failed to measure something; a missed target
is a result, and rows that need a GPU are skipped where there is none.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from common import FOLDER, NOT_MEASURED, ROOT, Row, environment, make_console, make_table, scale_argument
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from prime_xmc.files import write_json, write_text


def main() -> int:
    """Run the benchmarks that the command line names, and return the exit status."""
    files = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"of {', '.join(files)}; all where none is named")
    parser.add_argument("--scale", type=scale_argument, default=1.0, help="share of the problems' size, in (0, 1]")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a benchmark is ended")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "bench", help="folder for results and logs")
    arguments = parser.parse_args()
    unknown = set(arguments.topics) - set(files)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}: expected some of {', '.join(files)}")
    topics = arguments.topics or list(files)
    arguments.output.mkdir(parents=True, exist_ok=True)

    console = make_console()
    rows: list[Row] = []
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(topics))
        for topic in topics:
            progress.update(task, description=topic)
            log = arguments.output / f"{topic}.log"
            measured = run_benchmark(files[topic], arguments.scale, arguments.timeout, log)
            for row in measured:
                console.print(Text(row.sentence(), {"pass": "green", "skipped": "", "fail": "red"}[row.verdict]))
            rows += measured
            write_json(arguments.output / "results.json", [row.to_json() for row in rows])
            write_text(arguments.output / "results.md", markdown(rows))
            progress.advance(task)
    title = "all benchmarks" if arguments.scale == 1 else f"at scale {arguments.scale}: targets mean scale 1"
    console.print(make_table(rows, title))
    tried = [row for row in rows if not row.skipped]
    console.print(f"{sum(row.passed for row in tried)} of {len(tried)} pass; {arguments.output / 'results.json'}")
    return int(any(row.measured is None for row in tried))


def run_benchmark(file: Path, scale: float, timeout: float, log: Path) -> list[Row]:
    """Run a benchmark in a new process.

    Args:
        file: Path of the benchmark.
        scale: Share of its problem's size.
        timeout: Seconds after which it is ended.
        log: File for its output.

    Returns:
        Its rows, at least one. If it fails, the rows that it has not measured give the reason.
    """
    with tempfile.TemporaryDirectory() as directory, log.open("wb") as output:
        lines = Path(directory, "rows.jsonl")
        command = [sys.executable, str(file), "--scale", str(scale), "--rows", str(lines)]
        # in a new session, so that processes that it has started are ended with it
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            problem = f"exit status {process.wait(timeout)}"
        except subprocess.TimeoutExpired:
            problem = f"ended after {timeout:g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        content = lines.read_text(encoding="utf-8") if lines.is_file() else ""
    latest = {row.name: row for row in map(Row.from_json, map(json.loads, content.splitlines()))}
    printed = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = f"{problem}: {printed[-1] if printed else 'nothing printed'}; see {log}"
    rows = [
        row if row.measured is not None or row.skipped or row.note != NOT_MEASURED else row._replace(note=reason)
        for row in latest.values()
    ]
    return rows or [Row(file.stem.removeprefix("bench_"), "", None, "", False, reason)]


def markdown(rows: list[Row]) -> str:
    """Return the table as the README shows it."""
    lines = ["| what | target | measured | | how |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (row.name, row.target, row.value, "**fail**" if row.verdict == "fail" else row.verdict, row.note)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
