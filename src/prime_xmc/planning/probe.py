"""A few training steps on made-up texts, with small tables: what the encoder, the libraries and the machine take."""

import logging
import math
import re
import statistics
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor

from prime_xmc.assemble import make_module, open_data, prompts_of
from prime_xmc.data.batch import TextChunks
from prime_xmc.data.corpus import Corpus, Ragged, Split
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.evaluation.metrics import TOP_K
from prime_xmc.index.clustering import balanced_clusters
from prime_xmc.planning.budget import Measured, Memory
from prime_xmc.planning.layout import count_processes, device_of
from prime_xmc.planning.sizes import Sizes
from prime_xmc.training.callbacks import ReleaseMemory
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.passes import seconds_of, time_on
from prime_xmc.training.record import quiet_libraries

logger = logging.getLogger(__name__)

_LABELS_PER_DRAW = 16  # so many that, as in large data sets, few labels of a batch are drawn twice
# What is measured by the kind of the device: less than this would not keep a GPU busy.
_WARM_UP = {"cpu": 1, "cuda": 3}  # steps that are not counted: they compile kernels and reserve memory
_NUM_TEXTS = {"cpu": 1024, "cuda": 8192}  # encoded at once, as by the data module's loaders
_NUM_SEARCHED = {"cpu": 2**13, "cuda": 2**18}  # labels that are clustered and searched
_NUM_SEARCHES = {"cpu": 256, "cuda": 2048}
_CONCENTRATION = 4.0  # of the made-up lengths about their mean


