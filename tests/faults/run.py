"""Inject faults, each part in a new process, print their table and write outputs/faults/results.json.

    python tests/faults/run.py              # all
    python tests/faults/run.py kills disk   # some
    python tests/faults/run.py short        # few of each, in under two minutes

The file is an object with `summary` and the `rows` of all parts: `part`, `what`, the numbers of `faults`, `survived`
and `inputs`, what was `lost` with how to repeat it, `note`, `skipped` where the machine does not allow it, and
`seconds`. In the same folder, results.md is the table in Markdown and <part>.log the output of a part. The exit status
is 1 if anything was lost, or a part did not come to its end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from findings import COMPLETE, FOLDER, ROOT, Row, make_console, make_table, markdown, summary
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from prime_xmc.files import write_json, write_text

SHORT = "short"
# The longest ones first, so that two processes end at about the same time.
_LONGEST = ("kills", "fuzz", "disk", "hostile", "flips", "soak", "determinism")


def main() -> int:
    """Run the parts that the command line names, and return the exit status."""
    files = {path.stem.removeprefix("fault_"): path for path in FOLDER.glob("fault_*.py")}
    files = {name: files[name] for name in sorted(files, key=lambda name: (*_LONGEST, name).index(name))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = f"of {', '.join(files)}; all where none is named; {SHORT}: few faults of each"
    parser.add_argument("parts", nargs="*", metavar="part", help=choices)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="parts at the same time")
    parser.add_argument("--timeout", type=float, default=1500, help="seconds after which a part is ended")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "faults", help="folder for results and logs")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - {*files, SHORT}
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}: expected some {choices}")
    short = SHORT in arguments.parts
    parts = [name for name in files if name in arguments.parts] or list(files)
    arguments.output.mkdir(parents=True, exist_ok=True)

    console, found = make_console(), dict[str, list[Row]]()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ThreadPoolExecutor(arguments.jobs) as executor,
    ):
        task = progress.add_task(", ".join(parts), total=len(parts))
        running = {
            executor.submit(run_part, files[part], short, arguments.timeout, arguments.output / f"{part}.log"): part
            for part in parts
        }
        for done in as_completed(running):
            part = running.pop(done)
            found[part] = done.result()
            for row in found[part]:
                style = "" if row.skipped else "red" if row.lost else "green"
                note = f" ({row.note})" if row.note else ""
                console.print(Text(f"{row.verdict}  {part}: {row.what}{note}", style))
                for line in row.lost:
                    console.print(Text(f"    LOST {line}", "red"))
            progress.update(task, advance=1, description=", ".join(running.values()))
            rows = [row for name in parts for row in found.get(name, [])]
            write_json(arguments.output / "results.json", to_json(parts, found, short))
            write_text(arguments.output / "results.md", markdown(rows))
    console.print(make_table(rows, "few faults of each" if short else None))
    console.print(f"{summary(rows)}; {arguments.output / 'results.json'}")
    return int(any(row.lost for row in rows))


def to_json(parts: list[str], found: dict[str, list[Row]], short: bool) -> dict[str, object]:
    """Return what results.json holds."""
    rows = [row for name in parts for row in found.get(name, [])]
    return {
        "summary": summary(rows),
        "short": short,
        "torch_version": version("torch"),
        "processors": os.cpu_count(),
        "rows": [{"part": name, **row.to_json()} for name in parts for row in found.get(name, [])],
    }


def run_part(file: Path, short: bool, timeout: float, log: Path) -> list[Row]:
    """Run a part in a new process.

    Args:
        file: Path of the part.
        short: Whether it injects few faults.
        timeout: Seconds after which it is ended.
        log: File for its output.

    Returns:
        Its rows, at least one. If it did not come to its end, the last one says so.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, log.open("wb") as output:
        lines = Path(directory, "rows.jsonl")
        command = [sys.executable, str(file), "--rows", str(lines), *(["--short"] if short else [])]
        # in a new session, so that processes that it has started are ended with it
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
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
    written = [json.loads(line) for line in content.splitlines()]
    rows = [Row.from_json(each) for each in written if each != COMPLETE]
    if COMPLETE not in written:
        printed = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"{problem}: {printed[-1] if printed else 'nothing printed'}; see {log}"
        rows.append(Row(file.stem.removeprefix("fault_"), lost=[reason], seconds=time.monotonic() - started))
    return rows


if __name__ == "__main__":
    sys.exit(main())
