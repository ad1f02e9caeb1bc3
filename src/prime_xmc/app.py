"""The Hydra app that all entry points are: what becomes of errors and signals, and of folders of mistyped commands."""

import importlib
import importlib.util
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from prime_xmc.command_line.arguments import UnknownOptionError, prepare
from prime_xmc.command_line.messages import composition_message, option_message, user_message
from prime_xmc.command_line.resuming import expand_resume
from prime_xmc.command_line.system_messages import with_place
from prime_xmc.command_line.targets import check_file_of_run, is_run_folder, take_trust
from prime_xmc.command_line.usage import help_of
from prime_xmc.composing import check_config, known_keys
from prime_xmc.composing import compose as compose  # where scripts of users may import it from
from prime_xmc.conf_files import config_dir, entries
from prime_xmc.printing import send_to_nowhere, visible

PACKAGE = __name__.partition(".")[0]
FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable that asks for complete tracebacks


def run_app(task: str | Callable[[DictConfig], Any], name: str, *, keeps_folder: bool = True) -> None:
    """Run a task with the configuration that conf/<name>.yaml and the command line make, under Hydra.

    An error that the user can mend ends with its message alone, an unknown key or option with a hint after Hydra's own
    words; both exit with status 1, a malformed command line with status 2, and after Ctrl-C and SIGTERM it is 130 and
    143. `HYDRA_FULL_ERROR=1` shows complete tracebacks instead.

    Args:
        task: Function, or "module:function", which is imported when a job starts. It takes the composed configuration;
            what it returns is the objective that a Hydra sweeper optimises.
        name: Entry point: its module in this package, its configuration file and Hydra's name of the job.
        keeps_folder: Whether the run folder stays if the task has left nothing in it.
    """
    _end_quietly_when_interrupted()
    configs = config_dir()
    _answer_at_once(name, configs)
    try:
        here = os.getcwd()
    except FileNotFoundError:
        sys.stderr.write("the current folder has been removed: change to one that is there\n")
        sys.exit(1)
    take_trust(sys.argv)
    if here not in sys.path and not sys.flags.safe_path:
        sys.path.append(here)  # where `python -m` finds modules, so that console scripts find them too
    try:
        sys.argv[1:] = expand_resume(sys.argv[1:], name, configs)
        short_model = any(entry.key == "model.dir" for entry in entries(configs / f"{name}.yaml"))
        sys.argv[1:] = prepare(sys.argv[1:], name, configs, short_model=short_model)
        for path in _files_of_runs(sys.argv[1:], name):
            check_file_of_run(path)
    except UnknownOptionError as error:
        sys.stderr.write(f"{option_message(error, known_keys(name))}\n")
        sys.exit(2)
    except (ValueError, OSError, RuntimeError) as error:  # the latter two of folders that cannot be read, or found
        if os.environ.get(FULL_ERROR) == "1":
            raise
        sys.stderr.write(visible(f"{user_message(error) or error}\n"))
        sys.exit(1)
    complete = os.environ.get(FULL_ERROR) == "1"
    failures: list[str] = []
    job = _make_job(task, name, complete, failures, keeps_folder)
    app = hydra.main(version_base="1.3", config_path=str(configs), config_name=name)(job)
    try:
        with _environment(FULL_ERROR, "1"):  # Hydra raises what it would otherwise print
            app()
    except Exception as error:
        if complete:
            raise
        failures.append(_explained(error, name))
    if failures:
        sys.stderr.write(visible("".join(f"{failure}\n" for failure in failures)))
        with suppress(AttributeError, ValueError):  # standard output is closed
            try:
                sys.stdout.flush()
            except OSError:
                send_to_nowhere(sys.stdout)
        sys.exit(1)


def _files_of_runs(arguments: list[str], name: str) -> Iterator[Path]:
    """Yield the configuration files of run folders that a command line names."""
    chosen = get_args_parser().parse_args(arguments)
    for folder in (chosen.config_path, chosen.config_dir):
        if folder is None:
            continue
        path = Path(folder, f"{(chosen.config_name or name).removesuffix('.yaml')}.yaml")
        if is_run_folder(Path(folder)) or is_run_folder(path.parent):  # --config-path <run> --config-name .hydra/config
            yield path


