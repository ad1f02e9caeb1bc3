"""Trains the same under other circumstances: the results have to be equal to the bit.

Other seeds of Python's hashes (in new processes, since a process has one), another folder and current folder, prepared
data and embeddings from the cache or not. Batches are made by the training process itself, so that there are no other
numbers of processes that load data. What is not promised, such as another number of threads,
has to be said when a run is continued under it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import toys
from comparing import differences
from fault_kills import begin, go_on, training
from findings import Row, main
from forks import Kill, prepare_process, run


def rows(short: bool, folder: Path) -> Iterator[Row]:
    """Train under other circumstances."""
    prepare_process()
    toys.make_encoder(folder / "encoder"), toys.make_dataset(folder / "data")
    settings, place = training(folder), folder / "reference"
    whole = run("train", begin(settings, place), place)
    if whole.status != 0:
        yield Row("a run to compare with", lost=[f"it ends with {whole.status}: {whole.last_line}"])
        return
    lost, tried = [], []
    for name, directory, cache in (
        ("another folder", folder / "another" / "folder of a longer name", None),
        ("data and embeddings from the cache", folder / "cached", place / "cache"),
    )[: 1 if short else None]:
        arguments = begin(settings, directory)
        if cache is not None:
            arguments = [*arguments[:-1], f"cache_dir={cache}"]
        ended = run("train", arguments, directory)
        tried.append(name)
        lost += _unequal(name, ended.status, ended.last_line, place, directory)
    yield Row("other folders and a filled cache", inputs=len(tried), lost=lost, note=", ".join(tried))
    if not short:
        yield _hash_seeds(settings, folder, place)
    yield _another_environment(settings, folder)


def _unequal(name: str, status: int | None, last_line: str, expected: Path, found: Path) -> list[str]:
    if status != 0:
        return [f"{name}: it ends with {status}: {last_line[:160]}"]
    unequal = differences(expected / "run", found / "run")
    return [f"{name}: {'; '.join(unequal[:4])}"] if unequal else []


def _hash_seeds(settings: list[str], folder: Path, expected: Path) -> Row:
    """Return the row of runs in processes of other hash seeds."""
    seeds, lost = ("0", "1", "4294967295"), []
    for seed in seeds:
        place = folder / f"seed-{seed}"
        place.mkdir()
        command = [sys.executable, "-m", "prime_xmc.train", *begin(settings, place)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        last = (done.stderr.strip().splitlines() or [""])[-1]
        lost += _unequal(f"PYTHONHASHSEED={seed}", done.returncode, last, expected, place)
    return Row("other seeds of hashes", inputs=len(seeds), lost=lost, note=f"PYTHONHASHSEED={', '.join(seeds)}")


def _another_environment(settings: list[str], folder: Path) -> Row:
    """Return the row of a run that is continued with another number of threads, which its log has to say."""
    place, lost = folder / "threads", []
    begun = run("train", begin(settings, place), place, kill=Kill("validation", 9, 0))

    def two_threads() -> None:
        import torch

        torch.set_num_threads(2)

    ended = run("train", go_on(settings, place), place, setup=two_threads)
    if begun.status != -9 or ended.status != 0:
        lost.append(f"it ends with {begun.status} and, continued, {ended.status}: {ended.last_line[:160]}")
    elif "threads" not in (place / "run" / "train.log").read_text(encoding="utf-8"):
        lost.append("a run that goes on with another number of threads does not say that its bits may differ")
    return Row("what is not promised is said", inputs=1, lost=lost, note="continued with two threads instead of one")


if __name__ == "__main__":
    main(__doc__, rows)
