"""What training steps log: collected on the device, and read by the host at the steps that the Trainer logs."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prime_xmc.training.divergence import DivergenceWatch


class StepLog:
    """Keeps a step's loss and terms, the sums of an epoch, and whether all were finite.

    To log them by `LightningModule.log` in every step would make the host wait for the device in each of them, for the
    progress bar, and take a tenth of a millisecond for each value. The names and numbers that come out are the same:
    `train/<name>_step` at the steps that the Trainer logs, and `train/<name>_epoch` at the end of an epoch, the mean
    over its queries.
    """

    def __init__(self) -> None:
        self.divergence = DivergenceWatch()
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forget the epoch before."""
        self._last: tuple[tuple[str, ...], Tensor] | None = None
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        self._has_logged_means = False

    @torch.no_grad()
    def note(self, step: int, size: int, loss: Float[Tensor, ""], terms: Mapping[str, Any]) -> None:
        """Note a step.

        Args:
            step: Number of the step, from 0.
            size: Queries in its batch, by which means are weighted.
            loss: Its loss.
            terms: Scalars, such as what the loss is made of.
        """
        names = ("loss", *terms)
        values = torch.stack([loss.float(), *(torch.as_tensor(v, device=loss.device).float() for v in terms.values())])
        self.divergence.note(step, names, values)
        self._last = names, values
        sums, count = self._sums.get(names, (torch.zeros_like(values), 0))
        self._sums[names] = sums + values * size, count + size

    def log(self, module: Any) -> None:
        """Hand on what is due after a step, in `on_train_batch_end` of a module.

        Raises:
            ValueError: If it is read and training has diverged.
        """
        trainer = module.trainer
        ends_epoch = _ends_epoch(trainer)
        if self._last is None or not (ends_epoch or trainer._logger_connector.should_update_logs):
            return
        self.divergence.require_finite()
        names, values = self._last
        for name, value in zip(names, values.cpu(), strict=True):
            module.log(f"train/{name}_step", value, prog_bar=name == "loss", on_step=True, on_epoch=False)
        if ends_epoch:
            self.log_means(module)

    def log_means(self, module: Any) -> None:
        """Log the means of the epoch, once.

        A run that is continued after the last step of an epoch has them from its checkpoint, and calls this before the
        epoch ends.
        """
        if self._has_logged_means:
            return
        for name, mean in self._means().items():
            # by its plain name too, which callbacks monitor
            module.log(f"train/{name}", mean, logger=False, on_step=False, on_epoch=True, batch_size=1)
            shown = name == "loss"
            module.log(f"train/{name}_epoch", mean, prog_bar=shown, on_step=False, on_epoch=True, batch_size=1)
        self._has_logged_means = True

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the epoch, for a checkpoint within it."""
        return {"sums": [[list(names), sums.cpu(), count] for names, (sums, count) in self._sums.items()]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from the sums of `state_dict`, on the device of the steps."""
        self.start_epoch()
        self._sums = {tuple(names): (sums.to(device), count) for names, sums, count in state["sums"]}

    def _means(self) -> dict[str, Tensor]:
        """Return the mean of each value over the queries of the epoch, on the CPU."""
        totals: dict[str, tuple[Tensor, int]] = {}
        for names, (sums, count) in self._sums.items():
            for name, value in zip(names, sums.cpu(), strict=True):
                total, number = totals.get(name, (torch.zeros(()), 0))
                totals[name] = total + value, number + count
        return {name: total / number for name, (total, number) in totals.items()}


def _ends_epoch(trainer: Any) -> bool:
    """Return whether no further batch of the epoch will be trained."""
    enough = 0 <= trainer.max_steps <= trainer.global_step
    return trainer.is_last_batch or enough or (trainer.should_stop and trainer.fit_loop._can_stop_early)
