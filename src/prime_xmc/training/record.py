"""What runs that train say of themselves: settings, cost and results, in files and to people."""

import logging
import os
import platform
import resource
import subprocess
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from prime_xmc.data.datamodule import HELD_OUT, TRAINED_ON, PrimeDataModule
from prime_xmc.evaluation.table import describe_unlabelled, print_notes, print_table
from prime_xmc.export.calibration import has_calibration, read_calibration
from prime_xmc.export.scorers import SCORERS, encoder_digest

# `seconds/<phase>` in metrics.json: reading and preparing the data and making the model; measuring a pass; the first
# embeddings of all texts, none where the cache has them; clustering; training steps; validation; tables, checkpoints
# and models after an epoch; the export at the end; the test.
PHASES = ("prepare", "probe", "initialise", "clusters", "steps", "validation", "save", "export", "test")
EPOCH_VALIDATED = "val/epoch"
TRAINING = ("clusters", "steps", "validation", "save", "export")  # what train/seconds counts
COMPUTED = ("initialise", *TRAINING)  # what train/cpu_seconds counts: all that computes from the prepared texts on


def quiet_libraries() -> None:
    """Silence what libraries say to everybody: advertisements, which kernels they try, their own deprecations."""
    for name in ("lightning.pytorch", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # a batch is built in a thousandth of the time of a step: workers would only cost memory
    warnings.filterwarnings("ignore", message="The .* does not have many workers")
    # small data have no validation queries, which is said before training
    warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")
    # what is lost then is which checkpoint was the best: here it is the last one
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # those that change the result are compared before a run is continued
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated", category=FutureWarning)


def describe_run(config: DictConfig, data: PrimeDataModule) -> dict[str, Any]:
    """Return what it takes to know how a model was made, as plain JSON.

    That a run was interrupted and went on in its folder is no part of it.
    """
    content: Any = OmegaConf.to_container(config, resolve=True)
    checkpoint, folder = content.get("ckpt_path"), Path(str(content["run_dir"])).resolve()
    if checkpoint is not None and Path(str(checkpoint)).resolve().is_relative_to(folder):
        content["ckpt_path"] = None
    if "resume" in content:
        content["resume"] = None
    return {
        "config": content,
        "dataset": data.corpus.manifest["name"],
        "data_fingerprint": data.corpus.manifest["fingerprint"],
        "data_source": data.corpus.source_hash,
        TRAINED_ON: data.corpus.training_hash,
        "seed": config.seed,
        HELD_OUT: data.held_out,
        "torch_version": torch.__version__,
        "prime_xmc_version": version("prime_xmc"),
        "git_commit": _git_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
    }


def describe_splits(config: DictConfig, data: PrimeDataModule) -> dict[str, str]:
    """Return what has to be known about the data of a run's metrics, as sentences: `note/test`, `note/labels`, ...

    Args:
        config: Whose `test` says whether there are test metrics.
        data: The data.
    """
    train, test = data.corpus.train, data.corpus.test
    notes = {"note/val": describe_unlabelled(train.positives.take(data.validation_ids), "validation queries")}
    notes["note/labels"] = data.corpus.label_note
    if config.test:
        notes["note/test_split"] = data.corpus.split_note
        notes["note/test"] = describe_unlabelled(test.positives, "test queries")
    return {name: note for name, note in notes.items() if note is not None}


class RunHistory(Callback):
    """Keeps what a run has cost and reached so far, in its checkpoints too: a continued run goes on counting.

    It has to be the first of the callbacks, since a phase begins with the hook that the others use for it. The time of
    a process after its last checkpoint is lost with the process, and so is what it had trained.

    Attributes:
        validation: Metrics of the last validation, `val/<metric>`, fractions in [0, 1], and `val/epoch`: the number of
            epochs, that one included, after which it was. The exported weights are those of `train/epochs`.
        has_ended: Whether training has come to its end in this process.
        pass_seconds: Duration of a pass on this machine, see `PassProbe`; None where it was not measured.
        no_pass: Reason why it was not measured; None where it was, or nobody asked for it.
    """

    def __init__(self) -> None:
        self.validation: dict[str, float] = {}
        self.has_ended = False
        self.pass_seconds: float | None = None
        self.no_pass: str | None = None
        self._passes_before: float | None = 0.0  # what earlier processes cost; None where they did not measure it
        self._waited_before = 0.0
        self._seconds: dict[str, float] = {}
        self._cpu_seconds: dict[str, float] | None = {}  # None where an earlier process did not measure them
        self._num_queries = 0
        self._peak_rss_bytes = 0
        self._gpu: torch.device | None = None
        self._peak_device_bytes = 0
        self._phase: str | None = "prepare"
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def enter(self, phase: str | None) -> None:
        """Count the time from here on for a phase, or for none."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._phase is not None:
            _add(self._seconds, self._phase, now - self._since)
            if self._cpu_seconds is not None:
                _add(self._cpu_seconds, self._phase, cpu - self._cpu_since)
        self._phase, self._since, self._cpu_since = phase, now, cpu

    def describe(self) -> dict[str, float | str]:
        """Return what metrics.json says of the cost: seconds, passes, queries per second and bytes, and of the GPU.

        `train/seconds` is the sum of the phases of `TRAINING`, `train/passes` that of all but the test, in passes, and
        `train/cpu_seconds` the seconds of all processors in the phases of `COMPUTED`. All figures are of all processes
        of the run that followed one another, the memory that of the one which needed most, and `train/pass_seconds`
        that of the last one. Of processes that train side by side they are those of the first.
        """
        self.enter(self._phase)
        seconds = sum(self._seconds.get(phase, 0.0) for phase in TRAINING)
        return {
            "train/seconds": seconds,
            "train/queries_per_second": self._num_queries / seconds if seconds else 0.0,
            **self._describe_processors(),
            **self._describe_passes(),
            **{f"seconds/{phase}": self._seconds[phase] for phase in PHASES if phase in self._seconds},
            "peak_rss_bytes": max(self._peak_rss_bytes, _peak_rss_bytes()),
            **self._describe_gpu(),
        }

    def milliseconds_per_query(self, num_queries: int) -> float | None:
        """Return the milliseconds of one processor that the test took for each of its queries, from the tokens on.

        None where a GPU has computed, or where an earlier process of the run did not measure them.
        """
        self.enter(self._phase)
        if self._gpu is not None or self._cpu_seconds is None or "test" not in self._cpu_seconds:
            return None
        return 1000 * self._cpu_seconds["test"] / num_queries

    def _describe_processors(self) -> dict[str, float]:
        if self._cpu_seconds is None:
            return {}
        return {"train/cpu_seconds": sum(self._cpu_seconds.get(phase, 0.0) for phase in COMPUTED)}

    def _describe_gpu(self) -> dict[str, float | str]:
        if self._gpu is None:
            return {}
        return {"device": gpu_name(self._gpu), "peak_device_memory_bytes": self._peak_device_memory()}

    def _peak_device_memory(self) -> int:
        return self._peak_device_bytes if self._gpu is None else max(self._peak_device_bytes, gpu_peak(self._gpu))

    def _describe_passes(self) -> dict[str, float | str]:
        passes, reason = self._passes(), self.no_pass
        if passes is not None and self.pass_seconds is not None:
            return {"train/passes": passes, "train/pass_seconds": self.pass_seconds}
        if reason is None and self.pass_seconds is not None:
            reason = "not measured: the run continues one whose cost is not known in passes"
        return {} if reason is None else {"train/passes_note": reason}

    def _passes(self) -> float | None:
        """Return what the run has cost in passes, each process by its own machine; None where it is not known."""
        if self.pass_seconds is None or self._passes_before is None:
            return None
        return self._passes_before + (seconds_waited(self._seconds) - self._waited_before) / self.pass_seconds

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the phase in which the banks are filled, and, on a GPU, the watch of its memory."""
        self.enter("initialise")
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self._gpu = device
            torch.cuda.reset_peak_memory_stats(device)  # of a stage before, in the same process

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the phase in which clusters are made."""
        self.enter("clusters")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the steps."""
        if self._phase != "steps":
            self.enter("steps")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the queries of the batch, without its label rows."""
        self._num_queries += len(batch.query_ids) - batch.num_label_rows

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start validation."""
        self.enter("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep its metrics."""
        metrics = trainer.callback_metrics.items()
        of_validation = {name: float(value) for name, value in metrics if name.startswith("val/")}
        self.validation = of_validation | {EPOCH_VALIDATED: trainer.current_epoch + 1} if of_validation else {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the phase in which the table of epochs, checkpoints and models are written."""
        self.enter("save")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the export."""
        self.has_ended = True
        self.enter("export")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the test."""
        self.enter("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the cost up to now and the last validation."""
        self.enter(self._phase)
        return {
            "seconds": dict(self._seconds),
            "cpu_seconds": None if self._cpu_seconds is None else dict(self._cpu_seconds),
            "num_queries": self._num_queries,
            "peak_rss_bytes": max(self._peak_rss_bytes, _peak_rss_bytes()),
            "peak_device_memory_bytes": self._peak_device_memory(),
            "validation": self.validation,
            "passes": self._passes(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after that cost."""
        for phase, seconds in state_dict["seconds"].items():
            _add(self._seconds, phase, seconds)
        earlier = state_dict.get("cpu_seconds")  # checkpoints of version 0.1.0 have none
        if earlier is None:
            self._cpu_seconds = None
        elif self._cpu_seconds is not None:
            for phase, seconds in earlier.items():
                _add(self._cpu_seconds, phase, seconds)
        self._passes_before, self._waited_before = state_dict.get("passes"), seconds_waited(state_dict["seconds"])
        self._num_queries += state_dict["num_queries"]
        self._peak_rss_bytes = state_dict["peak_rss_bytes"]
        self._peak_device_bytes = state_dict.get("peak_device_memory_bytes", 0)
        self.validation = dict(state_dict["validation"])


def _add(seconds: dict[str, float], phase: str, more: float) -> None:
    seconds[phase] = seconds.get(phase, 0.0) + more


def seconds_waited(seconds: Mapping[str, float]) -> float:
    """Return how long it took to the finished model: all phases, given by name, but the test."""
    return sum(duration for phase, duration in seconds.items() if phase != "test")


def describe_stage(metrics: Mapping[str, Any], pass_seconds: float | None) -> dict[str, Any]:
    """Return what metrics.json says of the cost of a second stage that ran within a run.

    Args:
        metrics: Content of the stage's own metrics.json.
        pass_seconds: Duration of a pass, as the run has measured it; None where it has not.
    """
    names = [name for name in ("epochs", "seconds", "cpu_seconds") if f"train/{name}" in metrics]
    cost = {f"classify/{name}": metrics[f"train/{name}"] for name in names}
    if pass_seconds is not None:
        cost["classify/passes"] = seconds_waited(_phases(metrics)) / pass_seconds
    return cost


def _phases(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {phase: metrics[f"seconds/{phase}"] for phase in PHASES if f"seconds/{phase}" in metrics}


def describe_training(trainer: Any, module: Any, record: RunHistory, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what metrics.json says of a training besides its metrics.

    Args:
        trainer: Trainer that has trained.
        module: Module that it has trained.
        record: What that cost.
        settings: What `describe_run` returned.
    """
    return {
        "train/epochs": trainer.current_epoch,
        **record.describe(),
        "num_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    } | {name: settings[name] for name in ("torch_version", "prime_xmc_version", "seed", "git_commit")}


def show_prototypes(metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the results of a run of the first stage."""
    rows = {"validation": _metrics_of("val/", metrics), "test": _metrics_of("test/", metrics)}
    print_table({name: row for name, row in rows.items() if row})
    memory = f"peak memory {metrics['peak_rss_bytes'] / 2**30:.1f} GiB"
    if "device" in metrics:
        memory += f", {metrics['peak_device_memory_bytes'] / 2**30:.1f} GiB of the {metrics['device']}"
    _show_end(f"{_length(metrics)}, {metrics['train/queries_per_second']:.0f} queries/s, {memory}", run_dir)
    if "train/passes" in metrics:
        _show_passes("training", metrics["train/passes"], seconds_waited(_phases(metrics)), metrics)
    _show_notes(metrics)


def show_classifiers(metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the results of a run of the second stage."""
    for stage, shown in (("val", "validation"), ("test", "test")):
        rows = {f"{shown}, {scorer}": _metrics_of(f"{stage}/{scorer}/", metrics) for scorer in SCORERS}
        # a table for each stage: the best of a column is among rows of the same queries
        print_table({name: row for name, row in rows.items() if row})
    _show_end(_length(metrics), run_dir)
    _show_notes(metrics)


def show_scorers(metrics: Mapping[str, Any], weights: str) -> None:
    """Print the results of all scorers of a run.

    Args:
        metrics: Content of metrics.json.
        weights: What the ensemble is, as a sentence.
    """
    for stage, shown in (("val", "validation"), ("test", "test")):
        rows = {f"{shown}, theta": _metrics_of(f"{stage}/", metrics)}
        rows |= {
            f"{shown}, {name}": _metrics_of(f"{stage}/{name}/", metrics)
            for name in ("W", "neighbours", "lexical", "ensemble")
        }
        print_table({name: row for name, row in rows.items() if row})
    print_notes([weights])


def show_calibration(model: Path) -> None:
    """Print how far the probabilities of a model hold, for the scorer that it takes unless another is named."""
    if not has_calibration(model):
        return
    calibration = read_calibration(model, encoder_digest(model))
    name = calibration.default
    held = calibration.scorers[name].held
    table = Table(title="probabilities of the five best labels, percent", title_justify="left")
    for column in ("queries", "predicted", "observed", "answers"):
        table.add_column(column, justify="left" if column == "queries" else "right")
    for queries, of_queries in held.items():
        for row in of_queries.bins:
            cells = (f"{100 * row['predicted']:.1f}", f"{100 * row['observed']:.1f}", f"{row['answers']:,}")
            table.add_row(queries, *cells)
        table.add_section()
    Console().print(table)
    print_notes(calibration.describe(name))


def _show_end(cost: str, run_dir: Path) -> None:
    # as it is: brackets in the folder's name are no markup, and a line break would not be part of it
    Console().print(f"{cost}. Run folder: {run_dir}", markup=False, highlight=False, soft_wrap=True)


def show_stage_passes(metrics: Mapping[str, Any]) -> None:
    """Print the cost of later stages in passes of the run that they ran in, where these are known."""
    stages = {"classify/passes": "the second stage", "ensemble/passes": "other scorers and the ensemble"}
    for name, stage in stages.items():
        if name in metrics:
            _show_passes(stage, metrics[name], metrics[name] * metrics["train/pass_seconds"], metrics)


def _show_passes(what: str, passes: float, seconds: float, metrics: Mapping[str, Any]) -> None:
    a_pass = _duration(metrics["train/pass_seconds"])
    print_notes([f"{what} took {passes:.1f} passes ({_duration(seconds)}; a pass is {a_pass} here)"])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def _show_notes(metrics: Mapping[str, Any]) -> None:
    print_notes(note for name, note in metrics.items() if name.startswith("note/"))
    if "debug" in metrics:
        print_notes(
            [f"this was a run for debugging ({metrics['debug']}): its numbers say nothing, reports leave it out"]
        )


def _length(metrics: Mapping[str, Any]) -> str:
    epochs = "1 epoch" if metrics["train/epochs"] == 1 else f"{metrics['train/epochs']} epochs"
    return f"{epochs} in {metrics['train/seconds']:.0f} s"


def _metrics_of(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_name(device: torch.device) -> str:
    """Return the name of a GPU, such as "NVIDIA H100 80GB HBM3"."""
    return torch.cuda.get_device_name(device)


def gpu_peak(device: torch.device) -> int:
    """Return the most bytes of a GPU that tensors took at once."""
    return torch.cuda.max_memory_allocated(device)


def _git_commit() -> str | None:
    """Return the commit of the source, None where it is not a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
