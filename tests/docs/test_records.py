"""The records that the documentation's tables are made from."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from prime_xmc.reporting.run_folders import find_runs, read_runs

COMPARISON = Path(__file__).parents[2] / "docs" / "comparison"
FOLDER = COMPARISON / "records"
# queries of the test split, and their positives
TEST_POSITIVES = {
    "LF-Debian-18K": (12_690, 42_931),
    "LF-Debian-18K-Full": (12_690, 42_931),
    "LF-GO-15K": (12_832, 23_830),
    "LF-Metamath-22K": (10_988, 166_406),
}


@pytest.fixture(scope="module")
def runs():
    return [run for folder in find_runs([f"{FOLDER}/**"]) for run in read_runs(folder)]


def test_records_are_of_finished_runs_on_the_carried_data(runs):
    assert len({run.path for run in runs}) == 134
    assert {run.dataset for run in runs} == {*TEST_POSITIVES}
    fingerprint_of = {run.dataset: run.export["data_fingerprint"] for run in runs}
    for run in runs:
        num_queries, num_positives = TEST_POSITIVES[run.dataset]
        assert run.status == "finished"
        assert run.export["data_fingerprint"] == fingerprint_of[run.dataset]
        with np.load(run.predictions) as ranks:
            assert len(ranks["ranks"]) == num_positives, "one rank for each positive of the test queries"
            assert run.metrics["test/P@1"] == np.round((ranks["ranks"] == 1).sum() / num_queries, 12)


def test_records_name_no_folder_of_a_machine():
    for path in FOLDER.rglob("*"):
        if path.suffix in (".yaml", ".json"):
            assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8")), path


def test_the_same_seed_on_another_machine(runs):
    """What the page of the comparison says of it; the tables there are of another machine than the records."""
    page = " ".join((COMPARISON.parent / "comparison.md").read_text(encoding="utf-8").split())
    sentence = re.search(
        r"no metric of a system differs by more than (.*?), but for PRIME's ensemble .* up to ([\d.]+)", page
    )
    said = {dataset: float(value) for value, dataset in re.findall(r"([\d.]+)(?: points)? on (LF-[\w-]+)", sentence[1])}
    of_tables = {}
    for dataset in said:
        with (COMPARISON / dataset / "results.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                of_tables[dataset, row["configuration"], row["metric"]] = float(row["mean"])
    found, of_ensemble = dict.fromkeys(said, 0.0), 0.0
    for run in (run for run in runs if run.dataset in said):
        scorer = run.settings.get("scorer")
        name = run.system + ", fast" * (run.system == "model=prime") + (f", scorer={scorer}" if scorer else "")
        for metric, value in run.metrics.items():
            if run.seed == 0 and metric.startswith("test/") and isinstance(value, float):
                difference = abs(value - of_tables[run.dataset, name, metric.removeprefix("test/")])
                if (scorer, run.dataset) == ("ensemble", "LF-Metamath-22K"):
                    of_ensemble = max(of_ensemble, difference)
                else:
                    found[run.dataset] = max(found[run.dataset], difference)
    assert {dataset: np.ceil(1000 * value) / 10 for dataset, value in found.items()} == said
    assert np.ceil(1000 * of_ensemble) / 10 == float(sentence[2])
