"""A model folder that is being served, and its exchange for a newer one."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch

from prime_xmc.export.calibration import has_calibration, read_calibration
from prime_xmc.export.folder import can_be_explained, read_config
from prime_xmc.export.label_choice import are_numbers
from prime_xmc.export.predictor import PRECISIONS, Predictor
from prime_xmc.export.scorers import encoder_digest

logger = logging.getLogger(__name__)

_VERSION_LENGTH = 16  # hexadecimal digits

Signature = tuple[tuple[str, int, int, int], ...]
LoadPredictor = Callable[[Path, str], Predictor]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that answers.

    Attributes:
        version: Fingerprint of the files in its folder.
        predictors: Predictor of each scorer that may be asked for; they share encoder, tokenizer and labels.
        scorer: Scorer of requests that name none.
        loaded: Time at which it was loaded.
        folded: Text and uid of each label in lower case, for the search among them.
        uids: Their uids.
        explains: Whether answers can be explained.
        calibrated: Scorers whose answers can have probabilities.
    """

    version: str
    predictors: Mapping[str, Predictor]
    scorer: str
    loaded: datetime
    folded: Sequence[str]
    uids: frozenset[str]
    explains: bool
    calibrated: frozenset[str]

    @property
    def predictor(self) -> Predictor:
        """The predictor of requests that name no scorer."""
        return self.predictors[self.scorer]

    @cached_property
    def uids_are_numbers(self) -> bool:
        """Whether most uids are numbers, so that a number in a text is no id."""
        return are_numbers(self.predictor.labels)

    def find_labels(self, search: str, limit: int, offset: int = 0) -> tuple[list[int], bool]:
        """Return the labels whose text or uid has all words of a search, and whether there are more.

        Args:
            search: Words in any case; without any, all labels are found.
            limit: Most labels to return.
            offset: Number of labels, of those that are found, to leave out at the start.
        """
        words = search.casefold().split()
        found: list[int] = []
        for label_id, text in enumerate(self.folded):
            if not all(word in text for word in words):
                continue
            if offset:
                offset -= 1
            elif len(found) == limit:
                return found, True
            else:
                found.append(label_id)
        return found, False


def load_served(
    directory: Path, load: LoadPredictor, scorers: Sequence[str], *, explain: bool | None = None
) -> ServedModel:
    """Load a model folder, and have each scorer answer once.

    Tables of a model are mapped into memory rather than read, so that a process ends (SIGBUS) when somebody copies
    another model over the files that it uses. The folder is therefore copied to the system's folder for temporary files
    (`TMPDIR`), loaded from there, and the copy deleted, which the system keeps for as long as it is mapped.

    Args:
        directory: Folder of the model.
        load: Function of a folder and a scorer that loads a predictor.
        scorers: Scorers; the first, which may be "auto", is that of requests that name none.
        explain: Whether answers are to be explained, for which more is loaded; None: where the model can.

    Raises:
        FileNotFoundError: If the folder is no exported model, or lacks what a scorer needs.
        ValueError: If it is damaged, is changed while it is read, or cannot be copied.
    """
    read_config(directory)  # says best what a folder that is no model lacks
    with TemporaryDirectory(prefix="prime_xmc-", ignore_cleanup_errors=True) as temporary:
        copy = Path(temporary, directory.name or "model")
        before = signature(directory)
        try:
            shutil.copytree(directory, copy)
        except OSError as error:
            reason = f"{directory} cannot be copied to {temporary}, from where it is loaded: {error}"
            raise ValueError(f"{reason}; TMPDIR names another folder for that") from error
        if before is None or signature(directory) != before:
            raise ValueError(
                f"{directory} was changed while it was read: write it beside, and rename it when it is done"
            )
        try:
            return _load(copy, load, scorers, explain)
        except (ValueError, FileNotFoundError) as error:  # about the copy, which nobody knows
            raise type(error)(str(error).replace(str(copy), str(directory))) from error


