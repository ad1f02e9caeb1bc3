"""A few training steps on made-up texts, with small tables: what the encoder, the libraries and the machine take."""

import ctypes
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader

from prime_xmc.data.batch import BatchBuilder, LossPositives, TextChunks, Texts
from prime_xmc.data.corpus import Corpus, Ragged, Split
from prime_xmc.data.sampling import draw_positives
from prime_xmc.evaluation.metrics import TOP_K
from prime_xmc.index.clustering import balanced_clusters
from prime_xmc.planning.budget import Measured, Memory, Seconds, Sizes
from prime_xmc.training.module import PrimeModule

_NUM_TEXTS = 1024  # encoded at once, as by the data module's loaders
_NUM_ROWS = 2**13  # clustered, and searched
_NUM_SEARCHES = 256
_CONCENTRATION = 4.0  # of the made-up lengths about their mean


def make_up_corpus(
    sizes: Sizes, *, num_queries: int, num_labels: int, max_length: int, vocabulary: int, seed: int = 0
) -> Corpus:
    """Make a corpus in memory, of random tokens and random pairs.

    Args:
        sizes: Whose means it has.
        num_queries: Training queries; there are no others.
        num_labels: Labels.
        max_length: The most tokens of a text.
        vocabulary: Number of token ids.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    lengths = np.floor(sizes.labels_per_query + rng.random(num_queries)).astype(np.int64)
    pairs = np.stack([np.repeat(np.arange(num_queries), lengths), rng.integers(num_labels, size=lengths.sum())], axis=1)
    queries, labels = (
        _random_texts(count, mean, max_length, vocabulary, rng)
        for count, mean in ((num_queries, sizes.tokens_per_query), (num_labels, sizes.tokens_per_label))
    )
    positives, filtered = Ragged.from_pairs(pairs, num_queries), Ragged.from_rows([[]] * num_queries)
    train = Split(queries, positives, filtered)
    return Corpus(train, train, labels, Path(), {})


def _random_texts(
    num_texts: int, mean: float | int, max_length: int, vocabulary: int, rng: np.random.Generator
) -> Ragged:
    share = (mean - 1) / max(1, max_length - 1)  # of the tokens that a text may have beyond the first
    shares = np.full(num_texts, share)
    if 0 < share < 1:
        shares = rng.beta(_CONCENTRATION * share, _CONCENTRATION * (1 - share), num_texts)
    lengths = 1 + np.rint(np.clip(shares, 0, 1) * (max_length - 1)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(rng.integers(vocabulary, size=offsets[-1], dtype=np.int32), offsets)


def batches(
    corpus: Corpus,
    *,
    batch_size: int,
    num_batches: int,
    num_positives: int,
    loss_positives: LossPositives,
    more_queries_per_label: int = 0,
) -> DataLoader:
    """Return a loader of batches of the corpus's queries, one after the other, with uniformly drawn labels."""
    rng = np.random.default_rng(0)
    weight = np.ones(corpus.num_labels)
    items = []
    for query_ids in np.arange(num_batches * batch_size).reshape(num_batches, batch_size):
        ids = np.unique(query_ids % len(corpus.train))
        items.append((ids, draw_positives(corpus.train.positives, weight, ids, num_positives, rng)))
    pairs = corpus.train.positives
    builder = BatchBuilder(
        corpus.train,
        corpus.label_tokens,
        loss_positives=loss_positives,
        num_more=more_queries_per_label,
        queries_of_label=Ragged.grouped(pairs.values, pairs.row_ids(), corpus.num_labels),
    )
    return DataLoader(builder, sampler=items, batch_size=None)


