"""The help, as it is made from the configuration files."""

import tomllib
from pathlib import Path

import pytest

from prime_xmc.command_line.usage import COMMANDS, help_of, overview
from prime_xmc.conf_files import config_dir, entries, groups

CONF = config_dir()


def test_the_commands_are_those_that_are_installed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["scripts"]) == {f"prime-xmc-{name}" for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_shows_an_example_and_every_key_with_what_it_means(name):
    text = help_of(name, CONF, f"prime-xmc-{name}")
    assert f"Usage: prime-xmc-{name} " in text
    assert f"python -m prime_xmc.{name} " in text.partition("Example:\n")[2].partition("\n\n")[0]
    for entry in entries(CONF / f"{name}.yaml"):
        if entry.default and not entry.key.endswith(("_target_", "_partial_")):
            assert f"\n  {entry.key}={entry.default}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_of_an_entry_point_has_a_comment(name):
    silent = [
        entry.key
        for entry in entries(CONF / f"{name}.yaml")
        if entry.default and not entry.comment and not entry.key.rpartition(".")[2].startswith("_")
    ]
    documented_elsewhere = {"task", "num_labels"} | {key for key in silent if key.partition(".")[0] != key}
    assert set(silent) <= documented_elsewhere


@pytest.mark.parametrize(("name", "given"), [("predict", set()), ("prepare", {"dataset", "encoder"})])
def test_the_help_lists_the_groups_that_are_used_alone(name, given):
    assert {group.name for group in groups(CONF / f"{name}.yaml")} == given
    text = help_of(name, CONF, "x")
    assert ("Groups" in text) == bool(given)
    assert "callbacks" not in text.replace("callbacks.", "")
    assert "experiment" not in text


def test_the_plan_has_the_keys_and_groups_of_training_too():
    text = help_of("plan", CONF, "x")
    assert text.index("\n  probe_steps=") < text.index("\n  seed=0")
    assert "\n  loss=prime " in text
    assert "table6/... (6)" in text


def test_the_overview_names_every_command_and_what_it_does():
    lines = overview(CONF).splitlines()
    for name in COMMANDS:
        assert [line for line in lines if line.startswith(f"  python -m prime_xmc.{name} ")]
