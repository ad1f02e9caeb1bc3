"""What to tell the user about an error: its cause in a line or two, and what to do."""

import difflib
import re
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from prime_xmc.command_line.arguments import UnknownOptionError
from prime_xmc.command_line.system_messages import system_message

_NO_HOME = "Could not determine home directory."  # what pathlib says of ~name where nobody is called so
PACKAGE = __package__.partition(".")[0]
# Groups with an option that takes a folder of one's own, and the keys that name the folder.
OWN_FOLDERS = {"dataset": "dataset=custom dataset.dir=", "encoder": "encoder=local encoder.source="}


def user_message(error: BaseException) -> str | None:
    """Return what to tell the user about an error of bad input, None for any other error (a defect).

    Bad input is what this package itself raises as a ValueError, FileNotFoundError or FileExistsError, or as an
    ImportError where an extra is missing; a value that an object cannot be made from, a mandatory key without a value,
    an interpolation that leads nowhere, a file or stream that cannot be read or written, and what the system refuses,
    such as memory. The place where an error
    was raised counts, because NumPy's compiled code raises ValueError from our lines for what is our mistake.
    """
    if isinstance(error, InstantiationException):
        return _instantiation_message(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: add {error.full_key}=... to the command line"
    if isinstance(error, OmegaConfBaseException):
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, OmegaConfBaseException | None) and (message := user_message(inner)) is not None:
            return message
        return str(error).splitlines()[0] + (f" (at {error.full_key})" if error.full_key else "")
    if (message := system_message(error)) is not None:
        return message
    if isinstance(error, ValueError) and isinstance(error.__cause__, OSError) and not _raised_by_us(error):
        return system_message(error.__cause__)  # logging's "Unable to configure handler", for one
    if isinstance(error, HydraException):
        return str(error)
    if isinstance(error, yaml.YAMLError):  # of a configuration file; the place in it is part of the text
        return " ".join(str(error).split())
    if isinstance(error, RuntimeError) and str(error) == _NO_HOME:
        return "a path begins with ~ and the name of no user of this machine: write ./~... for a name that begins so"
    if type(error).__name__ == "MisconfigurationException":  # of Lightning, which is slow to import
        return str(error)
    if isinstance(error, ValueError | FileNotFoundError | FileExistsError | ImportError) and _raised_by_us(error):
        return str(error)
    return None


def _raised_by_us(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return (frame.f_globals.get("__package__") or "").partition(".")[0] == PACKAGE


def _instantiation_message(error: InstantiationException) -> str | None:
    """Return the cause of an error in an object that a `_target_` of the configuration names."""
    cause: BaseException = error
    while isinstance(cause, InstantiationException) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    place = re.search(r"full_key: (\S+)", str(error))
    key = f"{place[1]}: " if place else ""
    target = re.search(r"target '([^']+)'", str(error))
    name = target[1] if target else "its _target_"
    if isinstance(cause, ImportError | AttributeError) and "locating target" in str(error):
        reason: BaseException = cause
        while reason.__cause__ is not None:
            reason = reason.__cause__
        return (
            f"{key}{name} cannot be imported ({reason}). A module of your own is found in the current folder, in a "
            "folder of the environment variable PYTHONPATH, or installed"
        )
    argument = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
    if isinstance(cause, TypeError) and argument:
        setting = f"{place[1]}.{argument[1]}" if place else argument[1]
        return (
            f"{setting}: {name} takes no such argument. Remove the key (~{setting}). A file of your own has all "
            "keys of the file that its `defaults` name, so name one with the same keys"
        )
    message = user_message(cause) if not isinstance(cause, InstantiationException) else None
    if message is None and isinstance(cause, TypeError | ValueError | InstantiationException):
        message = str(cause).splitlines()[0]
    # what this package raises names the keys itself
    return message if message is None or _raised_by_us(cause) else f"{key}{message}"


def composition_message(error: Exception, keys: Sequence[str]) -> str:
    """Return what to tell the user about a configuration that does not compose, with a hint at what was meant.

    Args:
        error: What Hydra raised.
        keys: Groups and dotted keys of the configuration.
    """
    lines = str(error).partition("Config search path:")[0].strip().splitlines()
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines.append(str(error.__cause__).splitlines()[0])
    if isinstance(error, OverrideParseException):
        lines = [f"{error.override}: this cannot be read as a setting"]
    return "\n".join([*lines, hint(error, keys)]).strip()


def hint(error: Exception, keys: Sequence[str]) -> str:
    """Return a line that names the keys or options nearest to those that Hydra did not find; empty for other errors."""
    if str(getattr(error, "missing_cfg_file", "")).startswith("hydra/"):
        return "hint: sweepers and launchers beyond Hydra's basic ones come with pip install '.[sweeps]' in the clone"
    near: list[str] = []
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        near = [f"{group}={name}" for name in difflib.get_close_matches(option, error.options or ())]
        if group in OWN_FOLDERS and Path(option).is_dir():
            near = [f"{OWN_FOLDERS[group]}{option}"]
    elif isinstance(error, OverrideParseException):
        key, separator, _ = error.override.partition("=")
        if not separator:
            return "hint: settings are written key=value"
        return f"hint: a text with characters that mean something to Hydra takes two pairs of quotes, '{key}=\"...\"'"
    elif isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        wanted = str(error.__cause__.full_key)
        near = [f"{name}=" for name in nearest(wanted, keys) if name != wanted]
    else:
        return ""
    question = f"did you mean {' or '.join(near)}? " if near else ""
    return f"hint: {question}`--cfg job` prints all keys with their values, `--help` what they mean and all groups"


def option_message(error: UnknownOptionError, keys: Sequence[str]) -> str:
    """Return what to tell the user about an option that there is not, such as `--epochs 3`."""
    wanted = error.option.lstrip("-").replace("-", "_")
    near = [f"{key}={error.value or '...'}" for key in nearest(wanted, keys)]
    question = f": did you mean {' or '.join(near)}?" if near else "."
    return f"{error}. Settings are written key=value, without dashes{question} `--help` lists keys, groups and options"


def nearest(wanted: str, keys: Iterable[str]) -> list[str]:
    """Return up to three keys that look like `wanted`, as a whole or in their last part, the nearest first."""

    def likeness(key: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, wanted, key).ratio()
        last = difflib.SequenceMatcher(None, wanted.rpartition(".")[2], key.rpartition(".")[2]).ratio()
        return max(whole, last), whole

    near = [key for key in keys if likeness(key)[0] >= 0.6]
    return sorted(near, key=likeness, reverse=True)[:3]


def dotted(node: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of nested dictionaries, those that hold others included."""
    if not isinstance(node, dict):
        return []
    return [name for key, child in node.items() for name in (f"{prefix}{key}", *dotted(child, f"{prefix}{key}."))]
