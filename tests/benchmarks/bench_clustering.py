"""Balanced clustering of a million rows into clusters of 8: time, memory, and speed against the loop over clusters.

The loop over clusters is what published code does (Parabel's descendants DeepXML, NGAME and DEXML). Level by level, it
cuts each cluster in half by 2-means in NumPy and scikit-learn, in float32, starting from one pair of rows, with a full
sort in every iteration, until the mean similarity grows by less than 1e-4. Most of its time goes into scikit-learn's
checks of arguments. The loop is therefore also timed with NumPy only, and the note gives the ratio to that.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from common import PeakMemory, Row, Target, clustering_tests, interleave, main, ratio, seconds_of
from jaxtyping import Float32, Int64
from sklearn.preprocessing import normalize  # type: ignore[import-untyped]
from torch import Tensor

from prime_xmc.index.clustering import balanced_clusters

TARGETS = (
    Target("clustering 1M × 384 into clusters of 8", "≤", 120, "s"),
    Target("clustering: memory beyond the input, in copies of it", "≤", 1, "x"),
    Target("clustering: speed against the published loop over clusters", "≥", 5, "x"),
)
SIZE = 8
DIM = 384
ROUNDS = 2  # the loops take half a minute each
TOLERANCE = 1e-4  # of the loop, as in the published code


def rows(scale: float) -> Iterator[Row]:
    tests = clustering_tests()
    seconds_target, memory_target, ratio_target = TARGETS
    x = tests["nested_groups"](round(1_000_000 * scale), DIM)
    num_clusters = len(x) // SIZE
    balanced_clusters(x[:4096], 512, seed=0)  # starts threads and compiles kernels
    with PeakMemory() as memory:
        seconds = seconds_of(lambda: balanced_clusters(x, num_clusters, seed=0))  # noqa: F821 (deleted later)
    yield seconds_target.row(seconds, f"{len(x):,} rows")
    yield memory_target.row(memory.growth / x.nbytes, f"{memory.growth / 1e9:.2f} GB beyond {x.nbytes / 1e9:.2f} GB")

    # With a power of two, both cut the same tree.
    num_levels = round(14 + np.log2(scale))
    few = x[: SIZE * 2**num_levels].clone()
    del x
    cuts: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: balanced_clusters(few, 2**num_levels, seed=0),
        "published": lambda: plain_loop(few.numpy(), num_levels, normalize),
        "numpy": lambda: plain_loop(few.numpy(), num_levels, unit_rows),
    }
    results: dict[str, Tensor] = {}
    measured = interleave(ROUNDS, *(partial(_keep, results, name, cut) for name, cut in cuts.items()), warm_up=0)
    times = dict(zip(cuts, measured, strict=True))
    quality = {name: tests["mean_similarity"](few, clusters) for name, clusters in results.items()}
    note = (
        f"{len(few):,} rows; mean similarity {quality['ours']:.4f}, the loop's {quality['published']:.4f}; "
        f"{ratio(times['numpy'], times['ours']):.2f} x against the loop without scikit-learn's checks"
    )
    yield ratio_target.row(ratio(times["published"], times["ours"]), note, seconds_by_round=times)


def _keep(results: dict[str, Tensor], name: str, cut: Callable[[], Tensor]) -> None:
    results[name] = cut()


def plain_loop(
    x: Float32[np.ndarray, "row d"], num_levels: int, normalize: Callable[[np.ndarray], np.ndarray]
) -> Int64[Tensor, " row"]:
    """Return the cluster of each row, of 2^num_levels; `normalize` makes unit rows."""
    rng = np.random.default_rng(0)
    nodes = [np.arange(len(x))]
    for _ in range(num_levels):
        nodes = [half for node in nodes for half in _halves(x[node], node, rng, normalize)]
    clusters = torch.empty(len(x), dtype=torch.int64)
    for cluster, node in enumerate(nodes):
        clusters[node] = cluster
    return clusters


def _halves(
    x: np.ndarray, node: np.ndarray, rng: np.random.Generator, normalize: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    x = normalize(x)
    similarity = x @ x[rng.choice(len(x), 2, replace=False)].T
    before, objective = -np.inf, -2.0
    while objective - before >= TOLERANCE:
        halves = np.array_split(np.argsort(similarity[:, 1] - similarity[:, 0]), 2)
        similarity = x @ normalize(np.stack([x[half].mean(axis=0) for half in halves])).T
        before, objective = objective, sum(similarity[half, side].sum() for side, half in enumerate(halves)) / len(x)
    return [node[half] for half in halves]


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Do what scikit-learn's `normalize` does, and nothing else."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
