"""What a configuration may name by `_target_` where somebody else may have written it: the one in a run folder.

Hydra imports and calls whatever `_target_` names. What the user types, or keeps in configuration files of their own, is
the user's decision. `--config-path <run>/.hydra` runs the configuration of a run folder, which may be a stranger's:
there, a target is made only if it is one of the parts that trainings are built of.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar_parser import parse

from prime_xmc.foreign import shown
from prime_xmc.run_files import TRUST_OPTION, TRUST_VARIABLE

_BESIDE = ("hydra.yaml", "overrides.yaml")  # what Hydra writes beside the configuration of a run
# Classes that a training is built of, by their modules. Functions are not among them but for schedules: torch and
# transformers have some that load and run code. No name has more parts than these, which would lead to other modules.
_ALLOWED = re.compile(
    r"prime_xmc\.(?:model|index|training)\.\w+\.[A-Z]\w*"
    r"|torch\.(?:nn|optim|optim\.lr_scheduler)\.[A-Z]\w*"
    r"|lightning\.pytorch\.(?:callbacks|loggers|profilers|strategies|plugins|accelerators)\.[A-Z]\w*"
    r"|lightning\.pytorch\.Trainer"
    r"|transformers\.(?:get_\w*schedule\w*|Adafactor)"
)
# It installs the packages that it is given, and runs the Python of the folder that it is given.
_NEVER = ("prime_xmc.baselines.environments.LibraryEnvironment",)
# Of expressions in a run folder. oc.decode and oc.create, which are not among them, make settings of texts: a target
# can be hidden in pieces of text.
_RESOLVERS = frozenset(
    {
        *("oc.env", "oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values", "now", "hydra"),
        *("package", "native_precision", "by_device", "free_vectors", "validation_interval", "frozen_layers", "half"),
        *("new_folder", "job_folder"),
    }
)
_HEADER = re.compile(r"\s*#\s*@")  # of a line by which Hydra puts a file elsewhere, such as `# @package hydra`
_WRITTEN = re.compile(r"^\s*_target_: *([\w.]+)", re.MULTILINE)
_IN_SETTING = re.compile(r"_target_['\"]?\s*[=:]\s*['\"]?([^\s,'\"}\])]*)")


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder of configuration files is that of a run, `<run>/.hydra`, under whatever name."""
    return folder.name == ".hydra" or any((folder / name).is_file() for name in _BESIDE)


def check_file_of_run(path: Path) -> None:
    """Refuse a configuration file of a run folder that would set up Hydra itself, which happens before anything else.

    Raises:
        ValueError: If it has keys or a header that no configuration of a run has, or options of Hydra lie beside it.
    """
    if not path.is_file() or is_trusted():
        return
    try:
        text = path.read_text(encoding="utf-8")
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        alias = next((event.anchor for event in events if isinstance(event, yaml.AliasEvent)), None)
        content = yaml.load(text, Loader=yaml.SafeLoader) if alias is None else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise ValueError(f"{path}: not readable as YAML ({reason})") from error
    if alias is not None:
        raise ValueError(
            f"{path} has the alias *{alias}, which no configuration of a run has and which can make a few lines a "
            f"million times as large. {_remedy()}"
        )
    if header := next((line for line in text.splitlines() if _HEADER.match(line)), None):
        raise ValueError(
            f"{path} has the line {shown(header)}, which no configuration of a run has and which can make Hydra run "
            f"code. {_remedy()}"
        )
    if (options := path.parent / "hydra").exists():
        raise ValueError(f"{options}: no run has options of Hydra, which can make it run code. {_remedy()}")
    odd = sorted({"hydra", "defaults"} & set(content)) if isinstance(content, dict) else []
    if odd:
        raise ValueError(
            f"{path} has the key {odd[0]}, which no configuration of a run has and which can make Hydra run code. "
            f"{_remedy()}"
        )


def check_targets(config: DictConfig, given: Collection[str], configs: Path, source: str) -> None:
    """Refuse a configuration of a run folder that names a target which is no part of a training.

    Args:
        config: The composed configuration.
        given: Keys and groups that the command line sets, which are the user's own.
        configs: Folder of this package's configuration files, whose targets are known.
        source: Where the configuration is from, for the message.

    Raises:
        ValueError: With the key and the target, or the expression, which may come to one.
    """
    if is_trusted():
        return
    known = {name for path in configs.rglob("*.yaml") for name in _WRITTEN.findall(path.read_text(encoding="utf-8"))}
    own = [key.partition("@")[0].replace("/", ".") for key in given]
    for key, target in _targets(config, ""):
        if any(key == each or key.startswith(f"{each}.") for each in own):
            continue
        if target in _NEVER or (target not in known and not _ALLOWED.fullmatch(target)):
            raise ValueError(
                f"{source}: {key} is {target!r}, which is no part of a training that is known. Running this "
                f"configuration would import and call it. {_remedy()}"
            )
    for key, text in _expressions(config, ""):
        if not any(key == each or key.startswith(f"{each}.") for each in own) and not _is_known(text, key):
            raise ValueError(
                f"{source}: {key} is {shown(text)}, an expression that can come to a target of any kind. {_remedy()}"
            )


def take_trust(arguments: list[str]) -> None:
    """Take the option by which the user trusts configurations out of the arguments, and note it for all processes."""
    if TRUST_OPTION in arguments:
        arguments.remove(TRUST_OPTION)
        os.environ[TRUST_VARIABLE] = "1"


def is_trusted() -> bool:
    """Return whether the user has said that configurations of run folders are trusted."""
    return os.environ.get(TRUST_VARIABLE) == "1"


def _remedy() -> str:
    return f"If you trust whoever has written the file, add {TRUST_OPTION}"


def _targets(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the value of each target, those in lists of settings for a later stage included."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        place = f"{prefix}{key}"
        raw: Any = node._get_node(key)
        if key == "_target_" and raw is not None and raw._is_missing():
            continue  # which ends with a message of its own
        if key == "_target_":
            try:
                yield place, str(node[key])
            except OmegaConfBaseException as error:
                yield place, f"{OmegaConf.to_container(node, resolve=False)[key]} ({type(error).__name__})"  # type: ignore
        elif isinstance(raw, DictConfig | ListConfig):
            yield from _targets(raw, f"{place}.")
        elif isinstance(value := getattr(raw, "_value", lambda: None)(), str) and "_target_" in value:
            found = _IN_SETTING.findall(value)
            yield from ((place, target) for target in found or [value])


def _expressions(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the text of each value that is computed when it is asked for, or whenever it is copied."""
    if not isinstance(node, DictConfig | ListConfig):
        return
    value = node._value()
    if isinstance(value, str):  # a section that is an expression as a whole
        yield prefix.removesuffix("."), value
    elif isinstance(value, dict | list):
        for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
            raw: Any = node._get_node(key)
            if isinstance(raw, DictConfig | ListConfig):
                yield from _expressions(raw, f"{prefix}{key}.")
            elif isinstance(text := getattr(raw, "_value", lambda: None)(), str) and "${" in text:
                yield f"{prefix}{key}", text


def _is_known(text: str, key: str) -> bool:
    """Return whether an expression comes to no target: those that do are named, and have to be written as they are."""
    if key.endswith("_target_"):
        return False
    try:
        stack: list[Any] = [parse(text.replace("\\", ""))]  # what is escaped is an expression once it has been copied
    except GrammarParseError:
        return False
    while stack:
        part = stack.pop()
        if hasattr(part, "resolverName") and part.resolverName().getText() not in _RESOLVERS:
            return False
        stack += part.getChildren() if hasattr(part, "getChildren") else []
    return True