def _load(directory: Path, load: LoadPredictor, scorers: Sequence[str], explain: bool | None) -> ServedModel:
    if calibrates := has_calibration(directory):
        read_calibration(directory, encoder_digest(directory))  # a damaged one is an error
    calibrated = set()
    predictors: dict[str, Predictor] = {}
    first: Predictor | None = None
    explains = False
    for scorer in scorers:
        predictor = load(directory, scorer)
        if first is None:
            first = predictor
            explains = can_be_explained(predictor.config) if explain is None else explain
            if predictor.device.type == "cpu":
                predictor.encoder.keep_layers(PRECISIONS[predictor.precision] or torch.float32)
        else:  # one encoder in memory is enough
            predictor.share(first)
        predictor.predict(["a first query"], top_k=1, explain=explains)  # which loads what explains, once and for all
        if calibrates:
            with suppress(ValueError):  # it is of other scorers
                predictor.calibration()
                calibrated.add(predictor.scorer)
        predictors.setdefault(predictor.scorer, predictor)
    assert first is not None
    folded = [f"{text}\n{uid}".casefold() for uid, text in first.labels]
    return ServedModel(
        content_version(directory),
        predictors,
        first.scorer,
        datetime.now(UTC),
        folded,
        frozenset(uid for uid, _ in first.labels),
        explains,
        frozenset(calibrated),
    )


def signature(directory: Path) -> Signature | None:
    """Return what changes with the files of a folder, quick to find out: names, sizes, times and inodes.

    None where the folder is missing, or being replaced just now.
    """
    try:
        if not directory.is_dir():
            return None
        stats = [(path, path.stat()) for path in sorted(directory.rglob("*")) if path.is_file()]
    except OSError:
        return None
    return tuple(
        (path.relative_to(directory).as_posix(), stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats
    )


def content_version(directory: Path) -> str:
    """Return a fingerprint of the names and contents of a folder's files."""
    digest = hashlib.blake2b()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
        digest.update(f"{path.relative_to(directory).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()[:_VERSION_LENGTH]


class ReloadOutcome(NamedTuple):
    """What became of loading the folder again.

    Attributes:
        result: "exchanged" for another model, "unchanged" where the files are those that are served, or "failed".
        version: Model that is served now.
        time: When that was.
        reason: Problem of the folder, where it failed.
    """

    result: Literal["exchanged", "unchanged", "failed"]
    version: str
    time: datetime
    reason: str | None = None


class ModelSlot:
    """Holds the model that is served, and exchanges it.

    A new model is loaded beside the old one, which answers meanwhile; whoever has asked the old one gets its answer. A
    folder that cannot be loaded leaves the old one where it is.

    Args:
        directory: Folder of the model.
        load: Function of a folder and a scorer that loads a predictor.
        scorers: Scorers, see `load_served`.
        explain: Whether answers are to be explained; None: where the model can.
        report: Function that is told of each exchange, and of each that failed.

    Raises:
        FileNotFoundError: If the folder is no exported model, or lacks what a scorer needs.
        ValueError: If it is damaged.
    """

    def __init__(
        self,
        directory: Path,
        load: LoadPredictor,
        scorers: Sequence[str],
        *,
        explain: bool | None = None,
        report: Callable[[ReloadOutcome], None] = lambda _: None,
    ):
        self.directory = directory
        self.report = report
        self.last_reload: ReloadOutcome | None = None
        self._load, self._scorers, self._explain = load, scorers, explain
        self._seen = signature(directory)
        self._lock = asyncio.Lock()
        self.model = load_served(directory, load, scorers, explain=explain)

    async def reload(self) -> ReloadOutcome:
        """Load the folder and serve it from now on, unless it is what is served already, or cannot be loaded."""
        async with self._lock:
            self._seen = signature(self.directory)
            try:
                new = await asyncio.to_thread(self._load_changed)
            except Exception as error:  # whatever is wrong with the new folder, the old model is sound
                logger.error("%s is not served, and the model of before stays: %s", self.directory, error)
                outcome = ReloadOutcome("failed", self.model.version, datetime.now(UTC), str(error))
            else:
                if new is None:
                    outcome = ReloadOutcome("unchanged", self.model.version, datetime.now(UTC))
                else:
                    logger.info("%s: version %s takes over from %s", self.directory, new.version, self.model.version)
                    self.model = new
                    outcome = ReloadOutcome("exchanged", new.version, new.loaded)
            self.last_reload = outcome
            self.report(outcome)
            return outcome

    async def watch(self, seconds: float) -> None:
        """Load the folder whenever its files have changed and then stayed as they are for a while.

        Args:
            seconds: Time between two looks at the folder.
        """
        before = self._seen
        while True:
            await asyncio.sleep(seconds)
            now = await asyncio.to_thread(signature, self.directory)
            if now is not None and now == before and now != self._seen:
                await self.reload()
            before = now

    def _load_changed(self) -> ServedModel | None:
        if self.directory.is_dir() and content_version(self.directory) == self.model.version:
            return None
        return load_served(self.directory, self._load, self._scorers, explain=self._explain)
