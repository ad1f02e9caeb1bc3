"""The folder of a run: one process at a time works in it, and what lies in it is of one run."""

import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from prime_xmc.files import flush, remove_leftovers, write_text
from prime_xmc.run_files import CONFIG, METADATA, METRICS, OVERRIDES, key_of

logger = logging.getLogger(__name__)

LOCK = "run.lock"  # in a run folder: held by the process that works there, whose id it contains
_NO_RUN = "what was here is of no run"  # second line of that file, until a run begins there
BASELINE = "baseline.json"  # in the run folder of a baseline: the settings, which a model folder would tell
_MADE_AT_THE_END = (METRICS, BASELINE, "predictions*.npz", "classifiers", "classify", "unfinished")
_MADE_ON_THE_WAY = ("metrics.csv", "model", "csv", "csv-*", "tensorboard", "checkpoints")
_MADE = (*_MADE_AT_THE_END, *_MADE_ON_THE_WAY)
# in which there can be something half written
_FOLDERS = (".hydra", "checkpoints", "classifiers", "classify", "csv", "model", "tensorboard", "unfinished")
_CHOICES = "hydra.yaml"  # among Hydra's metadata: what was chosen of each group
_OF_A_START = ("resume", "run_dir", "ckpt_path")  # settings that `resume=` adds to those of a run
_IDLE_HOURS = 1  # see `remove_leftovers`


def new_folder(path: str) -> str:
    """Make a folder that no other process has made, and return its path: `path`, or with -2, -3, ... added.

    In the configuration files: `${new_folder:outputs/train/${now:%Y-%m-%d}}`.
    """
    for number in count(1):
        folder = path if number == 1 else f"{path}-{number}"
        try:
            Path(folder).mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("there is always a next number")


def _resolve_new_folder(path: str, *, _root_: DictConfig) -> str:
    """Return `new_folder(path)`, once the configuration is composed.

    OmegaConf also resolves a value when another file replaces it, as conf/plan.yaml does; no folder is made then.
    """
    if OmegaConf.select(_root_, "hydra.runtime.version") is None:  # set when everything is merged
        return path
    cache = OmegaConf.get_cache(_root_)["new_folder"]  # a configuration names one folder, however often it is asked
    if path not in cache:
        cache[path] = new_folder(path)
    return cache[path]


# replace: a test process imports this module afresh for another copy of the package
OmegaConf.register_new_resolver("new_folder", _resolve_new_folder, replace=True)


def folder_of_now(task: str) -> str:
    """Return a folder for a run that is started from Python, named as an entry point names those of its runs."""
    return new_folder(f"outputs/{task}/{datetime.now():%Y-%m-%d_%H-%M-%S}")


def with_run_folder(config: DictConfig) -> DictConfig:
    """Return a configuration whose `run_dir` has a value also where no entry point runs, which would give it one."""
    if HydraConfig.initialized() or not OmegaConf.is_interpolation(config, "run_dir"):
        return config
    return OmegaConf.merge(config, {"run_dir": str(Path(folder_of_now(config.task)).absolute())})  # type: ignore[return-value]


