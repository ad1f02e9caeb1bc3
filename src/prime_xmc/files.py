"""Files and folders that appear under their name only when they are complete."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside `path`, whose place it takes at the end.

    The folder is made if need be. Where the block raises, the new file goes and what was at `path` stays.

    Example:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _name_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(directory: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `directory`, to be renamed when it is complete; otherwise it goes at the end."""
    temporary = _name_beside(directory)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, directory: Path) -> None:
    """Give a complete folder its name; a folder that has it already goes, but not before."""
    if not directory.exists():
        os.replace(new, directory)
        return
    old = _name_beside(directory)
    os.replace(directory, old)
    try:
        os.replace(new, directory)
    except OSError:
        os.replace(old, directory)
        raise
    shutil.rmtree(old)


def give_default_mode(path: Path) -> None:
    """Let a file be read by whoever may read files that `open` makes here; some libraries keep theirs to the owner."""
    ordinary = _name_beside(path)
    ordinary.touch()
    try:
        path.chmod(ordinary.stat().st_mode)
    finally:
        ordinary.unlink()


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in UTF-8, for people to read."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _name_beside(path: Path) -> Path:
    """Return a hidden name in the same folder, which no other process takes."""
    return path.with_name(f".{path.name}.{uuid4().hex}")
