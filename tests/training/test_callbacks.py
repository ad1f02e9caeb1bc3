"""The export and the table of epochs; tests/test_train.py and tests/training/test_module.py have the others."""

import lightning as L
import pytest

from prime_xmc.assemble import make_data, make_module
from prime_xmc.training.callbacks import EpochTable, ExportModel, ReleaseMemory


@pytest.fixture(scope="module")
def exported_at(toy_settings, compose, tmp_path_factory):
    """Returns the steps of exports: there are five steps an epoch, and every second epoch validates."""
    paths = [f"{key}={tmp_path_factory.mktemp(key)}" for key in ("cache_dir", "run_dir")]
    config = compose(*toy_settings, "dataset.batch_size=40", *paths)
    data = make_data(config)

    def exported_at(max_epochs, **settings):
        steps = []
        export = ExportModel(lambda module, label_emb, prototypes: steps.append(module.global_step), **settings)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            check_val_every_n_epoch=2,
            enable_checkpointing=False,
            log_every_n_steps=1,
            callbacks=[export],
            **quiet,
        )
        trainer.fit(make_module(config, data), datamodule=data)
        return steps

    return exported_at


def test_after_validation_and_at_the_end(exported_at):
    assert exported_at(3) == [10, 15]


def test_once_where_training_ends_with_validation(exported_at):
    assert exported_at(2) == [10]


def test_only_at_the_end(exported_at):
    assert exported_at(3, after_validation=False) == [15]


def test_every_n_epochs(exported_at):
    assert exported_at(3, after_validation=False, every_n_epochs=1) == [5, 10, 15]


def test_a_run_continued_after_its_end_has_the_table_in_its_new_folder(tmp_path):
    table = EpochTable(str(tmp_path / "metrics.csv"))
    table.load_state_dict({"rows": [{"epoch": 0, "step": 5, "lr": 0.25}]})
    table.on_train_end(L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), L.LightningModule())
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,lr\n0,5,0.25\n"


@pytest.mark.parametrize(("device", "expected"), [("cpu", [1, 3]), ("meta", [])])
def test_memory_is_released_every_n_steps_of_the_cpu_alone(device, expected, monkeypatch):
    callback, module, released = ReleaseMemory(every_n_steps=2), L.LightningModule().to(device), []
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for step in range(5):
        monkeypatch.setattr(callback, "release", lambda step=step: released.append(step))
        callback.on_train_batch_end(trainer, module, None, None, step)
    assert released == expected
