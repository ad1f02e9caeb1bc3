"""Flips single bits and zeroes blocks in what a run has written: each has to be noticed when it is read.

In checkpoints with their banks, prepared data, cached embeddings and exported models, with `verify=full`. What
`verify=sampled` notices of huge files is counted apart: blocks are made small, so that toy files count as huge. Files
that have no checksums by design (see docs/concepts/robustness.md) are left out.
"""

import functools
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import toys
from fault_kills import begin, training
from findings import Row, main
from forks import call, prepare_process, run

FLIPS, BLOCKS = 12, 4  # faults of a file
SEED = 0
_SMALL_BLOCK = 256  # bytes of a block where toy files are to count as huge


def rows(short: bool, folder: Path) -> Iterator[Row]:
    """Inject the flips."""
    prepare_process()
    toys.make_encoder(folder / "encoder"), toys.make_dataset(folder / "data")
    place = folder / "whole"
    whole = run("train", begin(training(folder), place), place)
    if whole.status != 0:
        yield Row("a run whose files are damaged", lost=[f"it ends with {whole.status}: {whole.last_line}"])
        return
    number = 2 if short else FLIPS, 1 if short else BLOCKS
    for what, files, read in _targets(place):
        yield call_row(what, files, read, number, folder / "damaged")
    for what, directory, read in _sampled_targets(place):
        noticed, injected = call(_sampled, directory, read, number, folder / "sampled")
        note = f"verify=sampled with {_SMALL_BLOCK} bytes a block: {noticed} noticed, which is not asked of it"
        yield Row(f"{what}, some blocks verified", inputs=injected, note=note)


def call_row(what: str, files: list[Path], read: Callable[[Path], None], number: tuple[int, int], damaged: Path) -> Row:
    """Return the row of files that are damaged one after the other in a copy, and read in a fork."""
    try:
        missed, injected, warned = call(_damage_each, files, read, number, damaged)
    except RuntimeError as error:
        return Row(what, lost=[str(error).strip().splitlines()[-1]])
    note = f"{len(files)} files; " + (f"{warned} noticed by a warning" if warned else "all by an error")
    return Row(what, injected, lost=missed, note=note)


def _targets(place: Path) -> Iterator[tuple[str, list[Path], Callable[[Path], None]]]:
    """Yield what is damaged, its files, and what reads them, given the path of a file."""
    checkpoints = place / "run" / "checkpoints"
    banks = sorted(path for path in checkpoints.glob("last-*.banks/**/*") if path.is_file() and _is_newest(path))
    yield "checkpoints", [checkpoints / "last.ckpt"], _read_checkpoint
    yield "banks of checkpoints", banks, _read_checkpoint
    (prepared,) = (path for path in (place / "cache").iterdir() if (path / "manifest.json").is_file())
    yield "prepared data", sorted(path for path in prepared.iterdir() if path.is_file()), _read_prepared
    (embeddings,) = (place / "cache").glob("embeddings-*")
    yield "cached embeddings", sorted(path for path in embeddings.rglob("*") if path.is_file()), _read_embeddings
    model = place / "run" / "model"
    yield "exported models", _with_sums(model), _read_model


def _with_sums(model: Path) -> list[Path]:
    """Return the files of a model that have checksums, with the descriptions that hold these."""
    from prime_xmc.export.model_sums import _DESCRIPTIONS

    files = []
    for name in _DESCRIPTIONS:
        path = model / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            files += [path, *(path.parent / each for each in content.get("files", {}))]
    return [path for path in files if path.is_file()]


def _sampled_targets(place: Path) -> Iterator[tuple[str, Path, Callable[[Path], None]]]:
    (prepared,) = (path for path in (place / "cache").iterdir() if (path / "manifest.json").is_file())
    yield "prepared data", prepared, _open_sampled_data
    yield "exported models", place / "run" / "model", _open_sampled_model


def _is_newest(path: Path) -> bool:
    import torch

    checkpoints = next(parent for parent in path.parents if parent.name == "checkpoints")
    content = torch.load(checkpoints / "last.ckpt", map_location="cpu", weights_only=True)
    return any(path.is_relative_to(checkpoints / place) for place in content["banks"].values())


