"""The records that the documentation's tables are made from."""

import re
from pathlib import Path

import numpy as np

from prime_xmc.reporting.run_folders import find_runs, read_runs

FOLDER = Path(__file__).parents[2] / "docs" / "comparison" / "records"


def test_records_are_of_finished_runs_on_the_carried_data():
    runs = [run for folder in find_runs([f"{FOLDER}/**"]) for run in read_runs(folder)]
    assert len({run.path for run in runs}) == 30
    assert {run.dataset for run in runs} == {"LF-Debian-18K"}
    for run in runs:
        assert run.status == "finished"
        assert run.export["data_fingerprint"] == runs[0].export["data_fingerprint"]
        with np.load(run.predictions) as ranks:
            assert len(ranks["ranks"]) == 42_931, "one rank for each positive of the test queries"
            assert run.metrics["test/P@1"] == np.round((ranks["ranks"] == 1).sum() / 12_690, 12)


def test_records_name_no_folder_of_a_machine():
    for path in FOLDER.rglob("*"):
        if path.suffix in (".yaml", ".json"):
            assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8")), path
