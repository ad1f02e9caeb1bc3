"""`resume=<run folder>`: the command line that continues a run in its folder, with the settings that it has."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser

from prime_xmc.command_line.arguments import PATH_KEYS, in_quotes, split_options
from prime_xmc.command_line.targets import check_file_of_run, is_trusted
from prime_xmc.conf_files import groups
from prime_xmc.foreign import check_links, shown
from prime_xmc.run_files import (
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    CONFIG,
    METADATA,
    METRICS,
    OVERRIDES,
    TRUST_OPTION,
    key_of,
)

KEY = "resume"
_COMMANDS = ("train", "classify")  # which have runs to continue
_PLACES = ("run_dir", "ckpt_path", "hydra.run.dir", "hydra.sweep.dir")  # which are those of the run


def expand_resume(arguments: Sequence[str], name: str, configs: Path) -> list[str]:
    """Return a command line with what `resume=<run folder>` stands for; others come back as they are.

    The process goes to the folder that the run was started in, if it is there, since settings may name files from
    there; paths on this command line keep their meaning.

    Args:
        arguments: The command line, without the program.
        name: Entry point.
        configs: Folder of the configuration files.

    Raises:
        ValueError: If there is no run of this entry point to continue, or the command line asks for another run.
        SystemExit: With status 0 if the run is finished.
    """
    options, settings = split_options(arguments)
    chosen = [setting for setting in settings if setting.startswith(f"{KEY}=")]
    if not chosen or chosen[-1] == f"{KEY}=null" or name not in _COMMANDS:
        return list(arguments)
    others = [setting for setting in settings if not setting.startswith(f"{KEY}=")]
    parsed = get_args_parser().parse_args(options)
    if parsed.multirun:
        raise ValueError(
            f"{chosen[-1]} continues one run: leave -m out. A sweep goes on by its own command, with "
            "hydra.sweep.dir=<folder of the sweep>"
        )
    if parsed.config_path is not None or parsed.config_name is not None:
        raise ValueError(f"{chosen[-1]} takes the configuration of the run: leave --config-path and --config-name out")
    folder = Path(os.path.abspath(Path(_unquoted(chosen[-1].partition("=")[2])).expanduser()))
    _check_run(folder, name)
    _check_settings(others, configs / f"{name}.yaml")
    if (folder / METRICS).is_file():
        sys.stdout.write(f"The run in {folder} is finished, there is nothing to do.\n")
        if others:
            sys.stdout.write(
                f"To train on from its end with other settings: ckpt_path={folder / CHECKPOINT}, with the command that "
                "began it.\n"
            )
        sys.exit(0)
    checkpoint = next((path for path in (folder / CHECKPOINT, folder / CHECKPOINT_BEFORE) if path.is_file()), None)
    here = in_quotes(str(folder))
    settings = [*map(_absolute, others), f"++{KEY}={here}", f"++run_dir={here}", f"hydra.run.dir={here}"]
    if checkpoint is not None and name == "train":
        settings.append(f"++ckpt_path={in_quotes(str(checkpoint))}")
    _go_to(folder)
    return [
        *options,
        *("--config-path", str(folder / METADATA), "--config-name", CONFIG.stem),
        *settings,
        "hydra.output_subdir=null",  # its files say how the run was begun
    ]


def _check_run(folder: Path, name: str) -> None:
    """Check that a folder has a run of an entry point.

    Raises:
        ValueError: If not.
    """
    if not folder.exists():
        raise ValueError(f"{KEY}={folder}: there is no such folder; expected that of a run")
    if (folder / "multirun.yaml").is_file():
        raise ValueError(
            f"{KEY}={folder} is the folder of a sweep: run its command again with hydra.sweep.dir={folder}, and "
            f"unfinished jobs go on; {KEY}=<folder of a job> continues one of them"
        )
    if not (folder / CONFIG).is_file() or not (folder / OVERRIDES).is_file():
        raise ValueError(
            f"{KEY}={folder}: it has no complete {METADATA}/ with the settings of a run. Expected the folder of a run; "
            "one that ended before they were written is begun again by its own command"
        )
    _check_links(folder)
    check_file_of_run(folder / CONFIG)
    command = _command_of(_read(folder / CONFIG))
    if command != name:
        hint = f": continue it by prime_xmc.{command}" if command in _COMMANDS else ", of which no run can be continued"
        raise ValueError(f"{KEY}={folder} is a run of {shown(command)}{hint}")


def _command_of(config: Mapping[Any, Any]) -> Any:
    """Return the entry point that continues the run of a configuration.

    Its key `task` is the name of a folder, and may be any: with debug=fast, it is debug.
    """
    model = config.get("model")
    if isinstance(model, dict) and "dir" in model:
        return "classify"
    return "train" if "ckpt_path" in config else config.get("task")


def _check_links(folder: Path) -> None:
    """Refuse a run folder with links that lead out of it: a run that goes on writes its log and checkpoints there.

    Those within wandb/ stay: that library keeps its own log elsewhere, and a run that goes on makes a new folder there.

    Raises:
        ValueError: If there is such a link.
    """
    if is_trusted():
        return
    inside = (path.relative_to(folder) for path in folder.rglob("*"))
    try:
        check_links(folder, [str(path) for path in inside if path.parts[0] != "wandb" or len(path.parts) == 1])
    except ValueError as error:
        raise ValueError(f"{KEY}={folder}: {error}, or add {TRUST_OPTION} if you have made the link") from error


def _check_settings(settings: Sequence[str], config: Path) -> None:
    """Check that further settings are values of keys.

    Raises:
        ValueError: If one chooses an option of a group, of which the configuration of a run has none, or a folder.
    """
    names = {group.name for group in groups(config)}
    for setting in settings:
        key = key_of(setting)
        if key.partition("@")[0] in names or "/" in key or setting.startswith("~"):
            raise ValueError(
                f"{setting} chooses among options, and a run that is continued has its settings: give the values that "
                f"are to be others by their keys, such as {key.partition('@')[0]}.<key>=<value>"
            )
        if key in _PLACES:
            raise ValueError(f"{setting}: {KEY}= continues a run in its own folder, from its newest checkpoint")


def _absolute(setting: str) -> str:
    """Return a setting whose path, if it names one, does not depend on the current folder.

    An encoder that is not there is one of the hub, and expressions are of the configuration.
    """
    key, _, value = setting.partition("=")
    name = key.lstrip("+")
    if name not in PATH_KEYS or value in ("", "null", "???"):
        return setting
    path = Path(_unquoted(value)).expanduser()
    if not path.exists() and (name == "encoder.source" or "${" in value or value.startswith(("{", "["))):
        return setting
    return f"{key}={in_quotes(str(path.absolute()))}"


def _go_to(folder: Path) -> None:
    """Go to the folder that a run was started in, if it is there."""
    path = folder / METADATA / "hydra.yaml"
    hydra = _read(path).get("hydra") if path.is_file() else None
    runtime = hydra.get("runtime") if isinstance(hydra, dict) else None
    started_in = runtime.get("cwd") if isinstance(runtime, dict) else None
    if isinstance(started_in, str) and Path(started_in).is_dir() and Path(started_in).resolve() != Path.cwd():
        sys.stderr.write(f"continuing in {started_in}, where the run was begun\n")
        os.chdir(started_in)
        if not is_trusted():
            os.environ["PYTHONSAFEPATH"] = "1"  # or processes that the run starts would import what lies there
        elif not sys.flags.safe_path:
            sys.path.append(started_in)  # for code of the user's own that the configuration names


def _read(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML ({str(error) or 'nested too deeply'})") from error
    return content if isinstance(content, dict) else {}


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
