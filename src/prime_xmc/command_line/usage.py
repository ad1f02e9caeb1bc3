"""The help of the entry points, made from the comments of their configuration files."""

import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path

from prime_xmc.conf_files import all_entries, entries, groups, head, is_command

COMMANDS = (
    "convert",
    "audit",
    "train",
    "classify",
    "baseline",
    "evaluate",
    "predict",
    "calibrate",
    "labels",
    "prepare",
    "plan",
    "report",
    "reproduce",
    "serve",
    "export",
)
OPTIONS = (
    ("-m", "run once for each combination of values: seed=0,1 loss=prime,infonce"),
    ("--cfg job", "print all keys with their values instead of running; --package dataset: those of a group"),
    ("--config-dir <folder>", "take further options of the groups from a folder of your own"),
    ("--trust-config", "run the configuration of a run folder (--config-path) whatever code it names"),
    ("--hydra-help", "list the options of Hydra, which reads the configuration, and how to install tab completion"),
    ("--version", "print the version"),
)


def describe(path: Path) -> str:
    """Return the first paragraph of a configuration file's head, without its commands, in one line."""
    return " ".join(line for line in head(path) if not is_command(line))


def help_of(name: str, configs: Path, program: str) -> str:
    """Return the help of an entry point.

    Args:
        name: Entry point, which is the name of its configuration file without .yaml.
        configs: Folder of the configuration files.
        program: Command as the user typed it.
    """
    path = configs / f"{name}.yaml"
    parts = [
        _wrapped(describe(path), ""),
        f"Usage: {program} [key=value ...] [group=option ...]",
        "Example:\n" + "\n".join(f"  {line}" for line in head(path) if is_command(line)),
    ]
    own = {entry.key for entry in entries(path)}
    keys = [entry for entry in all_entries(path) if entry.default or entry.key not in _parents(path)]
    keys = [entry for entry in keys if not entry.key.split(".")[-1].startswith("_")]
    keys.sort(key=lambda entry: entry.key not in own)  # those of its own first; the sort is stable
    parts.append(
        "Keys, with their defaults (???: to be given):\n" + _table((f"{e.key}={e.default}", e.comment) for e in keys)
    )
    chosen = {group.name: group for group in groups(path)}
    if chosen:
        rows = []
        for group in chosen.values():
            folder = configs / group.name
            options = sorted(each.relative_to(folder).with_suffix("").as_posix() for each in folder.rglob("*.yaml"))
            rows.append(
                (f"{group.name}={group.default}", "; ".join(filter(None, (group.comment, _shortened(options)))))
            )
        parts.append("Groups, with what is chosen by default:\n" + _table(rows))
    parts.append("Options:\n" + _table(OPTIONS))
    return "\n\n".join(parts) + "\n"


def overview(configs: Path) -> str:
    """Return the list of the entry points with what each is for."""
    rows = [(f"python -m prime_xmc.{name}", describe(configs / f"{name}.yaml")) for name in COMMANDS]
    return (
        "Commands:\n" + _table(rows) + "\n\nEach has a --help of its own, and is installed as prime-xmc-<name> too.\n"
    )


def _parents(path: Path) -> set[str]:
    """Return the keys that hold other keys, which are listed instead."""
    keys = [entry.key for entry in all_entries(path)]
    return {key.rpartition(".")[0] for key in keys}


def _shortened(options: list[str]) -> str:
    """Return options in one text; those in folders are counted, for there may be dozens."""
    folders: dict[str, int] = {}
    for option in options:
        if "/" in option:
            folder = option.split("/")[0]
            folders[folder] = folders.get(folder, 0) + 1
    plain = [option for option in options if "/" not in option]
    return "options: " + ", ".join([*plain, *(f"{folder}/... ({count})" for folder, count in folders.items())])


def _wrapped(text: str, indent: str) -> str:
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of (what to type, what it means): beside each other where they fit, below each other otherwise."""
    column = 34
    lines = []
    for left, right in rows:
        text = _wrapped(right, " " * column) if right else ""
        if len(left) + 4 <= column and text:
            lines.append(f"  {left}".ljust(column) + text.lstrip())
        else:
            lines += [f"  {left}", text] if text else [f"  {left}"]
    return "\n".join(lines)