def check_outputs(config: DictConfig, *keys: str) -> None:
    """Check the files that a command writes, before anything takes time.

    None may take the place of a file that the command reads or writes by another key, of a folder or of a device.

    Args:
        config: Configuration of the command, in which any text may be the path of a file.
        keys: Keys of the files that it writes; null where it does not.

    Raises:
        IsADirectoryError: If one is a folder.
        ValueError: If one would take the place of another file, with both keys, or of a device.
    """
    from prime_xmc.files import file_to_replace  # here, because the help need not wait for it

    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    paths = {str(key): os.path.expanduser(value) for key, value in _texts(values)}
    for key in keys:
        if key not in paths:
            continue
        written = os.path.realpath(file_to_replace(Path(paths[key])))
        for other, path in paths.items():
            if other == key or (other not in keys and not os.path.isfile(path)):
                continue
            if os.path.realpath(path) == written or (os.path.exists(written) and _is_same_file(path, written)):
                what = "is written" if other in keys else "is the input itself, which is read"
                raise ValueError(f"{key}={paths[key]} {what} as {other}=, and would be replaced; name another file")


def _is_same_file(path: str, written: str) -> bool:
    return os.path.exists(path) and os.path.samefile(path, written)


def _texts(values: dict[Any, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of all texts of a configuration."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _texts(value, f"{before}{key}.")
        elif isinstance(value, str):
            yield f"{before}{key}", value


def _answer_at_once(name: str, configs: Path) -> None:
    """Print help or version, if that is what was asked for, and exit."""
    arguments = sys.argv[1:]
    if {"--help", "-h"} & {*arguments} and "--hydra-help" not in arguments:
        script = Path(sys.argv[0])
        program = f"python -m {PACKAGE}.{name}" if script.suffix == ".py" else script.name
        sys.stdout.write(help_of(name, configs, program))
        sys.exit(0)
    if "--version" in arguments:
        from prime_xmc import __version__

        sys.stdout.write(f"{PACKAGE} {__version__}\n")
        sys.exit(0)


def _end_quietly_when_interrupted() -> None:
    """Exit without a traceback after a signal; trainings have handlers of their own, but not before they begin."""

    def handle(number: int, frame: FrameType | None) -> None:
        sys.stderr.write("\nInterrupted.\n")
        sys.exit(128 + number)

    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == default:  # else it is ignored, as Ctrl-C in the background of a script
            signal.signal(number, handle)


def _make_job(
    task: str | Callable[[DictConfig], Any], name: str, complete: bool, failures: list[str], keeps_folder: bool
) -> Callable[[DictConfig], Any]:
    """Return what Hydra runs for each configuration.

    Args:
        task: Function, or "module:function".
        name: Entry point.
        complete: Whether errors are shown with complete tracebacks.
        failures: Gets what to print about the error of a single run, which Hydra would print with words of its own.
        keeps_folder: Whether the run folder stays if the task has left nothing in it.
    """

    def job(config: DictConfig) -> Any:
        folder = _RunFolder()
        _follow_streams()
        with _environment(FULL_ERROR, "1" if complete else None):  # as it was, for processes that the job starts
            try:
                check_config(config, OmegaConf.structured(HydraConfig.get()), name)
                if isinstance(task, str):
                    module, _, function = task.partition(":")
                    result = getattr(importlib.import_module(module), function)(config)
                else:
                    result = task(config)
            except Exception as error:
                message = None if complete else user_message(with_place(error, folder.in_words()))
                explained = message or "".join(traceback.format_exception(error)).rstrip()
                if HydraConfig.get().mode is RunMode.MULTIRUN:
                    if message is None:
                        raise
                    raise CompactHydraException(message) from error
                folder.log(explained)
                if complete:
                    raise
                if message is not None:
                    folder.remove_if_unused()
                failures.append(explained)
                return None
        if not keeps_folder and HydraConfig.get().mode is RunMode.RUN:
            folder.remove_if_unused()
        return result

    job.__module__ = f"{PACKAGE}.{name}"  # Hydra names the job after it
    return job


class _CurrentStream:
    """Standard output or error as it is at the time of writing, which a progress bar replaces while it is drawn."""

    def __init__(self, name: str):
        self.name = name

    def write(self, text: str) -> int:
        return getattr(sys, self.name).write(text)

    def flush(self) -> None:
        getattr(sys, self.name).flush()


class _VisibleMessages(logging.Filter):
    """Lets a log show what a terminal would obey, such as escape sequences in names of data."""

    def filter(self, record: logging.LogRecord) -> bool:
        with suppress(Exception):  # a message whose arguments do not fit it: the handler reports it, and goes on
            record.msg, record.args = visible(record.getMessage()), None
        return True


def _tell_once(handler: logging.Handler) -> Callable[[logging.LogRecord], None]:
    """Return what a handler of the log does where it cannot write: a line once, in place of a traceback each time."""
    told = False

    def handle(record: logging.LogRecord) -> None:
        nonlocal told
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logging.Handler.handleError(handler, record)
        elif not told:
            told = True
            place = getattr(handler, "baseFilename", None) or "the output"
            with suppress(OSError, ValueError):
                sys.stderr.write(f"{place}: {error.strerror or error}; the log goes on without it\n")

    return handle


def _follow_streams() -> None:
    """Let lines of the log appear above a progress bar rather than behind it, and a full disk not end in tracebacks."""
    for handler in logging.getLogger().handlers:
        handler.handleError = _tell_once(handler)  # type: ignore[method-assign,assignment]
        for name in ("stdout", "stderr"):
            if isinstance(handler, logging.StreamHandler) and handler.stream is getattr(sys, name):
                handler.stream = _CurrentStream(name)  # setStream would flush, which fails on a full disk
        if not any(isinstance(each, _VisibleMessages) for each in handler.filters):
            handler.addFilter(_VisibleMessages())


class _RunFolder:
    """The folder that Hydra has made for the job that is running."""

    def __init__(self) -> None:
        config = HydraConfig.get()
        self.path = Path(config.runtime.output_dir)
        self.log_name = f"{config.job.name}.log"
        self.subfolder = config.output_subdir
        logs = self.path / self.log_name
        self.own = (self.subfolder, self.log_name, "run.lock")
        self.is_new = (
            self.subfolder is not None
            and self.path != Path.cwd()
            and {entry.name for entry in self.path.iterdir()} <= {*self.own}
            and not (logs.is_file() and logs.stat().st_size)
        )

    def in_words(self) -> str | None:
        """Return where a file may be of which it is only known that it cannot be written; None without a folder."""
        return None if self.subfolder is None else f"the output, or a file in {self.path}"

    def log(self, message: str) -> None:
        """Write an error to the log in the folder; the terminal shows it anyway."""
        record = logging.LogRecord(PACKAGE, logging.ERROR, "", 0, message, None, None)
        for handler in self._handlers():
            handler.handle(record)

    def remove_if_unused(self) -> None:
        """Remove the folder, and empty ones above it, if it was new and nothing has been written to it since."""
        if not self.is_new or not self.path.is_dir():  # somebody has removed it
            return
        for path in self.path.rglob("*"):
            inside = path.relative_to(self.path).parts[0]
            if not path.is_dir() and inside not in self.own:
                return
        for handler in self._handlers():
            logging.getLogger().removeHandler(handler)
            handler.close()
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # the first one that is not empty
            for parent in self.path.parents:
                if not parent.is_relative_to(Path.cwd()) or parent == Path.cwd():
                    break
                parent.rmdir()

    def _handlers(self) -> list[logging.FileHandler]:
        handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.FileHandler)]
        return [each for each in handlers if Path(each.baseFilename).parent == self.path]


def _explained(error: Exception, name: str) -> str:
    """Return what to print about an error that has left Hydra."""
    if isinstance(error, ConfigCompositionException | OverrideParseException):
        return composition_message(error, known_keys(name))
    if isinstance(error, HydraException):
        return str(error)
    return (
        user_message(with_place(error, _where_hydra_writes(error)))
        or "".join(traceback.format_exception(error)).rstrip()
    )


def _where_hydra_writes(error: Exception) -> str | None:
    """Return the place where Hydra was writing when it raised an error, None for errors of anything else."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "hydra.core.utils" and "output_dir" in frame.f_locals:
            return f"a file in {frame.f_locals['output_dir']}"
    return None


@contextmanager
def _environment(variable: str, value: str | None) -> Iterator[None]:
    """Set or unset an environment variable for a while."""
    before = os.environ.pop(variable, None)
    if value is not None:
        os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
