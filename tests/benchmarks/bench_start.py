"""From the start of `python -m prime_xmc.train` to the first training step, on a prepared data set with 18K labels.

A first run prepares LF-Debian-18K and embeds its texts, unless the results are in outputs/cache already. A second run,
in another process, is timed. Both are ended after their first step.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import ROOT, Row, Target, environment, main
from lightning.pytorch import Callback, LightningModule, Trainer

TARGETS = (Target("from start to first training step, 18K labels, initial embeddings cached", "≤", 15, "s"),)
NUM_QUERIES = 29_610


class FirstStep(Callback):
    """Writes the times at which the first training step began and ended, in seconds since the epoch, to a file."""

    def __init__(self, path: str):
        self.path = Path(path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.began = time.time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps([self.began, time.time()]))
        temporary.replace(self.path)


def rows(scale: float) -> Iterator[Row]:
    # fewer queries are embedded at a smaller scale, but all labels, which the target is about
    few = [] if scale == 1 else [f"dataset.num_validation={int(NUM_QUERIES * (1 - scale))}"]
    run_to_first_step(*few)
    began, ended = run_to_first_step(*few)
    yield TARGETS[0].row(began, f"{ended:.1f} s when it has ended")


def run_to_first_step(*overrides: str) -> tuple[float, float]:
    """Start training, end it after its first step, and return the seconds until that step began and ended.

    Raises:
        RuntimeError: If training ends before, with the end of its output.
    """
    with tempfile.TemporaryDirectory() as directory:
        times, log = Path(directory, "times.json"), Path(directory, "log")
        command = [sys.executable, "-m", "prime_xmc.train", *overrides, f"hydra.run.dir={directory}/run"]
        command += ["+callbacks.first_step._target_=bench_start.FirstStep", f"+callbacks.first_step.path={times}"]
        start = time.time()
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            while not times.is_file():
                if process.poll() is not None:
                    raise RuntimeError(f"training ended before its first step:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        began, ended = json.loads(times.read_text())
    return began - start, ended - start


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
