"""Training that diverges ends with an error instead of a model of NaN."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from prime_xmc.model.finiteness import not_finite

_SHOWN = 3  # names of tensors in a message
_MOST_NOTED = 256  # steps that are kept before they are looked at in any case


class DivergenceWatch:
    """Keeps what steps were worth on the device, and looks it up now and then.

    Looking at every step would make the host wait for the device each time.

    Attributes:
        remedy: What to do against it, a sentence for people; modules whose optimiser cannot clip have another.
    """

    def __init__(self, remedy: str = "Lower optimizer.lr, or clip gradients with trainer.gradient_clip_val=1") -> None:
        self.remedy = remedy
        self._noted: list[tuple[int, Sequence[str], Tensor]] = []

    def note(self, step: int, names: Sequence[str], values: Float[Tensor, " value"]) -> None:
        """Note the loss of a step, and the terms that it is made of.

        Args:
            step: Number of the step, from 0.
            names: What the values are; the first is the loss.
            values: The values, without gradient.

        Raises:
            ValueError: As `require_finite`, where nobody has called it for long.
        """
        self._noted.append((step, names, values))
        if len(self._noted) >= _MOST_NOTED:
            self.require_finite()

    def require_finite(self) -> None:
        """Require that no loss was infinite or NaN so far.

        Raises:
            ValueError: If one was, with its step and terms.
        """
        noted, self._noted = self._noted, []
        if not noted or torch.stack([values[0] for _, _, values in noted]).isfinite().all():
            return
        step, names, values = next(each for each in noted if not each[2][0].isfinite())
        self._noted = noted  # whoever asks again is told again
        is_failed = values.isfinite().logical_not().tolist()[1:]
        terms = ", ".join(name for name, failed in zip(names[1:], is_failed, strict=True) if failed)
        raise ValueError(
            f"training diverged: the loss is not finite at step {step} (counted from 0), nor are its terms "
            f"{terms or '(all of them are)'}. {self._consequence()}"
        )

    def require_finite_tensors(self, what: str, tensors: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Require that what a module has learned or computed is finite, which the losses so far do not tell.

        Args:
            what: What it is, for the message.
            tensors: Their names, and the tensors.
            step: Number of steps that were made.

        Raises:
            ValueError: If some are not, with their names.
        """
        names = not_finite(tensors)
        if names:
            listed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            raise ValueError(
                f"training diverged: {what} are not finite after {step} steps ({listed}). {self._consequence()}"
            )

    def _consequence(self) -> str:
        return (
            "The model is of no use and not exported; a checkpoint and a model that were written before stay as they "
            f"are. {self.remedy}"
        )
