"""A file of answers that is written chunk by chunk and survives its process: the next one goes on where it ended.

Until it is complete, `predictions.csv` is two hidden files in its folder: `.predictions.csv.partial`, the answers so
far as JSON lines, and `.predictions.csv.progress`, whose first line says what they are made from. Each further line
says how many queries are answered, and how many bytes their answers take. What stands behind these bytes, of a chunk
that was being written when the process ended, is cut off.
"""

import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from prime_xmc.export.answer_tables import write_answers
from prime_xmc.files import file_to_replace, named_in_errors
from prime_xmc.printing import visible_json
from prime_xmc.tables.line_writer import ByteStream, JsonLinesWriter
from prime_xmc.tables.writer import open_writer, written_format

logger = logging.getLogger(__name__)

_WORKBOOKS = (".xlsx", ".xls", ".ods")  # which would otherwise be JSON lines under a name that promises more
_SECONDS = 1.0  # between two lines of the progress


class PartialOutput:
    """Answers that are written so far."""

    def __init__(self, answers: ByteStream, progress: BinaryIO | None, num_done: int):
        self._answers = answers
        self._writer = JsonLinesWriter(answers)
        self._progress = progress
        # one value, so that an interrupt comes before or after both: a chunk that it cuts off counts for nothing
        self._complete = num_done, self._size()
        self._last = time.monotonic()

    @property
    def num_done(self) -> int:
        """Number of queries that are answered."""
        return self._complete[0]

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the answers of a chunk of queries."""
        self._writer.write(records)
        self._complete = self.num_done + len(records), self._size()
        if time.monotonic() - self._last >= _SECONDS:
            self.note()

    def note(self) -> None:
        """Say how far the answers have come, once they are on the disk."""
        if self._progress is not None:
            file = cast("BinaryIO", self._answers)
            os.fsync(file.fileno())
            num_done, size = self._complete
            line = json.dumps({"queries": num_done, "bytes": size})
            self._progress.write(line.encode() + b"\n")
            self._progress.flush()
        self._last = time.monotonic()

    def _size(self) -> int:
        return 0 if self._progress is None else cast("BinaryIO", self._answers).tell()


class _Terminal:
    """Standard output where a person reads it: JSON of the same values, in which nothing is obeyed by a terminal."""

    def write(self, data: bytes) -> int:
        """Write whole lines of JSON."""
        sys.stdout.buffer.write(visible_json(data.decode("utf-8")).encode("utf-8"))
        return len(data)

    def flush(self) -> None:
        """Pass on what is buffered."""
        sys.stdout.buffer.flush()


@contextmanager
def open_partial(target: Path, made_from: Mapping[str, Any] | None, *, resume: bool) -> Iterator[PartialOutput]:
    """Open the output of answers, which appears under its name when it is complete.

    Its format follows from its suffix: .csv, .tsv, .parquet, or else JSON lines; .gz at the end compresses it. Where an
    error of the input ends the block, what is written goes; where anything else does, it stays, to be continued.

    Args:
        target: The file.
        made_from: All that the answers depend on, as plain JSON; None: they cannot be made again, as those of standard
            input.
        resume: Whether to go on with answers that an earlier process has left, if they were made from the same.

    Raises:
        IsADirectoryError: If there is a folder of that name.
        ValueError: If another process is writing it, there is something of that name that is no file, such as a device,
            or the name is that of a workbook.
    """
    name, target = target.name, file_to_replace(target)
    if target.suffix.lower() in _WORKBOOKS:
        raise ValueError(f"output={target}: workbooks are not written; give a name in .csv, which Excel opens")
    target.parent.mkdir(parents=True, exist_ok=True)
    answers = target.with_name(f".{target.name}.partial")
    progress = target.with_name(f".{target.name}.progress")
    with named_in_errors(answers, target), ExitStack() as stack:
        file = stack.enter_context(answers.open("a+b"))
        _lock(file, target)
        num_done, size = 0, 0
        if made_from is not None and resume:
            num_done, size = _read_progress(progress, made_from, answers.stat().st_size)
        file.truncate(size)
        file.seek(size)
        notes = None
        if made_from is None:
            progress.unlink(missing_ok=True)
        else:
            notes = stack.enter_context(progress.open("ab" if num_done else "wb"))
            if not num_done:
                notes.write(json.dumps(made_from).encode() + b"\n")
                notes.flush()
        output = PartialOutput(file, notes, num_done)
        try:
            yield output
        except ValueError:  # of the input, which will be another when it is mended
            _remove(answers, progress)
            raise
        except BaseException:
            if notes is None:
                _remove(answers, progress)
            else:
                with suppress(OSError):  # the disk is full, for one: what was noted before counts
                    output.note()
                    logger.warning(
                        "%s: %s queries are answered; the same command goes on from there",
                        target,
                        f"{output.num_done:,}",
                    )
            raise
        output.note()
        _finish(answers, target, name)
        _remove(answers, progress)
    logger.info("%s: labels of %s queries", target, f"{output.num_done:,}")


@contextmanager
def open_output(target: Path | None, made_from: Mapping[str, Any] | None, *, resume: bool) -> Iterator[PartialOutput]:
    """Open standard output, to which answers go as JSON lines, or a file, see `open_partial`."""
    if target is None:
        yield PartialOutput(_Terminal() if sys.stdout.isatty() else sys.stdout.buffer, None, 0)
    else:
        with open_partial(target, made_from, resume=resume) as output:
            yield output


def what_made(settings: Mapping[str, object]) -> dict[str, Any]:
    """Return all that answers depend on, as plain JSON.

    Args:
        settings: Settings by their names. Where one is the path of a file or folder, the state of what is there counts
            too.
    """
    made_from: dict[str, Any] = {}
    for name, value in settings.items():
        path = Path(value).expanduser() if isinstance(value, str) and value else None
        made_from[name] = _state(path) if path is not None and path.exists() else str(value)
    return made_from


def _state(path: Path) -> list[Any]:
    """Return the place of a file or folder, and size and time of all its files."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = [(str(file.relative_to(path)), file.stat()) for file in files if file.is_file()]
    return [str(path.absolute()), [[name, state.st_size, state.st_mtime_ns] for name, state in states]]


