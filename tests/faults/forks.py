"""Entry points of prime_xmc in forks of one process that has imported everything: real processes, which end as such.

A fork can be told to send a signal to itself at a named event, or reports the phases that it enters, so that this
process can end it at a moment within one. Events are what the fork does to files under its folder, steps of an
optimizer, and the beginning and end of each phase.
"""

import atexit
import functools
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

STARTING = "start-up"
# Calls that begin a phase, which lasts until they return: (module, attribute, phase).
_PHASES = (
    ("prime_xmc.stages.first_stage", "make_data", "preparation"),
    ("prime_xmc.training.callbacks", "InitialisePrototypes.on_fit_start", "initial embedding"),
    ("lightning.pytorch.loops.fit_loop", "_FitLoop.run", "training"),
    ("prime_xmc.training.callbacks", "RebuildClusters.on_train_epoch_start", "clustering"),
    ("prime_xmc.training.checkpoints", "ShardedCheckpointIO.save_checkpoint", "checkpoint"),
    ("lightning.pytorch.loops.evaluation_loop", "_EvaluationLoop.run", "validation"),
    ("prime_xmc.stages.first_stage", "save_bundle", "export"),
    ("lightning.pytorch", "Trainer.test", "test"),
    ("prime_xmc.stages.first_stage", "later_stages", "second stage"),
    ("prime_xmc.stages.second_stage", "fit_classifiers", "classifiers"),
    ("prime_xmc.stages.later_stages", "fit_classifiers", "classifiers"),
    ("prime_xmc.stages.later_stages", "finish_scorers", "ensemble"),
)
# Files by which a phase is told apart within others.
_BY_FILE = (("/cache/", "cache"), ("/neighbours", "neighbours"), ("/lexical", "lexical"))
PHASES = (STARTING, *dict.fromkeys(phase for *_, phase in _PHASES), *(phase for _, phase in _BY_FILE), "end")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "os.chmod"),
    *("shutil.rmtree", "shutil.copyfile"),
}


class Kill(NamedTuple):
    """A signal that ends a fork.

    Attributes:
        phase: Phase in which it comes.
        number: Signal.
        event: Number of the event of this phase, from 0, before which it comes; None: it comes by time.
        entry: Number of the time that the phase is entered, from 0.
        delay: Seconds after that.
    """

    phase: str
    number: int
    event: int | None = None
    entry: int = 0
    delay: float = 0.0

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        if self.event is not None:
            return f"{name} in {self.phase} before event {self.event}"
        return f"{name} in {self.phase}, entry {self.entry}, after {1000 * self.delay:.0f} ms"


class Ended(NamedTuple):
    """How a fork has ended.

    Attributes:
        status: Exit status, negative for a signal; None: it took too long and was ended.
        output: What it has printed.
        entries: Seconds since its start at which phases were entered, in order.
        events: Number of events of each phase; only of a fork that ended by itself.
        modules: What it has imported besides; likewise.
        seconds: Its duration.
    """

    status: int | None
    output: str
    entries: list[tuple[str, float]]
    events: dict[str, int]
    modules: list[str]
    seconds: float

    @property
    def traceback(self) -> bool:
        """Whether it has printed a traceback, which no message to a user is."""
        return "Traceback (most recent call last)" in self.output

    @property
    def last_line(self) -> str:
        """The last line that it has printed."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "")


def prepare_process() -> None:
    """Import what entry points import and set what forks inherit; once, before the first fork."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "offline",
    }
    for name in ("prime_xmc", "torch", "lightning.pytorch", "transformers", "faiss", *_lazy()):
        importlib.import_module(name)
    import torch

    from prime_xmc.composing import compose

    torch.set_num_threads(1)
    for name in ("train", "classify"):
        compose(name, ["dataset=custom"] if name == "train" else [])  # its grammar is learnt once for all forks


def learn(ended: Ended) -> None:
    """Import what a fork has imported, so that those to come need not."""
    for name in ended.modules:
        with suppress(Exception):  # modules that are made as others are imported
            importlib.import_module(name)


def _lazy() -> list[str]:
    commands = ("train", "classify", "predict", "prepare", "evaluate", "report", "plan", "baseline", "calibrate")
    return [f"prime_xmc.{name}" for name in (*commands, "stages", "training.sweeps", "trained_model", "bundle")]


