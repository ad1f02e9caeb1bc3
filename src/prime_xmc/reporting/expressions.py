"""The configuration of a run, which somebody else may have written, as plain data that can be resolved and shown.

An expression such as `${oc.env:TOKEN}` asks the machine of the reader, so only those are resolved that ask nothing but
the configuration itself. What remains cannot blow up: neither by aliases of YAML nor by expressions that double others.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from prime_xmc.foreign import shown

LARGEST_FILE = 2**22  # bytes of a configuration; those of trainings have some 10,000
LARGEST_VALUE = 2**20  # characters of all values of a configuration, once it is resolved
DEEPEST = 30  # levels of a configuration, and expressions that refer to others
# Resolvers of this package whose values come from their arguments.
PURE = ("by_device", "validation_interval", "frozen_layers", "free_vectors", "half")
_REFERENCE = re.compile(r"\$\{(\.*[A-Za-z_][\w.]*)\}")
# What another key has, or else a text in quotes or null.
_CHOICE = re.compile(r"\$\{oc\.select:([A-Za-z_][\w.]*),(?:'[^'${}]*'|null)\}")
_CALL = re.compile(rf"\$\{{(?:{'|'.join(PURE)}):[^${{}}\\]*\}}")


def load_yaml(path: Path) -> Any:
    """Return what a YAML file holds, expressions as they are written.

    Raises:
        ValueError: If it is no YAML, or has aliases, which no configuration of a run has and which can make a few lines
            a thousand times as large.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes, and a configuration has at most {LARGEST_FILE:,}")
    try:
        depth = 0
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it has the alias *{event.anchor}, which is not read")
            depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
            depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"more than {DEEPEST} levels")
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # the parser raises many kinds
        raise ValueError(f"{path}: not readable as YAML ({error})") from error


def without_machine(node: Any) -> Any:
    """Return a configuration in which expressions that ask the machine are text in angle brackets."""
    if isinstance(node, dict):
        return {key: without_machine(child) for key, child in node.items()}
    if isinstance(node, list):
        return [without_machine(child) for child in node]
    return node.replace("${", "<").replace("}", ">") if isinstance(node, str) and not is_pure(node) else node


def is_pure(text: str) -> bool:
    r"""Return whether all expressions in a text come from the configuration alone.

    Example:
        >>> is_pure("${dataset.lr}"), is_pure("${half:${dataset.size}}"), is_pure("${ oc.env:TOKEN}")
        (True, True, False)
        >>> is_pure(r"${oc.select:dataset.token_pattern,'\w+'}")
        True
    """
    text, before = _CHOICE.sub("0", text), None
    while before != text:
        before, text = text, _CALL.sub("0", _REFERENCE.sub("0", text))
        if any(not OmegaConf.has_resolver(name) for name in PURE if f"${{{name}:" in before):
            return False  # in a process that only reads
    return "${" not in text


def resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without machine, see `without_machine`, in which every expression has its value.

    Raises:
        ValueError: If an expression refers to itself, or the values would be larger than `LARGEST_VALUE` together.
        OmegaConfBaseException: If one refers to nothing.
    """
    sizes: dict[tuple[str, ...], int] = {}
    if _size(tree, (), tree, sizes, 0) > LARGEST_VALUE:
        raise ValueError(f"its expressions make it larger than {LARGEST_VALUE:,} characters")
    result = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    assert isinstance(result, dict)
    return result  # type: ignore[return-value]


def _size(node: Any, place: tuple[str, ...], tree: Any, sizes: dict[tuple[str, ...], int], depth: int) -> int:
    """Return the number of characters of a node once it is resolved, at most a little above `LARGEST_VALUE`."""
    if place in sizes:
        return sizes[place]
    if depth > DEEPEST:
        raise ValueError(f"the expression at {'.'.join(place)} refers to itself, or to too many others")
    size = 1
    for key, child in _children(node):
        size += len(key) + _size(child, (*place, key), tree, sizes, depth + 1)
    if isinstance(node, str):
        size += len(node)
        for reference in (*_REFERENCE.findall(node), *_CHOICE.findall(node)):
            target = _target(reference, place)
            size += _size(_select(tree, target), target, tree, sizes, depth + 1)
    sizes[place] = min(size, LARGEST_VALUE + 1)
    return sizes[place]


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from ((str(key), child) for key, child in node.items())
    elif isinstance(node, list):
        yield from ((str(place), child) for place, child in enumerate(node))


def _target(reference: str, place: tuple[str, ...]) -> tuple[str, ...]:
    """Return the place that a reference means, whose dots at the beginning go upwards."""
    name = reference.lstrip(".")
    up = len(reference) - len(name)
    return (*(place[: max(0, len(place) - up)] if up else ()), *name.split("."))


def _select(tree: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        tree = dict(_children(tree)).get(key)
    return tree


def cache_folder(value: Any, environment: Mapping[str, str]) -> str | None:
    """Return the folder of prepared data that a configuration names, None where only its own machine knows it.

    Args:
        value: Value of `cache_dir`: a path, or this package's own expression for one.
        environment: Variables of the environment.
    """
    if not isinstance(value, str):
        return None
    own = re.fullmatch(r"\$\{oc\.env:PRIME_XMC_CACHE,([^${}]*)\}", value)
    if own is not None:
        return environment.get("PRIME_XMC_CACHE", own[1])
    return None if "${" in value else value


def finite_numbers(path: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics without those that have no value: null, or no finite number.

    Texts are kept where they are notes, such as train/passes_note, or about the run as a whole, such as its versions.

    Raises:
        ValueError: If a metric, or a size, is no number; with the file, the name and the value.
    """
    kept = {}
    for name, value in metrics.items():
        is_note = (name.endswith("_note") or name.startswith("note/")) and isinstance(value, str)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if ("/" in name or name.endswith("_bytes")) and not (is_note or is_number or value is None):
            raise ValueError(f"{path}: {shown(name)} is {shown(value)}, expected a number")
        if value is not None and not (is_number and not math.isfinite(value)):
            kept[name] = value
    return kept
