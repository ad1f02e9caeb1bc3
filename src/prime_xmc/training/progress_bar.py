"""Progress of training: a bar for each epoch in a terminal, a line for each epoch elsewhere."""

import logging
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import BatchesProcessedColumn
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn

from prime_xmc.progress import is_terminal

logger = logging.getLogger(__name__)

_INTERVAL = 0.1  # seconds from one state of a bar to the next
SHOWN = {"train/loss": "loss", "val/P@1": "val P@1"}  # what fits beside a bar in 80 columns


class EpochProgress(RichProgressBar):
    """Lightning's bar with epochs that are counted from 1 and two metrics, which fit into a line.

    Where standard error is no terminal, such as in a file or a batch job, nothing is drawn: each epoch is a line of the
    log.
    """

    def __init__(self, leave: bool = True):
        super().__init__(leave=leave, console_kwargs={"stderr": True})
        self.draws = is_terminal()
        if not self.draws:
            self.disable()
        self._start = self._drawn = 0.0

    def enable(self) -> None:
        """Draw, unless there is no terminal to draw on."""
        if self.draws:
            super().enable()

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return what a bar shows besides metrics: less than Lightning does, so that the metrics fit beside it."""
        return [
            TextColumn("{task.description}"),
            BarColumn(bar_width=15),
            BatchesProcessedColumn(self.theme.batch_progress),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of an epoch that is continued within."""
        self._start = time.perf_counter()
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar of the epoch."""
        self._start = time.perf_counter()
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on, unless that was done a moment ago: to draw it takes longer than many a step."""
        if not self.draws:
            return
        now = time.perf_counter()
        if now - self._drawn >= _INTERVAL or trainer.is_last_batch:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the bar, or log the line of the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self.draws and trainer.is_global_zero:
            metrics = self.get_metrics(trainer, pl_module)
            values = [f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float)]
            seconds = f"{time.perf_counter() - self._start:.0f} s"
            logger.info(
                "%s: %s", self._get_train_description(trainer.current_epoch).strip(), ", ".join([*values, seconds])
            )

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the loss and, in an epoch that has validated, P@1."""
        metrics = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}
        shown = {}
        for name, short in SHOWN.items():
            value = metrics.get(name, metrics.get(f"{name}_epoch", metrics.get(f"{name}_step")))
            if value is not None:
                shown[short] = value
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        max_epochs = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}" + (f"/{max_epochs}" if max_epochs is not None and max_epochs > 0 else "")
