"""Which labels may be an answer: allow= and exclude=, lists of their uids or ids."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

Labels = Sequence[tuple[str, str]]  # uid and text of every label, in order
Given = str | Path | int | Sequence[str | int]

_EXPECTED = "uids of labels, or their ids counted from 0"
_EXPECTED_UIDS = "uids of labels"


def choose_labels(
    labels: Labels, allow: Given | None = None, exclude: Given | None = None
) -> Bool[np.ndarray, " label"] | None:
    """Return which labels may be an answer; None: all may.

    A label is named by its uid, or by its id, the row in the raw data's file of labels counted from 0. A number in a
    text is a uid before it is an id, and a uid alone where most uids are numbers; an integer is an id, unless it is
    the uid of another label, which is refused. A uid that several labels share names all of them.

    Args:
        labels: Uid and text of every label, in order.
        allow: Labels that may be an answer: a list, a single one, or a text file with one a line; None: all.
        exclude: Labels that may not; those of both lists may not.

    Raises:
        FileNotFoundError: If a path names no file.
        ValueError: If there is no such label, with the nearest one; or if none is left.

    Example:
        >>> choose_labels([("vim", "editor"), ("tmux", "multiplexer"), ("zsh", "shell")], exclude=["tmux", 2])
        array([ True, False, False])
    """
    if allow is None and exclude is None:
        return None
    may = np.ones(len(labels), dtype=bool) if allow is None else _find(labels, allow, "allow")
    if exclude is not None:
        may &= ~_find(labels, exclude, "exclude")
    if not may.any():
        raise ValueError("allow= and exclude= leave no label that may be an answer: give other lists")
    return may


def as_texts(given: object) -> str | list[str] | None:
    """Return what a configuration gives, a text or a list, where numbers are uids before they are ids."""
    if given is None or isinstance(given, str):
        return given
    return [str(given)] if isinstance(given, int | float) else list(map(str, given))  # type: ignore[call-overload]


def _find(labels: Labels, given: Given, option: str) -> Bool[np.ndarray, " label"]:
    """Return which labels a list or a file names."""
    named = np.zeros(len(labels), dtype=bool)
    entries = _read(labels, given, option)
    wanted = {entry for entry, _ in entries if isinstance(entry, str)}
    numbers = {str(entry): entry for entry, _ in entries if isinstance(entry, int) and entry < len(labels)}
    known = set()
    for row, (uid, _) in enumerate(labels):
        if uid in wanted:
            named[row] = True
            known.add(uid)
        if numbers.get(uid, row) != row:
            raise ValueError(
                f"{option}: {uid} is the id of one label, in row {uid}, and the uid of another one, in row {row}: name "
                "labels by their uids, as texts"
            )
    # a look at all labels, once
    only_uids = any(map(_is_number, wanted - known)) and are_numbers(labels)
    for entry, place in entries:
        if isinstance(entry, str) and entry in known:
            continue
        if isinstance(entry, bool) or not isinstance(entry, str | int):
            raise ValueError(f"{place}: {entry!r} names no label; expected {_EXPECTED}")
        if isinstance(entry, str) and (only_uids or not _is_number(entry)):
            expected = _EXPECTED_UIDS if _is_number(entry) else _EXPECTED
            raise ValueError(f"{place}: there is no label {entry!r}; expected {expected}. {_nearest(labels, entry)}")
        if not 0 <= int(entry) < len(labels):
            raise ValueError(f"{place}: there is no label {entry}; expected {_EXPECTED}, from 0 to {len(labels) - 1}")
        named[int(entry)] = True
    return named


def are_numbers(labels: Labels) -> bool:
    """Return whether most uids are numbers, so that a number in a text is the uid of a label that may be missing."""
    return sum(_is_number(uid) for uid, _ in labels) * 2 > len(labels)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _read(labels: Labels, given: Given, option: str) -> list[tuple[str | int, str]]:
    """Return what is named, each with its place for an error."""
    if isinstance(given, int):
        return [(given, option)]
    if not isinstance(given, str | Path):
        return [(entry, option) for entry in given]
    path = Path(given).expanduser()
    if path.is_file():
        return _read_file(path, option)
    if isinstance(given, Path):
        raise FileNotFoundError(f"{option}={given}: there is no such file")
    if any(given == uid for uid, _ in labels) or _is_number(given):
        return [(given, option)]
    raise ValueError(
        f"{option}={given}: there is no such file and no such label; expected a file with one label a line, or a list "
        f"of {_EXPECTED}. {_nearest(labels, given)}"
    )


def _read_file(path: Path, option: str) -> list[tuple[str | int, str]]:
    entries: list[tuple[str | int, str]] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{option}={path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: not UTF-8 ({error}); convert it to UTF-8") from error
            if text:
                entries.append((text, place))
    return entries


def _nearest(labels: Labels, entry: str) -> str:
    """Return a sentence on the label that was probably meant: one of that text, or the uid written most alike."""
    meant = entry.strip().casefold()
    for uid, text in labels:
        if text.strip().casefold() == meant:
            return f"The label with that text is {uid!r}"
    alike = difflib.get_close_matches(entry, [uid for uid, _ in labels], n=1, cutoff=0.0)
    return f"The nearest is {alike[0]!r}" if alike else "The model has no labels"
