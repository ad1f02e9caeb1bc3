"""The plan of a run: what it will need in memory, disk space and time, as JSON and as tables."""

from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from prime_xmc.assemble import fit_to_size, fitted_settings, trains_one_vs_all
from prime_xmc.planning.budget import PLACES, bytes_each, disk_bytes, memory_by_phase, peak, seconds_by_part
from prime_xmc.planning.layout import count_processes, layout_of, schedule_of
from prime_xmc.planning.probe import probe
from prime_xmc.planning.sizes import find_sizes
from prime_xmc.printing import visible

TABLE_WIDTH = 110  # characters of the table of memory
_SHOWN = 0.01  # share of the peak from which on an item is shown


def plan(config: DictConfig) -> dict[str, Any]:
    """Return what the run of a configuration will need, as plain JSON.

    Returns:
        `sizes` of the data; `phases`, what is in the memory of one process in each; `peak_bytes` by place;
        `num_processes` on each machine; `bytes_each` label and query in each phase; `disk_bytes` by what they are for;
        `schedule`; `seconds` by part of the run, empty without a probe; `notes` on what the numbers rest on.

    Raises:
        ValueError: If sizes are unknown, or training would refuse the configuration.
    """
    if trains_one_vs_all(config):
        raise ValueError(
            "a plan is of the training of prototypes. One-vs-all classifiers take 12 bytes for each label and "
            "dimension while they are trained with model=renee, and 2 with model=elmo"
        )
    _require_plain_batches(config)
    sizes, notes = find_sizes(config)
    notes += map(str, fitted_settings(config, sizes.num_queries, sizes.num_labels))
    config = fit_to_size(config, sizes.num_queries, sizes.num_labels)
    num_processes = count_processes(config)
    module, measured = probe(config, sizes)
    layout = layout_of(config, module)
    schedule = schedule_of(config, sizes.num_queries, sizes.num_labelled)
    phases = memory_by_phase(sizes, layout, schedule, measured)
    disk = disk_bytes(sizes, layout, phases)
    if config.callbacks.get("checkpoint") is None:
        disk = {name: size for name, size in disk.items() if not name.startswith("checkpoint")}
    release = config.callbacks.get("memory")
    if not config.probe_steps:
        notes.append("no probe: without the program, working memory and time")
    else:
        notes.append(
            f"the texts of the probe are made up; a batch has {measured.labels_in_batch} labels, drawn uniformly, and "
            "fewer where its queries share them"
        )
        if not layout.on_gpu and (release is None or config.probe_steps < release.every_n_steps):
            notes.append("the host's memory rises beyond what was probed until callbacks.memory gives it back")
    if num_processes > 1:
        notes.append(f"each of {num_processes} processes has all tables and encodes its share of a batch")
    if schedule.encodes_queries:
        notes.append(
            "training of the prototypes, and the queries encoded for what follows: neither classifiers (three tables "
            "of float32 with a row per label while they are trained, one in the model) nor neighbours (float16 with a "
            "row per training query in the model, float32 while they vote) nor lexical vectors (eight bytes for each "
            "term of each label) are counted"
        )
    if layout.on_gpu:
        notes.append("memory on the device is what torch allocates; CUDA itself takes about half a GB more")
    return {
        "sizes": sizes._asdict() | {"prepared": dict(sizes.prepared)},
        "peak_bytes": {place: peak(phases, place) for place in PLACES}
        | {"host and mapped": peak(phases, "host", "mapped")},
        "num_processes": num_processes,
        "phases": {
            name: [item._asdict() | {"nbytes": item.nbytes} for item in items] for name, items in phases.items()
        },
        "bytes_each": {unit: bytes_each(phases, unit) for unit in ("label", "query")},
        "disk_bytes": disk,
        "schedule": schedule._asdict(),
        "seconds": seconds_by_part(sizes, layout, schedule, measured, num_processes) if config.probe_steps else {},
        "notes": notes,
    }


def _require_plain_batches(config: DictConfig) -> None:
    """Refuse batches that are neither as many nor as large as the schedule and the probe take them to be.

    Raises:
        ValueError: If a setting makes such batches.
    """
    sampling = config.sampling
    setting = None
    if sampling.batch_labels == "all":
        setting = "sampling.batch_labels=all"
    elif sampling.label_rows:
        setting = "sampling.label_rows=true"
    elif sampling.sampler._target_ == "prime_xmc.data.sampling.LabelBatchSampler":
        setting = f"sampling.sampler._target_={sampling.sampler._target_}"
    if setting is not None:
        raise ValueError(
            f"a plan is of batches of queries and the labels that are drawn for them, and {setting} makes others. "
            "Train for an epoch instead, with trainer.max_epochs=1: metrics.json has memory and time"
        )


def show(planned: dict[str, Any], console: Console) -> None:
    """Print a plan."""
    peaks, count = planned["peak_bytes"], planned["num_processes"]
    console.print(_memory_table(planned["phases"]))
    sums = ", ".join(f"{place} {_gigabytes(peaks[place])}" for place in PLACES if peaks[place])
    console.print(f"peak of a process, GB: {sums}")
    if count > 1:
        console.print(f"peak of {count} processes on a machine, GB: host {_gigabytes(count * peaks['host'])}")
    for unit, by_phase in planned["bytes_each"].items():
        most = max(by_phase, key=by_phase.__getitem__)
        console.print(f"bytes per {unit}: {by_phase['step']:,} in a step, {by_phase[most]:,} at most ({most})")
    table = Table("disk", "GB")
    for name, size in planned["disk_bytes"].items():
        table.add_row(name, _gigabytes(size))
    console.print(table)
    schedule, seconds = planned["schedule"], planned["seconds"]
    table = Table("steps", f"{schedule['num_steps']:,} of {schedule['steps_per_epoch']:,} an epoch")
    for name, duration in seconds.items():
        table.add_row(name, _duration(duration))
    if seconds:
        table.add_row("time in all", _duration(sum(seconds.values())), style="bold")
    console.print(table)
    for note in planned["notes"]:
        console.print(visible(f"- {note}"), highlight=False, markup=False)


def _memory_table(phases: dict[str, list[dict[str, Any]]]) -> Table:
    """Return a table with a row for each item and a column for each phase, and the sums by place below."""
    table = Table("memory, GB", "where", *phases, width=TABLE_WIDTH)
    columns = [{(item["name"], item["place"]): item["nbytes"] for item in items} for items in phases.values()]
    least = _SHOWN * max(sum(column.values()) for column in columns)
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key, 0) for column in columns]
        if max(values) >= least:
            table.add_row(*key, *(_gigabytes(value) if value else "" for value in values))
    table.add_section()
    for place in PLACES:
        sums = [sum(size for (_, where), size in column.items() if where == place) for column in columns]
        if any(sums):
            table.add_row("sum", place, *map(_gigabytes, sums), style="bold")
    return table


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{seconds / 60:.1f} min"
