"""What W&B writes offline is read back from its files; TensorBoard's from its events."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from prime_xmc.assemble import make_loggers
from prime_xmc.stages import train_prototypes as run
from prime_xmc.training.tracking import (
    LogHistograms,
    LogPredictions,
    WandbRun,
    hardest_triplets,
    run_names,
    wandb_logger,
)

FAILING = """
from lightning.pytorch import Callback

class Fail(Callback):
    def __init__(self, now):
        self.now = now

    def on_train_epoch_end(self, trainer, pl_module):
        if self.now:
            raise RuntimeError("as the test wants")
"""


@pytest.fixture(scope="module")
def overrides(toy_settings, tmp_path_factory) -> list[str]:
    return [
        *toy_settings,
        "dataset.validate_every=1",
        "sampling=random",
        "sampling.batch_size=32",
        "trainer.max_epochs=2",
        "trainer.precision=32-true",
        "callbacks.progress=null",
        "trainer.log_every_n_steps=5",
        "callbacks.histograms.every_n_steps=5",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
    ]


def records(folder: Path) -> Iterator[Any]:
    """The protobuf records of the one .wandb file in a folder, which is a LevelDB log."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    content, block, content_start = path.read_bytes(), 2**15, 7
    assert content.startswith(b":W&B")
    place, payload = content_start, b""
    while place < len(content):
        if (room := block - place % block) < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        payload += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            yield record
            payload = b""


def values(items: Any) -> dict[str, Any]:
    """Items of a record by key, those of a nested key by its parts."""
    return {"/".join(item.nested_key) if item.nested_key else item.key: json.loads(item.value_json) for item in items}


class Written:
    """What a W&B run has written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.files: list[str] = []
        self.exit_codes: list[int] = []
        for record in records(folder):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
            elif kind == "config":
                self.config |= values(record.config.update)
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "history":
                self.history.append(values(record.history.item))
            elif kind == "files":
                self.files += [file.path for file in record.files.files]
            elif kind == "exit":
                self.exit_codes.append(record.exit.exit_code)


@pytest.fixture(scope="module")
def sweep(overrides, call, tmp_path_factory) -> tuple[Path, list[Written]]:
    """A sweep of two jobs, of which the second fails after an epoch: its folder and the W&B run of each job."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "failing.py").write_text(FAILING)
    failing = "+callbacks.failing={_target_:failing.Fail,now:${fails}}"
    settings = [*overrides, "logger=wandb", "loss.gamma_min=0.05", "hydra.sweep.dir=margins", "+fails=false,true"]
    home = folder / "home"
    home.mkdir()
    away = {"WANDB_MODE": "offline", "HOME": str(home), "XDG_CACHE_HOME": "", "XDG_DATA_HOME": ""}
    done = call("train", "-m", *settings, failing, cwd=folder, **away)
    jobs = [folder / "margins" / str(job) for job in range(2)]
    assert "as the test wants" in (jobs[1] / "error.txt").read_text(), done.stderr[-3000:]
    assert "wandb: " not in done.stderr
    runs = [list(job.glob("wandb/offline-run-*")) for job in jobs]
    assert [len(found) for found in runs] == [1, 1], "one W&B run for each job"
    return folder, [Written(found[0]) for found in runs]


@pytest.mark.slow
def test_each_job_of_a_sweep_is_one_finished_run(sweep):
    _, (good, failed) = sweep
    assert (good.exit_codes, failed.exit_codes) == ([0], [1])
    assert good.run.run_id != failed.run.run_id
    assert (good.run.resume, good.run.project) == (True, "prime_xmc")
    for written, fails in ((good, "false"), (failed, "true")):
        assert written.run.display_name.startswith("custom seed=0 encoder=local encoder.source=")
        assert written.config["fails"] is (fails == "true")
        assert written.run.run_group == "margins"
        assert list(written.run.tags) == ["dataset:custom", "encoder:local", "model:prime", "loss:prime"]


