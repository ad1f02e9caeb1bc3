import csv
from pathlib import Path

import pytest

from prime_xmc.training.curves import CSVCurves, continue_curves, read_rows, rows_before

PLACE = {"step": 4, "validates": False, "pending": None}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_rows_from_the_checkpoint_on_are_dropped():
    found = [{"step": str(step), "loss": "1", "val/P@1": ""} for step in (1, 3, 4, 7)]
    assert rows_before(found, PLACE) == [{"step": "1", "loss": "1"}, {"step": "3", "loss": "1"}]


def test_a_validation_that_is_made_again_is_not_there_twice():
    found = [{"step": "3", "loss": "1"}, {"step": "1", "val/P@1": "0.5"}, {"step": "3", "val/P@1": "0.6"}]
    assert rows_before(found, PLACE | {"validates": True}) == found[:2]
    assert rows_before(found, PLACE) == found


def test_the_row_of_an_epoch_comes_from_the_checkpoint_where_the_file_lacks_it():
    pending = {"train/loss_epoch": 0.25, "epoch": 1, "step": 3}
    step = {"step": "3", "loss": "1"}
    assert rows_before([step], PLACE | {"pending": pending}) == [step, pending]
    there = {"step": "3", "epoch": "1", "train/loss_epoch": "0.25"}
    assert rows_before([step, there], PLACE | {"pending": pending}) == [step, there]
    assert rows_before([step], PLACE | {"pending": {"epoch": 1, "step": 3}}) == [step], "nothing was logged"


def test_a_last_line_that_was_cut_is_no_row(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_rows(path) == []
    path.write_text("loss,step\r\n1,0\r\n2,1\r\n3,")
    assert [row["step"] for row in read_rows(path)] == ["0", "1"]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_continued_file_is_that_of_an_uninterrupted_run(tmp_path, in_place):
    def log(logger, steps):
        for step in steps:
            logger.log_metrics({"loss": step / 3}, step)
            if step == 4:
                logger.log_metrics({"a": 1.0}, step)
            logger.save()

    def make(name):
        return CSVCurves(tmp_path / name, name="csv", version="")

    whole, killed = make("whole"), make("killed")
    log(whole, range(8))
    log(killed, range(6))
    run_dir = tmp_path / ("killed" if in_place else "new")
    continued = make(run_dir.name)
    continue_curves([continued], tmp_path / "killed", run_dir, PLACE)
    log(continued, range(4, 8))
    files = [(tmp_path / name / "csv" / "metrics.csv").read_bytes() for name in ("whole", run_dir.name)]
    assert files[0] == files[1]


def test_a_new_run_starts_a_new_file(tmp_path):
    for loss in (1.0, 2.0):
        logger = CSVCurves(tmp_path, name="csv", version="")
        logger.log_metrics({"loss": loss}, 0)
        logger.save()
    assert rows(tmp_path / "csv" / "metrics.csv") == [{"loss": "2.0", "step": "0"}]
