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
from omegaconf.errors import OmegaConfBaseException

OPTION = "--trust-config"
VARIABLE = "PRIME_XMC_TRUST_CONFIG"  # the same for the processes that a run starts
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
_WRITTEN = re.compile(r"^\s*_target_: *([\w.]+)", re.MULTILINE)
_IN_SETTING = re.compile(r"_target_['\"]?\s*[=:]\s*['\"]?([^\s,'\"}\])]*)")


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder of configuration files is that of a run, `<run>/.hydra`, under whatever name."""
    return folder.name == ".hydra" or any((folder / name).is_file() for name in _BESIDE)


def check_file_of_run(path: Path) -> None:
    """Refuse a configuration file of a run folder that would set up Hydra itself, which happens before anything else.

    Raises:
        ValueError: If it has keys that no configuration of a run has.
    """
    if not path.is_file() or is_trusted():
        return
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML ({str(error) or 'nested too deeply'})") from error
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
        ValueError: With the key and the target.
    """
    if is_trusted():
        return
    known = {name for path in configs.rglob("*.yaml") for name in _WRITTEN.findall(path.read_text(encoding="utf-8"))}
    own = [key.partition("@")[0].replace("/", ".") for key in given]
    for key, target in _targets(config, ""):
        if any(key == each or key.startswith(f"{each}.") for each in own):
            continue
        if target not in known and not _ALLOWED.fullmatch(target):
            raise ValueError(
                f"{source}: {key} is {target!r}, which is no part of a training that is known. Running this "
                f"configuration would import and call it. {_remedy()}"
            )


def is_trusted() -> bool:
    """Return whether the user has said that configurations of run folders are trusted."""
    return os.environ.get(VARIABLE) == "1"


def _remedy() -> str:
    return f"If you trust whoever has written the file, add {OPTION}"


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
