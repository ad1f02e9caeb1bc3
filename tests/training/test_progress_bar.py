"""The bar of training, and the lines that replace it."""

import io
import logging
import re

import pytest
import rich
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from prime_xmc.training import progress_bar
from prime_xmc.training.progress_bar import EpochProgress


class Line(LightningModule):
    """Learns nothing, and logs as the real module does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = 0 * self.weight.sum() + 0.25
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        for name in ("query_prototype", "query_label", "label_query", "regulariser"):
            self.log(f"train/{name}", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/P@1", 0.125, prog_bar=True)
        self.log("val/PSP@5", 0.75, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(bar: EpochProgress, tmp_path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[bar],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    loader = DataLoader(torch.zeros(4, 1))
    trainer.fit(Line(), loader, DataLoader(torch.zeros(2, 1)))


def test_without_a_terminal_an_epoch_is_a_line_of_the_log(monkeypatch, tmp_path, caplog, capfd):
    monkeypatch.setattr(progress_bar, "is_terminal", lambda: False)
    with caplog.at_level(logging.INFO, progress_bar.__name__):
        fit(EpochProgress(), tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.name == progress_bar.__name__]
    assert lines == [f"Epoch {epoch}/3: loss 0.250, val P@1 0.125, 0 s" for epoch in (1, 2, 3)]
    shown = capfd.readouterr()
    assert "Epoch" not in shown.out
    assert "\n\n" not in shown.err


@pytest.mark.parametrize("width", [80, 110])
def test_in_a_terminal_an_epoch_is_one_line(monkeypatch, tmp_path, width):
    monkeypatch.setattr(progress_bar, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = io.StringIO()
    bar = EpochProgress()
    bar._console_kwargs = {"file": terminal, "force_terminal": True, "width": width}
    try:
        fit(bar, tmp_path)
    finally:
        rich.reconfigure()
    drawn = terminal.getvalue()
    assert "Epoch 0" not in drawn
    assert [f"Epoch {epoch}/3" in drawn for epoch in (1, 2, 3, 4)] == [True, True, True, False]
    assert "val P@1: 0.125" in drawn
    assert "query_label" not in drawn
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*\w", "", drawn).replace("\r", "\n").splitlines()]
    assert {line.split()[0] for line in lines if line} <= {"Epoch", "Validation"}, "a line is the rest of another"
