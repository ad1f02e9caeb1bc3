"""What a run has finished, kept until the whole run is: one that is continued need not do it again."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prime_xmc.checksums import check_file, describe
from prime_xmc.files import flush, replacing, save_tensors, write_json

logger = logging.getLogger(__name__)

FOLDER = "unfinished"  # in a run folder


class Part(NamedTuple):
    """What a part of a run has made.

    Attributes:
        tensors: Tensors by name, on the CPU when they are read.
        values: What else there is, as plain JSON.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class KeptParts:
    """A folder with the results of finished parts of a run.

    A part is found again only for the same description of all that it depends on. Its description is written when its
    tensors are on the disk, so that one which is there is complete; tensors that are damaged count as none.

    Args:
        folder: The folder, made when there is something to keep.

    Attributes:
        seconds: What the parts that `once` has found have taken the processes that made them.
        cpu_seconds: The same, of all processors.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds = self.cpu_seconds = 0.0

    def find(self, name: str, about: Mapping[str, Any]) -> Part | None:
        """Return a part, None if there is none that depends on the same.

        Args:
            name: Name of the part.
            about: Description of all that it depends on; anything that JSON or `str` can spell.
        """
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["about"] != _digest(about):
                return None
            check_file(self._tensors(name), content["file"], "it is made again", verify="full")
            return Part(load_file(self._tensors(name)), content["values"])
        except (ValueError, KeyError, TypeError, FileNotFoundError, SafetensorError) as error:
            logger.warning("%s cannot be used, so what it keeps is made again: %s", path, error)
            return None

    def add(self, name: str, about: Mapping[str, Any], part: Part) -> None:
        """Keep a part, in place of an older one of this name.

        Args:
            name: Name of the part.
            about: As in `find`.
            part: Its result.
        """
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        with replacing(self._tensors(name), durable=True) as temporary:
            save_tensors(temporary, part.tensors)
        content = {"about": _digest(about), "file": describe(self._tensors(name)), "values": part.values}
        write_json(self.folder / f"{name}.json", content)
        flush(self.folder)

    def once(self, name: str, about: Mapping[str, Any], make: Callable[[], Part]) -> Part:
        """Return a part that is kept, or make it and keep it."""
        part = self.find(name, about)
        if part is None:
            started, cpu_started = time.perf_counter(), time.process_time()
            part = make()
            cost = [time.perf_counter() - started, time.process_time() - cpu_started]
            self.add(name, about, part._replace(values=part.values | {"cost": cost}))
        else:
            values = dict(part.values)
            seconds, cpu_seconds = values.pop("cost", (0.0, 0.0))
            self.seconds, self.cpu_seconds = self.seconds + seconds, self.cpu_seconds + cpu_seconds
            part = part._replace(values=values)
        return part

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tensors(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _digest(about: Mapping[str, Any]) -> str:
    spelt = json.dumps(about, sort_keys=True, default=str)
    return hashlib.blake2b(spelt.encode(), digest_size=16).hexdigest()
