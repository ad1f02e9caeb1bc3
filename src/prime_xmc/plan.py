"""`python -m prime_xmc.plan`: what a training run will need in memory, disk and time, before it is started."""

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from prime_xmc.budget import (
    PLACES,
    Item,
    Layout,
    Measured,
    Phases,
    Schedule,
    Sizes,
    bytes_each,
    disk_bytes,
    make_schedule,
    memory_by_phase,
    peak,
    seconds_by_part,
)
from prime_xmc.configs import run_app
from prime_xmc.data.corpus import Corpus
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.files import write_json
from prime_xmc.index.search import FaissSearch
from prime_xmc.model.module import PrimeModule
from prime_xmc.prepare import open_corpus, raw_files
from prime_xmc.probe import batches, make_up_corpus, measure
from prime_xmc.train import make_module

TABLE_WIDTH = 130  # characters of the table of memory
SIZES = ("num_labels", "num_queries", "num_test_queries", "labels_per_query", "tokens_per_text")  # that can be given
_LABELS_PER_QUERY = 5.0  # where nothing is known
_SPECIAL_TOKENS = 2
_LABELS_PER_DRAW = 16  # of the probe: so many that, as in large data sets, few are drawn twice
_SHOWN = 5e6  # bytes of the smallest item that is shown


