"""The head of every experiment file says how to run it, on what it was run, how long that took and what it gave."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from prime_xmc.conf_files import config_dir

FOLDER = config_dir() / "experiment"
DOCS = Path(__file__).parents[1] / "docs"
FILES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
NAMES = [name for name in FILES if not name.startswith("base/")]  # those are what the others share
PARTS = ("Command", "Hardware", "Duration", "Result")


def read_head(name: str) -> dict[str, str]:
    """Return the four parts of the comment at the head of a file; a part goes on in lines that are indented."""
    head = re.match(r"(#.*\n)+", (FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert head is not None, "the file begins with a comment"
    parts = re.findall(r"^# (\w+): +(.+(?:\n#  +.+)*)", head[0], flags=re.MULTILINE)
    return {part: re.sub(r"( \\)?\n#  +", " ", text) for part, text in parts}


def read_results(report: str, configuration: str) -> dict[str, float]:
    """Return the mean of each metric of a configuration, in percent, from the tables of a report."""
    path = DOCS / Path(report).relative_to("docs").parent / "LF-Debian-18K" / "results.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return {
            row["metric"]: 100 * float(row["mean"])
            for row in csv.DictReader(file)
            if row["configuration"] == configuration
        }


def read_measured(name: str) -> str:
    """Return the experiment whose result a head gives: another one where that has the same configuration."""
    other = re.search(r"Measured as ([\w/]+)", read_head(name)["Result"])
    return name if other is None else other[1]


def overrides_of(name: str) -> list[str]:
    """Return the overrides of an experiment's command, which is for all its seeds."""
    words = shlex.split(read_head(name)["Command"])
    assert words[:3] == ["python", "-m", "prime_xmc.train"]
    return [word for word in words[3:] if word != "-m" and not word.startswith("seed=")]


@pytest.mark.parametrize("name", NAMES)
class TestHead:
    def test_there_are_four_parts(self, name):
        assert tuple(read_head(name)) == PARTS

    def test_command_runs_this_experiment(self, name):
        assert overrides_of(name)[0] == f"experiment={name}"

    def test_command_has_the_learning_rate_and_clusters_that_were_measured(self, name, compose):
        """Those of the data set have changed since choices and losses were measured."""
        result = read_head(name)["Result"]
        if result == "not run":
            return
        now = name == "fast" or "docs/paper/" in result
        dataset = compose("run_dir=x", *overrides_of(name)).dataset
        assert dataset.lr == (8e-4 if now else 5e-4)
        epochs = {epoch for epoch in dataset.clusters.double_at if epoch < dataset.max_epochs}
        assert epochs == {1, 2, 3, 4} & {*range(dataset.max_epochs)} if now else epochs <= {2}

    def test_what_was_not_run_has_neither_hardware_nor_duration(self, name):
        parts = list(read_head(name).values())[1:]
        assert [part == "not run" for part in parts] in ([True] * 3, [False] * 3)

    def test_result_is_that_of_the_report(self, name):
        result = read_head(name)["Result"]
        report = re.search(r"docs/\w+/report\.md", result)
        if report is None:
            assert result == "not run" or name in ("debian18k_best", "fast"), "a result names its report"
            return
        values = read_results(report[0], read_measured(name))
        claims = re.findall(r"(\w+@\d+) ([\d.]+)", result[: report.start()])
        assert len(claims) >= 3
        assert {metric: f"{values[metric]:.1f}" for metric, _ in claims} == dict(claims)


@pytest.mark.parametrize("name", [name for name in NAMES if read_measured(name) != name])
def test_result_of_another_experiment_is_that_of_the_same_configuration(name, compose):
    run, measured = (
        OmegaConf.to_container(compose(f"experiment={option}", "run_dir=run"), resolve=True)
        for option in (name, read_measured(name))
    )
    assert run == measured


@pytest.mark.parametrize("settings", sorted({tuple(overrides_of(name)[1:]) for name in NAMES}))
def test_settings_of_commands_compose(settings, compose):
    compose(*settings, "run_dir=run")


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_tables_are_of_paper_method(name, compose):
    config = compose(f"experiment={name}", "run_dir=run")
    expected = {"debian18k_best": (True, True), "fast": (False, False)}.get(name, (False, True))
    assert (config.classify, config.neighbours is None) == expected
    assert (config.lexical is None) == (name != "fast")