def run(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    kill: Kill | None = None,
    setup: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
    log: Path | None = None,
    timeout: float = 120,
) -> Ended:
    """Run an entry point in a fork and wait for its end.

    Args:
        module: Entry point, such as "train".
        arguments: Its command line.
        folder: Folder that it works in; changes of files below it are events.
        kill: Signal that ends it; None: nothing does.
        setup: Function that the fork calls first.
        environment: Further environment variables.
        log: File for its output; None: fork.log in the folder.
        timeout: Seconds after which it is ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = log or folder / "fork.log"
    reading, writing = os.pipe()
    sys.stdout.flush()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _fork(module, arguments, folder, log, writing, kill, setup, environment or {})
    os.close(writing)
    listener = _Listener(pid, kill)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        in_time = listener.listen(pipe, started + timeout)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    _, code = os.waitpid(pid, 0)
    status = os.waitstatus_to_exitcode(code) if in_time else None
    seconds = time.monotonic() - started
    return Ended(status, _read(log), listener.entries, listener.events, listener.modules, seconds)


class _Listener:
    """Reads what a fork says through its pipe, and sends the signal that comes by time.

    Attributes:
        entries: Phases that it has entered, with the seconds since its start.
        events: Number of events of each phase.
        modules: What it has imported.
    """

    def __init__(self, pid: int, kill: Kill | None):
        self.pid, self.kill = pid, kill
        self.started = time.monotonic()
        self.due: float | None = None  # time of the signal
        self.entries: list[tuple[str, float]] = []
        self.events: dict[str, int] = {}
        self.modules: list[str] = []

    def listen(self, pipe: RawIOBase, end: float) -> bool:
        """Read until the fork closes the pipe, and return whether it has done so in time."""
        rest = ""
        while time.monotonic() < end:
            if self.due is not None and time.monotonic() >= self.due:
                assert self.kill is not None
                os.kill(self.pid, self.kill.number)
                self.due = None
            wait = 1.0 if self.due is None else max(0.0, self.due - time.monotonic())
            ready, _, _ = select.select([pipe], [], [], wait)
            if not ready:
                continue
            piece = pipe.read(65536)
            if not piece:
                return True
            *lines, rest = (rest + piece.decode()).split("\n")
            for line in lines:
                self._take(*line.split(" ", 1))
        return False

    def _take(self, kind: str, text: str) -> None:
        if kind == "module":
            self.modules.append(text)
        elif kind == "events":
            name, _, count = text.rpartition(" ")
            self.events[name] = int(count)
        elif kind == "phase":
            self.entries.append((text, time.monotonic() - self.started))
            kill = self.kill
            if kill is not None and kill.event is None and kill.phase == text:
                entered = sum(name == text for name, _ in self.entries)
                if entered == kill.entry + 1:
                    self.due = time.monotonic() + kill.delay


def call(function: Callable[..., Any], *arguments: Any, timeout: float = 300) -> Any:
    """Return what a function returns in a fork, plain JSON.

    Raises:
        RuntimeError: If the fork ends otherwise than by returning.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        signal.alarm(int(timeout))
        try:
            text = json.dumps({"result": function(*arguments)})
        except BaseException:
            text = json.dumps({"failure": traceback.format_exc()})
        with os.fdopen(writing, "w") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, code = os.waitpid(pid, 0)
    answer = json.loads(text) if text else {"failure": f"ended with {os.waitstatus_to_exitcode(code)}"}
    if "failure" in answer:
        raise RuntimeError(answer["failure"])
    return answer["result"]


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def _fork(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    log: Path,
    pipe: int,
    kill: Kill | None,
    setup: Callable[[], None] | None,
    environment: dict[str, str],
) -> None:
    """Be the entry point, and end."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1), os.dup2(output, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
        os.environ |= environment
        # a shell starts what runs in its background with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        if module in ("train", "classify"):
            _Watch(folder, pipe, kill).install()
        if setup is not None:
            setup()
        sys.argv = [f"prime_xmc.{module}", *arguments]
        sys.modules[f"prime_xmc.{module}"].main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)


class _Watch:
    """Counts events by phase in a fork, reports phases through a pipe, and sends the signal when its event comes."""

    def __init__(self, folder: Path, pipe: int, kill: Kill | None):
        self.folder, self.pipe, self.kill = f"{folder}/", pipe, kill
        self.phases, self.counts = [STARTING], Counter[str]()
        self.process, self.known = os.getpid(), set(sys.modules)
        self.inside = False

    def install(self) -> None:
        """Wrap the calls, and watch those of the system."""
        for module, attribute, phase in _PHASES:
            owner: Any = importlib.import_module(module)
            *names, name = attribute.split(".")
            for each in names:
                owner = getattr(owner, each)
            setattr(owner, name, self._entering(getattr(owner, name), phase))
        import lightning.pytorch
        import torch

        for owner, name in ((lightning.pytorch.LightningModule, "optimizer_step"), (torch, "save"), (os, "fsync")):
            setattr(owner, name, self._around(getattr(owner, name)))
        sys.addaudithook(self._audit)
        self._say(f"phase {STARTING}")
        atexit.register(self._report)

    def event(self, phase: str | None = None) -> None:
        """Count an event of the phase, the innermost one that was entered by default."""
        if os.getpid() != self.process:  # of a fork of this fork
            return
        phase = phase or self.phases[-1]
        number = self.counts[phase]
        self.counts[phase] += 1
        if self.kill is not None and self.kill.event == number and self.kill.phase == phase:
            os.kill(self.process, self.kill.number)

    def _entering(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def entered(*arguments: Any, **settings: Any) -> Any:
            outer = next((each for each in ("classifiers", "test") if each in self.phases), phase)
            self.phases.append(outer if phase in ("training", "validation", "checkpoint") else phase)
            self._say(f"phase {self.phases[-1]}")
            self.event()
            try:
                return function(*arguments, **settings)
            finally:
                self.event()
                self.phases.pop()
                if phase in ("second stage", "test"):
                    self.phases[0] = "end"  # what is not in a phase from here on
                    self._say("phase end")

        return entered

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def surrounded(*arguments: Any, **settings: Any) -> Any:
            self.event()
            result = function(*arguments, **settings)
            self.event()
            return result

        return surrounded

    def _audit(self, name: str, arguments: tuple) -> None:
        if self.inside or not (name in _CHANGES or (name == "open" and isinstance(arguments[2], int))):
            return
        if name == "open" and not arguments[2] & _WRITES:
            return
        self.inside = True
        try:
            path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
            if not os.path.isabs(path):
                path = os.path.join(os.getcwd(), path)
            if path.startswith(self.folder) and not path.endswith("fork.log"):
                self.event(next((phase for part, phase in _BY_FILE if part in path), None))
        finally:
            self.inside = False

    def _say(self, line: str) -> None:
        if os.getpid() == self.process:
            os.write(self.pipe, f"{line}\n".encode())

    def _report(self) -> None:
        for phase, count in self.counts.items():
            self._say(f"events {phase} {count}")
        for name in sys.modules.keys() - self.known:
            self._say(f"module {name}")
