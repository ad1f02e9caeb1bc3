"""Each key of each command has a kind, which every option of the package's own fits, and which others do not."""

import re
from functools import cache

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prime_xmc.command_line.checks import all_keys, check_values
from prime_xmc.command_line.kinds import KINDS, fits, in_words, kind_of, takes_text, takes_whole
from prime_xmc.command_line.usage import COMMANDS
from prime_xmc.composing import compose
from prime_xmc.conf_files import all_entries, config_dir, groups

VALUES = {
    "null": None,
    "bool": True,
    "int": 7,
    "number": 7.5,
    "text": "some text",
    "section": {"some": "settings"},
    "ints": [1, 2],
    "texts": ["a", "b"],
    "sections": [{"some": "settings"}],
}
# What fits a kind; whatever else there is, does not.
FITTING = {
    "null": {"null"},
    "bool": {"bool"},
    "int": {"int"},
    "number": {"int", "number"},
    "text": {"int", "number", "text"},
    "section": {"section"},
    "list": {"ints", "texts", "sections"},
    "ints": {"ints"},
    "numbers": {"ints"},
    "texts": {"ints", "texts"},
    "any": set(VALUES),
}
# Commands with options that have keys of their own, so that every key of conf/ occurs.
CHOSEN = [(command, ()) for command in COMMANDS] + [
    *(("train", (f"model={name}",)) for name in ("renee", "elmo")),
    *(("train", (f"loss={name}",)) for name in ("kprob", "soft_top_k", "infonce")),
    *(("train", (f"dataset={name}",)) for name in ("custom", "synthetic", "amazon131k", "metamath22k")),
    *(("train", (option,)) for option in ("sampling=labels", "logger=wandb", "logger=tensorboard", "index=hnsw")),
    ("train", ("callbacks=exact_centroids",)),
    *(
        ("baseline", (f"method={name}",))
        for name in ("xr_linear", "attentionxml", "knn", "knn_tfidf", "leml", "occa", "plt")
    ),
]


@cache
def composed(command, option=()):
    return compose(command, list(option))


def place(config, key):
    """Return the section of a key, and its name there."""
    parent, _, name = key.rpartition(".")
    return (OmegaConf.select(config, parent) if parent else config), name


def default_of(config, key):
    section, name = place(config, key)
    try:
        return None if OmegaConf.is_missing(section, name) else OmegaConf.select(config, key)
    except OmegaConfBaseException:  # only the running command has a value
        return None


def keys_of(node, prefix=""):
    """Yield the dotted keys of a configuration, sections included, but for those by which Hydra makes objects."""
    for name in node:
        if name in ("_target_", "_partial_", "_convert_"):
            continue
        yield f"{prefix}{name}"
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from keys_of(child, f"{prefix}{name}.")


def alone(key, value):
    """Return a configuration of one key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return OmegaConf.create(value)


@pytest.mark.parametrize(("command", "option"), CHOSEN)
def test_every_key_refuses_values_of_other_kinds_in_a_line(command, option):
    config = composed(command, option)
    for key in keys_of(config):
        default = default_of(config, key)
        kind = kind_of(key, default, command)
        assert kind is not None, f"{key}: put it into the table of prime_xmc.command_line.kinds"
        fitting = set().union(*(FITTING.get(word, set()) for word in kind.split("|")))
        assert len(fitting) < 7 or kind == "any", f"{key} takes nearly everything"
        for name in VALUES.keys() - fitting:
            with pytest.raises(ValueError, match=rf"^{re.escape(key)}=.*: (expected|a value is needed)") as error:
                check_values(alone(key, VALUES[name]), alone(key, default), [key], command)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_null_is_taken_where_the_comment_of_a_key_speaks_of_it(command):
    config = composed(command)
    for entry in all_entries(config_dir() / f"{command}.yaml"):
        if re.search(r"\bnull\b", entry.comment.split("size null")[0]) and entry.default:
            kind = kind_of(entry.key, default_of(config, entry.key), command)
            assert "null" in kind.split("|"), entry.key


@pytest.mark.parametrize("command", ["train", "classify", "baseline"])
def test_all_options_of_the_package_fit(command):
    """As if they were a user's own files, in which every key is checked."""
    defaults, tried = composed(command), 0
    for group in groups(config_dir() / f"{command}.yaml"):
        for path in sorted((config_dir() / group.name).rglob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            content = OmegaConf.create(text)
            content.pop("defaults", None)
            config = content if "@package _global_" in text else OmegaConf.create({group.name: content})
            check_values(config, defaults, all_keys(config), command)
            tried += len(content)
    assert tried > 100


@pytest.mark.parametrize("key", sorted(key for key in KINDS if "*" not in key))
def test_the_table_has_no_key_that_there_is_not(key):
    """Nor a word that is none."""
    command, _, plain = key.rpartition("/")
    assert any(plain in set(keys_of(composed(name, option))) for name, option in CHOSEN if command in ("", name)), (
        "no command has it"
    )
    assert set(KINDS[key].split("|")) <= {*FITTING, "half", "auto", "all", "warn"}


def test_kinds_in_words():
    assert in_words("int|half|null") == "a whole number, half or null"
    assert in_words("bool") == "true or false"


def test_literals_and_numbers_that_are_none():
    assert fits("half", "int|half|null")
    assert not fits("halves", "int|half|null")
    for value in (float("nan"), float("inf")):
        assert not fits(value, "number")


def test_a_number_is_taken_for_a_text_only_where_nothing_else_is_asked_for():
    assert takes_text("text|null", 5)
    assert not takes_text("int|text|ints", 5)
    assert not takes_text("text|null", None)
    config = OmegaConf.create({"dataset": {"name": "custom"}})
    given = OmegaConf.create({"dataset": {"name": 2026}})
    check_values(given, config, ["dataset.name"])
    assert given.dataset.name == "2026"


def test_arguments_of_a_user_s_own_class_are_not_known():
    defaults = OmegaConf.create({"callbacks": {"memory": {"_target_": "ours.Class", "every_n_steps": 2}}})
    own = OmegaConf.create({"callbacks": {"memory": {"_target_": "theirs.Class", "every_n_steps": "often"}}})
    check_values(own, defaults, ["callbacks.memory._target_", "callbacks.memory.every_n_steps"])
    check_values(own, defaults, all_keys(own))
    own.callbacks.memory._target_ = "ours.Class"
    with pytest.raises(ValueError, match=r"^callbacks\.memory\.every_n_steps=often: expected a whole number"):
        check_values(own, defaults, all_keys(own))


def test_a_number_without_a_fraction_is_taken_for_a_whole_one():
    assert takes_whole("int|null", 1e6)
    assert not takes_whole("int|null", 0.5)
    assert not takes_whole("number|int", 1e6)
    given = OmegaConf.create({"num_labels": 1e6})
    check_values(given, OmegaConf.create({"num_labels": None}), ["num_labels"], "plan")
    assert given.num_labels == 10**6
    assert isinstance(given.num_labels, int)
