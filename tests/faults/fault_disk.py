"""Lets the disk run full at many points of a run, makes room, and continues it: nothing half may pass for a whole.

On a real file system of a few megabytes (tmpfs in a namespace of its own), where mounting is allowed. Everywhere, the
largest size of a file is bounded, which writing meets likewise. Each run has to end with one line that names a file or
the disk, and the run that is continued with room has to equal the uninterrupted one.
"""

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import toys
from comparing import differences, leftovers
from fault_kills import begin, go_on, training
from findings import Row, main
from forks import prepare_process, run

POINTS, SHORT_POINTS = 24, 3
SIZES, SHORT_SIZES = 8, 2
SEED = 0
_WORDS = ("No space left", "File too large", "disk", "cannot be written", "quota")


def rows(short: bool, folder: Path) -> Iterator[Row]:
    """Let it run full."""
    prepare_process()
    toys.make_encoder(folder / "encoder"), toys.make_dataset(folder / "data")
    settings, place = training(folder), folder / "reference"
    whole = run("train", begin(settings, place), place)
    if whole.status != 0:
        yield Row("a run that finds the disk full", lost=[f"it ends with {whole.status}: {whole.last_line}"])
        return
    what = "file systems that run full"
    if not _can_mount():
        yield Row(what, skipped=True, note="not possible here: mounting is not allowed")
    else:
        yield _small_disks(what, settings, folder, place, SHORT_POINTS if short else POINTS)
    yield _small_files(settings, folder, place, SHORT_SIZES if short else SIZES)


def _can_mount() -> bool:
    if os.environ.get("PRIME_XMC_FAULTS_MOUNT") == "1":
        return True
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def _mount(path: Path, kilobytes: int, *options: str) -> None:
    mode = ",".join([f"size={kilobytes}k", *options])
    subprocess.run(["mount", "-t", "tmpfs", "-o", mode, "tmpfs", str(path)], check=True, capture_output=True)


def _small_disks(what: str, settings: list[str], folder: Path, reference: Path, points: int) -> Row:
    """Return the row of runs on file systems of sizes between nothing and what a run takes."""
    needed = sum(path.stat().st_size for path in reference.rglob("*") if path.is_file()) // 1024
    lost, full, survived_full = [], 0, 0
    place = folder / "small"
    for number in range(points):
        drawn = random.Random(f"{SEED} {number}")
        size = int(needed * (0.02 + 1.4 * (number + drawn.random()) / points))
        place.mkdir(exist_ok=True)
        _mount(place, size)
        try:
            ended = run("train", begin(settings, place), place, log=folder / "small.log")
            if ended.status == 0:
                survived_full += 1
            else:
                full += 1
            problem = _badly_ended(ended.status, ended.traceback, ended.output)
            _mount(place, 20 * needed, "remount")
            after = run("train", go_on(settings, place), place)
            if problem is None and after.status != 0:
                problem = f"with room, it ends with {after.status}: {after.last_line[:200]}"
            found = [] if after.status else differences(reference / "run", place / "run")
            found += [f"{path.relative_to(place)} is left over" for path in leftovers(place)]
            if problem or found:
                lost.append(f"{size} of {needed} KB: {problem or '; '.join(found[:4])}")
            print(
                f"{size} of {needed} KB: {ended.last_line[:120]}; {'LOST' if problem or found else 'right'}", flush=True
            )
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)
    note = f"{points} sizes, a run leaves {needed} KB; {full} ended, {survived_full} had room"
    return Row(what, points, lost=lost, note=note)


def _small_files(settings: list[str], folder: Path, reference: Path, sizes: int) -> Row:
    """Return the row of runs that may write files of some size only."""
    largest = max(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    lost = []
    for number in range(sizes):
        limit = int(largest * (number + 0.5) / sizes)
        place = folder / "files"
        shutil.rmtree(place, ignore_errors=True)

        def bound(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        ended = run("train", begin(settings, place), place, setup=bound)
        problem = _badly_ended(ended.status, ended.traceback, ended.output)
        after = run("train", go_on(settings, place), place)
        if problem is None and after.status != 0:
            problem = f"without the bound, it ends with {after.status}: {after.last_line[:200]}"
        found = [] if after.status else differences(reference / "run", place / "run")
        found += [f"{path.relative_to(place)} is left over" for path in leftovers(place)]
        if problem or found:
            lost.append(f"files up to {limit} bytes: {problem or '; '.join(found[:4])}")
        print(
            f"files up to {limit} bytes: {ended.last_line[:120]}; {'LOST' if problem or found else 'right'}", flush=True
        )
    return Row("files that cannot grow", sizes, lost=lost, note=f"bounds up to {largest // 1024} KB")


def _badly_ended(status: int | None, traceback: bool, output: str) -> str | None:
    """Return what is wrong with how a run has ended that may have found no room."""
    if status == 0:
        return None
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    if status is None or status < 0:
        return f"it ends with {status}: {last[:200]}"
    if traceback:
        return f"it ends in a traceback: {last[:200]}"
    if not any(word in output for word in _WORDS):
        return f"no word of the disk: {last[:200]}"
    return None


if __name__ == "__main__":
    if os.environ.get("PRIME_XMC_FAULTS_MOUNT") != "1" and _can_mount():
        os.environ["PRIME_XMC_FAULTS_MOUNT"] = "1"  # within a namespace in which this process may mount
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    main(__doc__, rows)
