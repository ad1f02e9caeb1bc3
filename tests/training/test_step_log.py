"""What is logged is what `LightningModule.log` would log in every step."""

import csv

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from prime_xmc.training.step_log import StepLog


class Line(LightningModule):
    """Logs a loss and a term of it, as Lightning does under `own` or as `StepLog` does."""

    def __init__(self, own: bool):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.own = own
        self.step_log = StepLog()

    def on_train_epoch_start(self):
        self.step_log.start_epoch()

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch).square().mean()
        term = loss.detach() / 3
        if self.own:
            self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch))
            self.log("train/term", term, on_step=True, on_epoch=True, batch_size=len(batch))
        else:
            self.step_log.note(self.global_step, len(batch), loss.detach(), {"term": term})
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if not self.own:
            self.step_log.log(self)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Seen(Callback):
    """Keeps what callbacks see at the end of an epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, pl_module):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append(metrics | {f"bar {name}": float(v) for name, v in trainer.progress_bar_metrics.items()})


def fit(own, folder, **settings):
    seen = Seen()
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[seen],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **settings,
    )
    # batches of 4, 4 and 2: means are weighted
    data = torch.randn(10, 1, generator=torch.Generator().manual_seed(0))
    trainer.fit(Line(own), DataLoader(data, batch_size=4))
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file)), seen.epochs


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3, "log_every_n_steps": 2},
        {"max_epochs": 2, "log_every_n_steps": 50},
        {"max_epochs": 4, "log_every_n_steps": 1, "accumulate_grad_batches": 2},
        {"max_steps": 5, "log_every_n_steps": 2},  # which ends within an epoch
    ],
)
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_curves_and_what_callbacks_see_are_the_same(settings, tmp_path):
    (expected, expected_epochs), (found, epochs) = (fit(own, tmp_path / str(own), **settings) for own in (True, False))
    assert found == expected
    assert any(row.get("train/loss_epoch") for row in found)
    for mine, theirs in zip(epochs, expected_epochs, strict=True):
        assert mine == theirs


def test_a_term_that_some_steps_lack_is_averaged_over_the_others():
    log = StepLog()
    log.note(0, 2, torch.tensor(1.0), {"term": torch.tensor(4.0)})
    log.note(1, 6, torch.tensor(5.0), {})
    log.note(2, 2, torch.tensor(1.0), {"term": torch.tensor(8.0)})
    assert {name: mean.item() for name, mean in log._means().items()} == {"loss": pytest.approx(3.4), "term": 6.0}


def test_a_step_is_noted_without_waiting(never_waits):
    log = StepLog()
    with never_waits:
        for step in range(3):
            log.note(step, 2, torch.tensor(1.0), {"term": torch.tensor(4.0)})
