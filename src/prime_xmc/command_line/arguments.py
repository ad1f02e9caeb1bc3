"""What is done with the arguments of a command line before Hydra reads them."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.errors import HydraException

from prime_xmc.conf_files import groups
from prime_xmc.run_files import key_of

# Keys that name a file or a folder. Their values are taken as they are typed, whatever Hydra's grammar makes of them.
PATH_KEYS = {
    *("dataset.dir", "dataset.dir.directory", "dataset.dir.vocabulary", "encoder.source", "model.dir"),
    *("bank.directory", "cache_dir", "envs_dir", "run_dir", "ckpt_path", "hydra.run.dir", "hydra.sweep.dir"),
    *("queries", "labels", "positives", "test_positives"),
    *("input", "output", "predictions", "predictions_output", "classifiers", "runs", "records", "baseline"),
    *("dataset.dir.raw", "dataset.dir.contents", "run", "published"),
}
LIST_KEYS = {"runs"}  # those of them that may name several
# Those of them in which ~ is put into words here. The others keep it until the path is opened: what jobs of a sweep are
# known by is what was typed.
_HOME_KEYS = {"bank.directory", "ckpt_path", "encoder.source", "hydra.run.dir", "hydra.sweep.dir", "run_dir"}
# Keys that name labels, one or several in [...]. What looks like a number, such as 1.10, is a name, too.
_NAME_KEYS = {"allow", "exclude", "uids"}
_NAME = re.compile(r"""\s*'(?:\\.|[^'\\])*'\s*(?=,|$)|\s*"(?:\\.|[^"\\])*"\s*(?=,|$)|[^,]+""", re.DOTALL)
_SETTING = re.compile(r"(?P<sign>\+{0,2})(?P<key>[\w./@-]+)=(?P<value>.*)", re.DOTALL)


def prepare(arguments: Sequence[str], name: str, configs: Path, *, short_model: bool) -> list[str]:
    """Return a command line as Hydra has to see it.

    Args:
        arguments: The command line, without the program.
        name: Entry point.
        configs: Folder of the configuration files.
        short_model: Whether `model=<folder>` is short for `model.dir=<folder>`.
    """
    options, settings = split_options(arguments)
    chosen = get_args_parser().parse_args(options)
    if short_model:
        settings = expand_model(settings)
    settings = expand_globs(settings, configs, chosen.config_dir)
    settings = prepare_settings(settings, name, configs, multirun=chosen.multirun)
    return [*options, *settings, *folders_of_runs(settings, name, configs, chosen.config_path)]


def prepare_settings(settings: Sequence[str], name: str, configs: Path, *, multirun: bool = False) -> list[str]:
    """Return settings as Hydra has to see them.

    Args:
        settings: Settings, key=value.
        name: Entry point.
        configs: Folder of the configuration files.
        multirun: Whether they may be those of a sweep.

    Raises:
        ValueError: If a group that the entry point does not choose from has a value that is no option.
    """
    defaults = {group.name: group.default for group in groups(configs / f"{name}.yaml")}
    prepared = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if value == "null" and key in defaults:
            # Hydra leaves a group out by ~group alone, and only one of which something is chosen
            prepared += [] if defaults[key] == "null" else [f"~{key}"]
        elif key in defaults and (override := _parsed(setting)) and isinstance(override.value(), bool | int | float):
            prepared.append(f"{key}={in_quotes(value)}")  # so that Hydra takes it for an option, and lists all
        elif key not in defaults and key and (configs / key).is_dir() and _is_no_option(setting):
            raise ValueError(
                f"{setting}: prime_xmc.{name} does not choose an option of {key}; its settings are {key}.<name>=<value>"
            )
        else:
            expanded = expand_home(add_or_override(setting), multirun=multirun)
            prepared.append(quote_value(expanded, multirun=multirun))
    return prepared


