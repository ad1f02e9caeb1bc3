"""Time `evaluate` on a million queries x top-100 over a million labels, and its peak memory, from a cold start.

    python tests/benchmarks/bench_metrics.py

The problem is written to disk first; a fresh process then imports the package, reads the files and evaluates.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()
NUM_QUERIES, NUM_LABELS, K, MEAN_POSITIVES = 1_000_000, 1_000_000, 100, 5


def write_problem(directory: Path) -> None:
    import numpy as np

    from prime_xmc.predictions import save_predictions

    rng = np.random.default_rng(0)
    # An arithmetic progression with a step coprime to the number of labels never repeats within a row.
    first = rng.integers(NUM_LABELS, size=NUM_QUERIES, dtype=np.int32)
    indices = (first[:, None] + np.arange(K, dtype=np.int32) * 7919) % NUM_LABELS
    scores = np.broadcast_to(np.linspace(1, 0, K, dtype=np.float32), indices.shape)
    save_predictions(directory / "predictions.npz", indices, scores)

    lengths = rng.integers(1, 2 * MEAN_POSITIVES, size=NUM_QUERIES)
    offsets = np.concatenate([[0], lengths.cumsum()])
    rows = np.repeat(np.arange(NUM_QUERIES), lengths)
    # Half of the positives are among the predictions, the columns of a row one step apart; the others are not.
    nth = np.arange(offsets[-1]) - offsets[rows]
    column = rng.integers(K - 2 * MEAN_POSITIVES, size=NUM_QUERIES)[rows] + nth
    values = np.where(nth % 2 == 0, indices[rows, column], (first[rows] + 7919 * (K + nth)) % NUM_LABELS)
    np.save(directory / "values.npy", values.astype(np.int32))
    np.save(directory / "offsets.npy", offsets)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def evaluate_problem(directory: Path) -> None:
    import numpy as np

    from prime_xmc.data.corpus import Ragged
    from prime_xmc.metrics import evaluate

    imported = time.perf_counter()
    with np.load(directory / "predictions.npz") as archive:
        indices = archive["indices"]
    positives = Ragged(np.load(directory / "values.npy", mmap_mode="r"), np.load(directory / "offsets.npy"))
    inverse_propensity = 1 + np.random.default_rng(1).random(NUM_LABELS)
    loaded = time.perf_counter()
    before = peak_gib()
    metrics = evaluate(indices, positives, inverse_propensity)
    done = time.perf_counter()
    print(f"import {imported - STARTED:.2f} s, read {loaded - imported:.2f} s, evaluate {done - loaded:.2f} s")
    print(f"peak RSS {peak_gib():.2f} GiB, {before:.2f} of them before evaluate")
    print({name: round(value, 4) for name, value in metrics.items()})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        evaluate_problem(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            write_problem(Path(directory))
            started = time.perf_counter()
            subprocess.run([sys.executable, __file__, directory], check=True)
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = used.ru_utime + used.ru_stime
            print(f"the whole process {time.perf_counter() - started:.2f} s, of them {cpu:.2f} s on a processor")
