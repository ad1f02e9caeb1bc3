"""The Hydra app that all entry points are: resolvers, what becomes of errors, and run folders of mistyped commands."""

import importlib
import importlib.util
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from prime_xmc.command_line.arguments import UnknownOptionError, prepare, prepare_settings
from prime_xmc.command_line.checks import all_keys, check_groups, check_used, check_values
from prime_xmc.command_line.messages import composition_message, dotted, option_message, user_message
from prime_xmc.command_line.migration import add_keys, update_targets, wrap_logger
from prime_xmc.command_line.resuming import expand_resume
from prime_xmc.command_line.system_messages import with_place
from prime_xmc.command_line.targets import check_file_of_run, check_targets, is_run_folder, take_trust
from prime_xmc.command_line.usage import help_of
from prime_xmc.conf_files import config_dir, entries, groups
from prime_xmc.printing import send_to_nowhere, visible

PACKAGE = __name__.partition(".")[0]
FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable that asks for complete tracebacks


def package_folder(location: str) -> str:
    """Return the folder of data files that an installed package carries, without running the package's code.

    In the configuration files: `${package:<name>/<path>}`.

    Raises:
        ValueError: The package is not installed or has no such folder.
    """
    package, _, path = location.partition("/")
    spec = importlib.util.find_spec(package)  # locates a top-level package without importing it
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {package} is not installed: pip install {package.replace('_', '-')}")
    folder = Path(spec.origin).parent / path
    if not folder.is_dir():
        raise ValueError(f"the package {package} has no folder {path}: expected {folder}")
    return str(folder)


def native_precision(accelerator: str) -> str:
    """Return Lightning's name of the fastest precision that the machine computes natively.

    In the configuration files: `${native_precision:cpu}`.
    """
    from prime_xmc.model import precision  # torch takes seconds to import

    return precision.native_precision(accelerator)


def by_device(accelerator: str, cpu: Any, gpu: Any) -> Any:
    """Return the one of two values that is for the device of an accelerator, as Lightning calls it.

    In the configuration files: `${by_device:${trainer.accelerator},4,20}`.
    """
    if accelerator == "auto":
        import torch  # takes seconds

        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    return cpu if accelerator == "cpu" else gpu


def default_free_vectors(num_labels: int) -> int:
    """Return the number of free vectors for some labels, which configurations of version 0.1.0 ask for.

    They write `${free_vectors:${dataset.num_labels}}`; today's leave the key null.
    """
    from prime_xmc.data.fitting import free_vectors  # not before it is needed: commands start faster

    return free_vectors(num_labels)