class UnknownOptionError(ValueError):
    """An option that there is not.

    Attributes:
        option: Option as it was typed.
        value: The argument after it, "" where there is none.
    """

    def __init__(self, option: str, value: str):
        super().__init__(f"there is no option {option}")
        self.option, self.value = option, value


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options of a command line, such as `-m`, and its settings, in whatever order they were typed.

    Raises:
        UnknownOptionError: If an option is none of Hydra's.
        SystemExit: If an option's value is missing or wrong; argparse has said so.
    """
    parser = get_args_parser()
    known, unknown = parser.parse_known_intermixed_args(list(arguments))
    strays = [argument for argument in unknown if argument.startswith("-")]
    if strays:
        option, _, value = strays[0].partition("=")
        following = [*arguments[list(arguments).index(strays[0]) + 1 :], ""][0]
        raise UnknownOptionError(option, value or ("" if following.startswith("-") or "=" in following else following))
    settings = [*known.overrides, *unknown]
    remaining = list(settings)
    options = []
    for argument in arguments:
        if argument in remaining:
            remaining.remove(argument)
        else:
            options.append(argument)
    return options, settings


def expand_model(arguments: Sequence[str]) -> list[str]:
    """Return command line arguments with `model.dir=` for `model=`, which Hydra would take for the choice of a group.

    In training, it is one: conf/model/ has the options.
    """
    prefix = "model="
    return [f"model.dir={a.removeprefix(prefix)}" if a.startswith(prefix) else a for a in arguments]


def folders_of_runs(settings: Sequence[str], name: str, configs: Path, config_path: str | None) -> list[str]:
    """Return settings that put the run of a run folder's own configuration where all runs are.

    What --config-path names, `<run>/.hydra`, has the configuration of the run but not that of Hydra.

    Args:
        settings: The settings of the command line, which go before.
        name: Entry point.
        configs: Folder of the configuration files.
        config_path: What --config-path names; None: it was not given.
    """
    own = yaml.safe_load((configs / f"{name}.yaml").read_text(encoding="utf-8")).get("hydra", {})
    if config_path is None or "sweep" not in own:
        return []
    given = {key_of(setting) for setting in settings}
    folders = {f"hydra.{kind}.{key}": value for kind in ("run", "sweep") for key, value in own[kind].items()}
    return [f"{key}={in_quotes(value.replace('${task}', name))}" for key, value in folders.items() if key not in given]


def _is_no_option(setting: str) -> bool:
    """Return whether the value of a setting is none that Hydra takes for options or for a section of settings."""
    override = _parsed(setting)
    return override is not None and isinstance(override.value(), bool | int | float | None)


def add_or_override(argument: str) -> str:
    """Return `++trainer.x=` for `+trainer.x=`: keys that were to be added in version 0.1.0 are in the files by now."""
    return f"+{argument}" if re.match(r"\+(trainer|callbacks|logger)\.", argument) else argument


def expand_home(argument: str, *, multirun: bool) -> str:
    """Return a setting whose path begins with the folder that `~` or `~name` stands for, as in a shell.

    A shell puts it in at the start of a word alone, and what Hydra gets or Python passes has not seen one.

    Args:
        argument: A setting, key=value.
        multirun: Whether the commas of a value may separate the values of a sweep.
    """
    match = _SETTING.fullmatch(argument)
    if match is None or match["key"] not in _HOME_KEYS:
        return argument
    starts = r"\A|(?<=,)" if multirun else r"\A"
    home = re.compile(rf"(?P<start>(?:{starts})['\"]?)(?P<home>~[^/,'\"]*)")
    value = home.sub(lambda found: found["start"] + os.path.expanduser(found["home"]), match["value"])
    return f"{match['sign']}{match['key']}={value}"


def quote_value(argument: str, *, multirun: bool) -> str:
    """Return a setting whose value Hydra reads as it was typed, if its key names a path or its value is mere text.

    Hydra's grammar gives a meaning to `= , # ( ) [ ]`, quotes, blanks and numbers, and knows no letters beyond ASCII.

    Args:
        argument: A setting, key=value.
        multirun: Whether the commas of a value may separate the values of a sweep.
    """
    match = _SETTING.fullmatch(argument)
    if match is None:
        return argument
    key, value = match["key"], match["value"]
    multirun = multirun and not key.startswith("hydra.")  # Hydra refuses to sweep over its own settings
    if value in ("", "null", "???") or re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL):
        return argument
    if key in _NAME_KEYS:
        return f"{match['sign']}{key}={_names(value, multirun=multirun)}"
    override = _parsed(argument)
    if override is None and re.fullmatch(r"\[[^\[\]{}'\"()]*\]", value) and (key in LIST_KEYS or key not in PATH_KEYS):
        items = ",".join(in_quotes(item.strip()) for item in value[1:-1].split(","))
        return f"{match['sign']}{key}=[{items}]"
    if key not in PATH_KEYS:
        looks_like_text = not re.match(r"[\[{('\"]|\w+\(", value) and not (multirun and "," in value)
        return argument if override is not None or not looks_like_text else _quoted(match, value)
    if not Path(value).expanduser().exists():
        if override is not None and override.is_sweep_override() and multirun:
            return argument
        if key in LIST_KEYS and override is not None and isinstance(override.value(), list):
            return argument
        if multirun and "," in value:
            return f"{match['sign']}{key}={','.join(in_quotes(item) for item in value.split(','))}"
    if override is not None and override.value() == value:
        return argument
    return _quoted(match, value)


def _names(value: str, *, multirun: bool) -> str:
    """Return one name, a list of names or a sweep over them as Hydra reads texts; names in quotes stay as they are."""
    if re.search(r"[({}\\]|\[.*\[", value) and _parsed(f"x={value}") is not None:
        return value  # a function of Hydra's, lists in a sweep, or signs that are escaped
    is_list = value.startswith("[") and value.endswith("]")
    if not is_list and not (multirun and "," in value):
        return in_quotes(value)
    names = [name.strip() for name in _NAME.findall(value[1:-1] if is_list else value) if name.strip()]
    quoted = ",".join(name if re.fullmatch(r"'.*'|\".*\"", name, re.DOTALL) else in_quotes(name) for name in names)
    return f"[{quoted}]" if is_list else quoted


def _quoted(match: re.Match[str], value: str) -> str:
    return f"{match['sign']}{match['key']}={in_quotes(value)}"


def in_quotes(value: str) -> str:
    """Return a value as Hydra reads it as a text on a command line."""
    return QuotedString(value, Quote.single).with_quotes()


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def expand_globs(arguments: Sequence[str], configs: Path, config_dir: str | None = None) -> list[str]:
    """Return settings in which each `group=glob(...)` is the list of the options that it matches.

    Hydra's own glob sees the files of one folder, and not every sweeper knows it. Patterns here are a shell's, over all
    files of the group: `table6/*` are those of a folder, `**/*` all of them.

    Args:
        arguments: The settings of the command line.
        configs: The folder of the configuration files.
        config_dir: Another folder with options, given by --config-dir.

    Raises:
        SystemExit: If a pattern matches nothing, with the options that there are.
    """
    folders = [configs] if config_dir is None else [configs, Path(config_dir)]
    return [_expand_glob(argument, folders) if "glob(" in argument else argument for argument in arguments]


def _expand_glob(argument: str, folders: list[Path]) -> str:
    override = _parsed(argument)
    if override is None:  # Hydra will say so
        return argument
    glob, group = override.value(), override.key_or_group
    if not isinstance(glob, Glob) or not any((folder / group).is_dir() for folder in folders):
        return argument

    def options(patterns: list[str]) -> set[str]:
        roots = [folder / group for folder in folders]
        matches = ((root, path) for root in roots for pattern in patterns for path in root.glob(f"{pattern}.yaml"))
        return {path.relative_to(root).with_suffix("").as_posix() for root, path in matches}

    matching = options(glob.include) - options(glob.exclude)
    if not matching:
        listed = "\n\t".join(sorted(options(["**/*"])))
        sys.exit(f"{argument} matches no option of '{group}', which has\n\t{listed}")
    return f"{override.get_key_element()}={','.join(sorted(matching))}"