@pytest.mark.slow
def test_configuration_and_metrics_are_where_wandb_looks(sweep):
    folder, (good, failed) = sweep
    assert good.config["loss"]["gamma_min"] == 0.05
    assert good.config["dataset"]["clusters"]["every_n_epochs"] >= 1
    assert good.config["sampling"]["batch_size"] == 32, "resolved"
    metrics = json.loads((folder / "margins" / "0" / "metrics.json").read_text())
    assert good.summary["test/P@1"] == pytest.approx(metrics["test/P@1"])
    curve = [step["val/P@1"] for step in good.history if "val/P@1" in step]
    assert len(curve) == 2
    assert good.summary["val/P@1"] == {"max": max(curve), "last": curve[-1]}
    assert curve[-1] == pytest.approx(metrics["val/P@1"])
    assert all("trainer/global_step" in step for step in good.history)
    assert "test/P@1" not in failed.summary
    assert sum("train/loss_epoch" in step for step in good.history) == 2


@pytest.mark.slow
def test_tables_show_the_same_queries_after_each_validation(sweep):
    _, (good, _) = sweep
    tables = [json.loads((good.folder / "files" / file).read_text()) for file in good.files if "predictions" in file]
    assert len(tables) == 2
    for table in tables:
        assert table["columns"] == ["query", "labels", "hits", "1", "2", "3", "4", "5"]
        assert len(table["data"]) == 20
        for query, labels, hits, *cells in table["data"]:
            assert hits == sum(cell.startswith("✓") for cell in cells)
            for label in labels.split("; "):
                assert label in query, "a toy query names its labels"
            for cell in cells:
                mark, _, shown = cell.partition(" ")
                text, _, score = shown.rpartition(" ")
                assert mark == ("✓" if text in labels.split("; ") else "✗")
                assert -1 <= float(score.strip("()")) <= 1
    assert [row[0] for row in tables[0]["data"]] == [row[0] for row in tables[1]["data"]]


@pytest.mark.slow
def test_histograms_count_every_positive_pair(sweep):
    _, (good, _) = sweep
    shown = [step for step in good.history if "similarity/prototype_positive/bins" in step]
    assert [step["trainer/global_step"] for step in shown] == [4, 9]  # of 12 or 14 steps
    for step in shown:
        pairs = sum(step["similarity/prototype_positive/values"])
        assert pairs >= 32
        for name in ("similarity/text_positive", "similarity/text_hardest_negative", "margin/prototype", "margin/text"):
            assert sum(step[f"{name}/values"]) == pairs
        assert min(step["margin/text/bins"]) >= 0.05 - 1e-6
        assert max(step["margin/text/bins"]) <= 0.3 + 1e-6


@pytest.mark.slow
def test_wandb_writes_to_the_run_folder_only(sweep):
    folder, _ = sweep
    assert not list((folder / "home").iterdir())
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"failing.py", "home", "margins"}
    assert list((folder / "margins" / "1" / "wandb" / "data" / "artifacts" / "staging").iterdir())


@pytest.mark.slow
def test_a_continued_run_continues_its_wandb_run(sweep, compose, monkeypatch):
    folder, (good, _) = sweep
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "set by the logger")
    checkpoint = folder / "margins" / "0" / "checkpoints" / "last.ckpt"
    config = compose("logger=wandb", "run_dir=elsewhere", f"ckpt_path={checkpoint}")
    assert instantiate(config.logger.wandb).version == good.run.run_id
    assert instantiate(compose("logger=wandb", "run_dir=elsewhere").logger.wandb).version is None


