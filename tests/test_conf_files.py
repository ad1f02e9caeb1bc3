"""Where the configuration files are, and the reader of their comments."""

from pathlib import Path

import pytest

from prime_xmc.conf_files import Entry, Group, all_entries, config_dir, entries, groups, head, is_command, starts_from

BASE = """\
# @package _global_
# What it does,
# in two lines.
# python -m prime_xmc.train seed=2
defaults:
  - loss: prime  # training loss
  - override hydra/job_logging: stdout
  - _self_
  - experiment: null

seed: 0  # of it all
# over the key
dir: ${oc.env:A,"#1"}
bank:  # a table
  place: device  # where
  sizes: [1, 2]  # two of them
  names:
    - a
hydra:
  run: {dir: .}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "more.yaml").write_text("# More.\ndefaults:\n  - base\n  - _self_\nseed: 1  # of more\nown: x\n")
    return tmp_path


def test_the_clone_has_its_configuration():
    assert (config_dir() / "train.yaml").is_file()


def test_the_head_is_what_stands_on_top(conf):
    assert head(conf / "base.yaml") == ["What it does,", "in two lines.", "python -m prime_xmc.train seed=2"]
    assert [is_command(line) for line in head(conf / "base.yaml")] == [False, False, True]


def test_keys_have_their_defaults_and_comments(conf):
    assert entries(conf / "base.yaml") == [
        Entry("seed", "0", "of it all"),
        Entry("dir", '${oc.env:A,"#1"}', "over the key"),
        Entry("bank", "", "a table"),
        Entry("bank.place", "device", "where"),
        Entry("bank.sizes", "[1, 2]", "two of them"),
        Entry("bank.names", "[a]", ""),
    ]


def test_groups_are_those_of_the_defaults_list(conf):
    expected = [Group("loss", "prime", "training loss"), Group("experiment", "null", "")]
    assert groups(conf / "base.yaml") == groups(conf / "more.yaml") == expected
    assert starts_from(conf / "more.yaml") == ["base"]


def test_a_file_may_choose_otherwise_than_the_file_that_it_starts_from(conf):
    (conf / "other.yaml").write_text("# Other.\ndefaults:\n  - base\n  - override experiment: paper\n  - _self_\n")
    assert groups(conf / "other.yaml") == [Group("loss", "prime", "training loss"), Group("experiment", "paper", "")]


def test_a_file_has_the_keys_of_the_file_that_it_starts_from(conf):
    keys = {entry.key: (entry.default, entry.comment) for entry in all_entries(conf / "more.yaml")}
    assert keys["seed"] == ("1", "of more")
    assert keys["bank.place"] == ("device", "where")
    assert keys["own"] == ("x", "")
