"""Runs that are continued, interrupted or in a folder that was used before: a tiny random encoder, toy data."""

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import OmegaConf
from safetensors.torch import load_file

from prime_xmc.composing import compose as compose_config
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.stages import first_stage
from prime_xmc.stages.first_stage import train_prototypes as run
from prime_xmc.training.callbacks import EpochTable, ExportModel, RebuildClusters
from prime_xmc.training.checkpoints import ShardedCheckpointIO
from prime_xmc.training.interruption import Interrupted
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.sharded import digest

# The model's size is with its settings, which name folders and checkpoints.
COST = ("train/seconds", "train/cpu_seconds", "train/queries_per_second", "seconds/", "predict/", "peak_rss_bytes")
COST += ("git_commit",)  # which may change while tests are running
COST = (*COST, "model_bytes")
EPOCHS, STEPS = 2, 7  # 200 queries in batches of 32


@pytest.fixture(scope="module")
def overrides(toy_settings, tmp_path_factory) -> list[str]:
    return [
        *toy_settings,
        "dataset.clusters={first_epoch:0,every_n_epochs:1,initial_size:4,double_at:[]}",
        "sampling.batch_size=32",
        "index=exact",
        f"trainer.max_epochs={EPOCHS}",
        "trainer.precision=32-true",
        "callbacks.progress=null",
        "trainer.log_every_n_steps=2",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
    ]


@pytest.fixture(scope="module")
def train(overrides):
    """Trains in a folder: train(folder, "seed=1") returns the metrics."""
    return lambda folder, *more: run(compose_config("train", [*overrides, f"run_dir={folder}", *more])).metrics


@pytest.fixture(scope="module")
def complete(train, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("complete")
    train(folder)
    return folder


@pytest.fixture
def seen(monkeypatch) -> dict[int, list[np.ndarray]]:
    """The query ids of the batches that are trained, by epoch."""
    batches: dict[int, list[np.ndarray]] = {}
    step = PrimeModule.training_step

    def training_step(self, batch, batch_idx):
        batches.setdefault(self.trainer.current_epoch, []).append(batch.query_ids.numpy().copy())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PrimeModule, "training_step", training_step)
    return batches


def results(folder: Path) -> dict[str, float]:
    content = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in content.items() if not name.startswith(COST)}


def assert_same_run(folder: Path, expected: Path) -> None:
    assert results(folder) == results(expected)
    for name in ("prototypes", "centroids"):
        ended, wanted = (load_file(path / "model" / f"{name}.safetensors") for path in (folder, expected))
        assert all(torch.equal(ended[key], wanted[key]) for key in wanted)


def signal_at(step: int, number: int = signal.SIGTERM) -> pytest.MonkeyPatch:
    """Send this process a signal in the middle of the n-th training step from here on."""
    patch, original, count = pytest.MonkeyPatch(), PrimeModule.on_after_backward, iter(range(1, 1000))

    def on_after_backward(self):
        original(self)
        if next(count) == step:
            os.kill(os.getpid(), number)

    patch.setattr(PrimeModule, "on_after_backward", on_after_backward)
    return patch


@pytest.fixture
def interrupt() -> Iterator:
    """interrupt(n) sends SIGTERM in the n-th step; what is trained after the block is not disturbed."""
    patches = []

    def start(step: int, number: int = signal.SIGTERM) -> pytest.MonkeyPatch:
        patches.append(signal_at(step, number))
        return patches[-1]

    yield start
    for patch in patches:
        patch.undo()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_a_signal_ended_within_an_epoch_continues_with_the_next_batch(
    train, complete, tmp_path, seen, interrupt, number, capsys
):
    patch = interrupt(STEPS + 3, number)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path)
    patch.undo()
    assert ended.value.code == 128 + number
    assert "Training is saved" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()
    assert [len(batches) for batches in seen.values()] == [STEPS, 3]
    train(tmp_path, f"ckpt_path={tmp_path}/checkpoints/last.ckpt")
    assert [len(batches) for batches in seen.values()] == [STEPS, STEPS]
    for batches in seen.values():
        ids = np.concatenate(batches)
        assert len(ids) == len(np.unique(ids)) == 200
    assert_same_run(tmp_path, complete)


