"""Evaluation of a million queries x top-100 over a million labels, all metrics, from a cold start.

The problem is written to disk first; a fresh process then imports the package, reads the files and evaluates.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import PeakMemory, Row, Target, fresh_process, main

TARGETS = (
    Target("evaluating 1M queries × top-100 over 1M labels, cold start", "≤", 10, "s"),
    # 10 % above linear: allocators round up
    Target("evaluation: memory for all queries / 4 × memory for a quarter", "≤", 1.1, "x"),
)
K, MEAN_POSITIVES = 100, 5


def rows(scale: float) -> Iterator[Row]:
    seconds_target, memory_target = TARGETS
    num_queries = num_labels = max(round(1_000_000 * scale), 2_000)
    measured = []
    for part in (num_queries, num_queries // 4):
        with tempfile.TemporaryDirectory() as directory:
            write_problem(Path(directory), part, num_labels)
            measured.append(fresh_process(evaluate_problem, directory, num_labels))
    (whole, seconds), (quarter, _) = measured
    parts = ", ".join(f"{name} {whole[name]:.1f} s" for name in ("read", "evaluate"))
    note = f"{parts}, the rest is starting and importing; {whole['processor']:.1f} s of a processor"
    yield seconds_target.row(seconds, f"{num_queries:,} queries; {note}")
    linear = whole["growth"] / (4 * quarter["growth"])
    yield memory_target.row(linear, f"{whole['growth'] / 1e9:.2f} GB beyond predictions and truth")


def write_problem(directory: Path, num_queries: int, num_labels: int) -> None:
    """Write predictions and truth; about half of the positives are predicted."""
    from prime_xmc.evaluation.predictions import save_predictions

    rng = np.random.default_rng(0)
    # An arithmetic progression with a step coprime to the number of labels never repeats within a row.
    first = rng.integers(num_labels, size=num_queries, dtype=np.int32)
    step = 7919 if num_labels % 7919 else 1
    indices = (first[:, None] + np.arange(K, dtype=np.int64) * step) % num_labels
    scores = np.broadcast_to(np.linspace(1, 0, K, dtype=np.float32), indices.shape)
    save_predictions(directory / "predictions.npz", indices, scores)

    lengths = rng.integers(1, 2 * MEAN_POSITIVES, size=num_queries)
    offsets = np.concatenate([[0], lengths.cumsum()])
    row = np.repeat(np.arange(num_queries), lengths)
    # Half of the positives are among the predictions, the columns of a row one step apart; the others are not.
    nth = np.arange(offsets[-1]) - offsets[row]
    column = rng.integers(K - 2 * MEAN_POSITIVES, size=num_queries)[row] + nth
    values = np.where(nth % 2 == 0, indices[row, column], (first[row] + step * (K + nth)) % num_labels)
    np.save(directory / "values.npy", values.astype(np.int32))
    np.save(directory / "offsets.npy", offsets)


def evaluate_problem(directory: str, num_labels: int) -> dict[str, float]:
    """Read the problem and evaluate.

    Returns:
        Seconds of reading and of evaluating, processor seconds of the whole process, and the growth of memory during
        the evaluation in bytes.
    """
    from prime_xmc.data.corpus import Ragged
    from prime_xmc.evaluation.metrics import evaluate

    start = time.perf_counter()
    with np.load(Path(directory, "predictions.npz")) as archive:
        indices = archive["indices"]
    positives = Ragged(np.load(Path(directory, "values.npy")), np.load(Path(directory, "offsets.npy")))
    inverse_propensity = 1 + np.random.default_rng(1).random(num_labels)
    read = time.perf_counter()
    with PeakMemory() as memory:
        metrics = evaluate(indices, positives, inverse_propensity)
    evaluated = time.perf_counter()
    assert 0.2 < metrics["R@100"] < 0.8, metrics
    processor = time.process_time()
    return {"read": read - start, "evaluate": evaluated - read, "processor": processor, "growth": memory.growth}


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
