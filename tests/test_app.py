"""Through a real process: a clone in miniature, whose package is the app and an entry point beside a small conf/."""

import errno
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import prime_xmc.app
from prime_xmc import app

CONF = {
    "train.yaml": "defaults: [dataset: debian18k, loss: triplet, _self_]\nseed: 1\n",
    "dataset/debian18k.yaml": "_target_: prime_xmc.train.Dataset\ndir: /data/debian18k\n",
    "dataset/custom.yaml": "_target_: prime_xmc.train.Dataset\ndir: ???\n",
    "loss/triplet.yaml": "gamma_min: 0.1\ngamma_max: 0.3\n",
}
TRAIN = """
import os

import numpy as np
from hydra.utils import instantiate

from prime_xmc.app import run_app


class Dataset:
    def __init__(self, dir):
        if dir == "nowhere":
            raise FileNotFoundError("nowhere/trn.json.gz does not exist: set dataset.dir to the raw files")


def run(config):
    if config.seed >= 100:
        os.kill(os.getpid(), config.seed - 100)
    if config.seed >= 20:
        raise ValueError(f"seed is {config.seed}: take one below 20")
    if config.seed == 13:
        np.reshape([1, 2, 3], (2, 2))
    instantiate(config.dataset)
    print(config.dataset.dir, config.seed)


if __name__ == "__main__":
    run_app("prime_xmc.train:run", "train")
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "prime_xmc"
    package.mkdir(parents=True)
    original = Path(prime_xmc.app.__file__).parent
    for name in ("app", "carried_encoder", "composing", "conf_files", "foreign", "printing", "resolvers", "run_files"):
        shutil.copy(original / f"{name}.py", package)
    shutil.copytree(original / "command_line", package / "command_line", ignore=shutil.ignore_patterns("__pycache__"))
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


def test_a_glob_is_a_sweep_over_files_in_folders(clone):
    (clone / "conf" / "loss" / "more").mkdir()
    for name in ("a", "b"):
        (clone / "conf" / "loss" / "more" / f"{name}.yaml").write_text("gamma_min: 0\n")
    done = train(clone, "-m", "loss=glob(more/*)", "seed=2", "hydra/hydra_logging=none", "hydra/job_logging=none")
    assert (done.returncode, done.stdout) == (0, "/data/debian18k 2\n" * 2)


def test_a_missing_plugin_is_named(clone):
    done = train(clone, "-m", "hydra/launcher=ray", "seed=1,2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("come with pip install '.[sweeps]' in the clone")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=20", "seed is 20: take one below 20"),
        ("dataset.dir=nowhere", "nowhere/trn.json.gz does not exist: set dataset.dir to the raw files"),
    ],
    ids=["in the task", "in an object that Hydra makes"],
)
def test_bad_input_ends_with_the_message_alone(clone, override, message):
    done = train(clone, override)
    assert done.returncode == 1
    assert done.stderr == f"{message}\n"
    assert not (clone / "outputs").exists(), "a mistyped command leaves no folder"


def test_bad_input_shows_the_traceback_on_request(clone):
    done = train(clone, "seed=20", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: seed is 20" in done.stderr


def test_mandatory_key_without_a_value_is_named(clone):
    done = train(clone, "dataset=custom")
    assert done.returncode == 1
    assert done.stderr == "dataset.dir has no value: add dataset.dir=... to the command line\n"


def test_bad_input_of_a_job_of_a_sweep_is_a_message_too(clone):
    done = train(clone, "seed=20,21", "-m")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "seed is 20: take one below 20"
    assert "Traceback" not in done.stderr


def test_options_may_stand_behind_settings(clone):
    done = train(clone, "seed=2,3", "-m", "hydra/hydra_logging=none", "hydra/job_logging=none")
    assert (done.returncode, done.stdout) == (0, "/data/debian18k 2\n/data/debian18k 3\n")


def test_an_option_that_there_is_not_gets_a_hint(clone):
    done = train(clone, "--gamma-max", "1", "seed=2")
    assert done.returncode == 2
    assert "Settings are written key=value, without dashes: did you mean loss.gamma_max=1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_command_may_keep_no_folder_in_which_it_leaves_nothing(clone):
    code = TRAIN.replace('"train")', '"train", keeps_folder=False)')
    writes = "print(config.dataset.dir, config.seed)\n    config.seed == 3 and open(config.file, 'w').close()"
    (clone / "src" / "prime_xmc" / "train.py").write_text(
        code.replace("print(config.dataset.dir, config.seed)", writes)
    )
    assert train(clone, "seed=2").returncode == 0
    assert not (clone / "outputs").exists()
    assert train(clone, "seed=3", "+file=${hydra:runtime.output_dir}/result").returncode == 0
    (folder,) = clone.glob("outputs/*/*")
    assert {path.name for path in folder.iterdir()} == {"result", ".hydra", "train.log"}


def test_a_folder_with_content_is_not_removed(clone):
    (clone / "mine").mkdir()
    (clone / "mine" / "notes.txt").touch()
    done = train(clone, "seed=20", "hydra.run.dir=mine")
    assert done.returncode == 1
    assert (clone / "mine" / "notes.txt").exists()
    assert "seed is 20" in (clone / "mine" / "train.log").read_text()


def test_a_folder_with_an_earlier_failure_is_not_removed(clone):
    assert train(clone, "seed=13", "hydra.run.dir=mine").returncode == 1
    assert train(clone, "seed=20", "hydra.run.dir=mine").returncode == 1
    assert "cannot reshape array" in (clone / "mine" / "train.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", [(), ("--multirun",)], ids=["run", "multirun"])
def test_a_signal_ends_the_process_with_its_status(clone, mode, number):
    done = train(clone, *mode, f"seed={100 + number}")
    assert (done.returncode, done.stderr) == (128 + number, "\nInterrupted.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_result_that_cannot_be_printed_is_one_line(clone):
    (clone / "src" / "prime_xmc" / "train.py").write_text(TRAIN.replace(", config.seed)", ", flush=True)"))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "prime_xmc.train"],
            cwd=clone,
            env=os.environ | {"PYTHONPATH": str(clone / "src")},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert re.fullmatch(
        r"the output, or a file in /.*outputs/.*: No space left on device; free some space there, .*\n", done.stderr
    )


def test_a_log_on_a_full_disk_says_so_once(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    handler = logging.StreamHandler(Full())
    handler.baseFilename = "run/train.log"
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    prime_xmc.app._follow_streams()
    for _ in range(3):
        logging.getLogger("prime_xmc").error("a line")
    told = capsys.readouterr().err
    assert told == "run/train.log: No space left on device; the log goes on without it\n"


def test_a_log_shows_a_defect_of_a_message(monkeypatch, capsys):
    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    prime_xmc.app._follow_streams()
    handler.filters.clear()
    logging.getLogger("prime_xmc").error("%d", "no number")
    assert "TypeError" in capsys.readouterr().err


def test_a_run_folder_on_a_full_disk_is_named(clone):
    """By a limit on the size of files, of 0 bytes: Hydra itself cannot write its configuration there."""
    script = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
        "os.execv(sys.executable, [sys.executable, '-m', 'prime_xmc.train', 'hydra.run.dir=mine'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": str(clone / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"a file in mine: File too large; .*`ulimit -f`.*\n", done.stderr)


def test_a_folder_that_has_been_removed_is_told(clone):
    script = (
        "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, '-m', 'prime_xmc.train'])"
    )
    (clone / "gone").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=clone / "gone",
        env=os.environ | {"PYTHONPATH": str(clone / "src")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (
        1,
        ["the current folder has been removed: change to one that is there"],
    )


def test_a_value_of_another_kind_in_a_file_of_one_s_own_is_named(clone):
    own = clone / "own" / "loss" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("gamma_min: often\ngamma_max: 0.3\n")
    done = train(clone, "--config-dir", "own", "loss=mine")
    assert (done.returncode, done.stderr) == (1, "loss.gamma_min=often: expected a number\n")


def test_a_log_follows_a_stream_that_cannot_be_flushed(monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError("No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    handler = logging.StreamHandler(sys.stdout)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    prime_xmc.app._follow_streams()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    handler.stream.write("a line")
    assert sys.stdout.getvalue() == "a line"


def test_a_value_of_the_wrong_type_is_named(clone):
    done = train(clone, "seed=abc", "hydra.run.dir=here")
    assert (done.returncode, done.stderr) == (1, "seed=abc: expected a whole number\n")
    assert not (clone / "here").exists()


def test_a_path_is_taken_as_it_is_typed(clone):
    folder = "dätä, (=1) [x] #2 'q'"
    done = train(clone, f"dataset.dir={folder}", "hydra.run.dir=rün =(1)")
    assert (done.returncode, done.stdout) == (0, f"{folder} 1\n")
    assert (clone / "rün =(1)" / ".hydra" / "config.yaml").is_file()


def test_a_group_that_was_left_out_is_named(clone):
    for argument in ("loss=null", "~loss"):
        done = train(clone, argument)
        assert (done.returncode, done.stderr) == (1, "loss=null: one of the options of loss is needed, see --help\n")


def test_a_console_script_finds_modules_of_the_current_folder(clone):
    (clone / "mine.py").write_text("def make(dir, _target_=None):\n    print('found')\n")
    script = clone / "prime-xmc-train"
    script.write_text("from prime_xmc.train import run\nfrom prime_xmc.app import run_app\nrun_app(run, 'train')\n")
    environment = os.environ | {"PYTHONPATH": str(clone / "src")}
    (clone / "bin").mkdir()
    shutil.move(script, clone / "bin")
    command = [sys.executable, "bin/prime-xmc-train", "dataset._target_=mine.make"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("found\n"), done.stderr


def test_a_module_that_is_missing_is_named(clone):
    done = train(clone, "dataset._target_=mypkg.Dataset")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "mypkg.Dataset cannot be imported (No module named 'mypkg')" in line
    assert "PYTHONPATH" in line


def test_an_argument_that_an_object_does_not_take_is_named(clone):
    done = train(clone, "+dataset.fields=[title]")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "prime_xmc.train.Dataset takes no such argument. Remove the key" in line


def test_the_help_needs_no_heavy_library(clone):
    """It shows the keys with their comments, and imports nothing that takes seconds."""
    (clone / "conf" / "train.yaml").write_text(
        "# Trains.\n# python -m prime_xmc.train seed=2\ndefaults: [dataset: debian18k, _self_]\nseed: 1  # of it all\n"
    )
    code = "import sys; sys.argv = ['x', '--help']\nfrom prime_xmc.app import run_app\n"
    code += "try:\n    run_app('prime_xmc.train:run', 'train')\nfinally:\n"
    code += "    print({'torch', 'transformers', 'lightning', 'numpy'} & {*sys.modules})"
    environment = os.environ | {"PYTHONPATH": str(clone / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Trains.\n")
    assert done.stdout.splitlines()[-1] == "set()"
    for words in ("  python -m prime_xmc.train seed=2\n", "  seed=1 ", "of it all", "options: custom, debian18k"):
        assert words in done.stdout


def test_a_defect_keeps_its_traceback(clone):
    done = train(clone, "seed=13")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "cannot reshape array" in done.stderr
    (log,) = clone.glob("outputs/*/*/train.log")
    assert "cannot reshape array" in log.read_text(), "a run that failed says why"


def test_a_package_without_configuration_says_what_to_do(clone):
    shutil.rmtree(clone / "conf")
    done = train(clone)
    assert done.returncode == 1
    assert f"expected train.yaml in {clone / 'src' / 'prime_xmc' / 'conf'} (an installed wheel) or in" in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        ["--config-path", "{}", "--config-name", "config"],
        ["--config-dir", "{}", "--config-name", "config"],
        ["--config-path", "{}/..", "--config-name", ".hydra/config"],
    ],
)
def test_a_run_folder_that_sets_up_hydra_is_refused_before_hydra_reads_it(tmp_path, monkeypatch, capsys, option):
    folder = tmp_path / "run" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("hydra:\n  callbacks:\n    x: {_target_: os.system}\n")
    monkeypatch.setattr(sys, "argv", ["prepare", *(part.format(folder) for part in option)])
    monkeypatch.setattr(app, "_end_quietly_when_interrupted", lambda: None)  # signals of the tests stay theirs
    with pytest.raises(SystemExit):
        app.run_app("prime_xmc.prepare:run", "prepare")
    assert "config.yaml has the key hydra" in capsys.readouterr().err


def test_the_home_of_nobody_is_a_line(clone):
    done = train(clone, "resume=~nobody-is-called-so/run")
    assert done.returncode == 1
    assert done.stderr.startswith("a path begins with ~ and the name of no user of this machine")
    assert done.stderr.count("\n") == 1
