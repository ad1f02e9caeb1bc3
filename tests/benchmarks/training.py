"""A training step outside the Trainer, for benchmarks that time or weigh it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Optimizer

from prime_xmc.assemble import make_data, make_module
from prime_xmc.composing import compose
from prime_xmc.data.batch import Batch
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.planning.layout import device_of
from prime_xmc.training.module import PrimeModule


@dataclass
class Training:
    """Objects that a training step needs.

    Attributes:
        module: Model.
        data: Data of the model.
        optimizer: Optimiser of all parameters.
        dtype: Dtype in which the configured precision computes.
        release: Function that gives unused memory back to the system, as in training.
        release_every: Steps between calls of `release`.
        num_steps: Number of steps so far.
    """

    module: PrimeModule
    data: PrimeDataModule
    optimizer: Optimizer
    dtype: torch.dtype
    release: Callable[[], None]
    release_every: int
    num_steps: int = 0

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.module.device

    def put(self, batch: Batch) -> Batch:
        """Return a batch as the Trainer hands it to the model: on its device."""
        return self.module.transfer_batch_to_device(batch, self.device, 0)

    def step(self, batch: Batch) -> None:
        """Make a training step as the Trainer does."""
        with self.autocast():
            loss = self.module.training_step(batch, 0)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        if self.device.type == "cpu" and self.num_steps % self.release_every == 0:
            self.release()

    def backward(self, forward: Callable[[], Tensor]) -> None:
        """Compute embeddings and the gradients of the sum of their squares, and discard the gradients."""
        with self.autocast():
            emb = forward()
        emb.float().square().sum().backward()
        self.module.zero_grad()

    def autocast(self) -> torch.autocast:
        """Return a context that computes in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def make_training(*overrides: str) -> Training:
    """Make the objects that `python -m prime_xmc.train` with these settings would train, without initial banks."""
    config = compose("train", [*overrides, "run_dir=outputs/bench"])
    return training_of(config, make_data(config))


def training_of(config: DictConfig, data: PrimeDataModule) -> Training:
    """Make the objects that are trained on some data, on the device of the configuration."""
    module = make_module(config, data).to(device_of(config))
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
