"""What modules check before they train, and the callbacks that they bring along."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def missing_callbacks(trainer: Trainer, callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks of a module of which the Trainer was given none of the same kind."""
    given: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if not any(isinstance(other, type(callback)) for other in given)]


def check_precision(precision: str) -> None:
    """Refuse precisions that keep the weights themselves in fewer bits, or more, than float32.

    Raises:
        ValueError: If it is such a precision.
    """
    if precision not in PRECISIONS:
        reason = ""
        if precision in ("bf16-true", "16-true"):
            reason = (
                ": it keeps weights and the optimiser's averages in 16 bits, which round most steps away. bf16-mixed "
                "computes in bfloat16 as fast, and keeps them in float32"
            )
        raise ValueError(f"trainer.precision={precision} is not supported, expected one of {PRECISIONS}{reason}")


def check_processes(trainer: Trainer) -> None:
    """Refuse a Trainer that would give each of several processes other batches.

    Raises:
        ValueError: If it would.
    """
    connector: Any = trainer._accelerator_connector
    if trainer.world_size > 1 and connector.use_distributed_sampler:
        raise ValueError(
            f"the Trainer would give each of the {trainer.world_size} processes other texts, but all need the same "
            "ones, of which each encodes its share: make it with use_distributed_sampler=False (trainer=ddp does)"
        )