def test_names_tell_what_sets_a_run_apart():
    choices = {"experiment": "table6/prime", "dataset": "wikititles500k", "encoder": "minilm", "loss": None}
    overrides = ["dataset=wikititles500k", "+loss.x=1", "seed=3", "logger=wandb", "logger.notes=a", "experiment=x"]
    names = run_names(choices, overrides, seed=3, sweep=None)
    assert names == ("table6/prime seed=3 dataset=wikititles500k +loss.x=1", "table6/prime", names.tags)
    assert names.tags == ["dataset:wikititles500k", "encoder:minilm"]
    in_sweep = run_names(choices | {"experiment": None}, overrides, seed=3, sweep="sweep")
    assert in_sweep[:2] == ("wikititles500k seed=3 +loss.x=1", "sweep")
    assert run_names({}, [], seed=0, sweep=None) == (None, None, [])


def test_names_fit_what_wandb_takes():
    choices = {"experiment": None, "dataset": "d" * 100}
    names = run_names(choices, [f"loss.x={'1' * 200}"], seed=0, sweep="s" * 200)
    assert [len(names.name), len(names.group), len(names.tags[0])] == [128, 128, 64]


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r'logger=wandb needs .*pip install ".\[wandb\]" in the clone'):
        wandb_logger(save_dir=str(tmp_path), project="p")


def test_choosing_wandb_brings_its_callbacks_and_keeps_the_others(compose):
    callbacks = compose("logger=wandb", "run_dir=run", "test=false", "callbacks=exact_centroids").callbacks
    assert {"exact_centroids", "checkpoint", "wandb", "predictions", "histograms"} <= set(callbacks)
    assert isinstance(finish := instantiate(callbacks.wandb), WandbRun)
    assert finish.last_stage == "fit"
    assert isinstance(instantiate(callbacks.predictions), LogPredictions)
    assert instantiate(callbacks.histograms).margin == (0.1, 0.3)
    assert "wandb" not in compose("run_dir=run").callbacks


def test_several_loggers_stand_beside_each_other(compose, monkeypatch, tmp_path):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "set by the logger")
    run_dir = f"run_dir={tmp_path}"
    config = compose("logger=[csv,tensorboard,wandb]", run_dir, "logger.project=mine", "logger.name=one")
    assert [type(each).__name__ for each in make_loggers(config.logger)] == [
        "CSVCurves",
        "TensorBoardLogger",
        "WandbLogger",
    ]
    assert config.logger.wandb.project == "mine"
    assert (config.logger.wandb.name, config.logger.csv.name) == ("one", "csv")
    assert compose("logger=wandb", run_dir, "logger.offline=false").logger.wandb.offline is False
    assert make_loggers(None) == []


def test_a_loss_without_margin_has_no_histogram_of_margins(compose):
    callbacks = compose("logger=wandb", "run_dir=run", "~loss.gamma_min").callbacks
    assert instantiate(callbacks.histograms).margin is None


def test_the_hardest_negative_of_each_positive():
    similarity = torch.tensor([[0.9, 0.5, 0.7, -0.2], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    positives = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    negatives = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    positive_sim, negative_sim = hardest_triplets(similarity, positives, negatives)
    torch.testing.assert_close(positive_sim, torch.tensor([0.9, 0.5]))
    torch.testing.assert_close(negative_sim, torch.tensor([0.7, 0.7]))


@pytest.mark.parametrize("make", [lambda: LogHistograms(0), lambda: LogPredictions(0, 5), lambda: LogPredictions(5, 0)])
def test_numbers_out_of_range_are_errors(make):
    with pytest.raises(ValueError, match="of at least 1, got"):
        make()


def test_tensorboard_gets_histograms_too(overrides, compose, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quick = ["logger=tensorboard", "trainer.max_epochs=1", "test=false", "callbacks.checkpoint=null"]
    run(compose(*quick, *overrides, *quick[1:], f"run_dir={tmp_path}"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {f"similarity/{name}_positive" for name in ("text", "prototype")} <= set(events.Tags()["histograms"])
    (margins,) = events.Histograms("margin/prototype")
    assert margins.step == 4
    assert 0.1 - 1e-6 <= margins.histogram_value.min <= margins.histogram_value.max <= 0.3 + 1e-6
    assert np.isclose(margins.histogram_value.num, sum(margins.histogram_value.bucket))