def is_first_process() -> bool:
    """Return whether this process is the first of those that train together, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


class Claim:
    """A run folder that this process alone works in.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = FileLock(folder / LOCK)
        # the metadata of an earlier run, until its results have gone
        self._metadata: dict[Path, bytes] = {}
        self._foreign: list[str] = []  # what looks like results, in a folder that was no run's when it was claimed

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ValueError: If another process has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / LOCK
        if lock.is_file():
            was_used = _NO_RUN not in lock.read_text(encoding="utf-8", errors="replace")
        else:
            was_used = (self.folder / METADATA).exists()
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            holder = lock.read_text(encoding="utf-8").partition("\n")[0].strip() or "unknown"
            raise ValueError(
                f"another process (pid {holder}) is working in the run folder {self.folder}: wait for its end, or give "
                "this run another folder by hydra.run.dir, or run_dir from Python"
            ) from error
        self._foreign = [] if was_used else sorted(path.name for path in self._results(_MADE))
        # the next process has to know, too, when there are the metadata of this one
        lock.write_text(f"{os.getpid()}\n" + (f"{_NO_RUN}\n" if self._foreign else ""), encoding="utf-8")
        # no other run writes here, but other commands may change the model
        left = remove_leftovers(self.folder, idle_hours=_IDLE_HOURS, everywhere=False)
        for name in _FOLDERS:
            left += remove_leftovers(self.folder / name, idle_hours=_IDLE_HOURS, everywhere=True)
        for path in left:
            logger.info("removed %s, which a run that was killed had begun to write", path)

    def keep_metadata(self) -> None:
        """Remember what is about to be overwritten: it belongs to the results, or to a run that can be continued."""
        self._metadata = {path: path.read_bytes() for path in self._files_of_metadata()}

    def record(self, config: DictConfig, *, continued: bool) -> None:
        """Write the configuration where reports and continued runs look for it, unless Hydra has done so.

        With `run_dir=` or from Python, Hydra writes to another folder or not at all. What an earlier run has recorded
        here is replaced then, and put back if this one ends before it begins.

        Args:
            config: The configuration.
            continued: Whether it continues the run of this folder, whose own configuration stays.
        """
        recorded = [self.folder / name for name in (CONFIG, OVERRIDES, METADATA / _CHOICES)]
        hydra = _folder_of_hydra()
        # Hydra's folder: it has written there, or, for a job in a process of its own or resume=, a process before has
        is_recorded = recorded[0].exists() and (continued or hydra == self.folder.resolve())
        if self._lock.is_locked and not is_recorded:
            self.keep_metadata()
            write_text(recorded[0], OmegaConf.to_yaml(config))
            own = None if hydra is None or not _is_of(config, hydra) else hydra / METADATA
            for path in recorded[1:]:
                path.unlink(missing_ok=True)
                if own is not None and (own / path.name).is_file():
                    write_text(path, (own / path.name).read_text(encoding="utf-8"))
            if not recorded[1].exists():
                write_text(recorded[1], "[]\n")
        for path in (*recorded[:2], self.folder / METADATA, self.folder):
            if path.exists():
                flush(path)

    def begin(self, *, continued: bool, trained: bool = False, reads: Sequence[str | Path] = ()) -> None:
        """Remove the results of an earlier run in this folder, because another one begins now.

        Args:
            continued: Whether it continues the run of this folder. What that has written on the way stays then.
            trained: Whether training and test are done, so that all stays that came after them.
            reads: Files or folders that the run was given, which must not go.

        Raises:
            ValueError: If one of these is among the results, or results are of no run: the folder had no traces of one
                when it was claimed.
        """
        if not self._lock.is_locked:  # a further process of a data-parallel run
            self._metadata = {}
            return
        results = [] if trained else self._results(_MADE_AT_THE_END if continued else _MADE)
        for given in reads:
            if any(Path(given).resolve().is_relative_to(path.resolve()) for path in results):
                raise ValueError(
                    f"{given} is a result of an earlier run in {self.folder}, which this run would remove: give it "
                    "another folder by hydra.run.dir, or run_dir from Python"
                )
        if self._foreign and not continued:
            raise ValueError(
                f"{self.folder} is not the folder of a run and has {', '.join(self._foreign)}, which a run there would "
                "remove: give this run a folder of its own by hydra.run.dir, or run_dir from Python"
            )
        (self.folder / LOCK).write_text(f"{os.getpid()}\n", encoding="utf-8")
        self._metadata = {}
        for path in results:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _results(self, patterns: Iterable[str]) -> list[Path]:
        return [path for pattern in patterns for path in self.folder.glob(pattern)]

    def _files_of_metadata(self) -> Iterator[Path]:
        return (self.folder / METADATA).glob("*.yaml")

    def release(self) -> None:
        """Give the folder back; the metadata of results that are still there are put back as they were."""
        if self._metadata:
            for path in list(self._files_of_metadata()):
                path.unlink()
        for path, content in self._metadata.items():
            path.write_bytes(content)
        self._metadata = {}
        self._lock.release()


_claims: dict[Path, Claim] = {}  # of this process


@contextmanager
def claimed(folder: Path) -> Iterator[Claim]:
    """Claim a run folder for this process, unless that has been done before it began.

    The processes that train together share a folder: the first one claims it for all.

    Raises:
        ValueError: If another process works there.
    """
    claim = _claims.pop(folder.absolute(), None)
    if claim is None:
        claim = Claim(folder)
        if is_first_process():
            claim.acquire()
    try:
        yield claim
    finally:
        claim.release()


def claim_early(folder: Path) -> None:
    """Claim a run folder before its metadata are written there, for the run to take over by `claimed`.

    Raises:
        ValueError: If another process works there.
    """
    claim = Claim(folder.absolute())
    if is_first_process():
        claim.acquire()
        claim.keep_metadata()
        _claims[claim.folder] = claim


def give_back() -> None:
    """Give back what was claimed early for a run that ended before it took it over."""
    for folder in list(_claims):
        _claims.pop(folder).release()


class ClaimRunFolder(Callback):
    """Claims the folder of a run before Hydra writes its metadata and its log there."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim it, unless Hydra writes nothing there: the run does it then, or there is none, as in plans.

        Raises:
            SystemExit: If another process works there.
        """
        if config.hydra.output_subdir is None:  # of a command that has no run folder, such as plan
            return
        try:
            claim_early(Path(config.hydra.run.dir))
        except ValueError as error:
            sys.exit(str(error))  # Hydra would turn another exception into a warning

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Give it back, where the run ended before it began."""
        give_back()


def _folder_of_hydra() -> Path | None:
    """Return the folder of Hydra's job; None where Hydra does not run this process."""
    return Path(HydraConfig.get().runtime.output_dir).resolve() if HydraConfig.initialized() else None


def _is_of(config: DictConfig, folder: Path) -> bool:
    """Return whether the job whose metadata Hydra has written to a folder is the one that a configuration is of."""
    path = folder / CONFIG
    return path.is_file() and OmegaConf.select(OmegaConf.load(path), "task") == config.get("task")


def given_settings() -> list[str]:
    """Return the settings of the command line, such as `dataset=go15k`; none where Hydra does not run this process."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def chosen_options() -> dict[str, str | None]:
    """Return the option chosen in each group of the configuration; none where Hydra does not run this process."""
    return dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}


def record_changes(config: DictConfig, folder: Path) -> None:
    """Write down with which other settings a run is continued in its folder, so that they hold from here on.

    Args:
        config: The configuration with these settings.
        folder: Folder of the run.
    """
    known: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    changed: Any = OmegaConf.to_container(config)
    for key in changed.keys() & {*_OF_A_START}:  # a second stage has no ckpt_path
        changed[key] = known.get(key)
    if changed == known:
        return
    given = {key_of(each): each for each in [*OmegaConf.load(folder / OVERRIDES), *given_settings()]}
    overrides = [each for key, each in given.items() if key not in _OF_A_START]
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(changed)))
    write_text(folder / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(overrides)))