class Plan(NamedTuple):
    """What a run will need.

    Attributes:
        sizes: Of the data.
        phases: What is in the memory of one process in each phase.
        disk: Bytes by what they are for.
        schedule: What happens when.
        seconds: By part of the run; empty without a probe.
        num_processes: On each machine.
        notes: What these numbers rest on.
    """

    sizes: Sizes
    phases: Phases
    disk: dict[str, int]
    schedule: Schedule
    seconds: dict[str, float]
    num_processes: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON."""
        return {
            "sizes": self.sizes._asdict() | {"prepared": dict(self.sizes.prepared)},
            "peak_bytes": {place: peak(self.phases, place) for place in PLACES}
            | {"host and mapped": peak(self.phases, "host", "mapped")},
            "num_processes": self.num_processes,
            "phases": {
                name: [item._asdict() | {"nbytes": item.nbytes} for item in items]
                for name, items in self.phases.items()
            },
            "bytes_each": {unit: bytes_each(self.phases, unit) for unit in ("label", "query")},
            "disk_bytes": self.disk,
            "schedule": self.schedule._asdict(),
            "seconds": self.seconds,
            "notes": self.notes,
        }


def run(config: DictConfig) -> Plan:
    """Plan the run of a configuration, print the plan and write it where asked."""
    planned = plan(config)
    show(planned, Console(width=max(Console().width, TABLE_WIDTH)))
    if config.output is not None:
        write_json(Path(config.output).expanduser(), planned.to_json())
    return planned


def plan(config: DictConfig) -> Plan:
    """Return what the run of a configuration will need.

    Raises:
        ValueError: If sizes are unknown, or training would refuse the configuration.
    """
    sizes, notes = find_sizes(config)
    num_processes = count_processes(config)
    module, measured = probe(config, sizes, -(-config.sampling.batch_size // num_processes))
    layout, schedule = make_layout(config, module), schedule_of(config, sizes)
    phases = memory_by_phase(sizes, layout, schedule, measured)
    disk = disk_bytes(sizes, layout, phases)
    if measured.seconds is None:
        seconds = {}
        notes.append("no probe: without program, working memory and time")
    else:
        seconds = seconds_by_part(sizes, layout, schedule, measured.seconds, num_processes)
        notes.append(
            f"texts of the probe are made up; a batch has {measured.labels_in_batch} labels, drawn uniformly: it has "
            "fewer where its queries share them"
        )
        release = config.callbacks.get("memory")
        if release is None or config.probe_steps < release.every_n_steps:
            notes.append(
                "the host's memory of a step rises until callbacks.memory gives it back: more than probed here"
            )
    if num_processes > 1:
        notes.append(f"each of {num_processes} processes has all tables and encodes its share of a batch")
    if layout.on_gpu:
        notes.append("on the device, what torch allocates: CUDA itself takes about half a GB more")
    if config.callbacks.get("checkpoint") is None:
        disk = {name: size for name, size in disk.items() if not name.startswith("checkpoint")}
    return Plan(sizes, phases, disk, schedule, seconds, num_processes, notes)


def find_sizes(config: DictConfig) -> tuple[Sizes, list[str]]:
    """Return how much data there is, and where that is from.

    What is given goes first, then what generates the data (nothing is generated for this), then the raw files,
    prepared as training does, then the data set's `size`.

    Raises:
        ValueError: If a size is known from nowhere, with the keys to give, or is one that training refuses.
    """
    dataset = config.dataset
    has_dir = not OmegaConf.is_missing(dataset, "dir")
    given = {name: config[name] for name in SIZES if config[name] is not None}
    known, prepared, notes = ({}, {}, []) if len(given) == len(SIZES) else _look_up_sizes(config)
    if given:
        known |= given
        prepared = {}  # the files are of other sizes
        notes.append("given: " + ", ".join(f"{name}={value}" for name, value in given.items()))
    missing = [f"{name}=..." for name in SIZES[:3] if name not in known]
    if missing:
        where = f"no raw files of {dataset.name} in {dataset.dir}" if has_dir else "no dataset.dir"
        raise ValueError(f"{where}, and its size is unknown: give {' '.join(missing)} or the folder, dataset.dir=...")
    if "labels_per_query" not in known:
        known["labels_per_query"] = _LABELS_PER_QUERY
        notes.append(f"labels_per_query={_LABELS_PER_QUERY:g}, assumed")
    if "tokens_per_query" not in known and "tokens_per_text" not in known:
        known["tokens_per_text"] = dataset.max_length
        notes.append(f"tokens_per_text={dataset.max_length}, the most there can be (dataset.max_length)")
    queries, labels = (
        min(float(known.get("tokens_per_text") or known[name]), float(dataset.max_length))
        for name in ("tokens_per_query", "tokens_per_label")
    )
    sizes = Sizes(
        num_labels=int(known["num_labels"]),
        num_queries=int(known["num_queries"]),
        num_test_queries=int(known["num_test_queries"]),
        labels_per_query=float(known["labels_per_query"]),
        tokens_per_query=queries,
        tokens_per_label=labels,
        prepared=prepared,
    )
    _check(sizes, config)
    return sizes, notes


def _look_up_sizes(config: DictConfig) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """Return sizes by name, bytes of the prepared files where there are some, and where that is from."""
    dataset = config.dataset
    has_dir = not OmegaConf.is_missing(dataset, "dir")
    if has_dir and OmegaConf.is_dict(dataset.dir):
        return _generated_sizes(dataset.dir), {}, [f"sizes of {dataset.name}: as the data will be generated"]
    if has_dir and _has_raw_files(dataset):
        corpus = open_corpus(config)
        note = f"sizes of {dataset.name}: counted in {corpus.directory}"
        return _counted_sizes(corpus), corpus.manifest["files"], [note]
    if "size" in dataset:
        note = f"sizes of {dataset.name}: as published; there are no raw files in {dataset.dir}"
        return dict(dataset.size), {}, [note]
    return {}, {}, []


def _has_raw_files(dataset: DictConfig) -> bool:
    try:
        raw_files(dataset).paths()
    except FileNotFoundError:
        return False
    return True


def _generated_sizes(generator: DictConfig) -> dict[str, float | int]:
    return {name: generator[name] for name in SIZES[:4]} | {
        "tokens_per_query": generator.mean_query_words + _SPECIAL_TOKENS,
        "tokens_per_label": generator.mean_label_words + _SPECIAL_TOKENS,
    }


def _counted_sizes(corpus: Corpus) -> dict[str, float | int]:
    counts = corpus.manifest["counts"]
    labels, train = counts["labels"], counts["train"]
    return {
        "num_labels": labels["texts"],
        "num_queries": train["texts"],
        "num_test_queries": counts["test"]["texts"],
        "labels_per_query": train["positives"] / train["texts"],
        "tokens_per_query": train["tokens"] / train["texts"],
        "tokens_per_label": labels["tokens"] / labels["texts"],
    }


def _check(sizes: Sizes, config: DictConfig) -> None:
    """Refuse what training would refuse when it has read the data."""
    for name, value in sizes._asdict().items():
        if name != "prepared" and value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
    num_free_vectors, num_validation = config.model.num_free_vectors, config.dataset.num_validation
    if not 1 <= num_free_vectors <= sizes.num_labels:
        raise ValueError(
            f"expected model.num_free_vectors between 1 and the {sizes.num_labels} labels, got {num_free_vectors}"
        )
    if not 0 <= num_validation < sizes.num_queries:
        raise ValueError(
            f"expected dataset.num_validation below the {sizes.num_queries} training queries, got {num_validation}"
        )
    if config.probe_steps < 0:
        raise ValueError(f"expected probe_steps of at least 0, got {config.probe_steps}")


def schedule_of(config: DictConfig, sizes: Sizes) -> Schedule:
    """Return what happens when in a run."""
    num_validation, clusters = config.dataset.num_validation, config.sampling.clusters
    return make_schedule(
        sizes.num_queries - num_validation,
        batch_size=config.sampling.batch_size,
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        validate_every=config.trainer.check_val_every_n_epoch if num_validation else 0,
        first_cluster_epoch=clusters.first_epoch,
        every_n_epochs=clusters.every_n_epochs,
        initial_size=clusters.initial_size,
        double_at=list(clusters.double_at),
    )


def make_layout(config: DictConfig, module: PrimeModule) -> Layout:
    """Return what the configuration says of tables and parameters, with the help of its module of any size."""
    free_vectors, searcher = module.prototypes.free_vectors, module.searcher
    dense = [p for p in module.parameters() if p is not free_vectors]
    return Layout(
        dim=module.encoder.dim,
        num_trained=sum(p.numel() for p in dense if p.requires_grad),
        num_frozen=sum(p.numel() for p in dense if not p.requires_grad),
        num_free_vectors=0 if free_vectors is None else config.model.num_free_vectors,
        centroid_bytes=module.prototypes.centroids.rows.element_size(),
        placement=module.query_memory.placement,
        on_gpu=device_of(config).type == "cuda",
        searcher=searcher.kind if isinstance(searcher, FaissSearch) else "exact",
        num_links=searcher.m if isinstance(searcher, FaissSearch) else 0,
        num_validation=config.dataset.num_validation,
        test=config.test,
    )


def device_of(config: DictConfig) -> torch.device:
    """Return the device of the configured Trainer.

    Raises:
        ValueError: If it is neither CPU nor CUDA.
    """
    accelerator = config.trainer.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if accelerator not in ("cpu", "gpu", "cuda"):
        raise ValueError(f"expected trainer.accelerator cpu, gpu, cuda or auto, got {accelerator!r}")
    return torch.device("cpu" if accelerator == "cpu" else "cuda")


def count_processes(config: DictConfig) -> int:
    """Return how many processes share a batch on a machine: one for each device."""
    devices = config.trainer.devices
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if device_of(config).type == "cuda" else 1
    return int(devices) if isinstance(devices, int | str) else len(devices)


def probe(config: DictConfig, sizes: Sizes, batch_size: int) -> tuple[PrimeModule, Measured]:
    """Make the configured module with small tables, train it for the steps to probe, and return what that took.

    Args:
        config: The configuration.
        sizes: Of the data.
        batch_size: Queries of a batch.
    """
    num_steps = config.probe_steps + 1 if config.probe_steps else 0  # the first one is not counted
    num_labels = min(sizes.num_labels, _LABELS_PER_DRAW * batch_size * config.sampling.num_positives)
    tokenizer = load_tokenizer(config.encoder.source)
    corpus = make_up_corpus(
        sizes,
        num_queries=min(sizes.num_queries, max(1, num_steps) * batch_size),
        num_labels=num_labels,
        max_length=config.dataset.max_length,
        vocabulary=len(tokenizer),
    )
    data = PrimeDataModule(
        RawFiles("", "made up"),
        tokenizer,
        max_length=config.dataset.max_length,
        cache_dir="",
        propensity_a=config.dataset.propensity.a,
        propensity_b=config.dataset.propensity.b,
        batch_size=batch_size,
        num_positives=config.sampling.num_positives,
    )
    data.corpus, data.inverse_propensity = corpus, np.ones(num_labels)
    small = config.copy()
    small.model.num_free_vectors = min(config.model.num_free_vectors, num_labels)
    module = make_module(small, data)
    if not num_steps:
        return module, Measured()
    loader = batches(
        corpus,
        batch_size=batch_size,
        num_batches=num_steps,
        num_positives=config.sampling.num_positives,
        loss_positives=config.sampling.loss_positives,
        more_queries_per_label=config.sampling.more_queries_per_label,
    )
    with tempfile.TemporaryDirectory() as folder:
        make_trainer = partial(_make_trainer, config, folder)
        return module, measure(module, corpus, loader, make_trainer, device_of(config))


def _make_trainer(config: DictConfig, folder: str, callbacks: list[Any]) -> Any:
    """Make the configured Trainer, of which one process makes an epoch and leaves nothing behind."""
    release = config.callbacks.get("memory")
    return instantiate(
        config.trainer,
        devices=1,
        num_nodes=1,
        strategy="auto",
        max_epochs=1,
        max_steps=-1,
        callbacks=[*callbacks, *([instantiate(release)] if release else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        _convert_="all",
    )


def show(planned: Plan, console: Console) -> None:
    """Print a plan."""
    phases, each = planned.phases, planned.num_processes
    console.print(_memory_table(phases))
    sums = ", ".join(f"{place} {_gigabytes(peak(phases, place))}" for place in PLACES if peak(phases, place))
    console.print(f"peak of a process, GB: {sums}")
    if each > 1:
        console.print(f"peak of {each} processes on a machine, GB: host {_gigabytes(each * peak(phases, 'host'))}")
    for unit in ("label", "query"):
        by_phase = bytes_each(phases, unit)
        most = max(by_phase, key=by_phase.__getitem__)
        console.print(f"bytes per {unit}: {by_phase['step']:,} in a step, {by_phase[most]:,} at most ({most})")
    table = Table("disk", "GB")
    for name, size in planned.disk.items():
        if size:
            table.add_row(name, _gigabytes(size))
    console.print(table)
    table = Table("steps", f"{planned.schedule.num_steps:,} of {planned.schedule.steps_per_epoch:,} an epoch")
    for name, seconds in planned.seconds.items():
        table.add_row(name, _duration(seconds))
    if planned.seconds:
        table.add_row("time in all", _duration(sum(planned.seconds.values())), style="bold")
    console.print(table)
    for note in planned.notes:
        console.print(f"- {note}", highlight=False)


def _memory_table(phases: Phases) -> Table:
    """Return a table with a row for each item and a column for each phase, and the sums by place below."""
    table = Table("memory, GB", "where", width=TABLE_WIDTH)
    for phase in phases:
        table.add_column(phase, justify="right")
    columns = [{(item.name, item.place): item.nbytes for item in items} for items in phases.values()]
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key, 0) for column in columns]
        if max(values) >= _SHOWN:
            table.add_row(*key, *(_gigabytes(value) if value else "" for value in values))
    table.add_section()
    for place in PLACES:
        if peak(phases, place):
            sums = (_sum(items, place) for items in phases.values())
            table.add_row("sum", place, *map(_gigabytes, sums), style="bold")
    return table


def _sum(items: Iterable[Item], place: str) -> int:
    return sum(item.nbytes for item in items if item.place == place)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app(run, "plan")


if __name__ == "__main__":
    main()