def _lock(file: BinaryIO, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(
            f"{target} is being written by another process: wait for it, or give another output="
        ) from error


def _read_progress(path: Path, made_from: Mapping[str, Any], available: int) -> tuple[int, int]:
    """Return how many queries are answered and how many bytes they take; 0 where there is nothing to go on with."""
    if not path.is_file() or available == 0:
        return 0, 0
    lines = path.read_bytes().split(b"\n")[:-1]  # a line without its end was cut off
    try:
        before, *notes = map(json.loads, lines)
        found = [(note["queries"], note["bytes"]) for note in notes if note["bytes"] <= available]
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is damaged: starting again", path)
        return 0, 0
    if not found:
        return 0, 0
    if changed := [key for key in made_from if before.get(key) != made_from[key]]:
        shown = f"{found[-1][0]:,}", ", ".join(changed)
        logger.warning("%s queries are answered already, but with another %s: starting again", *shown)
        return 0, 0
    logger.info("going on after %s queries that are answered already; resume=false starts again", f"{found[-1][0]:,}")
    return found[-1]


def _finish(answers: Path, target: Path, name: str) -> None:
    """Put complete answers in the place of the target, in the format that a name says."""
    output_format = output_format_of(Path(name))
    if output_format == "jsonl" and Path(name).suffix.lower() not in (".gz", ".zst"):
        os.replace(answers, target)
        return
    finished = target.with_name(f".finished.{name}")  # of the same suffixes; an older one is overwritten
    if output_format == "jsonl":
        with answers.open("rb") as lines, open_writer(finished, (), output_format="jsonl") as writer:
            for line in lines:
                writer.write([json.loads(line)])
    else:
        write_answers(answers, finished, output_format)
    os.replace(finished, target)


def output_format_of(target: Path) -> str:
    """Return csv, tsv, parquet or, for any other suffix, jsonl."""
    try:
        return written_format(target)
    except ValueError:
        return "jsonl"


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