def _damage_each(
    files: list[Path], read: Callable[[Path], None], number: tuple[int, int], damaged: Path
) -> tuple[list[str], int, int]:
    """Return what went unnoticed, the number of faults, and how many were noticed by a warning alone."""
    warnings = _Warnings()
    logging.getLogger("prime_xmc").addHandler(warnings)
    missed, injected, by_warning = [], 0, 0
    for path in files:
        read(path)  # whole, it is read
        assert not warnings.found, warnings.found
        content = path.read_bytes()
        kept = damaged / path.name
        damaged.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, kept)
        for fault, changed in _faults(content, path.name, number):
            path.write_bytes(changed)
            injected += 1
            try:
                read(path)
                if warnings.found:
                    by_warning += 1
                else:
                    missed.append(f"{path.name}: {fault} goes unnoticed")
            except (ValueError, FileNotFoundError) as error:
                if not any(part.name in str(error) for part in (path, *path.parents[:3])):
                    missed.append(f"{path.name}: {fault} ends in {str(error)[:80]!r}, which names no file")
            except Exception as error:
                missed.append(f"{path.name}: {fault} ends in {type(error).__name__}: {str(error)[:80]}")
            warnings.found.clear()
        path.write_bytes(content)
    return missed, injected, by_warning


def _faults(content: bytes, name: str, number: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """Yield faults, in words, with the content that they make of a file's."""
    drawn = random.Random(f"{SEED} {name}")
    for _ in range(number[0] if content else 0):
        place, bit = drawn.randrange(len(content)), drawn.randrange(8)
        yield f"bit {bit} of byte {place}", content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
    for _ in range(number[1]):
        start = drawn.randrange(max(1, len(content)))
        end = min(len(content), start + drawn.choice((16, 512, 4096)))
        zeroed = content[:start] + bytes(end - start) + content[end:]
        if zeroed != content:
            yield f"zeros in bytes {start} to {end}", zeroed


def _sampled(directory: Path, read: Callable[[Path], None], number: tuple[int, int], copy: Path) -> tuple[int, int]:
    """Return how many faults in a copy are noticed where only some blocks are verified, and how many there were."""
    from prime_xmc import checksums

    shutil.copytree(directory, copy)
    checksums.BLOCK_BYTES = _SMALL_BLOCK
    files = _seal_again(copy)
    noticed = injected = 0
    for path in files:
        content = path.read_bytes()
        for _, changed in _faults(content, f"{path.name} sampled", number):
            path.write_bytes(changed)
            injected += 1
            try:
                read(copy)
            except Exception:
                noticed += 1
        path.write_bytes(content)
    shutil.rmtree(copy)
    return noticed, injected


def _seal_again(folder: Path) -> list[Path]:
    """Write checksums of small blocks into descriptions, and return the files that have them."""
    from prime_xmc.checksums import checksum_of, describe
    from prime_xmc.export.model_sums import _DESCRIPTIONS, sealed

    files = []
    manifest = folder / "manifest.json"
    if manifest.is_file():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        names = [name for name in content["checksums"] if name != manifest.name]
        content["checksums"] = {name: describe(folder / name) for name in names}
        content["checksums"][manifest.name] = checksum_of(content)
        manifest.write_text(json.dumps(content), encoding="utf-8")
        return [folder / name for name in names]
    for path in (folder / name for name in _DESCRIPTIONS):
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            names = list(content.get("files", {}))
            path.write_text(json.dumps(sealed(content, path.parent, names)), encoding="utf-8")
            files += [path.parent / name for name in names]
    return files


def _read_checkpoint(path: Path) -> None:
    from prime_xmc.training.checkpoints import ShardedCheckpointIO

    checkpoints = next(parent for parent in path.parents if parent.name == "checkpoints")
    before = checkpoints / "before-last.ckpt"
    if before.is_file():  # or it would be read instead
        before.rename(checkpoints / "kept")
    ShardedCheckpointIO().load_checkpoint(checkpoints / "last.ckpt")


def _read_prepared(path: Path) -> None:
    from prime_xmc.data.corpus import Corpus

    corpus = Corpus.open(path.parent, "full")
    list(corpus.labels())


def _read_embeddings(path: Path) -> None:
    from prime_xmc.model.banks import RowBank
    from prime_xmc.training.embedding_cache import load_embeddings

    directory = next(parent for parent in path.parents if parent.name.startswith("embeddings-"))
    sizes = {name: _rows_of(directory / name) for name in ("query", "label")}
    load_embeddings(directory, {name: RowBank(rows, 32, dtype="float16") for name, rows in sizes.items()})


@functools.cache
def _rows_of(bank: Path) -> int:
    """Return the number of rows of a bank, which is read while it is whole."""
    return int(json.loads((bank / "index.json").read_text(encoding="utf-8"))["num_rows"])


def _read_model(path: Path) -> None:
    from prime_xmc.export.predictor import Predictor

    model = next(parent for parent in path.parents if parent.name == "model")
    Predictor.load(model, verify="full")


def _open_sampled_data(directory: Path) -> None:
    from prime_xmc.data.corpus import Corpus

    Corpus.open(directory, "sampled")


def _open_sampled_model(directory: Path) -> None:
    from prime_xmc.export.predictor import Predictor

    Predictor.load(directory, verify="sampled")


class _Warnings(logging.Handler):
    """Keeps what is logged as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


if __name__ == "__main__":
    main(__doc__, rows)
