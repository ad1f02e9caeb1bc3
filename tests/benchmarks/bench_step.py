"""Time and memory of a training step against the bare encoder over the same tokens, on LF-Debian-18K.

    python tests/benchmarks/bench_step.py --steps 6

prints, all from one run and on the same batches: the whole training step (encoder, prototypes, loss, backward,
optimiser); forward and backward of the encoder alone, by this package without padding and by transformers in groups of
equal length, which need no padding either; the time to build a batch; and memory by step.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import hydra
import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from prime_xmc.configs import config_dir
from prime_xmc.data.batch import Batch
from prime_xmc.model.module import PrimeModule
from prime_xmc.model.packed import length_groups
from prime_xmc.train import make_data, make_module


def rss() -> float:
    """Return the resident memory of the process, in GiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**30


def seconds(action: Callable[[], Any]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def training_step(module: PrimeModule, optimizer: torch.optim.Optimizer, batch: Batch, dtype: torch.dtype) -> None:
    """Do what the Trainer does for a step."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = module.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def bare_packed(module: PrimeModule, batch: Batch, dtype: torch.dtype) -> None:
    """Forward and backward of the encoder as the step runs it."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        emb = module.encoder(batch.token_ids, batch.lengths)
    emb.square().sum().backward()
    module.zero_grad()


def bare_transformers(module: PrimeModule, batch: Batch, dtype: torch.dtype) -> None:
    """Forward and backward of transformers' own model over texts of one length at a time."""
    texts = batch.token_ids.split(batch.lengths.tolist())
    by_length = sorted(texts, key=len)
    total: Tensor = torch.zeros(())
    start = 0
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for _, count, _ in length_groups([len(text) for text in by_length]):
            ids = torch.stack(by_length[start : start + count])
            hidden = module.encoder.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            total = total + hidden.float().mean(1).square().sum()
            start += count
    total.backward()
    module.zero_grad()


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="batches that are timed")
    parser.add_argument("--memory-steps", type=int, default=20, help="training steps before that, for memory")
    parser.add_argument("overrides", nargs="*", help="settings of prime_xmc.train")
    arguments = parser.parse_args()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        config = hydra.compose("train", [*arguments.overrides, "run_dir=outputs/bench"])
    data = make_data(config)
    module = make_module(config, data)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    dtype = torch.bfloat16 if config.trainer.precision.startswith("bf16") else torch.float32
    optimizer = module.optimizer([{"params": [p for p in module.parameters() if p.requires_grad]}])
    batches = iter(data.train_dataloader())

    memory = instantiate(config.callbacks.memory)
    release_every = config.callbacks.memory.every_n_steps
    held = []
    for step in track(range(arguments.memory_steps), "memory"):
        training_step(module, optimizer, next(batches), dtype)
        held.append(rss())
        if (step + 1) % release_every == 0:
            memory.release()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    times: dict[str, list[float]] = {"batch": [], "step": [], "packed": [], "transformers": []}
    sizes = []
    for step in track(range(arguments.steps + 1), "time"):
        start = time.perf_counter()
        batch = next(batches)
        found = {
            "batch": time.perf_counter() - start,
            "step": seconds(partial(training_step, module, optimizer, batch, dtype)),
            "packed": seconds(partial(bare_packed, module, batch, dtype)),
            "transformers": seconds(partial(bare_transformers, module, batch, dtype)),
        }
        if step:  # the first compiles kernels
            sizes.append((len(batch.query_ids), len(batch.label_ids), len(batch.token_ids)))
            for name, value in found.items():
                times[name].append(value)
    middle = {name: statistics.median(values) for name, values in times.items()}
    table = Table(title=f"medians of {arguments.steps} steps, {dtype}, {torch.get_num_threads()} threads")
    for column in ("what", "value"):
        table.add_column(column, justify="left" if column == "what" else "right")
    queries, labels, tokens = (int(statistics.median(size[i] for size in sizes)) for i in range(3))
    table.add_row("batch", f"{queries} queries, {labels} labels, {tokens} tokens")
    table.add_row("training step", f"{middle['step']:.2f} s, {(queries + labels) / middle['step']:.0f} texts/s")
    table.add_row("encoder alone, packed", f"{middle['packed']:.2f} s")
    table.add_row("encoder alone, transformers by length", f"{middle['transformers']:.2f} s")
    table.add_row("step / encoder alone, packed", f"{middle['step'] / middle['packed']:.2f} x")
    table.add_row("step / encoder alone, transformers", f"{middle['step'] / middle['transformers']:.2f} x")
    table.add_row("building a batch / step", f"{100 * middle['batch'] / middle['step']:.2f} %")
    shown = ", ".join(f"{held[i]:.2f}" for i in range(0, len(held), max(1, len(held) // 6)))
    table.add_row(f"memory over {len(held)} training steps", f"{shown} GiB")
    table.add_row("peak memory of these steps", f"{peak:.2f} GiB")
    Console().print(table)


if __name__ == "__main__":
    main()
