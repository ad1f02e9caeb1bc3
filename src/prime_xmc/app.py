"""Where the configuration files are, and entry points that say what is wrong with a command line."""

import argparse
import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
)
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue


def config_dir() -> Path:
    """Return the folder of the configuration files: in the package where a wheel put it, in the clone otherwise.

    Raises:
        FileNotFoundError: neither has it.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "conf", package.parents[1] / "conf")
    for candidate in candidates:
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(
        f"no configuration files: expected train.yaml in {candidates[0]} (an installed wheel) or in {candidates[1]} "
        "(a clone). Install prime_xmc from its wheel, or from a complete clone with `pip install -e .`."
    )


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


def default_free_vectors(num_labels: int) -> int:
    """Return the number of free vectors for some labels, which configurations of version 0.1.0 ask for.

    They write `${free_vectors:${dataset.num_labels}}`; today's leave the key null.
    """
    from prime_xmc.data.fitting import free_vectors  # not before it is needed: commands start faster

    return free_vectors(num_labels)


# Where version 0.1.0 had what a configuration names by `_target_`: run folders of that version can be run again.
_MOVED = {
    "prime_xmc.callbacks.": "prime_xmc.training.callbacks.",
    "prime_xmc.checkpoints.": "prime_xmc.training.checkpoints.",
    "prime_xmc.model.optimizers.": "prime_xmc.training.optimizers.",
    "prime_xmc.sweeps.": "prime_xmc.training.sweeps.",
    "prime_xmc.tracking.": "prime_xmc.training.tracking.",
}


def update_targets(config: DictConfig) -> None:
    """Let each `_target_` of version 0.1.0 name the place where the object is now; the configuration is changed."""
    for node in _nodes(config):
        if isinstance(node, DictConfig) and isinstance(target := node.get("_target_"), str):
            for old, new in _MOVED.items():
                if target.startswith(old):
                    with open_dict(node):
                        node["_target_"] = new + target.removeprefix(old)


def _nodes(node: Any) -> Iterator[DictConfig | ListConfig]:
    """Yield all dictionaries and lists of a configuration; interpolations and missing values are left alone."""
    if isinstance(node, DictConfig | ListConfig) and not node._is_none() and not node._is_missing():
        yield node
        keys = list(node) if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            yield from _nodes(node._get_node(key))


# replace: a test process imports this module afresh for another copy of the package
OmegaConf.register_new_resolver("package", package_folder, replace=True)
OmegaConf.register_new_resolver("native_precision", native_precision, replace=True)
OmegaConf.register_new_resolver("free_vectors", default_free_vectors, replace=True)
OmegaConf.register_new_resolver("half", lambda number: None if number is None else number // 2, replace=True)


def run_app(task: Callable[[DictConfig], Any], name: str) -> None:
    """Run `task` with the configuration that conf/<name>.yaml and the command line make, under Hydra.

    An error that the user can mend ends with its message alone, an unknown key or option with a hint after Hydra's own
    words; both exit with status 1. `HYDRA_FULL_ERROR=1` shows the complete traceback instead.

    Args:
        task: takes the composed configuration; what it returns is the objective that a Hydra sweeper optimises.
        name: the entry point: its module in this package, its configuration file and Hydra's name of the job.
    """

    def job(config: DictConfig) -> Any:
        try:
            update_targets(config)
            return task(config)
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            raise CompactHydraException(message) from error  # the one kind that Hydra prints without a traceback

    job.__module__ = f"{__package__}.{name}"  # Hydra names the job after it
    configs = config_dir()
    sys.argv[1:] = expand_globs(sys.argv[1:], configs)
    app = hydra.main(version_base="1.3", config_path=str(configs), config_name=name)(job)
    try:
        app()
    except SystemExit as exit_:
        # Hydra exits while it handles the error that it has printed, which Python keeps as the context.
        if isinstance(exit_.__context__, ConfigCompositionException):
            sys.stderr.write(f"\n{hint(exit_.__context__, configs, name)}\n")
        raise


def compose(name: str, overrides: list[str]) -> DictConfig:
    """Return the configuration that conf/<name>.yaml and overrides make, within an entry point or without one."""
    if GlobalHydra.instance().is_initialized():
        return hydra.compose(name, overrides)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return hydra.compose(name, overrides)


def expand_model(arguments: list[str]) -> list[str]:
    """Return command line arguments with `model.dir=` for `model=`, which Hydra would take for the choice of a group.

    In training, it is one: conf/model/ has the options.
    """
    prefix = "model="
    return [f"model.dir={a.removeprefix(prefix)}" if a.startswith(prefix) else a for a in arguments]


def expand_globs(arguments: list[str], configs: Path) -> list[str]:
    """Return a command line in which each `group=glob(...)` is the list of the options that it matches.

    Hydra's own glob sees the files of one folder, and not every sweeper knows it. Patterns here are a shell's, over all
    files of the group: `table6/*` are those of a folder, `**/*` all of them.

    Args:
        arguments: The command line, without the program.
        configs: The folder of the configuration files; a folder given by --config-dir adds to it.

    Raises:
        SystemExit: If a pattern matches nothing, with the options that there are.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    more = parser.parse_known_args(arguments)[0].config_dir
    folders = [configs] if more is None else [configs, more]
    return [_expand_glob(argument, folders) if "glob(" in argument else argument for argument in arguments]


