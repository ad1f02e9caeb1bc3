"""Jobs of a sweep: none runs twice, each keeps its folder, and one that fails does not end the others."""

import gc
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from prime_xmc.files import locked, write_json, write_text
from prime_xmc.printing import unfailing_output, visible
from prime_xmc.run_files import CHECKPOINT, CHECKPOINT_BEFORE, CONFIG, METRICS, TRUST_VARIABLE
from prime_xmc.training.continuation import as_number, continuing_command, quoted, without_watching
from prime_xmc.training.interruption import Interrupted, interruptible

logger = logging.getLogger(__name__)

RECORD = "job.json"  # in a job's folder: what the job is and how it ended
ERROR = "error.txt"  # the traceback, where it has failed


def in_sweep() -> bool:
    """Return whether this is a job of a sweep (-m)."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def objective(metrics: Mapping[str, Any], split: str = "val") -> float | None:
    """Return what sweepers optimise and the table of a sweep shows, P@1 as a fraction; None if it was not measured.

    Args:
        metrics: Content of metrics.json.
        split: "val" or "test".
    """
    # a run has that of its prototypes, and a second stage by itself that of its classifiers
    return metrics.get(f"{split}/P@1", metrics.get(f"{split}/W/P@1"))


def fingerprint(config: DictConfig) -> str:
    """Return a hash of a configuration, resolved and without what changes no result.

    A configuration that does not resolve, whose job is going to fail, is taken as it is written.
    """
    content = without_watching(config)
    try:
        plain = OmegaConf.to_container(content, resolve=True)
    except OmegaConfBaseException:
        plain = OmegaConf.to_container(content)
    return hashlib.sha256(json.dumps(as_number(plain), sort_keys=True, default=str).encode()).hexdigest()[:16]


def job_folder(*, _root_: DictConfig) -> str:
    """Return the name of a job's folder within its sweep.

    In the configuration files: `${job_folder:}`. It is the folder that the same job had when the sweep was started
    before, whatever its number was; else the job's number; where that is another job's, the number and a fingerprint.
    """
    hydra = _root_.hydra
    sweep, number = Path(hydra.sweep.dir), str(hydra.job.num)
    job = {"fingerprint": fingerprint(_root_), "overrides": list(hydra.overrides.task)}
    for folder, record in _records(sweep).items():
        if job.items() <= record.items():
            return folder.name
    taken = any((sweep / number / name).exists() for name in (RECORD, METRICS))
    return f"{number}-{job['fingerprint'][:8]}" if taken else number


# replace: a test process imports this module afresh for another copy of the package
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


def run_job(config: DictConfig, train: Callable[[DictConfig], Any]) -> float | None:
    """Run a job of a sweep, unless a finished job of the sweep has the same configuration.

    A job that was interrupted continues from its last checkpoint. What it raises is written to its folder and goes no
    further: sweepers end with the first error that they see, and launchers that start processes cannot send them all.

    Args:
        config: Configuration of the job.
        train: Trains by a configuration and leaves metrics.json in its run folder.

    Returns:
        Validation P@1 for sweepers that optimise it; None, which they count as a failed trial, if there is none.

    Raises:
        ValueError: If the folder is another job's.
        Interrupted: If a signal ends the job, and the sweep with it.
    """
    folder, hydra = Path(config.run_dir), HydraConfig.get()
    job: dict[str, Any] = {
        "fingerprint": fingerprint(config),
        "number": hydra.job.num,
        "overrides": list(hydra.overrides.task),
    }
    # sweepers that draw at random draw some jobs twice
    with locked(folder / "job.lock"), interruptible(partial(_how_to_continue, Path(hydra.sweep.dir))):
        own = _records(folder.parent).get(folder, job)
        if own["fingerprint"] != job["fingerprint"]:
            raise ValueError(
                f"{folder} is the folder of another job: give each its own by run_dir or hydra.sweep.subdir"
            )
        finished = _finished(folder, job["fingerprint"])
        if finished is not None:
            _record(folder, job, "skipped", results=os.path.relpath(finished, folder))
            logger.info("skipped: %s has the same configuration and is finished", finished)
            _warn_of_newer_data(config, finished)
            return objective(_metrics(finished))
        _record(folder, job, "running")
        _forget_peak_memory()
        try:
            train(_continued(config))
        except (Interrupted, KeyboardInterrupt):
            _record(folder, job, "interrupted")
            raise
        except Exception as error:
            write_text(folder / ERROR, traceback.format_exc())
            message = f"{type(error).__name__}: {error}"
            _record(folder, job, "failed", message=message)
            logger.error("failed: %s (traceback in %s)", message, folder / ERROR)
            return None
        (folder / ERROR).unlink(missing_ok=True)
        _record(folder, job, "done", results=".")
        return objective(_metrics(folder))


def note_finished(config: DictConfig) -> None:
    """Note that a job of a sweep is done, where it has been continued by itself.

    With other settings it is another job: the sweep then trains the one that it has asked for in a folder of its own.
    """
    path = Path(str(config.run_dir)) / RECORD
    if path.is_file() and (path.parent / METRICS).is_file():
        begun_with: Any = OmegaConf.to_container(OmegaConf.load(path.parent / CONFIG))
        made = config.copy()
        if "ckpt_path" in made:  # the checkpoint that the job has begun at, not that at which it has been continued
            made.ckpt_path = begun_with.get("ckpt_path")
        now = fingerprint(made)
        job = {**json.loads(path.read_text(encoding="utf-8")), "fingerprint": now, "status": "done", "results": "."}
        job.pop("message", None)
        (path.parent / ERROR).unlink(missing_ok=True)
        write_json(path, job)


def run_in_a_process(config: DictConfig) -> None:
    """Run a configuration by a process of its own, whose errors go to stderr.txt in the run folder.

    Lightning starts further processes of a data-parallel run by its command line; that of a sweep would start it whole.

    Raises:
        RuntimeError: If the process fails.
        Interrupted: If a signal ends it.
    """
    run_dir = Path(config.run_dir).absolute()
    OmegaConf.save(config, run_dir / ".hydra" / "resolved.yaml", resolve=True)
    command = [sys.executable, "-m", "prime_xmc.train", "--config-path", str(run_dir / ".hydra")]
    command += ["--config-name", "resolved", f"hydra.run.dir={quoted(str(run_dir))}", "hydra.output_subdir=null"]
    with (run_dir / "stderr.txt").open("w+", encoding="utf-8") as file:
        # the configuration is that of this process, which has checked it
        process = subprocess.Popen(command, stderr=file, env=os.environ | {TRUST_VARIABLE: "1"})
        try:
            status = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Interrupted(status - 128)
        file.seek(0)
        if status != 0:
            raise RuntimeError(f"the process of the run ended with status {status}:\n{file.read()}")


class SweepTable(Callback):
    """Prints the jobs of a sweep when it has ended, and ends the process with status 1 where not all are finished."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the jobs of earlier starts of the sweep, which the table leaves out.

        Raises:
            SystemExit: If the sweeper looks for the worst validation P@1, as Optuna's does by default.
        """
        if "minimize" in str(config.hydra.sweeper.get("direction")):
            sys.exit(
                "the sweeper minimises validation P@1: take hydra/sweeper=tune, or hydra.sweeper.direction=maximize"
            )
        self.before = _stamps(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table."""
        sweep = Path(config.hydra.sweep.dir)
        stamps = _stamps(sweep)
        jobs = {
            folder: record for folder, record in _records(sweep).items() if stamps[folder] != self.before.get(folder)
        }
        if not jobs:  # of an entry point that does not train
            return
        with unfailing_output():
            show(jobs, sweep)
        if any(record["status"] not in ("done", "skipped") for record in jobs.values()):
            sys.exit(1)


