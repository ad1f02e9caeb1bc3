"""One optimiser for dense parameters and for tables of which a step touches a few rows."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class DenseAndSparse(Optimizer):
    """Steps the dense parameters with one optimiser and those with sparse gradients with another.

    To the Trainer and to schedulers it is a single optimiser: Lightning would hand two of them over to the module, with
    accumulation, clipping and schedules, and count every step twice.

    Args:
        groups: Parameter groups; "sparse": True marks those with sparse gradients.
        dense: Function that makes the optimiser of the other groups, such as AdamW.
        sparse: Function that makes the optimiser of the marked groups, such as SparseAdam, whose work is in proportion
            to the rows that have a gradient.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        dense: Callable[[list[dict[str, Any]]], Optimizer],
        sparse: Callable[[list[dict[str, Any]]], Optimizer],
    ):
        super().__init__(groups, {"sparse": False})
        # the groups, and below the state, are the same objects in all parts: who changes a learning rate changes both
        self.parts = [
            make(chosen)
            for make, marked in ((dense, False), (sparse, True))
            if (chosen := [group for group in self.param_groups if group["sparse"] is marked])
        ]
        self._share()

    def _share(self) -> None:
        for part in self.parts:
            marked = part.param_groups[0]["sparse"]
            part.param_groups = [group for group in self.param_groups if group["sparse"] is marked]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step, after calling the closure, which computes gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def clip_gradients(
    parameters: Iterable[Tensor],
    value: float,
    algorithm: str = "norm",
    agree: Callable[[Tensor], None] = lambda scale: None,
) -> None:
    """Clip gradients in place, sparse ones among them, which torch's own functions refuse.

    Args:
        parameters: Parameters; those without a gradient are left out.
        value: Greatest norm of all gradients together, or greatest absolute value.
        algorithm: "norm" or "value", as the Trainer's gradient_clip_algorithm.
        agree: Function that makes a number the same in all processes that train together, in place. The norm is a long
            sum, whose rounding depends on the number of threads.

    Raises:
        ValueError: If the algorithm is neither.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()  # each row once; its values can be changed in place
                gradients.append(parameter.grad._values())
            else:
                gradients.append(parameter.grad)
    if algorithm == "norm":
        scale = (value / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0).view(1)
        agree(scale)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.device))
    elif algorithm == "value":
        for gradient in gradients:
            gradient.clamp_(-value, value)
    else:
        raise ValueError(f"expected trainer.gradient_clip_algorithm norm or value, got {algorithm!r}")


def with_warmup(
    optimizer: Optimizer, scheduler: Callable[..., LRScheduler], *, num_steps: int, warmup_fraction: float
) -> dict[str, Any]:
    """Return an optimiser and its schedule by step, as `LightningModule.configure_optimizers` does.

    Args:
        optimizer: Optimiser.
        scheduler: Function that makes the schedule from optimiser, num_warmup_steps and num_training_steps.
        num_steps: Number of steps of the whole training.
        warmup_fraction: Share of the steps in which the learning rate rises.
    """
    num_warmup = round(warmup_fraction * num_steps)
    schedule = scheduler(optimizer, num_warmup_steps=num_warmup, num_training_steps=num_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
