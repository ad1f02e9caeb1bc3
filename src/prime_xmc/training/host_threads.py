"""How many threads the operators of the host use while a GPU trains."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class OneHostThread(Callback):
    """Lets operators on the host's tensors run on one thread, in the training steps of a GPU.

    There they are sums and orders of a few thousand integers, and the step cannot go on before them. To wake a thread
    of each core takes longer than all of the work. Between the steps, where tables are searched and written, there are
    as many threads as before.
    """

    def __init__(self) -> None:
        self._before: int | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin with the first step of a row of them: to change the number costs as much as a few steps gain."""
        if self._before is None and pl_module.device.type == "cuda":
            self._before = torch.get_num_threads()
            torch.set_num_threads(1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._restore()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End, whatever ends the training."""
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            torch.set_num_threads(self._before)
            self._before = None
