"""Trains for a hundred epochs and asserts that memory, open files and threads stay as they are.

All that happens in an epoch happens in each: clusters, validation, a checkpoint, an export. The first epochs are left
out, in which caches fill.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import toys
from fault_kills import begin, training
from findings import Row, main
from forks import prepare_process, run

EPOCHS, SHORT_EPOCHS = 100, 12
SETTLED = 0.5  # share of the epochs in which caches fill
MOST_GROWTH = (
    32 * 2**20
)  # bytes of memory from there to the end; a leak of what an epoch makes would be several times it
MOST_GROWTH_SHORT = 96 * 2**20  # in so few epochs, caches are still filling
MOST_FILES = 0  # descriptors
MOST_THREADS = 0


def rows(short: bool, folder: Path) -> Iterator[Row]:
    """Train for long."""
    prepare_process()
    toys.make_encoder(folder / "encoder"), toys.make_dataset(folder / "data")
    epochs, place, log = SHORT_EPOCHS if short else EPOCHS, folder / "soak", folder / "soak.jsonl"

    def watch() -> None:
        """Let each epoch write what the process holds."""
        from prime_xmc.training.continuation import ContinuedRun

        original = ContinuedRun.on_train_epoch_end

        def on_train_epoch_end(self: ContinuedRun, trainer: Any, pl_module: Any) -> None:
            original(self, trainer, pl_module)
            held = {"memory": _resident(), "files": len(os.listdir("/proc/self/fd")), "threads": _threads()}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(held) + "\n")

        ContinuedRun.on_train_epoch_end = on_train_epoch_end  # type: ignore[method-assign]

    settings = [
        *begin(training(folder), place),
        *(f"dataset.max_epochs={epochs}", "dataset.validate_every=1", "dataset.batch_size=128"),
        *("sampling.clusters.every_n_epochs=1", "classify=false", "neighbours=null", "lexical=null"),
    ]
    ended = run("train", settings, place, setup=watch, timeout=900)
    held = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    lost = []
    if ended.status != 0 or len(held) != epochs:
        lost.append(f"it ends with {ended.status} after {len(held)} epochs: {ended.last_line[:160]}")
    note, most_memory = "", MOST_GROWTH_SHORT if short else MOST_GROWTH
    if held:
        settled = held[int(SETTLED * epochs) :]
        growth = {key: settled[-1][key] - settled[0][key] for key in settled[0]}
        for key, most in (("memory", most_memory), ("files", MOST_FILES), ("threads", MOST_THREADS)):
            if growth[key] > most:
                lost.append(f"{key} grow by {growth[key]:,} from epoch {len(held) - len(settled)} on, at most {most:,}")
        note = (
            f"{epochs} epochs; from epoch {len(held) - len(settled)} on, memory grows by "
            f"{growth['memory'] / 2**20:.1f} MB (at most {most_memory / 2**20:.0f}), open files by {growth['files']} "
            f"(at most {MOST_FILES}), threads by {growth['threads']} (at most {MOST_THREADS})"
        )
    yield Row("a long training", inputs=epochs, lost=lost, note=note)


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):  # without files of libraries, of which a fork sees more as it goes on
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


if __name__ == "__main__":
    main(__doc__, rows)
