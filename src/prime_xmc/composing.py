"""Configurations composed from this package's files, brought up to date and checked as a whole."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

import prime_xmc.resolvers  # noqa: F401  registers what configurations ask for
from prime_xmc.command_line.arguments import prepare_settings
from prime_xmc.command_line.checks import all_keys, check_groups, check_used, check_values
from prime_xmc.command_line.messages import dotted
from prime_xmc.command_line.migration import add_keys, update_targets, wrap_logger
from prime_xmc.command_line.targets import check_targets, is_run_folder
from prime_xmc.conf_files import config_dir, groups
from prime_xmc.run_files import goes_on


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
    _check_settings(config, hydra_config.job.config_name, overrides, chosen, name, _searchpath(hydra_config))
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


def known_keys(name: str) -> list[str]:
    """Return the groups and the dotted keys of an entry point's configuration as it is without overrides."""
    with own_configs():
        composed = OmegaConf.to_container(hydra.compose(config_name=name), resolve=False)
    return sorted({*(group.name for group in groups(config_dir() / f"{name}.yaml")), *dotted(composed)})


def _check_experiment(
    config: DictConfig, hydra_config: DictConfig, overrides: Sequence[Override], configs: Path
) -> None:
    """Refuse an experiment of this package that replaces what makes another system than PRIME this system.

    Experiments of somebody's own may: they have been written for it. A run that goes on does so as it was begun.

    Raises:
        ValueError: If it does, with the settings.
    """
    system = hydra_config.runtime.choices.get("model")
    chosen = [str(each.value()) for each in overrides if each.key_or_group == "experiment"]
    experiment = ", ".join(chosen).replace("[", "").replace("]", "").replace("'", "")
    files = [configs / "experiment" / f"{name.strip()}.yaml" for name in experiment.split(",")]
    if system in (None, "prime", "prime_lite") or not any(path.is_file() for path in files) or goes_on(config):
        return
    given = [each for each in overrides if each.key_or_group != "experiment"]
    name, searchpath = hydra_config.job.config_name, _searchpath(hydra_config)
    of_system, of_prime = (
        _settings_of_method(_compose(name, [*searchpath, *(str(each.input_line) for each in kept)]))
        for kept in (given, [each for each in given if each.key_or_group != "model"])
    )
    made = _settings_of_method(config)
    differing = [
        key for key, value in of_system.items() if value != of_prime.get(key, value) and value != made.get(key, value)
    ]
    if differing:
        raise ValueError(
            f"experiment={experiment} replaces settings that make model={system} this system ({', '.join(differing)}): "
            "leave the experiment out, or set on the command line what is to be another"
        )


def _settings_of_method(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a method as they are written, since what follows the data set is not the method's own."""
    nodes = {group: config.get(group) for group in ("model", "loss", "sampling", "optimizer")}
    plain: dict[str, Any] = {
        group: OmegaConf.to_container(node, resolve=False)
        for group, node in nodes.items()
        if isinstance(node, DictConfig)
    }
    return {f"{group}.{key}": value for group, settings in plain.items() for key, value in settings.items()}


def _searchpath(hydra_config: DictConfig) -> list[str]:
    """Return the override by which a command line names further folders of configuration files, if it does."""
    given: Any = OmegaConf.to_container(hydra_config.overrides.hydra, resolve=False)  # others may have expressions
    return [str(each) for each in given if str(each).startswith("hydra.searchpath=")]


def _check_settings(
    config: DictConfig,
    config_name: str,
    overrides: list[Override],
    chosen: set[str],
    command: str,
    searchpath: Sequence[str] = (),
) -> None:
    """Check the values that a command line sets.

    Args:
        config: The composed configuration.
        config_name: Name of its file.
        overrides: What the command line sets and chooses.
        chosen: Groups of which it chooses an option.
        command: Entry point whose keys they are.
        searchpath: Override that names further folders in which options may be.
    """
    settings = [each for each in overrides if each.key_or_group not in chosen and not each.is_delete()]
    if settings:
        choices = [str(each.input_line) for each in overrides if each.key_or_group in chosen]
        reference = _compose(config_name, [*searchpath, *choices])
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