def _expand_glob(argument: str, folders: list[Path]) -> str:
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:  # Hydra will say so
        return argument
    glob, group = override.value(), override.key_or_group
    if not isinstance(glob, Glob) or not any((folder / group).is_dir() for folder in folders):
        return argument

    def options(patterns: list[str]) -> set[str]:
        groups = [folder / group for folder in folders]
        found = ((root, path) for root in groups for pattern in patterns for path in root.glob(f"{pattern}.yaml"))
        return {path.relative_to(root).with_suffix("").as_posix() for root, path in found}

    matching = options(glob.include) - options(glob.exclude)
    if not matching:
        there = "\n\t".join(sorted(options(["**/*"])))
        sys.exit(f"{argument} matches no option of '{group}', which has\n\t{there}")
    return f"{override.get_key_element()}={','.join(sorted(matching))}"


def user_message(error: Exception) -> str | None:
    """Return what to tell the user about an error of bad input, None for any other error (a defect).

    Bad input is a mandatory key without a value, and a ValueError or FileNotFoundError that this package itself raises;
    the place is named too, because NumPy's compiled code raises ValueError from our lines for what is our mistake.
    """
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: add {error.full_key}=... to the command line"
    if isinstance(error, ValueError | FileNotFoundError):
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        if (frame.f_globals["__package__"] or "").split(".")[0] == __package__:
            return f"{error}\n(raised in {frame.f_code.co_filename}, line {line})"
    return None


def hint(error: ConfigCompositionException, configs: Path, name: str) -> str:
    """Return a line that names the keys or options nearest to those that Hydra did not find.

    Args:
        error: what Hydra raised while it composed the configuration.
        configs: the folder of the configuration files.
        name: the configuration's name, without .yaml.
    """
    if str(getattr(error, "missing_cfg_file", "")).startswith("hydra/"):
        return "hint: sweepers and launchers other than Hydra's basic ones come with pip install 'prime_xmc[sweeps]'"
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        near = [f"{group}={found}" for found in difflib.get_close_matches(option, error.options or ())]
    elif isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        near = [f"{found}=" for found in _nearest(str(error.__cause__.full_key), _keys(configs, name))]
    else:
        near = []
    question = f"did you mean {' or '.join(near)}? " if near else ""
    return f"hint: {question}`--cfg job` prints all keys with their values, `--help` all groups with their options"


def _keys(configs: Path, name: str) -> list[str]:
    """Return the groups and the dotted keys of a configuration as it is without overrides."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(configs)):
        composed = OmegaConf.to_container(hydra.compose(config_name=name), resolve=False)
    groups = [folder.name for folder in configs.iterdir() if folder.is_dir()]
    return sorted({*groups, *_dotted(composed, "")})


def _dotted(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(child, f"{prefix}{key}.")


def _nearest(wanted: str, keys: list[str]) -> list[str]:
    """Return up to three keys that look like `wanted`, as a whole or in their last part, the nearest first."""

    def likeness(key: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, wanted, key).ratio()
        last = difflib.SequenceMatcher(None, wanted.rpartition(".")[2], key.rpartition(".")[2]).ratio()
        return max(whole, last), whole

    near = [key for key in keys if likeness(key)[0] >= 0.6]
    return sorted(near, key=likeness, reverse=True)[:3]
