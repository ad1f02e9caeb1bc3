"""Marks of runs for debugging, and profiles."""

import pytest
from omegaconf import OmegaConf

from prime_xmc.training.debugging import debugging, make_profiler


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, None),
        ({"fast_dev_run": False, "overfit_batches": 0.0, "limit_train_batches": None, "limit_test_batches": 1.0}, None),
        ({"fast_dev_run": True}, "trainer.fast_dev_run"),
        ({"fast_dev_run": 2}, "trainer.fast_dev_run"),
        ({"overfit_batches": 1}, "trainer.overfit_batches"),
        ({"limit_train_batches": 1}, "trainer.limit_train_batches"),
        (
            {"limit_train_batches": 0.5, "limit_val_batches": 3},
            "trainer.limit_train_batches, trainer.limit_val_batches",
        ),
    ],
)
def test_a_run_that_sees_a_part_of_the_data_is_marked(trainer, expected):
    assert debugging(OmegaConf.create({"trainer": trainer})) == expected


@pytest.mark.parametrize("option", ["fast", "overfit", "profile", "limit"])
def test_an_option_marks_the_run_and_its_folder(compose, option):
    config = compose(f"debug={option}", "run_dir=run")
    assert debugging(config) == option
    assert config.task == "debug"
    assert debugging(compose("run_dir=run")) is None


def test_a_profile_is_written_to_the_run_folder(tmp_path):
    profiler = make_profiler("simple", tmp_path)
    profiler.setup("fit")
    with profiler.profile("step"):
        pass
    profiler.describe()
    assert "step" in (tmp_path / "fit-profile.txt").read_text()
    assert make_profiler(None, tmp_path) is None
