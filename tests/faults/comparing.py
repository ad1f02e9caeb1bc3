"""Whether two run folders hold the same: weights, banks, metrics, curves, predictions, classifiers, no leftovers."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What tells the time, the machine's memory or the process, and not the result.
_OF_THE_CLOCK = re.compile(r"seconds|_per_second|passes|pass_seconds|peak_|git_commit|time$|elapsed|memory")
_OF_THE_PROCESS = ("run.lock", "train.log", "fork.log", "classify.log", ".hydra/")
_BANKS = re.compile(r"last-[0-9a-f]{8}\.banks")
_PLACES = ("ckpt_path:", "resume:", "cache_dir:")  # lines of YAML
_BEFORE = "before-last.ckpt"  # of an interrupted run, it may be of the moment of the interruption
_ID = re.compile(r"^\.(.+)\.[0-9a-f]{32}$")  # name of a file or folder that is being written


def differences(expected: Path, found: Path) -> list[str]:
    """Return what is different in a run folder, in words; nothing where it holds the same as the expected one."""
    wanted, there = _files(expected), _files(found)
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - there.keys())]
    lines += [f"{name} is left over" for name in sorted(there.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & there.keys()):
        difference = _difference(wanted[name], there[name], (expected, found))
        if difference:
            lines.append(f"{name}: {difference}")
    return lines


def leftovers(folder: Path) -> list[Path]:
    """Return what was being written when a process ended, and is still there."""
    return sorted(path for path in folder.rglob(".*") if _ID.match(path.name))


def _files(run: Path) -> dict[str, Path]:
    """Return the files of a run by names that two runs have in common."""
    files: dict[str, Path] = {}
    named = set()  # folders of banks that belong to a checkpoint
    for checkpoint in (run / "checkpoints" / "last.ckpt", run / "checkpoints" / _BEFORE):
        if checkpoint.is_file():
            for place in _checkpoint(checkpoint)["banks"].values():
                named.add(Path(place).parts[0])
                if checkpoint.name != _BEFORE:
                    files[f"checkpoints/last.ckpt banks {Path(place).name}"] = run / "checkpoints" / place
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if not path.is_file() or name.startswith(_OF_THE_PROCESS) or path.name in (*_OF_THE_PROCESS, _BEFORE):
            continue
        if (folder := _BANKS.search(name)) is None or folder[0] not in named:
            files[name] = path
    return files


def _difference(expected: Path, found: Path, runs: tuple[Path, Path]) -> str | None:
    """Return what is different between two files or folders, None where nothing is."""
    if expected.is_dir():
        names = sorted(path.name for path in expected.iterdir())
        if names != sorted(path.name for path in found.iterdir()):
            return "other files"
        parts = (_difference(expected / name, found / name, runs) for name in names)
        return next((part for part in parts if part), None)
    if expected.suffix == ".ckpt":
        contents = [_in_common(_checkpoint(path), run) for path, run in zip((expected, found), runs, strict=True)]
        return _first_difference(*contents, "")
    if expected.suffix in (".safetensors", ".npz", ".faiss"):
        return None if expected.read_bytes() == found.read_bytes() else "other numbers"
    texts = [_common_text(path, run) for path, run in zip((expected, found), runs, strict=True)]
    if texts[0] == texts[1]:
        return None
    if expected.suffix == ".json":
        return _first_difference(*(json.loads(text) for text in texts), "")
    if expected.suffix == ".csv":
        return _first_difference(*(list(csv.DictReader(io.StringIO(text))) for text in texts), "")
    if expected.suffix == ".md":  # the model card has times among its results
        return None if _without_numbers(texts[0]) == _without_numbers(texts[1]) else "another text"
    return "another content"


def _common_text(path: Path, run: Path) -> str:
    """Return a text without what tells runs apart: the names of their folders, and how they were continued."""
    text = _in_common(path.read_text(encoding="utf-8"), run)
    if path.suffix == ".yaml":
        return "\n".join(line for line in text.splitlines() if not line.strip().startswith(_PLACES))
    return text


def _in_common(value: Any, run: Path) -> Any:
    """Return nested values in whose texts the run folder, and what lies beside it, have the same name for all runs."""
    if isinstance(value, dict):
        return {key: _in_common(each, run) for key, each in value.items()}
    if isinstance(value, list):
        return [_in_common(each, run) for each in value]
    if isinstance(value, str):
        return value.replace(str(run), "<run>").replace(str(run.parent), "<folder>")
    return value


def _without_numbers(text: str) -> str:
    lines = (line for line in text.splitlines() if not _OF_THE_CLOCK.search(line) and "minute" not in line)
    return "\n".join(lines)


def _checkpoint(path: Path) -> dict[str, Any]:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _first_difference(expected: Any, found: Any, place: str) -> str | None:
    """Return the first difference of two nested values with its place, None where there is none."""
    return next(_differences(expected, found, place), None)


def _differences(expected: Any, found: Any, place: str) -> Iterator[str]:
    import torch

    key = place.rpartition(" ")[2]
    if _OF_THE_CLOCK.search(key) or key in _NOT_RESULTS:
        return
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in dict.fromkeys([*expected, *found]):
            inner = f"{place} {name}"
            if _OF_THE_CLOCK.search(str(name)) or name in _NOT_RESULTS:
                continue
            if name not in expected or name not in found:
                yield f"{inner.strip()} is {'only there' if name in found else 'missing'}"
            else:
                yield from _differences(expected[name], found[name], inner)
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            yield f"{place.strip()} has {len(found)} entries, expected {len(expected)}"
            return
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _differences(one, other, f"{place} [{number}]")
    elif isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        if expected.dtype != found.dtype or not torch.equal(expected, found):
            yield f"{place.strip()} has other numbers"
    elif expected != found and not (expected != expected and found != found):
        yield f"{place.strip()} is {str(found)[:60]}, expected {str(expected)[:60]}"


# How a result was come to, not what it is.
_NOT_RESULTS = frozenset(
    {"command", "ckpt_path", "resume", "run_dir", "cache_dir", "banks", "files", "checksum", "train/passes_note"}
)
