"""A training step outside the Trainer, for benchmarks that time or weigh it."""

from collections.abc import Callable
from typing import NamedTuple

import hydra
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.optim import Optimizer

from prime_xmc.configs import config_dir
from prime_xmc.data.batch import Batch
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.model.module import PrimeModule
from prime_xmc.train import make_data, make_module


class Training(NamedTuple):
    """What a training step needs.

    Attributes:
        module: The model.
        data: Its data.
        optimizer: Of all its parameters.
        dtype: In which the configured precision computes.
    """

    module: PrimeModule
    data: PrimeDataModule
    optimizer: Optimizer
    dtype: torch.dtype

    def step(self, batch: Batch) -> None:
        """Do what the Trainer does for a step."""
        with self.autocast():
            loss = self.module.training_step(batch, 0)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

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
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        config = hydra.compose("train", [*overrides, "run_dir=outputs/bench"])
    instantiate(config.callbacks.memory).apply()
    data = make_data(config)
    module = make_module(config, data)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return Training(
        module,
        data,
        optimizer=module.optimizer(module.parameter_groups()),
        dtype=torch.bfloat16 if config.trainer.precision.startswith("bf16") else torch.float32,
    )


def texts_of(batch: Batch) -> str:
    """Return the size of a batch for people."""
    return f"{len(batch.query_ids)} queries, {len(batch.label_ids)} labels, {len(batch.token_ids):,} tokens"
