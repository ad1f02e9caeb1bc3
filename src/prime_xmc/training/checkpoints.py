"""Checkpoints whose large tables are streamed into shards beside the file."""

import errno
import logging
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.types import _PATH

from prime_xmc.checksums import note_check, was_checked
from prime_xmc.files import flush, replacing
from prime_xmc.model.banks import BANKS, check_bank

logger = logging.getLogger(__name__)

_ARCHIVE = "archive"  # what a checkpoint is compared with: the checksums that it has itself
# What reading a damaged archive ends with.
_NO_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, RuntimeError, ValueError, OSError)
BEFORE = "before-"  # name of the checkpoint that was the last one: before-last.ckpt


class ShardedCheckpointIO(CheckpointIO):
    """Writes a checkpoint's banks to a folder of shards and the rest to the file, which names the folder.

    Lightning's own would hold the whole file in memory once more before it is written. What is in place is complete and
    on the disk at any moment: the file is renamed when it and its banks are written, and only then are older ones
    removed. The checkpoint that was there is kept as `before-last.ckpt`, for the case that the newest one is damaged.

    A module puts its banks into the checkpoint as `checkpoint["banks"] = {name: RowBank}`; on loading, the path of each
    bank's folder is found there instead.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint: `last.ckpt`, and `last-<id>.banks/<name>/` for each bank."""
        path = Path(path)
        content = dict(checkpoint)
        banks = content.pop(BANKS, {})
        folder = path.with_name(f"{path.stem}-{uuid4().hex[:8]}.{BANKS}")
        try:
            with replacing(path, durable=True) as temporary:
                for name, bank in banks.items():
                    bank.save(folder / name)
                if folder.is_dir():
                    flush(folder)
                torch.save(content | {BANKS: {name: f"{folder.name}/{name}" for name in banks}}, temporary)
                _keep(path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        remove_stray_banks(path)

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is run. Its banks are given as paths.

        Where it is damaged, the one before it is read, and the log says so.

        Raises:
            ValueError: If the file or a bank is damaged, and there is none before it.
        """
        path = Path(path)
        try:
            return _load(path, map_location)
        except ValueError as error:
            before = path.with_name(f"{BEFORE}{path.name}")
            if not before.is_file():
                raise
            content = _load(before, map_location)
            logger.warning("%s; going on from the checkpoint before it, %s", error, before)
            return content

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, the one before it, and their banks."""
        path = Path(path)
        path.unlink(missing_ok=True)
        path.with_name(f"{BEFORE}{path.name}").unlink(missing_ok=True)
        for folder in _bank_folders(path):
            shutil.rmtree(folder)


def _load(path: Path, map_location: Any | None) -> dict[str, Any]:
    """Return what a checkpoint holds, with the paths of its banks, all of it checked.

    torch writes a checksum of each tensor, CRC-32, and does not look at it when it reads them.
    """
    try:
        damaged = None
        if not was_checked(path, _ARCHIVE):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
    except _NO_ARCHIVE as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # as for a place before the file's beginning
            raise
        raise ValueError(f"{path} cannot be read as a checkpoint: it is damaged ({error})") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: {damaged} in it is not what was written (checksum)")
    note_check(path, _ARCHIVE)
    try:
        content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        banks = {name: path.parent / place for name, place in content.get(BANKS, {}).items()}
    except (RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors and plain values, "
            f"which is not loaded ({str(error).partition(chr(10))[0]})"
        ) from error
    for name, folder in banks.items():
        if not folder.resolve().is_relative_to(path.parent.resolve()):
            raise ValueError(f"{path} names the bank {name} in {folder}, expected one beside it")
        try:
            check_bank(folder)
        except ValueError as error:
            raise ValueError(f"{path} has a damaged bank: {error}") from error
    content[BANKS] = {name: str(folder) for name, folder in banks.items()}
    return content


def _keep(path: Path) -> None:
    """Keep a checkpoint that is about to be replaced under the name of the one before."""
    if not path.is_file():
        return
    with replacing(path.with_name(f"{BEFORE}{path.name}")) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without links
            shutil.copy2(path, temporary)


def remove_stray_banks(path: Path) -> None:
    """Remove the banks that neither a checkpoint nor the one before it names, unless that cannot be seen."""
    named = set()
    for checkpoint in (path, path.with_name(f"{BEFORE}{path.name}")):
        if checkpoint.is_file():
            try:
                content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
                named |= {Path(place).parts[0] for place in content.get(BANKS, {}).values()}
            except Exception as error:  # a damaged one, of whatever kind
                logger.warning("older banks beside %s stay, since it cannot be read (%s)", path, error)
                return
    for folder in _bank_folders(path):
        if folder.name not in named:
            shutil.rmtree(folder)


def _bank_folders(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-????????.{BANKS}"))
