"""Checksums of files, by which what is read is known to be what was written.

A file is summed in blocks, so that of one that is too large to be read as a whole at every start some blocks can be
checked. They tell damage, by a disk or a copy, and not forgery: who can write the file can write its sums.
"""

import json
import random
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from prime_xmc.foreign import shown

BLOCK_BYTES = 2**24
_PIECE_BYTES = 2**16  # read at once, so that a block is never in memory
SAMPLED_BLOCKS = 16  # of a larger file, which takes a tenth of a second
_TICK = 2.0  # seconds, above the resolution of the times of all file systems
_checked: set[tuple[tuple[int, ...], Hashable]] = set()  # states of files that were read as a whole, with their sums


def checksums(path: Path) -> list[str]:
    """Return the sum of each block of a file, XXH3 with 64 bits in hexadecimal digits; none for an empty file."""
    number = -(-path.stat().st_size // BLOCK_BYTES)
    return [found for _, found in _blocks(path, range(number))]


def checksum_of(content: Mapping[str, Any]) -> str:
    """Return the sum of plain JSON, whatever the order of its keys and the blanks between them."""
    read_again = json.loads(json.dumps(content))  # keys that are no texts have another order, or none, before that
    return xxhash.xxh3_64_hexdigest(json.dumps(read_again, sort_keys=True).encode())


def describe(path: Path) -> dict[str, Any]:
    """Return the size and the checksums of a file, as plain JSON."""
    return {"bytes": path.stat().st_size, "xxh3": checksums(path)}


def check_file(path: Path, expected: object, remedy: str, verify: str = "sampled") -> None:
    """Check that a file is what was written.

    Args:
        path: The file.
        expected: What `describe` returned when it was written.
        remedy: What to do where it is not, for people.
        verify: "full" reads all of it; "sampled" at most `SAMPLED_BLOCKS` blocks, the first and the last among them and
            others at each call.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is another, or `expected` is no description.
    """
    check_choice(verify)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; {remedy}")
    if not isinstance(expected, Mapping) or not isinstance(sums := expected.get("xxh3"), list):
        raise ValueError(f"the checksum of {path} is damaged ({shown(expected)}); {remedy}")
    size, written = path.stat().st_size, expected.get("bytes")
    if not isinstance(written, int):
        raise ValueError(f"the checksum of {path} is damaged ({shown(expected)}); {remedy}")
    if size != written:
        raise ValueError(f"{path} is damaged: it has {size:,} bytes, and had {written:,}; {remedy}")
    if len(sums) != -(-size // BLOCK_BYTES):
        raise ValueError(f"the checksum of {path} is damaged; {remedy}")
    if verify == "full" and was_checked(path, tuple(map(str, sums))):
        return
    for number, found in _blocks(path, _chosen(len(sums), verify)):
        if found != sums[number]:
            first, end = number * BLOCK_BYTES, min(size, (number + 1) * BLOCK_BYTES)
            raise ValueError(
                f"{path} is damaged: its bytes {first:,} to {end:,} are not those that were written (checksum {found} "
                f"instead of {sums[number]}); {remedy}"
            )
    if verify == "full":
        note_check(path, tuple(map(str, sums)))


def was_checked(path: Path, expected: Hashable) -> bool:
    """Return whether `note_check` has been called with these arguments, and the file has not been written since.

    Continuing a run reads its checkpoint, and with it large tables, several times: they are checked once.
    """
    return (_state(path), expected) in _checked


def note_check(path: Path, expected: Hashable) -> None:
    """Note that all of a file has been compared with what is expected of it.

    One that was written just now is not noted: written again in the same tick of the clock, it would look the same.
    """
    if time.time() - path.stat().st_mtime > _TICK:
        _checked.add((_state(path), expected))


def _state(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def check_choice(verify: str) -> None:
    """Check that a value of `verify` is known.

    Raises:
        ValueError: If it is not.
    """
    if verify not in ("sampled", "full"):
        raise ValueError(f"expected verify sampled or full, got {verify!r}")


def _chosen(number: int, verify: str) -> Sequence[int]:
    if verify == "full" or number <= SAMPLED_BLOCKS:
        return range(number)
    # Not of the generators that a run depends on, and others every time: in the end, all have been looked at.
    return [0, *sorted(random.SystemRandom().sample(range(1, number - 1), SAMPLED_BLOCKS - 2)), number - 1]


def _blocks(path: Path, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number in numbers:
            file.seek(number * BLOCK_BYTES)
            summed, left = xxhash.xxh3_64(), BLOCK_BYTES
            while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
                summed.update(piece)
                left -= len(piece)
            yield number, summed.hexdigest()
