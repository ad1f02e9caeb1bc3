"""Passive waiting of OpenMP's threads, the default, against libgomp's own, which spin: what it costs and what it gains.

Two processes of two threads do the same work in turn, one with each way to wait: a query alone and a batch of queries
through `Predictor`, and a training step. They share two cores, first with nobody else, then with a process of two
threads that multiplies matrices all the time. The one whose turn it is not sleeps.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

from common import Row, Target, environment, interleave, main, ratio

from prime_xmc.environment import WAITING

KINDS = {"query": "a single query", "batch": "a batch of 256 queries", "step": "a training step of 64 queries"}
TARGETS = tuple(
    [
        Target(f"passive waiting, no other load: time of {kind} / with spinning", "≤", 1.03, "x")
        for kind in KINDS.values()
    ]
    + [Target(f"passive waiting, two busy threads beside: speed of {kind}", ">", 1, "x") for kind in KINDS.values()]
)
CORES = 2  # and as many threads in each process
BATCH, STEP_BATCH = 256, 64
ROUNDS = {"query": 100, "batch": 20, "step": 10}  # without other load
LOADED_ROUNDS = {"query": 10, "batch": 3, "step": 3}
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own default


def rows(scale: float) -> Iterator[Row]:
    with worker({}) as passive, worker(SPINNING) as spinning:
        for kind, target in zip(KINDS, TARGETS, strict=False):
            rounds = max(round(ROUNDS[kind] * scale), 2)
            calm, spun = interleave(rounds, partial(passive, kind), partial(spinning, kind))
            yield target.row(ratio(calm, spun), note(calm, spun))
        with load():
            for kind, target in zip(KINDS, TARGETS[len(KINDS) :], strict=True):
                rounds = max(round(LOADED_ROUNDS[kind] * scale), 2)
                calm, spun = interleave(rounds, partial(passive, kind), partial(spinning, kind))
                yield target.row(ratio(spun, calm), note(calm, spun))


def note(calm: list[float], spun: list[float]) -> str:
    """Return the times behind a ratio, for people."""
    return f"median of {len(calm)}; {1e3 * median(calm):.1f} ms, spinning {1e3 * median(spun):.1f} ms"


@contextmanager
def worker(waiting: dict[str, str]) -> Iterator[Callable[[str], None]]:
    """Start a process that works when it is told to; yield the function that has it work and waits until it has.

    Args:
        waiting: Variables that say how its threads wait; none leaves it to the package.
    """
    with process("work", waiting) as started:

        def work(kind: str) -> None:
            started.stdin.write(f"{kind}\n")
            started.stdin.flush()
            if started.stdout.readline().strip() != kind:
                raise RuntimeError(f"the process that measures {kind} has ended")

        for kind in KINDS:
            work(kind)
        yield work


@contextmanager
def load() -> Iterator[None]:
    """Keep two threads of another process busy, which wait as libgomp has them wait."""
    with process("multiply", SPINNING) as started:
        started.stdout.readline()
        yield


@contextmanager
def process(function: str, waiting: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Run a function of this file in a process on the first cores."""
    kept = {name: value for name, value in environment().items() if name not in WAITING}
    code = f"import bench_waiting; bench_waiting.{function}()"
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        env=kept | {"OMP_NUM_THREADS": str(CORES)} | waiting,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        started.stdin.close()
        started.stdout.close()


def settle() -> None:
    """Keep this process to the first cores of those that it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def multiply() -> None:
    """Multiply matrices until the process is ended."""
    settle()
    import torch

    matrix = torch.rand(1024, 1024) / 1024
    print("begun", flush=True)
    while True:
        matrix @ matrix


def work() -> None:
    """Do what standard input asks for, a line each, and answer each with the same line."""
    settle()
    import torch
    from training import make_training

    from prime_xmc.export.predictor import Predictor
    from prime_xmc.index.search import ExactSearch

    training = make_training(f"sampling.batch_size={STEP_BATCH}")
    module, data = training.module, training.data
    batch = next(iter(data.train_dataloader()))
    searcher = ExactSearch()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(data.corpus.num_labels, module.encoder.dim, generator=generator)
    searcher.build(torch.nn.functional.normalize(vectors))
    tokenizer = data.tokenizer.backend_tokenizer
    labels = list(data.corpus.labels())
    texts = [text for _, text in labels[:BATCH]]
    precision = "32-true" if training.dtype == torch.float32 else "bf16-mixed"
    predictor = Predictor(module.encoder, tokenizer, searcher, labels, {}, precision=precision)
    actions = {
        "query": lambda: predictor.predict(texts[:1]),
        "batch": lambda: predictor.predict(texts),
        "step": lambda: training.step(batch),
    }
    for line in sys.stdin:
        actions[line.strip()]()
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
