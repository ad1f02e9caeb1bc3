"""Through a real process: a clone in miniature, whose package is configs.py and an entry point beside a small conf/."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import prime_xmc.app
from prime_xmc.app import config_dir, expand_globs

CONF = {
    "train.yaml": "defaults: [dataset: debian18k, loss: triplet, _self_]\nseed: 1\n",
    "dataset/debian18k.yaml": "_target_: prime_xmc.train.Dataset\ndir: /data/debian18k\n",
    "dataset/custom.yaml": "_target_: prime_xmc.train.Dataset\ndir: ???\n",
    "loss/triplet.yaml": "gamma_min: 0.1\ngamma_max: 0.3\n",
}
TRAIN = """
import numpy as np
from hydra.utils import instantiate

from prime_xmc.app import run_app


class Dataset:
    def __init__(self, dir):
        if dir == "nowhere":
            raise FileNotFoundError("nowhere/trn.json.gz does not exist: set dataset.dir to the raw files")


def run(config):
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}: take one that is not negative")
    if config.seed == 13:
        np.reshape([1, 2, 3], (2, 2))
    instantiate(config.dataset)
    print(config.dataset.dir, config.seed)


if __name__ == "__main__":
    run_app(run, "train")
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "prime_xmc"
    package.mkdir(parents=True)
    shutil.copy(prime_xmc.app.__file__, package)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(TRAIN)
    for name, text in CONF.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def train(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prime_xmc.train", *arguments],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": str(clone / "src")} | environment,
        capture_output=True,
        text=True,
    )


def test_the_clone_has_its_configuration():
    assert (config_dir() / "train.yaml").is_file()


def test_composes_and_runs(clone):
    done = train(clone, "seed=3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "/data/debian18k 3\n", "")


def test_the_job_is_named_after_the_entry_point(clone):
    assert train(clone, "--cfg", "hydra", "--package", "hydra.job").stdout.count("\nname: train\n") == 1


def test_own_config_folder_adds_to_the_groups(clone):
    own = clone / "own" / "dataset" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("dir: /data/mine\n")
    assert train(clone, "--config-dir", "own", "dataset=mine").stdout == "/data/mine 1\n"


@pytest.mark.parametrize(
    ("override", "words", "question"),
    [
        ("data=custom", "Key 'data' is not in struct", "did you mean dataset=? "),
        ("loss.gama_min=1", "Key 'gama_min' is not in struct", "did you mean loss.gamma_min= or loss.gamma_max=? "),
        ("gamma_max=1", "Key 'gamma_max' is not in struct", "did you mean loss.gamma_max= or loss.gamma_min=? "),
        ("zzz=1", "Key 'zzz' is not in struct", ""),
        (
            "dataset=debian",
            "Available options in 'dataset':\n\tcustom\n\tdebian18k",
            "did you mean dataset=debian18k? ",
        ),
        ("dataset=zzz", "Available options in 'dataset':\n\tcustom\n\tdebian18k", ""),
    ],
)
@pytest.mark.parametrize("mode", [(), ("--multirun",)], ids=["run", "multirun"])
def test_unknown_key_or_option_gets_a_hint_after_hydras_words(clone, mode, override, words, question):
    done = train(clone, *mode, override)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"hint: {question}`--cfg job`")


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
    arguments = ["-m", "--config-dir", str(tmp_path / "own"), "experiment=glob(table6/[bm]*)"]
    assert expand_globs(arguments, options) == arguments, "brackets are not in Hydra's grammar without quotes"
    arguments[-1] = "experiment=glob('table6/[bm]*')"
    assert expand_globs(arguments, options) == [*arguments[:-1], "experiment=table6/b,table6/mine"]


def test_a_glob_that_matches_nothing_says_what_there_is(options):
    with pytest.raises(
        SystemExit, match=r"experiment=glob\(table7/\*\) matches no option of 'experiment', which has"
    ) as error:
        expand_globs(["experiment=glob(table7/*)"], options)
    assert str(error.value).splitlines()[1:] == ["\talone", "\ttable6/a", "\ttable6/b", "\ttable9/deep/c"]


def test_a_glob_is_a_sweep_over_files_in_folders(clone):
    (clone / "conf" / "loss" / "more").mkdir()
    for name in ("a", "b"):
        (clone / "conf" / "loss" / "more" / f"{name}.yaml").write_text("gamma_min: 0\n")
    done = train(clone, "-m", "loss=glob(more/*)", "seed=2", "hydra/hydra_logging=none", "hydra/job_logging=none")
    assert (done.returncode, done.stdout) == (0, "/data/debian18k 2\n" * 2)


def test_a_missing_plugin_is_named(clone):
    done = train(clone, "-m", "hydra/launcher=ray", "seed=1,2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("come with pip install 'prime_xmc[sweeps]'")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed is -1: take one that is not negative"),
        ("dataset.dir=nowhere", "nowhere/trn.json.gz does not exist: set dataset.dir to the raw files"),
    ],
    ids=["in the task", "in an object that Hydra makes"],
)
def test_bad_input_ends_with_the_message_alone(clone, override, message):
    done = train(clone, override)
    assert done.returncode == 1
    assert f"\n{message}\n(raised in " in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_shows_the_traceback_on_request(clone):
    done = train(clone, "seed=-1", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: seed is -1" in done.stderr


def test_mandatory_key_without_a_value_is_named(clone):
    done = train(clone, "dataset=custom")
    assert done.returncode == 1
    assert "\ndataset.dir has no value: add dataset.dir=... to the command line\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_keeps_its_traceback(clone):
    done = train(clone, "seed=13")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "cannot reshape array" in done.stderr


def test_a_package_without_configuration_says_what_to_do(clone):
    shutil.rmtree(clone / "conf")
    done = train(clone)
    assert done.returncode == 1
    assert f"expected train.yaml in {clone / 'src' / 'prime_xmc' / 'conf'} (an installed wheel) or in" in done.stderr
