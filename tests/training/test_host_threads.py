import lightning as L
import pytest
import torch

from prime_xmc.assemble import make_trainer
from prime_xmc.training.host_threads import OneHostThread


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def on(kind):
    """A module whose parameters are on a device, as it says."""
    return type("Module", (L.LightningModule,), {"device": torch.device(kind)})()


@pytest.fixture(scope="module")
def trainer(compose, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    return make_trainer(compose("dataset=custom", "dataset.dir=d", "logger=null", f"run_dir={run_dir}"))


@pytest.mark.parametrize("end", ["on_validation_start", "on_train_epoch_end", "on_exception"])
def test_steps_on_a_gpu_have_one_thread_and_what_follows_has_all(three_threads, trainer, end):
    callback = OneHostThread()
    for _ in range(2):
        for number in range(2):
            callback.on_train_batch_start(trainer, on("cuda"), None, number)
            assert torch.get_num_threads() == 1
        getattr(callback, end)(trainer, on("cuda"), *([KeyboardInterrupt()] if end == "on_exception" else []))
        assert torch.get_num_threads() == 3


def test_steps_on_a_cpu_have_all(three_threads, trainer):
    callback = OneHostThread()
    callback.on_train_batch_start(trainer, on("cpu"), None, 0)
    assert torch.get_num_threads() == 3


def test_every_trainer_has_it(trainer):
    assert sum(isinstance(callback, OneHostThread) for callback in trainer.callbacks) == 1
