"""The plan of a run: what it will need in memory, disk space and time, as an object and as a table."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from prime_xmc.assemble import fit_to_size
from prime_xmc.planning.budget import (
    PLACES,
    Item,
    Phases,
    Schedule,
    Sizes,
    bytes_each,
    disk_bytes,
    memory_by_phase,
    peak,
    seconds_by_part,
)
from prime_xmc.planning.layout import count_processes, make_layout, probe, schedule_of
from prime_xmc.planning.sizes import find_sizes

TABLE_WIDTH = 130  # characters of the table of memory
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


def plan(config: DictConfig) -> Plan:
    """Return what the run of a configuration will need.

    Raises:
        ValueError: If sizes are unknown, or training would refuse the configuration.
    """
    sizes, notes = find_sizes(config)
    config = fit_to_size(config, sizes.num_queries, sizes.num_labels)
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