# replace: a test process imports this module afresh for another copy of the package
OmegaConf.register_new_resolver("package", package_folder, replace=True)
OmegaConf.register_new_resolver("native_precision", native_precision, replace=True)
OmegaConf.register_new_resolver("by_device", by_device, replace=True)
OmegaConf.register_new_resolver("free_vectors", default_free_vectors, replace=True)
# A training that is shorter than the interval validates after its last epoch. null is no validation by epochs.
OmegaConf.register_new_resolver(
    "validation_interval", lambda every, last: min(every, last) if every and last and last > 0 else every, replace=True
)
# Layers can stay frozen where they are pre-trained and the implementation can freeze them.
OmegaConf.register_new_resolver(
    "frozen_layers",
    lambda number, implementation, pretrained: number if implementation == "packed" and pretrained else 0,
    replace=True,
)
# Half of what is to follow the size of the data is not null itself: it would pass for the whole of it.
OmegaConf.register_new_resolver("half", lambda number: "half" if number is None else number // 2, replace=True)


def _job_folder(*, _root_: DictConfig) -> str:
    """Return what `training.sweeps.job_folder` does; that module takes the place of this when it is imported."""
    return importlib.import_module("prime_xmc.training.sweeps").job_folder(_root_=_root_)


if not OmegaConf.has_resolver("job_folder"):  # asked for before a job, and with it that module, is started
    OmegaConf.register_new_resolver("job_folder", _job_folder)


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


def compose(name: str, overrides: list[str]) -> DictConfig:
    """Return the configuration that conf/<name>.yaml and overrides make, within an entry point or without one."""
    return _compose(name, prepare_settings(overrides, name, config_dir()))


@contextmanager
def own_configs() -> Iterator[None]:
    """Let Hydra compose from the files of this package, within a Hydra application or without one."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
            yield
    finally:
        GlobalHydra.instance().hydra = before  # not the instance of before, of which Hydra has made a copy


def update_config(config: DictConfig, name: str = "train") -> None:
    """Bring a configuration of an earlier version, such as that of a run folder, up to this one; it is changed.

    Args:
        config: The configuration.
        name: Entry point that it is of.
    """
    update_targets(config)
    wrap_logger(config)
    with own_configs():
        add_keys(config, hydra.compose(name, ["dataset=custom"] if "dataset" in config else []))


def check_config(config: DictConfig, hydra_config: DictConfig, name: str) -> None:
    """Bring a composed configuration up to date and check what was set by hand, before anything is done with it.

    Args:
        config: The configuration; it is changed where it is of an earlier version, or lacks a group that may be absent.
        hydra_config: Hydra's part of it.
        name: Entry point that it is of.

    Raises:
        ValueError: If a needed group was left out, or a value is of the wrong type or out of bounds.
    """
    configs = config_dir()
    (main,) = [source.path for source in hydra_config.runtime.config_sources if source.provider == "main"]
    known = [group.name for group in groups(configs / f"{name}.yaml")]
    if Path(main) == configs:
        check_groups(config, known)
    if Path(main) == configs or is_run_folder(Path(main)):  # a run of any version has all groups but those left out
        with open_dict(config):
            for group in {"logger", "callbacks"} & set(known) - {str(key) for key in config}:
                config[group] = None if group == "logger" else {}
    if Path(main) != configs:
        update_config(config, name)
    chosen = {str(group).partition("@")[0] for group in hydra_config.runtime.choices}
    overrides = OverridesParser.create().parse_overrides([str(each) for each in hydra_config.overrides.task])
    _check_sources(config, hydra_config, [each.key_or_group for each in overrides])
    check_used(config, overrides, {str(group): str(option) for group, option in hydra_config.runtime.choices.items()})
    _check_settings(config, hydra_config.job.config_name, overrides, chosen, name)
    if Path(main) == configs:
        _check_experiment(config, hydra_config, overrides, configs)
    of_others = Path(main) != configs or any(
        source.provider == "command-line" for source in hydra_config.runtime.config_sources
    )
    if of_others:  # what somebody's own files set is not on the command line
        with own_configs():
            defaults = hydra.compose(name, ["dataset=custom"] if "dataset" in config else [])
        check_values(config, defaults, all_keys(config), name)
    for key in ("classify", "classify_settings"):
        if isinstance(config.get(key), ListConfig) and len(config[key]):
            settings = prepare_settings([str(each) for each in config[key]], "classify", configs)
            given = OverridesParser.create().parse_overrides(settings)
            second = _compose("classify", settings)
            stage_groups = {group.name for group in groups(configs / "classify.yaml")}
            try:
                check_used(second, given, {})
                _check_settings(second, "classify", given, stage_groups, "classify")
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error


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


def _check_experiment(
    config: DictConfig, hydra_config: DictConfig, overrides: Sequence[Override], configs: Path
) -> None:
    """Refuse an experiment of this package that replaces what makes another system than PRIME this system.

    Experiments of somebody's own may: they have been written for it.

    Raises:
        ValueError: If it does, with the settings.
    """
    system, experiment = (hydra_config.runtime.choices.get(group) for group in ("model", "experiment"))
    if system in (None, "prime", "prime_lite") or not (configs / "experiment" / f"{experiment}.yaml").is_file():
        return
    given = [each for each in overrides if each.key_or_group != "experiment"]
    of_system, of_prime = (
        _compose(hydra_config.job.config_name, [str(each.input_line) for each in kept])
        for kept in (given, [each for each in given if each.key_or_group != "model"])
    )
    differing = [
        key
        for key in _different(of_system, of_prime, ("model", "loss", "sampling", "optimizer"))
        if OmegaConf.select(config, key) != OmegaConf.select(of_system, key)
    ]
    if differing:
        raise ValueError(
            f"experiment={experiment} replaces settings that make model={system} this system ({', '.join(differing)}): "
            "leave the experiment out, or set on the command line what is to be another"
        )


def _different(config: DictConfig, other: DictConfig, groups: Sequence[str]) -> list[str]:
    """Return the dotted keys of some groups whose values differ, those that one of the two lacks left out."""
    keys = []
    for group in groups:
        nodes = [each.get(group) for each in (config, other)]
        if not all(isinstance(node, DictConfig) for node in nodes):
            continue
        for key in nodes[0]:
            if key in nodes[1] and not OmegaConf.is_missing(nodes[0], key) and nodes[0][key] != nodes[1][key]:
                keys.append(f"{group}.{key}")
    return keys


def _check_settings(
    config: DictConfig, config_name: str, overrides: list[Override], chosen: set[str], command: str
) -> None:
    """Check the values that a command line sets.

    Args:
        config: The composed configuration.
        config_name: Name of its file.
        overrides: What the command line sets and chooses.
        chosen: Groups of which it chooses an option.
        command: Entry point whose keys they are.
    """
    settings = [each for each in overrides if each.key_or_group not in chosen and not each.is_delete()]
    if settings:
        choices = [str(each.input_line) for each in overrides if each.key_or_group in chosen]
        reference = _compose(config_name, choices)
    else:
        reference = config
    check_values(config, reference, [each.key_or_group for each in settings], command)


def _check_sources(config: DictConfig, hydra_config: DictConfig, given: list[str]) -> None:
    """Check the targets of a configuration of a run folder, and those of its second stage.

    Args:
        config: The configuration.
        hydra_config: Hydra's part of it.
        given: Keys and groups that the command line sets.

    Raises:
        ValueError: If it names one that is no part of a training.
    """
    for source in hydra_config.runtime.config_sources:
        named = Path(source.path or ".", f"{hydra_config.job.config_name}.yaml")
        of_run = named.is_file() and is_run_folder(named.parent)
        if not source.path or not (of_run or is_run_folder(Path(source.path))):
            continue
        check_targets(config, given, config_dir(), source.path)
        for key in {"classify", "classify_settings"} - set(given):
            if isinstance(config.get(key), ListConfig):
                second = compose("classify", [str(setting) for setting in config[key]])
                check_targets(second, [], config_dir(), f"{source.path}, {key}")


def _compose(name: str, overrides: list[str]) -> DictConfig:
    """Return what the running application has under a name or, if that is nothing, as in a run folder, this package."""
    running = GlobalHydra.instance()
    if running.is_initialized() and any(source.is_config(name) for source in running.config_loader().get_sources()):
        return hydra.compose(name, overrides)
    with own_configs():
        return hydra.compose(name, overrides)


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


def known_keys(name: str) -> list[str]:
    """Return the groups and the dotted keys of an entry point's configuration as it is without overrides."""
    with own_configs():
        composed = OmegaConf.to_container(hydra.compose(config_name=name), resolve=False)
    return sorted({*(group.name for group in groups(config_dir() / f"{name}.yaml")), *dotted(composed)})
