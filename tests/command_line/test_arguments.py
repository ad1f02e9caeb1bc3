"""Arguments before Hydra reads them."""

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from prime_xmc.command_line.arguments import (
    PATH_KEYS,
    UnknownOptionError,
    expand_globs,
    prepare_settings,
    quote_value,
    split_options,
)
from prime_xmc.conf_files import config_dir, entries

ODD = ("a=b", "x,y", "dir (1)", "[x]", "#1", "it's", 'say "a"', "münchen", " blank", "123", "1.5", "true", "a\\", "{a}")


@pytest.mark.parametrize("key", sorted(PATH_KEYS))
@pytest.mark.parametrize("value", ODD)
def test_a_path_is_read_as_it_was_typed(key, value):
    if key == "runs" and value == "[x]":
        pytest.skip("a list of patterns")
    override = OverridesParser.create().parse_override(quote_value(f"{key}={value}", multirun=False))
    assert OmegaConf.create({"x": override.value()}).x == value


@pytest.mark.parametrize("key", ["run_dir", "hydra.run.dir", "hydra.sweep.dir", "encoder.source", "ckpt_path"])
@pytest.mark.parametrize("value", ["~/x", "'~/x'"])  # as it is typed, and from Python
def test_the_home_folder_may_be_written_as_in_a_shell(key, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of mine")
    (setting,) = prepare_settings([f"{key}={value}"], "train", config_dir())
    assert OverridesParser.create().parse_override(setting).value() == "/home/of mine/x"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("encoder.source=~/a,~/b", "encoder.source='/home/a','/home/b'"),
        ("run_dir=a~", "run_dir='a~'"),
        ("run_dir=~", "run_dir=/home"),
        ("run_dir=a,~/b", "run_dir='a','/home/b'"),
        ("dataset.dir=~/a", "dataset.dir='~/a'"),  # expanded where it is read, see there
    ],
)
def test_where_a_path_begins(setting, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home")
    (prepared,) = prepare_settings([setting], "train", config_dir(), multirun=True)
    read = [OverridesParser.create().parse_override(each) for each in (prepared, expected)]
    assert read[0].is_sweep_override() == read[1].is_sweep_override()
    assert prepared.replace("'", "") == expected.replace("'", "")


def test_quoting_again_changes_nothing():
    once = [quote_value(f"output={value}", multirun=False) for value in ODD]
    assert [quote_value(argument, multirun=False) for argument in once] == once


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("ckpt_path=null", "ckpt_path=null"),
        ("hydra.run.dir=outputs/${task}/é", "hydra.run.dir='outputs/${task}/é'"),
        ("runs=[a/**,b]", "runs=[a/**,b]"),
        ("runs=[a=1,b]", "runs=['a=1','b']"),
        ("+dataset.dir=a=b", "+dataset.dir='a=b'"),
        ("logger.name=é", "logger.name='é'"),
        ("dataset.fields=[é, title]", "dataset.fields=['é','title']"),
        ("dataset.clusters={a:1", "dataset.clusters={a:1"),
        ("uids=12", "uids='12'"),
        ("uids=[1.10, 1_0,null]", "uids=['1.10','1_0','null']"),
        ("allow=['a,b',12E4, \"c d\"]", "allow=['a,b','12E4',\"c d\"]"),
        ("exclude=a,b", "exclude='a,b'"),
        ("allow=[a],[b,c]", "allow=[a],[b,c]"),
        ("allow=choice(a,b)", "allow=choice(a,b)"),
        (r"allow=[a\,b]", r"allow=[a\,b]"),
        ("exclude=[]", "exclude=[]"),
        ("exclude=null", "exclude=null"),
        ("seed=3", "seed=3"),
        ("loss", "loss"),
        ("~logger", "~logger"),
    ],
)
def test_what_has_a_meaning_keeps_it(argument, expected):
    assert quote_value(argument, multirun=False) == expected


def test_a_comma_separates_the_paths_of_a_sweep_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert quote_value("dataset.dir=a,b é", multirun=True) == "dataset.dir='a','b é'"
    Path("a,b é").mkdir()
    assert quote_value("dataset.dir=a,b é", multirun=True) == "dataset.dir='a,b é'"


def test_no_comma_sweeps_over_settings_of_hydra():
    assert quote_value("hydra.sweep.dir=a,b", multirun=True) == "hydra.sweep.dir='a,b'"


