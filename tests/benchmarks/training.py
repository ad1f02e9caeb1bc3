"""A training step outside the Trainer, for benchmarks that time or weigh it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.optim import Optimizer

from prime_xmc.app import compose
from prime_xmc.assemble import make_data, make_module
from prime_xmc.data.batch import Batch
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.training.module import PrimeModule


@dataclass
class Training:
    """What a training step needs.

    Attributes:
        module: The model.
        data: Its data.
        optimizer: Of all its parameters.
        dtype: In which the configured precision computes.
        release: Gives unused memory back to the system, as training does.
        release_every: Steps between calls of `release`.
        num_steps: Steps so far.
    """

    module: PrimeModule
    data: PrimeDataModule
    optimizer: Optimizer
    dtype: torch.dtype
    release: Callable[[], None]
    release_every: int
    num_steps: int = 0

    def step(self, batch: Batch) -> None:
        """Do what the Trainer does for a step."""
        with self.autocast():
            loss = self.module.training_step(batch, 0)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        if self.num_steps % self.release_every == 0:
            self.release()

    def backward(self, forward: Callable[[], Tensor]) -> None:
        """Compute embeddings, then the gradients of the sum of their squares, and forget those."""
        with self.autocast():
            emb = forward()
        emb.float().square().sum().backward()
        self.module.zero_grad()

    def autocast(self) -> torch.autocast:
        """Return a context that computes in `dtype`."""
        return torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32)


def make_training(*overrides: str) -> Training:
    """Make what `python -m prime_xmc.train` with these settings would train; banks are not initialised."""
    config = compose("train", [*overrides, "run_dir=outputs/bench"])
    data = make_data(config)
    module = make_module(config, data)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return Training(
        module,
        data,
        optimizer=module.optimizer(module.parameter_groups()),
        dtype=torch.bfloat16 if config.trainer.precision.startswith("bf16") else torch.float32,
        release=instantiate(config.callbacks.memory).release,
        release_every=config.callbacks.memory.every_n_steps,
    )


def texts_of(batch: Batch) -> str:
    """Return the size of a batch for people."""
    return f"{len(batch.query_ids)} queries, {len(batch.label_ids)} labels, {len(batch.token_ids):,} tokens"
