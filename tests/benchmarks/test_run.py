"""The runner: a real benchmark at a small scale, benchmarks that fail, and a command line that is wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent

# A benchmark of three rows that says how far it gets.
BENCHMARK = """
import sys, time
from common import Target, main
TARGETS = Target("a", "≤", 2, "s"), Target("b", "≥", 2, "x"), Target("c", "shown", 0, "")
def rows(scale):
    yield TARGETS[0].row(scale, "first")
    yield TARGETS[1].row(1, other=7)
    print("last words")
    {end}
    yield TARGETS[2].row(3)
main(__doc__, TARGETS, rows)
"""


@pytest.fixture
def run(monkeypatch):
    """The runner's module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("run")


def run_benchmark(run, tmp_path: Path, end: str, timeout: float = 60) -> list:
    file = tmp_path / "bench_toy.py"
    file.write_text(BENCHMARK.replace("{end}", end), encoding="utf-8")
    return run.run_benchmark(file, 0.5, timeout, tmp_path / "toy.log")


def command_line(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_small_clustering_benchmark_from_the_command_line(tmp_path):
    done = command_line("clustering", "--scale", "0.002", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["target"] for row in content] == ["≤ 120 s", "≤ 1 x", "≥ 5 x"]
    seconds, memory, speed = (row["measured"] for row in content)
    assert 0 < seconds < 100
    assert memory >= 0
    assert speed > 0
    assert [row["pass"] for row in content] == [True, memory <= 1, speed >= 5]
    for row in content:
        assert row["name"] in done.stdout
        assert {"unit", "note", "seconds", "scale", "machine", "threads", "torch_version"} <= row.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", "clustering.log"}
    table = (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 2 + len(content)
    assert table[2].startswith(f"| {content[0]['name']} | ≤ 120 s | {seconds:.4g} s | pass |")


def test_unknown_benchmark(tmp_path):
    done = command_line("clustring", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "no benchmark is called clustring: expected some of clustering, convert, evaluation" in done.stderr


def test_rows_and_verdicts(run, tmp_path):
    rows = run_benchmark(run, tmp_path, "pass")
    assert [(row.name, row.target, row.measured, row.unit, row.passed) for row in rows] == [
        ("a", "≤ 2 s", 0.5, "s", True),
        ("b", "≥ 2 x", 1, "x", False),
        ("c", "shown", 3, "", True),
    ]
    assert rows[0].note == "first"
    assert rows[1].details["other"] == 7
    assert rows[0].details["scale"] == 0.5


@pytest.mark.parametrize(
    ("end", "timeout", "reason"),
    [
        ("raise RuntimeError('no luck')", 60, "exit status 1: RuntimeError: no luck"),
        ("import os; os.abort()", 60, "exit status -6: "),
        ("sys.stdout.flush(); time.sleep(600)", 6, "ended after 6 s: last words"),
    ],
)
def test_a_benchmark_that_dies_leaves_what_it_measured(run, tmp_path, end, timeout, reason):
    rows = run_benchmark(run, tmp_path, end, timeout)
    assert [(row.name, row.measured, row.passed) for row in rows] == [
        ("a", 0.5, True),
        ("b", 1, False),
        ("c", None, False),
    ]
    assert rows[2].note.startswith(reason)
    assert str(tmp_path / "toy.log") in rows[2].note


def test_what_the_machine_lacks_is_skipped(run, tmp_path):
    rows = run_benchmark(run, tmp_path, "yield TARGETS[2].skipped('no GPU'); return")
    skipped = rows[2]
    assert (skipped.skipped, skipped.measured, skipped.note, skipped.verdict) == (True, None, "no GPU", "skipped")
    assert [row.verdict for row in rows[:2]] == ["pass", "fail"]
    assert "| c | shown | not measured | skipped | no GPU |" in run.markdown(rows)


def test_a_benchmark_goes_on_after_a_part_that_has_failed(run, tmp_path):
    rows = run_benchmark(run, tmp_path, "yield TARGETS[2].failed('no luck'); return")
    assert (rows[2].verdict, rows[2].note) == ("fail", "no luck")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_rows_of_a_gpu_are_skipped_without_one(tmp_path):
    done = command_line("gpu", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(content) == 16
    assert all(row["skipped"] and row["measured"] is None and row["note"] == "no GPU" for row in content)
    assert "0 of 0 pass" in done.stdout


def test_a_benchmark_that_does_not_start_is_a_failed_row(run, tmp_path):
    file = tmp_path / "bench_broken.py"
    file.write_text("import nothing_of_this_name", encoding="utf-8")
    (row,) = run.run_benchmark(file, 1.0, 60, tmp_path / "log")
    assert (row.name, row.measured, row.passed) == ("broken", None, False)
    assert "nothing_of_this_name" in row.note
    assert row.to_json()["measured"] is None
    assert row.to_json()["pass"] is False
    assert "| not measured | **fail** |" in run.markdown([row])


def test_a_row_survives_its_file(run):
    row = run.Row("a", "≤ 2 s", 1.5, "s", True, "note", {"seconds": 3})
    assert run.Row.from_json(json.loads(json.dumps(row.to_json()))) == row
