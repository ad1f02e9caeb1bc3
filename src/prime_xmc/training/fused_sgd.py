"""SGD that steps a table block by block while its gradient is computed: the gradient of a whole table never exists."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from prime_xmc.model.rounding import round_stochastically


class FusedSGD(Optimizer):
    """Plain SGD for tables whose gradient comes in blocks: w <- w - lr (gradient + weight_decay w).

    Whoever computes the gradient calls `step_rows` for each block, and `step` does nothing more. Tables in bfloat16 are
    stepped in float32 and rounded stochastically, see `round_stochastically`; without that, most steps would be lost.

    Args:
        params: Tables in float32 or bfloat16, or groups of them.
        lr: Learning rate.
        weight_decay: Weight decay.

    Source: ELMO, Zhang et al. 2025.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step_rows(self, table: Tensor, start: int, gradient: Float[Tensor, "row d"]) -> None:
        """Step some rows of a table.

        Args:
            table: One of the tables.
            start: First row.
            gradient: Gradient of this row and of those behind it.
        """
        group = next(group for group in self.param_groups if any(table is other for other in group["params"]))
        rows = table[start : start + len(gradient)]
        new = rows.float()
        new = new - group["lr"] * (gradient.float() + group["weight_decay"] * new)
        rows.copy_(round_stochastically(new) if table.dtype == torch.bfloat16 else new)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Return the result of the closure, which has stepped the tables as it computed their gradients.

        Raises:
            ValueError: If a table has a gradient as other parameters do, by which nothing would step it.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for table in (table for group in self.param_groups for table in group["params"]):
            if table.grad is not None:
                raise ValueError(
                    f"FusedSGD steps tables while their gradient is computed, and one of shape {tuple(table.shape)} "
                    "has a gradient that was not given to step_rows: give another optimiser, such as optimizer=adamw"
                )
        return result
