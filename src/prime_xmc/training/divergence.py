"""Training that diverges ends with an error instead of a model of NaN."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor


class DivergenceWatch:
    """Keeps the first step whose loss is not finite, on the device, and looks it up now and then.

    Looking at every step would make the host wait for the device each time.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None  # that step's number, -1 for none, and which of its values are not finite
        self._names: list[str] = []

    @torch.no_grad()
    def note(self, step: int, loss: Float[Tensor, ""], terms: Mapping[str, Any]) -> None:
        """Note the loss of a step, and the terms that it is made of."""
        values = torch.stack([loss.float(), *(torch.as_tensor(v, device=loss.device).float() for v in terms.values())])
        failed = values.isfinite().logical_not()
        current = torch.cat([torch.where(failed[:1], step, -1), failed.long()])
        self._first = current if self._first is None else torch.where(self._first[:1] >= 0, self._first, current)
        self._names = list(terms)

    def look_up(self, trainer: Trainer, batch_idx: int) -> None:
        """Require that no loss was infinite or NaN, at the steps that are logged and at the end of an epoch.

        Raises:
            ValueError: If one was, with its step and terms.
        """
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (every and (batch_idx + 1) % every == 0) or trainer.is_last_batch:
            self.require_finite()

    def require_finite(self) -> None:
        """Require that no loss was infinite or NaN so far.

        Raises:
            ValueError: If one was, with its step and terms.
        """
        if self._first is None:
            return
        step, _, *failed = self._first.tolist()
        if step >= 0:
            terms = ", ".join(name for name, is_failed in zip(self._names, failed, strict=True) if is_failed)
            raise ValueError(
                f"training diverged: the loss is not finite at step {step} (counted from 0), nor are its terms "
                f"{terms or '(all of them are)'}. The model is of no use and not exported. Lower optimizer.lr, or clip "
                "gradients with +trainer.gradient_clip_val=1"
            )
