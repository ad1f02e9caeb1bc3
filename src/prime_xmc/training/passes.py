"""The cost of a pass, a measure of training that does not depend on the machine.

A pass is the forward and the backward of the bare encoder over all training and label texts once, on the device, in the
precision and in the chunks of the run. All of its layers count, also those that the run leaves frozen.
"""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from prime_xmc.data.batch import pack
from prime_xmc.training.callbacks import ReleaseMemory
from prime_xmc.training.protocols import EncoderModule, TrainingData, data_of, encoder_module
from prime_xmc.training.record import RunHistory

logger = logging.getLogger(__name__)

SAMPLES = 3  # at least so many are timed, after one that is not: in the first one, kernels are compiled
SECONDS = 3.0  # time after which no further sample is taken
CHUNKS = 2  # chunks of the encoder in a sample
LEAST_TOKENS = 1024  # in a sample; what a call costs whatever its texts would count in smaller ones
SHARE = 0.05  # most that the probe may cost at either end of the run, of its steps


class PassProbe(Callback):
    """Measures a pass at the start of a run, on a sample of its texts, without changing anything of the run.

    It measures again when training has ended, and the mean counts: a machine may be twice as fast at one of these
    times as at the other, because of what else it does. Where even a small sample would cost too much beside so short a
    training, a pass is not measured, and the record gets the reason.

    Args:
        record: Record that gets the duration.
        seed: Seed of the sample.
    """

    def __init__(self, record: RunHistory, seed: int = 0):
        self.record = record
        self.seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, and log how long a pass takes."""
        self.record.enter("probe")
        data = data_of(trainer)
        if _sample_tokens(trainer, encoder_module(pl_module), data) < LEAST_TOKENS:
            self.record.no_pass = (
                f"not measured: the queries of all steps have {_trained_tokens(trainer, data):,.0f} tokens, too few "
                f"for a measurement that may cost {2 * SHARE:.0%} of them"
            )
        else:
            self.record.pass_seconds = self._measure(trainer, pl_module)
            logger.info("a pass over the %s texts takes %.3g s here", f"{_num_texts(data):,}", self.record.pass_seconds)
        self.record.enter("initialise")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure again, and keep the mean."""
        if self.record.pass_seconds is not None:
            self.record.enter("probe")
            self.record.pass_seconds = (self.record.pass_seconds + self._measure(trainer, pl_module)) / 2
            self.record.enter("export")

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Return the duration of a pass in seconds."""
        module, data = encoder_module(pl_module), data_of(trainer)
        rate = seconds_per_token(
            module, trainer, data, _sample_tokens(trainer, module, data), _allowed_tokens(trainer, data), self.seed
        )
        # every process of a data-parallel run encodes its share, and has measured while the others did
        return rate * _tokens_of_a_pass(data) / trainer.world_size


def seconds_per_token(
    module: EncoderModule, trainer: Trainer, data: TrainingData, sample_tokens: int, allowed: float, seed: int
) -> float:
    """Return the wall time of a token's forward and backward through the encoder, from samples of the run's texts.

    Weights, gradients and the state of random numbers are afterwards what they were.

    Args:
        module: Module with the encoder.
        trainer: Trainer, whose precision is used.
        data: Texts to draw from.
        sample_tokens: Tokens of a sample, about.
        allowed: Tokens of all samples together; `SAMPLES` and one more are taken anyway.
        seed: Seed of the samples.
    """
    encoder, device = module.encoder, module.device
    rng = np.random.default_rng(seed)
    num_texts = max(1, round(sample_tokens * _num_texts(data) / _tokens_of_a_pass(data)))

    def encode(token_ids: Tensor, lengths: Tensor) -> None:
        with torch.enable_grad(), trainer.precision_plugin.forward_context():
            loss = encoder(token_ids, lengths).square().sum()
        parameters = [p for p in encoder.parameters() if p.requires_grad]
        if loss.requires_grad:
            # not `backward`, which would leave gradients in the parameters and wake the hooks of DDP
            torch.autograd.grad(loss, parameters, allow_unused=True)

    seconds: list[float] = []
    num_tokens = spent = 0
    on_gpu = device.type == "cuda"
    unfrozen = nullcontext() if encoder.packed is None else encoder.packed.unfrozen()
    # the random numbers are those of dropout
    with unfrozen, torch.random.fork_rng(devices=[device] if on_gpu else []):
        while len(seconds) < 1 + SAMPLES or (sum(seconds[1:]) < SECONDS and spent + sample_tokens <= allowed):
            token_ids, lengths = _sample(data, rng, num_texts)
            seconds.append(seconds_of(partial(encode, token_ids.to(device), lengths), device))
            spent += len(token_ids)
            num_tokens += len(token_ids) if len(seconds) > 1 else 0
    ReleaseMemory(every_n_steps=1).release()
    return sum(seconds[1:]) / num_tokens


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """Return the wall time of a call, with all that it has started on the device."""
    start = time_on(device)
    action()
    return time_on(device) - start


def time_on(device: torch.device) -> float:
    """Return the time in seconds, when all that was started on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _sample(
    data: TrainingData, rng: np.random.Generator, count: int
) -> tuple[Int64[Tensor, " token"], Int64[Tensor, " text"]]:
    """Return tokens and lengths of texts drawn from those of a pass."""
    query_ids = data.sampler.query_ids
    drawn = rng.integers(_num_texts(data), size=count)
    is_query = drawn < len(query_ids)
    queries = pack(data.corpus.train.tokens, query_ids[drawn[is_query]])
    labels = pack(data.corpus.label_tokens, drawn[~is_query] - len(query_ids))
    return torch.cat([queries.token_ids, labels.token_ids]), torch.cat([queries.lengths, labels.lengths])


def _num_texts(data: TrainingData) -> int:
    return len(data.sampler.query_ids) + data.corpus.num_labels


def _tokens_of_queries(data: TrainingData) -> int:
    return int(data.corpus.train.tokens.lengths[data.sampler.query_ids].sum())


def _tokens_of_a_pass(data: TrainingData) -> int:
    return _tokens_of_queries(data) + int(data.corpus.label_tokens.lengths.sum())


def _allowed_tokens(trainer: Trainer, data: TrainingData) -> float:
    """Return how many tokens the probe may encode in a process at either end of the run."""
    return SHARE * _trained_tokens(trainer, data) / trainer.world_size


def _sample_tokens(trainer: Trainer, module: EncoderModule, data: TrainingData) -> int:
    """Return how many tokens a sample has, about."""
    allowed = _allowed_tokens(trainer, data) / (1 + SAMPLES)
    return int(min(CHUNKS * module.encoder.chunk_tokens, _tokens_of_a_pass(data), allowed))


def _trained_tokens(trainer: Trainer, data: TrainingData) -> float:
    """Return how many tokens of queries go through the steps of the run, those of labels left out."""
    batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    return batches / len(data.sampler) * _tokens_of_queries(data)
