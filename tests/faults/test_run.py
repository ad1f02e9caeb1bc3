"""The runner of faults: parts that lose something, that die, that take too long, and a command line that is wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from findings import Row, markdown, summary

FOLDER = Path(__file__).parent

# A part of three rows that says how far it gets.
PART = """
import sys, time
from findings import Row, main
def rows(short, folder):
    yield Row("whole", faults=3, note=str(short))
    yield Row("lossy", faults=2, inputs=5, lost=["one of them: do this to see it"])
    print("last words")
    {end}
    yield Row("not here", skipped=True, note="not possible here")
main(__doc__, rows)
"""


@pytest.fixture(scope="module")
def run():
    """The runner's module; there is another file of its name."""
    spec = importlib.util.spec_from_file_location("run_faults", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_part(run, tmp_path: Path, end: str, monkeypatch, timeout: float = 60) -> list[Row]:
    file = tmp_path / "fault_toy.py"
    file.write_text(PART.replace("{end}", end), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER), prepend=":")
    return run.run_part(file, True, timeout, tmp_path / "toy.log")


def test_rows_and_figures(run, tmp_path, monkeypatch):
    rows = run_part(run, tmp_path, "pass", monkeypatch)
    assert [(row.what, row.faults, row.survived, row.inputs, row.verdict) for row in rows] == [
        ("whole", 3, 3, 0, "nothing lost"),
        ("lossy", 2, 1, 5, "1 LOST"),
        ("not here", 0, 0, 0, "skipped"),
    ]
    assert rows[0].note == "True"
    assert summary(rows) == "5 faults injected, 4 survived; 5 inputs tried; 1 LOST"
    assert summary(rows[:1]) == "3 faults injected, 3 survived; 0 inputs tried; nothing lost"
    assert "| lossy | 2 | 1 | 5 | 1 LOST |  |" in markdown(rows)
    content = run.to_json(["toy"], {"toy": rows}, True)
    assert content["summary"] == summary(rows)
    assert content["rows"][1]["lost"] == ["one of them: do this to see it"]
    assert Row.from_json(json.loads(json.dumps(rows[1].to_json()))) == rows[1]


@pytest.mark.parametrize(
    ("end", "timeout", "reason"),
    [
        ("raise RuntimeError('no luck')", 60, "exit status 1: RuntimeError: no luck"),
        ("import os; os.abort()", 60, "exit status -6: "),
        ("sys.stdout.flush(); time.sleep(600)", 5, "ended after 5 s: last words"),
    ],
)
def test_a_part_that_dies_has_lost_something(run, tmp_path, monkeypatch, end, timeout, reason):
    rows = run_part(run, tmp_path, end, monkeypatch, timeout)
    assert [row.what for row in rows] == ["whole", "lossy", "toy"]
    assert rows[-1].lost[0].startswith(reason)


def test_unknown_part(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "kill", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert (
        "no part is called kill: expected some of kills, fuzz, disk, hostile, flips, soak, determinism" in done.stderr
    )
