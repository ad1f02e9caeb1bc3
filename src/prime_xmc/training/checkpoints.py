"""Checkpoints whose large tables are streamed into shards beside the file."""

import pickle
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.types import _PATH

from prime_xmc.files import replacing
from prime_xmc.model.banks import BANKS


class ShardedCheckpointIO(CheckpointIO):
    """Writes a checkpoint's banks to a folder of shards and the rest to the file, which names the folder.

    Lightning's own would hold the whole file in memory once more before it is written. What is in place is complete at
    any moment: the file is renamed when it and its banks are written, and only then are the banks of the file that it
    replaces removed.

    A module puts its banks into the checkpoint as `checkpoint["banks"] = {name: RowBank}`; on loading, the path of each
    bank's folder is found there instead.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint: `last.ckpt`, and `last-<id>.banks/<name>/` for each bank."""
        path = Path(path)
        older = _bank_folders(path)
        content = dict(checkpoint)
        banks = content.pop(BANKS, {})
        folder = path.with_name(f"{path.stem}-{uuid4().hex[:8]}.{BANKS}")
        try:
            with replacing(path) as temporary:
                for name, bank in banks.items():
                    bank.save(folder / name)
                torch.save(content | {BANKS: {name: f"{folder.name}/{name}" for name in banks}}, temporary)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for outdated in older:
            shutil.rmtree(outdated)

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is run. Its banks are given as paths.

        Raises:
            ValueError: If the file is damaged.
        """
        path = Path(path)
        try:
            content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors and plain values, "
                f"which is not loaded ({str(error).splitlines()[0]})"
            ) from error
        content[BANKS] = {name: str(path.parent / place) for name, place in content.get(BANKS, {}).items()}
        return content

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint and its banks."""
        path = Path(path)
        path.unlink(missing_ok=True)
        for folder in _bank_folders(path):
            shutil.rmtree(folder)


def _bank_folders(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-????????.{BANKS}"))
