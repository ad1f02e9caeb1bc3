from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from prime_xmc.training import record as module
from prime_xmc.training.record import (
    RunHistory,
    describe_stage,
    show_classifiers,
    show_prototypes,
    show_stage_passes,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows clock.now."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    return clock


def spend(record: RunHistory, clock, **seconds: float) -> None:
    """Let time pass in phases, one after the other."""
    for phase, duration in seconds.items():
        record.enter(phase)
        clock.now += duration


def test_training_is_what_comes_after_the_first_embeddings(clock):
    record = RunHistory()
    clock.now += 1
    spend(record, clock, initialise=10, clusters=2, steps=5, validation=3, save=0.5, export=0.25, test=4)
    record.enter(None)
    clock.now += 100  # nobody's
    cost = record.describe()
    assert cost["seconds/prepare"] == 1
    assert cost["seconds/initialise"] == 10
    assert cost["seconds/test"] == 4
    assert cost["train/seconds"] == 2 + 5 + 3 + 0.5 + 0.25


def test_a_continued_run_goes_on_counting(clock, monkeypatch):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    step = (trainer, LightningModule(), None, SimpleNamespace(query_ids=range(35), num_label_rows=5), 0)
    first = RunHistory()
    spend(first, clock, steps=4)
    first.on_train_batch_end(*step)
    first.validation = {"val/P@1": 0.5}
    monkeypatch.setattr(module, "_peak_rss_bytes", lambda: 7)
    state = first.state_dict()
    monkeypatch.setattr(module, "_peak_rss_bytes", lambda: 5)
    second = RunHistory()
    spend(second, clock, prepare=1)
    second.load_state_dict(state)
    spend(second, clock, steps=2)
    second.on_train_batch_end(*step)
    cost = second.describe()
    assert cost["seconds/prepare"] == 1
    assert cost["train/seconds"] == 6
    assert cost["train/queries_per_second"] == 10
    assert cost["peak_rss_bytes"] == 7
    assert second.validation == {"val/P@1": 0.5}


@pytest.mark.parametrize(("epochs", "said"), [(1, "1 epoch in 8 s"), (2, "2 epochs in 8 s")])
def test_length_in_words(tmp_path, capsys, epochs, said):
    folder = tmp_path / f"run [a] {'long ' * 40}"
    show_classifiers({"train/epochs": epochs, "train/seconds": 8.2}, folder)
    assert capsys.readouterr().out == f"{said}. Run folder: {folder}\n"


def test_passes_count_all_but_the_test(clock):
    record = RunHistory()
    clock.now += 1
    spend(record, clock, probe=1, initialise=10, clusters=2, steps=5, validation=3, save=0.5, export=0.5, test=4)
    record.enter(None)
    assert not [name for name in record.describe() if "pass" in name]  # nobody has asked for them
    record.pass_seconds = 2.0
    cost = record.describe()
    assert (cost["train/passes"], cost["train/pass_seconds"], cost["seconds/probe"]) == (11.5, 2, 1)


def test_each_process_of_a_continued_run_counts_passes_of_its_machine(clock):
    first = RunHistory()
    spend(first, clock, steps=4)
    first.pass_seconds = 2.0
    state = first.state_dict()
    for before, expected in (({}, 2 + 3 / 1.5), ({"passes": None}, None)):
        second = RunHistory()
        second.load_state_dict(state | before)
        spend(second, clock, steps=3, test=9)
        second.pass_seconds = 1.5
        cost = second.describe()
        assert cost.get("train/passes") == expected
    assert cost["train/passes_note"] == "not measured: the run continues one whose cost is not known in passes"
    old = {name: value for name, value in state.items() if name != "passes"}  # a checkpoint of an earlier version
    second.load_state_dict(old)
    assert "train/passes" not in second.describe()


def test_passes_in_words(tmp_path, capsys):
    metrics = {"train/epochs": 4, "train/seconds": 398, "train/queries_per_second": 288, "peak_rss_bytes": 2**31}
    show_prototypes(metrics, tmp_path)
    assert " passes " not in capsys.readouterr().out
    phases = {"seconds/steps": 380.0, "seconds/initialise": 52.4, "seconds/test": 60.0}
    metrics |= phases | {"train/passes": 4.6, "train/pass_seconds": 94.0}
    show_prototypes(metrics, tmp_path)
    said = "training took 4.6 passes (7.2 min; a pass is 94 s here)"
    assert capsys.readouterr().out.splitlines()[-1] == said
    stage = {f"train/{name}": 30.0 for name in ("epochs", "seconds")} | {"seconds/steps": 47.0, "seconds/test": 9.0}
    metrics |= describe_stage(stage, 94.0)
    assert metrics["classify/passes"] == 0.5
    show_stage_passes(metrics)
    assert capsys.readouterr().out == "the second stage took 0.5 passes (47 s; a pass is 94 s here)\n"
    assert "classify/passes" not in describe_stage(stage, None)
    assert "classify/cpu_seconds" not in describe_stage(stage, None)
    assert describe_stage(stage | {"train/cpu_seconds": 7.0}, None)["classify/cpu_seconds"] == 7


@pytest.fixture
def processors(monkeypatch, clock):
    """Two processors that work all the time."""
    monkeypatch.setattr(module.time, "process_time", lambda: 2 * clock.now)


def test_processors_count_from_the_first_embeddings_to_the_model(clock, processors):
    record = RunHistory()
    spend(record, clock, prepare=1, probe=1, initialise=10, clusters=2, steps=5, validation=3, save=0.5, export=0.25)
    assert record.milliseconds_per_query(10) is None  # there was no test
    spend(record, clock, test=4)
    record.enter(None)
    assert record.describe()["train/cpu_seconds"] == 2 * (10 + 2 + 5 + 3 + 0.5 + 0.25)
    assert record.milliseconds_per_query(100) == 80


def test_processors_of_a_continued_run(clock, processors):
    first = RunHistory()
    spend(first, clock, steps=4)
    state = first.state_dict()
    second = RunHistory()
    second.load_state_dict(state)
    spend(second, clock, steps=2, test=1)
    assert second.describe()["train/cpu_seconds"] == 12
    old = {name: value for name, value in state.items() if name != "cpu_seconds"}  # a checkpoint of version 0.1.0
    second.load_state_dict(old)
    assert "train/cpu_seconds" not in second.describe()
    assert second.state_dict()["cpu_seconds"] is None
    assert second.milliseconds_per_query(10) is None


def test_a_run_that_has_not_trained_has_no_speed(clock):
    assert RunHistory().describe()["train/queries_per_second"] == 0


def test_a_gpu_is_named_with_the_most_memory_that_any_of_its_processes_took(monkeypatch):
    record = RunHistory()
    assert "device" not in record.describe()
    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(module, "gpu_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(module, "gpu_peak", lambda device: 7)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy._root_device = device
    record.on_fit_start(trainer, LightningModule())
    monkeypatch.setattr(module, "gpu_peak", lambda device: 5)
    continued = RunHistory()
    continued.load_state_dict(record.state_dict() | {"peak_device_memory_bytes": 7})
    continued.on_fit_start(trainer, LightningModule())
    described = continued.describe()
    assert described["device"] == "GPU 1"
    assert described["peak_device_memory_bytes"] == 7


def test_a_gpu_is_part_of_the_sentence_at_the_end(tmp_path, capsys):
    metrics = {"train/epochs": 4, "train/seconds": 8, "train/queries_per_second": 288, "peak_rss_bytes": 2**31}
    show_prototypes(metrics | {"device": "NVIDIA H100", "peak_device_memory_bytes": 2**30}, tmp_path)
    assert "peak memory 2.0 GiB, 1.0 GiB of the NVIDIA H100" in capsys.readouterr().out