def show(jobs: dict[Path, dict[str, Any]], sweep: Path) -> None:
    """Print jobs, by number: what sets each apart, how it ended, its main metrics in percent and its folder."""
    common = set.intersection(*(set(record["overrides"]) for record in jobs.values())) if len(jobs) > 1 else set()
    table = Table(
        Column("overrides", overflow="fold"),
        "status",
        "val P@1",
        "test P@1",
        "folder",
        title=Text(visible(f"Jobs of {sweep}")),
    )
    failures = []
    for folder, record in sorted(jobs.items(), key=lambda item: item[1]["number"]):
        metrics = _metrics(folder / record["results"]) if "results" in record else {}
        measured = (objective(metrics, split) for split in ("val", "test"))
        shown = ["-" if value is None else f"{100 * value:.1f}" for value in measured]
        apart = " ".join(override for override in record["overrides"] if override not in common)
        where = folder.name if record.get("results", ".") == "." else f"{folder.name} as {record['results']}"
        table.add_row(Text(visible(apart)), visible(record["status"]), *shown, Text(visible(where)))
        if record["status"] == "failed":
            failures.append(f"{folder / ERROR}: {record['message']}")
    console = Console()
    console.print(table)
    for failure in failures:
        console.print(Text(visible(failure)))
    if failures:
        again = f"The same command with hydra.sweep.dir='{sweep}' runs the unfinished jobs again."
        console.print(Text(visible(again)))


