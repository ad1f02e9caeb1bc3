"""Time and memory of a training step against the bare encoder over the same tokens, on LF-Debian-18K.

    python tests/benchmarks/bench_step.py --steps 6

prints, all from one run and on the same batches: the whole training step (batch on its way, encoder, prototypes, loss,
backward, optimiser); forward and backward of the encoder alone, by this package without padding and by transformers in
groups of equal length, which need no padding either; the share of padding; and memory by step.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import hydra
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from prime_xmc.configs import config_dir
from prime_xmc.data.batch import Batch
from prime_xmc.model.module import PrimeModule
from prime_xmc.model.packed import TOKEN_MULTIPLE, length_groups
from prime_xmc.train import keep_memory_flat, make_data, make_module


def rss() -> float:
    """Return the resident memory of the process, in GiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**30


def seconds(action: Callable[[], Any]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def training_step(module: PrimeModule, optimizer: torch.optim.Optimizer, batches: Iterator[Batch], dtype: torch.dtype):
    """Do what the Trainer does for a step."""
    batch = next(batches)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = module.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return batch


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
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed, after two that are not")
    parser.add_argument("--memory-steps", type=int, default=20, help="further training steps, for memory alone")
    parser.add_argument("overrides", nargs="*", help="settings of prime_xmc.train")
    arguments = parser.parse_args()
    keep_memory_flat()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        config = hydra.compose("train", [*arguments.overrides, "run_dir=outputs/bench"])
    data = make_data(config)
    module = make_module(config, data)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    dtype = torch.bfloat16 if config.trainer.precision.startswith("bf16") else torch.float32
    optimizer = module.optimizer([{"params": [p for p in module.parameters() if p.requires_grad]}])
    batches = iter(data.train_dataloader())

    times: dict[str, list[float]] = {"batch": [], "step": [], "packed": [], "transformers": []}
    sizes, memory = [], []
    for step in track(range(arguments.steps + 2), "time"):
        batch = next(batches)
        waited = seconds(lambda: next(batches))
        found = {
            "step": seconds(lambda: training_step(module, optimizer, batches, dtype)),
            "packed": seconds(lambda batch=batch: bare_packed(module, batch, dtype)),  # type: ignore[misc]
        }
        memory.append(rss())
        found["transformers"] = seconds(lambda batch=batch: bare_transformers(module, batch, dtype))  # type: ignore[misc]
        if step >= 2:
            sizes.append((len(batch.query_ids), len(batch.label_ids), len(batch.token_ids)))
            for name, value in (found | {"batch": waited}).items():
                times[name].append(value)
    middle = {name: statistics.median(values) for name, values in times.items()}
    chunks = middle_tokens = statistics.median(size[2] for size in sizes)
    padding = 1 + TOKEN_MULTIPLE / 2 * -(-chunks // module.encoder.chunk_tokens) / middle_tokens

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
    table.add_row("tokens computed / real tokens (expected)", f"{padding:.3f}")
    steps = min(arguments.memory_steps, len(data.sampler) - 3 * (arguments.steps + 2))
    held = []
    for _ in track(range(steps), "memory"):
        training_step(module, optimizer, batches, dtype)
        held.append(rss())
    table.add_row("memory after each further step", f"{held[0]:.2f} ... {held[-1]:.2f} GiB, most {max(held):.2f} GiB")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    table.add_row("peak memory of the process", f"{peak:.2f} GiB")
    Console().print(table)


if __name__ == "__main__":
    main()
