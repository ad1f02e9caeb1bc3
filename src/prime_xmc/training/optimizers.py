"""One optimiser for dense parameters and for tables of which a step touches a few rows."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class DenseAndSparse(Optimizer):
    """Steps the dense parameters with one optimiser and those with sparse gradients with another.

    To the Trainer and to schedulers it is a single optimiser: Lightning would hand two of them over to the module, with
    accumulation, clipping and schedules, and count every step twice.

    Args:
        groups: Parameter groups; "sparse": True marks those with sparse gradients, or of tables with an optimiser of
            their own.
        dense: Function that makes the optimiser of the other groups, such as AdamW.
        sparse: Function that makes the optimiser of the marked groups, such as RowAdam, whose work is in proportion
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


class RowAdam(Optimizer):
    """Adam for tables of which a step changes a few rows, given their sparse gradients: lazy Adam.

    Its steps are those of torch's SparseAdam, on the CPU to the last bit, but the host never waits for a GPU to count
    the rows.

    Args:
        params: Tables, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the running averages of the gradient and of its square.
        eps: Number that is added to the denominator.

    Raises:
        ValueError: By `step`, if the gradient of a table is dense.

    Source: Kingma and Ba 2015, with the averages of a row as they were at its last gradient.
    """

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step, after calling the closure, which computes gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    if not table.grad.is_sparse:
                        raise ValueError(
                            f"RowAdam steps tables with sparse gradients, and one of shape {tuple(table.shape)} has a "
                            "dense one: look its rows up by an embedding with sparse=True, or give it another "
                            "optimiser, such as torch.optim.AdamW"
                        )
                    self._change(table, table.grad, group)
        return loss

    def _change(self, table: Tensor, sparse_gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(table), "exp_avg_sq": torch.zeros_like(table)}
        state["step"] += 1
        beta1, beta2 = group["betas"]
        rows, gradient = summed_rows(sparse_gradient)
        # what is written to a row that occurs twice is the same in both places
        average, square = state["exp_avg"][rows], state["exp_avg_sq"][rows]
        average = gradient.sub(average).mul_(1 - beta1).add_(average)
        square = gradient.pow(2).sub_(square).mul_(1 - beta2).add_(square)
        state["exp_avg"].index_copy_(0, rows, average)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        rate = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        change = average.div_(square.sqrt_().add_(group["eps"])).mul_(-rate)
        table.index_copy_(0, rows, change.add_(table[rows]))


def summed_rows(gradient: Tensor) -> tuple[Int64[Tensor, " entry"], Float[Tensor, "entry d"]]:
    """Return row and value of the entries of a sparse gradient, each with the sum of all that are of its row.

    On the CPU each row comes once. For that the host would have to wait for a GPU.
    """
    if _knows_number_of_rows(gradient):
        gradient = gradient.coalesce()
        return gradient._indices()[0], gradient._values()
    rows, values = gradient._indices()[0], gradient._values()
    number = _numbers(rows)
    return rows, torch.zeros_like(values).index_add_(0, number, values)[number]


def gathered_rows(gradient: Tensor) -> Tensor:
    """Return a sparse gradient whose entries are each row's sum once, and zeros of one of them for what is left.

    On the CPU nothing is left over.
    """
    if _knows_number_of_rows(gradient):
        return gradient.coalesce()
    rows, values = gradient._indices()[0], gradient._values()
    number = _numbers(rows)
    # a row that has a gradient: for an optimiser, any other would have one, too
    gathered = rows[:1].expand_as(rows).clone().scatter_(0, number, rows)
    sums = torch.zeros_like(values).index_add_(0, number, values)
    return torch.sparse_coo_tensor(gathered[None], sums, gradient.shape, check_invariants=False)


def _knows_number_of_rows(gradient: Tensor) -> bool:
    """Return whether the host finds out at once how many different rows a sparse gradient has."""
    return gradient.device.type == "cpu" or gradient.is_coalesced()


def _numbers(rows: Int64[Tensor, " entry"]) -> Int64[Tensor, " entry"]:
    """Return the place of each entry's row among the distinct ones."""
    ordered, order = rows.sort(stable=True)
    is_new = (ordered[1:] != ordered[:-1]).cumsum(0)
    return torch.zeros_like(rows).scatter_(0, order[1:], is_new)


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
                parameter.grad = gathered_rows(parameter.grad)  # its values can be changed in place
                gradients.append(parameter.grad._values())
            else:
                gradients.append(parameter.grad)
    if algorithm not in ("norm", "value"):
        raise ValueError(f"expected trainer.gradient_clip_algorithm norm or value, got {algorithm!r}")
    if not gradients:
        return
    if algorithm == "norm":
        scale = (value / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0).view(1)
        agree(scale)
        torch._foreach_mul_(gradients, scale[0])
    else:
        torch._foreach_clamp_min_(gradients, -value)
        torch._foreach_clamp_max_(gradients, value)


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