def _records(sweep: Path) -> dict[Path, dict[str, Any]]:
    return {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(sweep.glob(f"*/{RECORD}"))}


def _record(folder: Path, job: dict[str, Any], status: str, **more: str) -> None:
    write_json(folder / RECORD, job | {"status": status} | more)


def _stamps(sweep: Path) -> dict[Path, int]:
    return {path.parent: path.stat().st_mtime_ns for path in sweep.glob(f"*/{RECORD}")}


def _metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / METRICS).read_text(encoding="utf-8"))


def _finished(folder: Path, wanted: str) -> Path | None:
    """Return a finished job with a configuration, in this folder or beside it."""
    same = [path for path, record in _records(folder.parent).items() if record["fingerprint"] == wanted]
    return next((path for path in sorted(same, key=lambda path: path != folder) if (path / METRICS).is_file()), None)


def _warn_of_newer_data(config: DictConfig, finished: Path) -> None:
    """Say in the log that raw files were written after a job was finished, which it may not have seen, if any were."""
    folder = OmegaConf.select(config, "dataset.dir")
    if not isinstance(folder, str):  # what makes the files
        return
    done = (finished / METRICS).stat().st_mtime
    paths = (path for name in ("*.json", "*.json.gz", "*.txt") for path in Path(folder).expanduser().glob(name))
    if newer := sorted(path.name for path in paths if path.stat().st_mtime > done):
        logger.warning(
            "%s was finished before %s in %s changed: its results are of the data as they were. Remove its folder to "
            "train it again",
            finished,
            ", ".join(newer),
            folder,
        )


def _continued(config: DictConfig) -> DictConfig:
    """Return a configuration that goes on from the last checkpoint in its run folder, if there is one.

    That comes before a checkpoint of another run, from which the job has begun.
    """
    places = (Path(config.run_dir) / name for name in (CHECKPOINT, CHECKPOINT_BEFORE))
    checkpoint = next((place for place in places if place.is_file()), None)
    if checkpoint is None:
        return config
    logger.info("continuing from %s", checkpoint)
    # a second stage looks for its checkpoint itself
    goes_on = {"ckpt_path": str(checkpoint)} if "ckpt_path" in config else {"resume": str(config.run_dir)}
    return OmegaConf.merge(config, goes_on)  # type: ignore[return-value]


def _how_to_continue(sweep: Path) -> str:
    """Return how to continue a sweep that was interrupted."""
    command = continuing_command(hydra__sweep__dir=sweep)
    again = f"\n  {command}" if command else f" the same command with hydra.sweep.dir='{sweep}'"
    return f"Finished jobs are kept, and this one continues from its last checkpoint. To continue the sweep:{again}"


def _forget_peak_memory() -> None:
    """Start the peak memory of this process anew, which earlier jobs would otherwise set."""
    gc.collect()
    with suppress(OSError):  # not on Linux: the peak is that of all jobs so far
        Path("/proc/self/clear_refs").write_text("5")