def test_a_continued_epoch_goes_on_with_the_labels_that_were_mined_for_it(train, tmp_path, interrupt):
    train(tmp_path / "whole", "model=ance")
    patch = interrupt(STEPS + 3)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", "model=ance")
    patch.undo()
    train(tmp_path / "run", "model=ance", f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    ended, wanted = (load_file(tmp_path / name / "model" / "prototypes.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ended[key], wanted[key]) for key in wanted)


def test_a_signal_in_the_last_step_of_an_epoch_loses_neither_its_validation_nor_its_row(
    train, complete, tmp_path, seen, interrupt
):
    patch = interrupt(2 * STEPS)
    with pytest.raises(Interrupted):
        train(tmp_path)
    patch.undo()
    train(tmp_path, f"ckpt_path={tmp_path}/checkpoints/last.ckpt")
    assert [len(batches) for batches in seen.values()] == [STEPS, STEPS]
    assert_same_run(tmp_path, complete)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + EPOCHS


@pytest.mark.parametrize("place", ["validation_step", "test_step"])
def test_a_signal_in_validation_or_test_ends_the_run_there(train, complete, tmp_path, seen, monkeypatch, place):
    """Validation comes after the first epoch here, so that the checkpoint is that of the signal."""
    often = ["trainer.check_val_every_n_epoch=1"]
    train(tmp_path / "whole", *often)
    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(PrimeModule, place, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as ended:
            train(tmp_path / "run", *often)
    assert ended.value.code == 143
    train(tmp_path / "run", *often, f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt")
    assert sum(map(len, seen.values())) == EPOCHS * STEPS, "no step was made twice"
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_signal_in_a_validation_within_a_step_waits_for_its_end(train, tmp_path, monkeypatch):
    """Of two batches each: the gradient of the first of them is in no checkpoint."""
    often = ["trainer.accumulate_grad_batches=2", "+trainer.val_check_interval=3", "trainer.check_val_every_n_epoch=1"]
    train(tmp_path / "whole", *often)
    validation_step = PrimeModule.validation_step

    def and_signal(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        return validation_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PrimeModule, "validation_step", and_signal)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", *often)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    train(tmp_path / "run", *often, f"ckpt_path={checkpoint}")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# the second validation ends training, since no P@1 is higher by 1
EARLY = [
    *("+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.early.monitor=val/P@1"),
    *("+callbacks.early.patience=1", "+callbacks.early.min_delta=1", "trainer.check_val_every_n_epoch=1"),
]


def test_an_epoch_within_which_training_was_stopped_early_is_completed(train, tmp_path, monkeypatch):
    early = [*EARLY, "+trainer.val_check_interval=2"]
    train(tmp_path / "whole", *early)
    on_validation_end = EarlyStopping.on_validation_end

    def and_signal(self, trainer, pl_module):
        on_validation_end(self, trainer, pl_module)
        if trainer.should_stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EarlyStopping, "on_validation_end", and_signal)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", *early)
    train(tmp_path / "run", *early, f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_training_that_was_stopped_early_is_not_trained_on(train, tmp_path, seen, monkeypatch):
    early = [*EARLY, "trainer.max_epochs=6"]
    train(tmp_path / "whole", *early)
    assert len(seen) == 2
    with monkeypatch.context() as patch:
        patch.setattr(PrimeModule, "test_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(tmp_path / "run", *early)
    seen.clear()
    checkpoint = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    train(tmp_path / "run", *early, checkpoint)
    assert not seen
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    train(tmp_path / "longer", *early, "trainer.max_epochs=7", checkpoint)
    assert list(seen) == [2], "with another length it goes on, until it is stopped again"


@contextmanager
def held_out_one_by_one() -> Iterator[None]:
    """Let queries be held out whatever their texts, as version 0.1.0 did; some texts are repeated here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrimeDataModule, "held_out_before", property(lambda _: "", lambda *_: None), raising=False)
        yield


def test_a_run_goes_on_with_the_queries_that_an_earlier_version_has_held_out(train, tmp_path, interrupt):
    with held_out_one_by_one():
        train(tmp_path / "whole")
        signalled = interrupt(STEPS + 3)
        with pytest.raises(Interrupted):
            train(tmp_path / "run")
        signalled.undo()
    train(tmp_path / "run", f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    described = [json.loads((tmp_path / name / "model" / "prime_config.json").read_text()) for name in ("run", "whole")]
    assert described[0]["settings"]["validation_queries"] == described[1]["settings"]["validation_queries"]
    io, path = ShardedCheckpointIO(), tmp_path / "whole" / "checkpoints" / "last.ckpt"
    content = io.load_checkpoint(path)
    del content["origin"]  # as version 0.1.0 wrote it
    torch.save(content, path)
    train(tmp_path / "unsaid", f"ckpt_path={path}", "dataset.max_epochs=3", "trainer.max_epochs=3")
    unsaid = json.loads((tmp_path / "unsaid" / "model" / "prime_config.json").read_text())
    assert unsaid["settings"]["validation_queries"] == described[1]["settings"]["validation_queries"]
    train(tmp_path / "now")
    now = json.loads((tmp_path / "now" / "model" / "prime_config.json").read_text())
    assert now["settings"]["validation_queries"] != described[0]["settings"]["validation_queries"]


def test_a_signal_before_anything_is_saved(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("prime_xmc.stages.first_stage.make_module", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        train(tmp_path)
    assert ended.value.code == 143
    assert "Training has not been saved yet. To start it again in its folder:" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class KilledError(BaseException):
    """Ends a run at once, without what it does when it is asked to end."""


def killed_at(patch: pytest.MonkeyPatch, owner: object, name: str, nth: int = 1, *, after: bool = False) -> None:
    """End the process of the run, as it were, at the n-th call of a function, before it or after it."""
    original, count = getattr(owner, name), itertools.count(1)

    def call(*arguments, **keywords):
        now = next(count) == nth
        if now and not after:
            raise KilledError
        result = original(*arguments, **keywords)
        if now:
            raise KilledError
        return result

    patch.setattr(owner, name, call)


OFTEN = ["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "checkpoint.every_n_minutes=1e-9"]


@pytest.fixture(scope="module")
def unbroken(train, tmp_path_factory) -> Path:
    """The folder of a run that validates after the second of its three epochs, and was left alone."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(folder, *OFTEN)
    return folder


@pytest.mark.parametrize(
    ("owner", "name", "nth", "after", "steps_again"),
    [
        (TextEncoder, "forward", 1, False, 3 * STEPS),  # of the first embeddings
        (PrimeModule, "on_after_backward", STEPS + 3, False, 1),
        (Trainer, "save_checkpoint", STEPS + 2, False, 1),
        (RebuildClusters, "on_train_epoch_start", 3, False, 0),
        (PrimeModule, "validation_step", 1, False, 1),
        (EpochTable, "on_train_epoch_end", 2, True, 1),
        (ShardedCheckpointIO, "save_checkpoint", 3 * STEPS, False, 1),
        (first_stage, "save_bundle", 2, False, 0),
        (PrimeModule, "test_step", 1, False, 0),
        (first_stage, "write_json", 1, False, 0),
    ],
)
def test_a_killed_run_ends_as_the_uninterrupted_one(
    train, unbroken, tmp_path, seen, owner, name, nth, after, steps_again
):
    """In all its files, those with the curves included, and without the work that its checkpoint has."""
    folder = tmp_path / "run"
    cold = [f"cache_dir={tmp_path}/cache"] if steps_again == 3 * STEPS else []
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, owner, name, nth, after=after)
        with pytest.raises(KilledError):
            train(folder, *OFTEN, *cold)
    assert not (folder / "metrics.json").exists()
    checkpoint = folder / "checkpoints" / "last.ckpt"
    train(folder, *OFTEN, *cold, *([f"ckpt_path={checkpoint}"] if checkpoint.exists() else []))
    if steps_again < 3 * STEPS:
        assert sum(map(len, seen.values())) == 3 * STEPS + steps_again
    assert results(folder) == results(unbroken)
    for path in ("metrics.csv", "csv/metrics.csv", "predictions.npz"):
        assert (folder / path).read_bytes() == (unbroken / path).read_bytes(), path
    described = [json.loads((each / "model" / "prime_config.json").read_text()) for each in (folder, unbroken)]
    assert described[0]["settings"]["config"]["ckpt_path"] is described[1]["settings"]["config"]["ckpt_path"] is None
    assert_same_run(folder, unbroken)
    assert {path.name for path in folder.iterdir()} == {path.name for path in unbroken.iterdir()}


def test_metrics_say_after_which_epoch_the_run_was_validated(unbroken):
    metrics = results(unbroken)
    assert (metrics["val/epoch"], metrics["train/epochs"]) == (2, 3)


def test_a_run_that_is_continued_by_another_name_of_its_folder_keeps_its_checkpoint(train, tmp_path):
    train(tmp_path / "run", "trainer.max_epochs=1", "test=false")
    (tmp_path / "link").symlink_to("run")
    metrics = train(tmp_path / "run", "test=false", f"ckpt_path={tmp_path}/link/checkpoints/last.ckpt")
    assert metrics["train/epochs"] == EPOCHS
    recorded = OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml")
    assert (recorded.trainer.max_epochs, recorded.ckpt_path) == (EPOCHS, None)  # the run can be resumed as it went on


def test_a_checkpoint_every_few_steps_continues_within_the_epoch(train, complete, tmp_path, seen):
    every = ["callbacks.checkpoint.filename='{step}'", "+callbacks.checkpoint.every_n_train_steps=5"]
    every += ["callbacks.checkpoint.save_top_k=-1", "callbacks.checkpoint.save_on_train_epoch_end=false"]
    train(tmp_path / "first", *every)
    checkpoints = tmp_path / "first" / "checkpoints"
    assert {path.name for path in checkpoints.glob("*.ckpt")} == {"step=5.ckpt", "step=10.ckpt"}
    seen.clear()
    train(tmp_path / "second", f"ckpt_path='{checkpoints}/step=5.ckpt'")
    assert [len(batches) for batches in seen.values()] == [2, STEPS]
    assert_same_run(tmp_path / "second", complete)


def test_a_checkpoint_of_the_last_step_of_an_epoch_continues_with_its_validation(train, complete, tmp_path):
    every = ["callbacks.checkpoint.filename='{step}'", f"+callbacks.checkpoint.every_n_train_steps={2 * STEPS}"]
    train(tmp_path / "first", *every, "callbacks.checkpoint.save_on_train_epoch_end=false")
    train(tmp_path / "second", f"ckpt_path='{tmp_path}/first/checkpoints/step={2 * STEPS}.ckpt'")
    assert_same_run(tmp_path / "second", complete)


def test_a_checkpoint_of_version_0_1_0_continues_with_a_warning(train, tmp_path, seen, interrupt, caplog):
    with held_out_one_by_one():
        train(tmp_path / "whole")
        seen.clear()
        patch = interrupt(STEPS + 3)
        with pytest.raises(Interrupted):
            train(tmp_path / "run")
        patch.undo()
    io, path = ShardedCheckpointIO(), tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    del content["origin"], content["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    del content["callbacks"]["RunHistory"], content["PrimeDataModule"]["sampler"]["position"]
    torch.save(content, path)
    assert "origin" not in io.load_checkpoint(path)
    metrics = train(tmp_path / "run", f"ckpt_path={path}")
    assert "could not be checked" in caplog.text
    assert [len(batches) for batches in seen.values()] == [STEPS, STEPS]
    assert metrics["val/P@1"] == results(tmp_path / "whole")["val/P@1"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["optimizer.lr=1e-2"], r"optimizer\.lr.*: 0\.0008 in the checkpoint, 0\.01 given"),
        (["seed=1"], r"seed.*: 0 in the checkpoint, 1 given"),
        (["dataset.num_free_vectors=4"], r"dataset\.num_free_vectors, model\.num_free_vectors: 8 in the .*, 4 given"),
        (["+trainer.gradient_clip_val=1"], r"trainer\.gradient_clip_val: null in the checkpoint, 1 given"),
        (["dataset.max_length=16"], r"dataset\.max_length: 32 in the checkpoint, 16 given"),
        (["encoder.num_layers=1"], r"encoder\.num_layers: null in the checkpoint, 1 given"),
    ],
)
def test_a_run_with_other_settings_is_not_continued(train, complete, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, *more, f"ckpt_path={complete}/checkpoints/last.ckpt")


def test_a_run_with_other_data_is_not_continued(train, complete, toy_dataset, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in toy_dataset.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    train(tmp_path / "moved", f"dataset.dir={folder}", f"ckpt_path={complete}/checkpoints/last.ckpt")
    lines = gzip.decompress((folder / "lbl.json.gz").read_bytes()).splitlines(keepends=True)
    (folder / "lbl.json.gz").write_bytes(gzip.compress(b"".join(reversed(lines))))
    with pytest.raises(ValueError, match="the data set of the checkpoint is another one"):
        train(tmp_path / "reversed", f"dataset.dir={folder}", f"ckpt_path={complete}/checkpoints/last.ckpt")


def test_more_epochs_follow_the_schedule_of_the_new_length(train, complete, tmp_path, caplog):
    longer = ["trainer.max_epochs=4", f"ckpt_path={complete}/checkpoints/last.ckpt"]
    train(tmp_path, *longer)
    assert "the learning rate goes from 0.0e+00 to 4.5e-04" in caplog.text
    rates = [float(line.split(",")[2]) for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    warmup = round(0.1 * 4 * STEPS)
    expected = [8e-4 * (4 - epoch) * STEPS / (4 * STEPS - warmup) for epoch in (3, 4)]
    assert rates[2:] == pytest.approx(expected)


def test_the_cost_is_that_of_all_processes(train, tmp_path, interrupt):
    patch = interrupt(STEPS + 3)
    with pytest.raises(Interrupted):
        train(tmp_path)
    patch.undo()
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    before = ShardedCheckpointIO().load_checkpoint(checkpoint)["callbacks"]["RunHistory"]
    metrics = train(tmp_path, f"ckpt_path={checkpoint}")
    assert metrics["seconds/steps"] > before["seconds"]["steps"] > 0
    assert metrics["peak_rss_bytes"] >= before["peak_rss_bytes"]
    phases = ("clusters", "steps", "validation", "save", "export")
    assert metrics["train/seconds"] == pytest.approx(sum(metrics[f"seconds/{phase}"] for phase in phases))
    assert metrics["train/queries_per_second"] == pytest.approx(EPOCHS * 200 / metrics["train/seconds"])
    again = train(tmp_path, f"ckpt_path={checkpoint}")  # after its end
    assert again["seconds/steps"] >= before["seconds"]["steps"]
    assert again["train/queries_per_second"] == pytest.approx(EPOCHS * 200 / again["train/seconds"])


def test_results_of_an_earlier_run_in_the_folder_go_when_another_begins(train, tmp_path, monkeypatch):
    train(tmp_path, "trainer.max_epochs=1")
    assert (tmp_path / "metrics.json").is_file()
    with pytest.raises(ValueError, match="encoder"):
        train(tmp_path, "dataset.max_length=65")
    assert (tmp_path / "metrics.json").is_file(), "the new run did not begin"

    def fail(*_):
        raise RuntimeError("the machine is needed")

    monkeypatch.setattr(ExportModel, "on_train_end", fail)
    with pytest.raises(RuntimeError, match="the machine is needed"):
        train(tmp_path, "seed=1", "export_after_validation=false")
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & {"metrics.json", "predictions.npz", "model"}


def test_checkpoints_on_another_disk_are_those_of_the_run(train, complete, tmp_path):
    run_dir, disk = tmp_path / "run", tmp_path / "disk"
    train(run_dir, "trainer.max_epochs=1")
    (run_dir / "checkpoints").rename(disk)
    (run_dir / "checkpoints").symlink_to(disk)
    (run_dir / "csv" / "own.txt").touch()
    train(run_dir, f"ckpt_path={run_dir}/checkpoints/last.ckpt")
    assert (run_dir / "checkpoints").is_symlink()
    assert ShardedCheckpointIO().load_checkpoint(disk / "last.ckpt")["epoch"] == EPOCHS - 1
    assert (run_dir / "csv" / "own.txt").is_file(), "the run went on"


def test_settings_of_a_run_come_from_its_command_line_alone(train, complete, tmp_path):
    """Nothing happens to a run whose folder is named without its settings."""
    for folder in (tmp_path, complete):
        with pytest.raises(ValueError, match=f"resume={complete} is for the command line: prime-xmc-train resume="):
            train(folder, f"resume={complete}")
    assert (complete / "checkpoints" / "last.ckpt").is_file()


def test_a_run_from_python_has_a_folder_and_its_configuration(overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose_config("train", [*overrides, "trainer.max_epochs=1", "test=false"])
    run(config)
    (folder,) = Path("outputs/train").iterdir()
    assert (folder / "metrics.json").is_file()
    written = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert written.trainer.max_epochs == 1
    assert Path(written.run_dir) == folder.absolute()
    assert OmegaConf.load(folder / ".hydra" / "overrides.yaml") == []


@pytest.mark.parametrize("classify", [False, True])
def test_no_text_goes_twice_through_the_same_weights(train, tmp_path, monkeypatch, classify):
    """Those of training steps apart, whose weights change with each."""
    passed: dict[tuple, int] = {}
    num_trained, forward = 0, TextEncoder.forward

    def counted(self, token_ids, lengths, text_ids=None):
        nonlocal num_trained
        if torch.is_grad_enabled():
            num_trained += len(lengths)
        else:
            weights = digest(*(p for p in self.parameters()))
            for text in token_ids.split(lengths.tolist()):
                passed[weights, tuple(text.tolist())] = passed.get((weights, tuple(text.tolist())), 0) + 1
        return forward(self, token_ids, lengths, text_ids)

    monkeypatch.setattr(TextEncoder, "forward", counted)
    more = ["classify=true", "classify_settings=[trainer.max_epochs=1]"] if classify else []
    train(tmp_path / "run", f"cache_dir={tmp_path}/cache", "trainer.check_val_every_n_epoch=1", *more)
    start = 200 + 48  # training queries and labels
    validations = EPOCHS * (48 + 40)  # labels anew; the last one's are also those of the export and the test
    second_stage = 200 if classify else 0  # the training queries; those held out and of the test are encoded already
    assert sum(passed.values()) == start + validations + 60 + second_stage
    assert EPOCHS * 200 < num_trained <= EPOCHS * (200 + STEPS * 32)
    # in the data, some texts stand several times
    assert sum(count > 1 for count in passed.values()) < 0.1 * len(passed)


@pytest.fixture(scope="module")
def quick(overrides) -> list[str]:
    return [sys.executable, "-m", "prime_xmc.train", *overrides, "test=false"]


@pytest.mark.slow
def test_the_printed_command_continues_the_run(quick, complete, tmp_path):
    """In a folder whose name the shell and Hydra would take apart."""
    folder = tmp_path / "it's a (run), no=1"
    command = [*quick, f"hydra.run.dir={_quoted(folder.name)}", "trainer.max_epochs=500", "dataset.validate_every=500"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in iter(lambda: (folder / "checkpoints" / "last.ckpt").exists(), True):
        assert process.poll() is None, process.stderr.read()[-2000:]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    last = ShardedCheckpointIO().load_checkpoint(folder / "checkpoints" / "last.ckpt")
    printed = errors.strip().splitlines()[-1]
    assert "resume=" in printed
    shorter = f"{printed} trainer.max_steps={last['global_step'] + 3}"
    done = subprocess.run(shorter, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "metrics.json").read_text())["train/epochs"] >= last["epoch"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.slow
def test_output_that_cannot_be_written_costs_nothing(quick, overrides, call, tmp_path):
    short = ["test=false", "trainer.max_epochs=1"]
    ascii_only = subprocess.run(
        [*quick, "trainer.max_epochs=1", "hydra.run.dir=ascii"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    with open("/dev/full", "w") as full:
        onto_full = call("train", *overrides, *short, "hydra.run.dir=full", cwd=tmp_path, stdout=full)
    read, write = os.pipe()
    os.close(read)
    into_pipe = call("train", *overrides, *short, "hydra.run.dir=pipe", cwd=tmp_path, stdout=write)
    os.close(write)
    assert (ascii_only.returncode, onto_full.returncode, into_pipe.returncode) == (0, 0, 0)
    assert all((tmp_path / name / "metrics.json").is_file() for name in ("ascii", "full", "pipe"))


def _quoted(name: str) -> str:
    return "'" + name.replace("'", r"\'") + "'"