def probe(config: DictConfig, sizes: Sizes) -> tuple[PrimeModule, Measured]:
    """Make the configured module with small tables, train it for `probe_steps`, and return what that took.

    Raises:
        ValueError: If the number of steps is negative, or there is nothing to measure with, see `Watch`.
    """
    if config.probe_steps < 0:
        raise ValueError(f"expected probe_steps of at least 0, got {config.probe_steps}")
    device = device_of(config)
    num_steps = config.probe_steps + _WARM_UP[device.type]
    small = config.copy()
    small.dataset.dir, small.dataset.num_validation = "", 0  # nothing is read or generated
    small.sampling.batch_size = min(-(-config.sampling.batch_size // count_processes(config)), sizes.num_queries)
    corpus = make_up_corpus(small, sizes, num_queries=num_steps * small.sampling.batch_size)
    small.model.num_free_vectors = min(config.model.num_free_vectors, corpus.num_labels)
    if "num_private" in small.model:
        small.model.num_private = min(config.model.num_private, corpus.num_labels)
    data = open_data(
        small,
        config.encoder.source,
        prompts=prompts_of(config.encoder),
        max_length=config.dataset.max_length,
        num_validation=0,
        seed=config.seed,
        memory_labels=small.sampling.memory_labels,
        leave_one_out=small.sampling.leave_one_out,
        without_centroid=small.sampling.without_centroid,
        of_encoder=small.sampling,
        corpus=corpus,
    )
    mined = config.sampling.mined
    if mined.first_epoch is not None:  # searched labels join the batches, and are as many as those drawn
        rng = np.random.default_rng(config.seed)
        data.set_mined(rng.integers(corpus.num_labels, size=(len(corpus.train), mined.top_k), dtype=np.int32))
    small.callbacks.initialise = small.callbacks.clusters = small.callbacks.mined = (
        None  # nothing to fill banks from; zeros take as long
    )
    module = make_module(small, data)
    assert isinstance(module, PrimeModule)  # a plan of another one is refused before
    if not config.probe_steps:
        return module, Measured()
    watch, release = Watch(device, corpus, num_steps), config.callbacks.get("memory")
    logger.info("probe: %d training steps on made-up texts", num_steps)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        quiet_libraries()
        warnings.filterwarnings("ignore", message="You defined a `validation_step`")
        trainer = instantiate(
            config.trainer,
            devices=1,
            num_nodes=1,
            strategy="auto",
            max_epochs=1,
            max_steps=-1,
            limit_train_batches=1.0,
            callbacks=[watch, *([instantiate(release)] if release else [])],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=folder,
            _convert_="all",
        )
        data.trainer = trainer  # it makes batches as the device of this one wants them
        trainer.fit(module, train_dataloaders=data.train_dataloader())
    return module, watch.result(module.to(device))


def make_up_corpus(config: DictConfig, sizes: Sizes, *, num_queries: int, seed: int = 0) -> Corpus:
    """Make a corpus in memory, of random tokens and random pairs.

    Args:
        config: Settings of encoder, data and sampling, on which the vocabulary and the number of labels depend.
        sizes: Means of the made-up data.
        num_queries: Training queries.
        seed: Seed of everything random.
    """
    rng = np.random.default_rng(seed)
    vocabulary, max_length = len(load_tokenizer(config.encoder.source)), config.dataset.max_length
    num_drawn = config.sampling.batch_size * config.sampling.num_positives
    num_labels = min(sizes.num_labels, _LABELS_PER_DRAW * num_drawn)
    # the queries of a batch all have labels
    labels_per_query = max(1.0, sizes.labels_per_query * (sizes.num_queries / sizes.num_labelled))
    counts = np.floor(labels_per_query + rng.random(num_queries)).astype(np.int64)
    pairs = np.stack([np.repeat(np.arange(num_queries), counts), rng.integers(num_labels, size=counts.sum())], axis=1)
    queries, labels = (
        _random_texts(count, mean, max_length, vocabulary, rng)
        for count, mean in ((num_queries, sizes.tokens_per_query), (num_labels, sizes.tokens_per_label))
    )
    split = Split(queries, Ragged.from_pairs(pairs, num_queries), Ragged.from_rows([[]] * num_queries))
    return Corpus(split, split, labels, Path(), {})


def _random_texts(
    num_texts: int, mean: float | int, max_length: int, vocabulary: int, rng: np.random.Generator
) -> Ragged:
    # spread, since padded batches are as long as their longest text
    share = np.clip((mean - 1) / max(1, max_length - 1), 1e-6, 1 - 1e-6)
    shares = rng.beta(_CONCENTRATION * share, _CONCENTRATION * (1 - share), num_texts)
    offsets = np.concatenate([[0], np.cumsum(1 + np.rint(shares * (max_length - 1)).astype(np.int64))])
    return Ragged(rng.integers(vocabulary, size=offsets[-1], dtype=np.int32), offsets)


class Watch(Callback):
    """Measures encoding before the first training step, then the steps, in memory and time.

    A GPU works on a step while the host prepares the next one. The steps there are timed together, from the end of one
    to the end of another, and nothing waits in between; so the time is theirs with batches, transfers and logs.

    Args:
        device: Device of the Trainer.
        corpus: Data with texts to encode.
        num_steps: Number of steps that the Trainer makes.

    Raises:
        ValueError: If there is no such device, or the system does not tell how much memory is in use.
    """

    def __init__(self, device: torch.device, corpus: Corpus, num_steps: int):
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "the configuration is for a GPU, and there is none here to measure: plan on the machine of the run, "
                "or with probe_steps=0, which adds up the tables alone"
            )
        if not Path("/proc/self/clear_refs").exists():
            raise ValueError(
                "memory is measured through /proc, which is not here: plan on Linux, or with probe_steps=0"
            )
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.num_steps = num_steps
        tokens, num_texts = corpus.train.tokens, _NUM_TEXTS[device.type]
        self.texts = TextChunks(tokens, np.arange(min(num_texts, len(tokens))), num_texts)[0]
        self.step_seconds: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encode the texts twice: the first time, kernels are compiled."""
        module: Any = pl_module
        self.before_encoding = self.restart()
        for _ in range(2):
            encode = partial(module.embed, [self.texts], module.query_memory, "query")
            self.encode_seconds = seconds_of(encode, self.device)
        self.encoding_peak = self.peak()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what is in use before the first step."""
        self.before_steps = self.restart()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        if not self.on_gpu:
            self._started = time_on(self.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the step took, or on a GPU, at the last one, how long steps take."""
        warm_up, last = _WARM_UP[self.device.type], self.num_steps - 1
        if not self.on_gpu:
            self.step_seconds.append(time_on(self.device) - self._started)
        elif batch_idx == warm_up - 1:
            self._started = time_on(self.device)
        elif batch_idx == last:
            self.step_seconds = [(time_on(self.device) - self._started) / (self.num_steps - warm_up)]
        self.step_peak = self.peak()
        self.labels_in_batch = len(batch.label_ids)

    def result(self, module: PrimeModule) -> Measured:
        """Time clustering and searching, and return all that was measured."""
        num_searched, num_searches = _NUM_SEARCHED[self.device.type], _NUM_SEARCHES[self.device.type]
        vectors, queries = (
            _random_vectors(count, module.encoder.dim).to(module.device) for count in (num_searched, num_searches)
        )
        num_clusters = num_searched // 8
        add_seconds = seconds_of(lambda: module.searcher.build(vectors), self.device)
        cluster_seconds, search_seconds = (
            min(seconds_of(action, self.device) for _ in range(2))  # the first time, kernels are compiled
            for action in (
                lambda: balanced_clusters(vectors, num_clusters, seed=0),
                lambda: module.searcher.search(queries, TOP_K),
            )
        )
        parameters = 4 * sum(p.numel() for p in module.parameters())
        # gradients and the optimiser's two copies, which are counted apart
        states = 12 * sum(p.numel() for p in module.parameters() if p.requires_grad)
        step = self.step_peak.above(self.before_steps)
        return Measured(
            program=self.before_encoding.host - (0 if self.on_gpu else parameters),
            encoding=self.encoding_peak.above(self.before_encoding),
            step=step.above(Memory(0, states) if self.on_gpu else Memory(states, 0)),
            labels_in_batch=self.labels_in_batch,
            step_seconds=statistics.median(self.step_seconds[0 if self.on_gpu else 1 :]),
            encode_seconds=self.encode_seconds / len(self.texts.lengths),
            cluster_seconds=cluster_seconds / num_searched / math.log2(num_clusters),
            add_seconds=add_seconds / num_searched,
            search_seconds=search_seconds / num_searches,
            num_searched=num_searched,
        )

    def restart(self) -> Memory:
        """Give back what nobody uses, forget the peak so far, and return what is in use."""
        ReleaseMemory(every_n_steps=1).release()
        Path("/proc/self/clear_refs").write_text("5")
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return Memory(_status("VmRSS"), torch.cuda.memory_allocated() if self.on_gpu else 0)

    def peak(self) -> Memory:
        """Return the most that has been in use since `restart`."""
        return Memory(_status("VmHWM"), torch.cuda.max_memory_allocated() if self.on_gpu else 0)


def _status(name: str) -> int:
    line = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line is not None
    return int(line[1]) * 1024


def _random_vectors(count: int, dim: int) -> Float[Tensor, "count dim"]:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)), dim=1)