class Meter:
    """Reads how much memory this process has, and how far that rises.

    Args:
        device: Besides the host, what torch has allocated there.

    Raises:
        ValueError: If there is no such device, or the system does not tell.
    """

    def __init__(self, device: torch.device):
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "the configuration is for a GPU, and there is none here to measure: plan on the machine of the run, "
                "or with probe_steps=0, which adds up the tables alone"
            )
        if not Path("/proc/self/clear_refs").exists():
            raise ValueError(
                "memory is measured through /proc, which is not here: plan on Linux, or with probe_steps=0"
            )
        self.on_gpu = device.type == "cuda"

    def start(self) -> Memory:
        """Give back what nobody uses, forget the peak so far, and return what there is."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return self.now()

    def now(self) -> Memory:
        """Return what there is."""
        return Memory(_status("VmRSS"), torch.cuda.memory_allocated() if self.on_gpu else 0)

    def peak(self) -> Memory:
        """Return the most there has been since `start`."""
        return Memory(_status("VmHWM"), torch.cuda.max_memory_allocated() if self.on_gpu else 0)

    def seconds_of(self, action: Callable[[], Any]) -> float:
        """Return the wall time of a call, with all that it has started on the device."""
        start = self.time()
        action()
        return self.time() - start

    def time(self) -> float:
        """Return the time in seconds, when the device has nothing left to do."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Watch(Callback):
    """Measures encoding before the first step, then the steps.

    Args:
        meter: Of memory and time.
        texts: To encode.
        advance: Is called after each measurement.
    """

    def __init__(self, meter: Meter, texts: Texts, advance: Callable[[], None]):
        self.meter = meter
        self.texts = texts
        self.advance = advance
        self.step_seconds: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encode the texts twice: the first time, kernels are compiled."""
        module: Any = pl_module
        self.before_encoding = self.meter.start()
        for _ in range(2):
            self.encode_seconds = self.meter.seconds_of(lambda: module.embed([self.texts], module.query_memory))
        self.encoding_peak = self.meter.peak()
        self.advance()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what there is before the first step."""
        self.before_steps = self.held = self.meter.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self._started = self.meter.time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the step took, and the most that one has left."""
        self.step_seconds.append(self.meter.time() - self._started)
        self.step_peak = self.meter.peak()
        self.held = max(self.held, self.meter.now())
        self.labels_in_batch = len(batch.label_ids)
        self.advance()


def measure(
    module: PrimeModule,
    corpus: Corpus,
    loader: DataLoader,
    make_trainer: Callable[..., Trainer],
    device: torch.device,
) -> Measured:
    """Train on a few batches and return what that took.

    Args:
        module: As in a run, with tables for `corpus`. It is trained.
        corpus: Some made-up data.
        loader: Batches of it, at least two.
        make_trainer: Makes the Trainer of a run, given callbacks, for as many steps as there are batches.
        device: The Trainer's.

    Raises:
        ValueError: See `Meter`.
    """
    meter = Meter(device)
    with Progress(console=Console(stderr=True), transient=True) as progress, warnings.catch_warnings():
        # what libraries say to everybody does not matter for a few steps
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no")
        warnings.filterwarnings("ignore", message="The .* does not have many workers")
        warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")
        task = progress.add_task("probe", total=len(loader) + 3)
        texts = TextChunks(corpus.train.tokens, np.arange(min(_NUM_TEXTS, len(corpus.train))), _NUM_TEXTS)[0]
        watch = Watch(meter, texts, lambda: progress.advance(task))
        make_trainer(callbacks=[watch]).fit(module, train_dataloaders=loader)
        vectors = _random_vectors(_NUM_ROWS, module.encoder.dim).to(device)
        num_clusters = _NUM_ROWS // 8
        clustering = meter.seconds_of(lambda: balanced_clusters(vectors, num_clusters, seed=0))
        progress.advance(task)
        indexing = meter.seconds_of(lambda: module.searcher.build(vectors))
        queries = _random_vectors(_NUM_SEARCHES, module.encoder.dim).to(device)
        searching = min(meter.seconds_of(lambda: module.searcher.search(queries, TOP_K)) for _ in range(2))
        progress.advance(task)
    parameters = 4 * sum(p.numel() for p in module.parameters())
    # gradients and the optimiser's two copies, which are counted apart
    states = 12 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    known = Memory(0, states) if meter.on_gpu else Memory(states, 0)
    return Measured(
        program=watch.before_encoding.host - (0 if meter.on_gpu else parameters),
        encoding=_growth(watch.before_encoding, watch.encoding_peak),
        step=_growth(watch.before_steps, watch.step_peak, known),
        held=_growth(watch.before_steps, watch.held, known).host,
        seconds=Seconds(
            step=statistics.median(watch.step_seconds[1:]),  # the first one compiles kernels
            encode=watch.encode_seconds / len(texts.lengths),
            cluster=clustering / _NUM_ROWS / math.log2(num_clusters),
            add=indexing / _NUM_ROWS,
            search=searching / _NUM_SEARCHES,
            num_searched=_NUM_ROWS,
        ),
        labels_in_batch=watch.labels_in_batch,
    )


def _random_vectors(count: int, dim: int) -> Float[Tensor, "count dim"]:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)), dim=1)


def _growth(before: Memory, after: Memory, known: Memory | None = None) -> Memory:
    host, device = known or Memory()
    return Memory(max(0, after.host - before.host - host), max(0, after.device - before.device - device))