def test_every_key_that_names_a_path_is_known():
    """By the words of the configuration's comments, which begin with what the value is."""
    named = {
        entry.key
        for path in config_dir().glob("*.yaml")
        for entry in entries(path)
        if re.match(r"(folder|\S* ?file|run folders|<run>)\b", entry.comment)
    }
    # of the task, it is the name of a folder; resume= is taken out before, by `expand_resume`
    assert named - {"task", "resume"} <= PATH_KEYS


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["seed=1", "-m", "loss=a,b"], (["-m"], ["seed=1", "loss=a,b"])),
        (["seed=1", "--cfg", "job", "test=false"], (["--cfg", "job"], ["seed=1", "test=false"])),
        (
            ["--config-dir", "own", "a=1", "--info", "defaults"],
            (["--config-dir", "own", "--info", "defaults"], ["a=1"]),
        ),
    ],
)
def test_options_may_stand_anywhere(arguments, expected):
    assert split_options(arguments) == expected


@pytest.mark.parametrize(("arguments", "value"), [(["--epochs", "3"], "3"), (["--epochs=3"], "3"), (["--epochs"], "")])
def test_an_option_that_there_is_not_is_an_error(arguments, value):
    with pytest.raises(UnknownOptionError) as error:
        split_options(["seed=1", *arguments])
    assert (error.value.option, error.value.value) == ("--epochs", value)


def test_a_group_is_left_out_by_null():
    settings = ["logger=null", "experiment=null", "debug=true", "+trainer.fast_dev_run=true", "ckpt_path=null"]
    expected = ["~logger", "debug='true'", "++trainer.fast_dev_run=true", "ckpt_path=null"]
    assert prepare_settings(settings, "train", config_dir()) == expected


@pytest.fixture
def options(tmp_path: Path) -> Path:
    """A folder of configuration files with the group experiment."""
    for name in ("alone", "table6/a", "table6/b", "table9/deep/c"):
        path = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "conf"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("experiment=glob(*)", "experiment=alone"),
        ("experiment=glob(table6/*)", "experiment=table6/a,table6/b"),
        ("experiment=glob([table6/b,al*])", "experiment=alone,table6/b"),
        ("experiment=glob(**/*,exclude=table6/*)", "experiment=alone,table9/deep/c"),
        ("experiment=glob(include=[table*/**/*],exclude=[*/a,*/b])", "experiment=table9/deep/c"),
        ("+experiment/table6@here=glob(*)", "+experiment/table6@here=a,b"),
        ("unknown=glob(*)", "unknown=glob(*)"),
        ("experiment=glob(", "experiment=glob("),
        ("name='glob(*)'", "name='glob(*)'"),
        ("-m", "-m"),
    ],
)
def test_a_glob_is_the_list_of_the_options_that_it_matches(options, given, expected):
    assert expand_globs(["seed=1,2", given], options) == ["seed=1,2", expected]


def test_a_glob_sees_the_options_of_another_folder_too(options, tmp_path):
    (tmp_path / "own" / "experiment" / "table6").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "table6" / "mine.yaml").touch()
    arguments = ["experiment=glob(table6/[bm]*)"]
    assert expand_globs(arguments, options, str(tmp_path / "own")) == arguments, (
        "brackets are not in Hydra's grammar without quotes"
    )
    arguments[-1] = "experiment=glob('table6/[bm]*')"
    assert expand_globs(arguments, options, str(tmp_path / "own")) == ["experiment=table6/b,table6/mine"]


def test_a_glob_that_matches_nothing_says_what_there_is(options):
    with pytest.raises(
        SystemExit, match=r"experiment=glob\(table7/\*\) matches no option of 'experiment', which has"
    ) as error:
        expand_globs(["experiment=glob(table7/*)"], options)
    assert str(error.value).splitlines()[1:] == ["\talone", "\ttable6/a", "\ttable6/b", "\ttable9/deep/c"]


@pytest.mark.parametrize("setting", ["loss=5", "loss=true", "optimizer=null"])
def test_a_group_of_another_command_has_no_such_options(setting):
    with pytest.raises(
        ValueError, match=rf"^{setting}: prime_xmc.classify does not choose an option of \w+; its settings"
    ):
        prepare_settings([setting], "classify", config_dir())
    assert prepare_settings(["loss.temperature=0.1", "loss={temperature: 0.1}"], "classify", config_dir())
