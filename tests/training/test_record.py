from types import SimpleNamespace

import pytest
from lightning.pytorch import LightningModule, Trainer

from prime_xmc.training import record as module
from prime_xmc.training.record import RunHistory, show_classifiers


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
    step = (trainer, LightningModule(), None, SimpleNamespace(query_ids=range(30)), 0)
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
    show_classifiers({"train/epochs": epochs, "train/seconds": 8.2}, tmp_path)
    assert capsys.readouterr().out.startswith(f"{said}. Run folder: ")


def test_a_run_that_has_not_trained_has_no_speed(clock):
    assert RunHistory().describe()["train/queries_per_second"] == 0
