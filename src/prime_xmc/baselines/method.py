"""What a method to compare with gets and gives: texts and their labels, rankings of labels, and what they cost."""

import gc
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from threadpoolctl import threadpool_limits

from prime_xmc.data.corpus import Ragged
from prime_xmc.progress import track

BLOCK_SCORES = 2**24  # scores of a block of queries, 64 MiB, which are held at once

# label ids and scores [query, k]; the sizes are not those of another ranking in the same call
Top = tuple[Int[np.ndarray, "_ _"], Float32[np.ndarray, "_ _"]]


@dataclass(frozen=True, eq=False)
class TextSet:
    """Texts as people read them and as an encoder does.

    Attributes:
        strings: The texts.
        tokens: Their token ids.
    """

    strings: Sequence[str]
    tokens: Ragged

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Int64[np.ndarray, " taken"]) -> "TextSet":
        """Return some of the texts, in the given order."""
        return TextSet([self.strings[row] for row in rows], self.tokens.take(rows))


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """What a method is trained on.

    Attributes:
        queries: Texts of the training queries.
        labels: Text of each label.
        positives: Labels of each training query, ascending.
    """

    queries: TextSet
    labels: TextSet
    positives: Ragged

    def with_label_texts(self) -> "LabelledTexts":
        """Return the same with a further training query for each label: its text, whose one label it is.

        Example:
            >>> queries, labels = (TextSet(each, Ragged.from_rows([[], []])) for each in (["a", "b"], ["l", "m"]))
            >>> LabelledTexts(queries, labels, Ragged.from_rows([[1], [0]])).with_label_texts().positives.values
            array([1, 0, 0, 1])
        """
        own = Ragged.from_rows([[label] for label in range(len(self.labels))])
        queries = TextSet(
            [*self.queries.strings, *self.labels.strings], Ragged.joined([self.queries.tokens, self.labels.tokens])
        )
        return LabelledTexts(queries, self.labels, Ragged.joined([self.positives, own]))


@dataclass(frozen=True)
class Cost:
    """What a method has cost.

    Attributes:
        train_seconds: Duration of the training, in seconds.
        train_cpu_seconds: Seconds of all processors together.
        peak_rss_bytes: Most memory of the process that has computed, in bytes.
        model_bytes: Size of what it takes to predict, in bytes, without an encoder that is there anyway.
        milliseconds_per_query: Milliseconds of one processor in which a query is answered, from its text on; None where
            a GPU has computed.
        device: Name of the GPU that has computed; None: none has.
        peak_device_memory_bytes: Most of its memory that was taken at once, in bytes.
    """

    train_seconds: float
    train_cpu_seconds: float
    peak_rss_bytes: int
    model_bytes: int
    milliseconds_per_query: float | None
    device: str | None = None
    peak_device_memory_bytes: int = 0


class Outcome(NamedTuple):
    """What a method has made.

    Attributes:
        rankings: Label ids and scores of the best labels, by the name of the queries; -1 and -inf fill up.
        cost: What that has cost.
    """

    rankings: Mapping[str, Top]
    cost: Cost


@runtime_checkable
class Method(Protocol):
    """A method that ranks labels for texts, once it has seen texts with their labels."""

    def rank(self, training: LabelledTexts, queries: Mapping[str, TextSet], k: int) -> Outcome:
        """Train, and return the k best labels of queries.

        Args:
            training: What to train on.
            queries: Queries by a name, such as "test".
            k: Labels for each query.
        """


@runtime_checkable
class Trained(Protocol):
    """A method that has been trained in this process."""

    @property
    def model_bytes(self) -> int:
        """Size of what it takes to predict, in bytes."""

    def scores(self, queries: TextSet) -> Float[np.ndarray, "query label"]:
        """Return the scores of all labels for some queries."""


class Stopwatch:
    """Measures the time of blocks, on the clock and of the processors.

    Attributes:
        seconds: Sum of the durations.
        cpu_seconds: Sum of the seconds of all processors.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu


def rank_here(
    train: Callable[[], Trained],
    queries: Mapping[str, TextSet],
    num_labels: int,
    k: int,
    *,
    threads: int | None,
    device: torch.device | None = None,
) -> Outcome:
    """Train in this process, rank, and measure both; `Method.rank` of methods that need no process of their own.

    Args:
        train: Trains.
        queries: Queries by a name.
        num_labels: Number of labels.
        k: Labels for each query.
        threads: Threads to train with; None: as many as the libraries take. Ranking has one.
        device: Where an encoder computes; None: there is none.
    """
    gpu = device if device is not None and device.type == "cuda" else None
    if gpu is not None:
        torch.cuda.reset_peak_memory_stats(gpu)
    training, ranking = Stopwatch(), Stopwatch()
    forget_peak_memory()
    with threadpool_limits(threads), training.running():
        trained = train()
    rankings: dict[str, Top] = {}
    block = max(1, BLOCK_SCORES // num_labels)
    with threadpool_limits(1), ranking.running():
        for name, texts in queries.items():
            parts = [
                top_labels(trained.scores(texts.take(np.arange(start, min(start + block, len(texts))))), k)
                for start in track(range(0, len(texts), block), f"rank {name}")
            ]
            ids, scores = zip(*parts, strict=True)
            rankings[name] = np.concatenate(ids), np.concatenate(scores)
    return Outcome(
        rankings,
        Cost(
            training.seconds,
            training.cpu_seconds,
            peak_memory(),
            trained.model_bytes,
            None if gpu is not None else 1000 * ranking.cpu_seconds / max(1, sum(map(len, queries.values()))),
            None if gpu is None else torch.cuda.get_device_name(gpu),
            0 if gpu is None else torch.cuda.max_memory_allocated(gpu),
        ),
    )


def top_labels(scores: Float[np.ndarray, "query label"], k: int) -> Top:
    """Return ids and scores of the k best labels, best first, ties by label id; -1 and -inf where a score is -inf.

    Example:
        >>> ids, _ = top_labels(np.array([[0.1, 0.5, 0.5, -np.inf]]), 4)
        >>> ids
        array([[ 1,  2,  0, -1]])
    """
    num_labels = scores.shape[1]
    # The k-th best score, with all that is equal to it, so that ties at the end of the row are decided by id, too.
    least = np.partition(scores, num_labels - k, axis=1)[:, num_labels - k] if k < num_labels else None
    ids = np.full((len(scores), k), -1, dtype=np.int64)
    top = np.full((len(scores), k), -np.inf, dtype=np.float32)
    for row, values in enumerate(scores):
        candidates = np.arange(num_labels) if least is None else np.flatnonzero(values >= least[row])
        best = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
        best = best[values[best] > -np.inf]
        ids[row, : len(best)], top[row, : len(best)] = best, values[best]
    return ids, top


def peak_memory() -> int:
    """Return the most memory that this process has used since `forget_peak_memory`, in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak_memory() -> None:
    """Start the peak memory of this process anew; what it holds already still counts."""
    gc.collect()
    with suppress(OSError):  # not on Linux: the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def default_threads() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
