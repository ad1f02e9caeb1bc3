import os
import subprocess
import sys
from pathlib import Path

import pytest

from prime_xmc.command_line.resuming import expand_resume
from prime_xmc.conf_files import config_dir
from prime_xmc.run_files import TRUST_VARIABLE


def expand(*arguments, name="train"):
    return expand_resume(arguments, name, config_dir())


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """The folder of a run that was started where the process is."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("task: train\n")
    (folder / ".hydra" / "overrides.yaml").write_text("[]\n")
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra:\n  runtime:\n    cwd: {tmp_path}\n")
    return folder


def test_a_run_goes_on_with_its_configuration_in_its_folder(run):
    assert expand("resume=my run", "dataset.max_epochs=9") == [
        *("--config-path", str(run / ".hydra"), "--config-name", "config"),
        *("dataset.max_epochs=9", f"++resume='{run}'", f"++run_dir='{run}'"),
        *(f"hydra.run.dir='{run}'", "hydra.output_subdir=null"),
    ]


@pytest.mark.parametrize("names", [["last.ckpt", "before-last.ckpt"], ["before-last.ckpt"]])
def test_from_its_newest_checkpoint(run, names):
    (run / "checkpoints").mkdir()
    for name in names:
        (run / "checkpoints" / name).touch()
    assert f"++ckpt_path='{run}/checkpoints/{names[0]}'" in expand("resume=my run")


def test_a_finished_run_says_so(run, capsys):
    (run / "metrics.json").touch()
    with pytest.raises(SystemExit) as ended:
        expand("resume=my run")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"The run in {run} is finished, there is nothing to do.\n"
    with pytest.raises(SystemExit):
        expand("resume=my run", "dataset.max_epochs=9")
    assert f"ckpt_path={run}/checkpoints/last.ckpt" in capsys.readouterr().out


def test_other_command_lines_stay_as_they_are():
    assert expand("seed=1", "-m") == ["seed=1", "-m"]
    assert expand("resume=null") == ["resume=null"]
    assert expand("resume=false", name="predict") == ["resume=false"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=nowhere"], "nowhere: there is no such folder"),
        (["resume=."], "no complete .hydra/ with the settings of a run"),
        (["resume=my run", "-m"], "continues one run: leave -m out"),
        (["resume=my run", "--config-name", "x"], "leave --config-path and --config-name out"),
        (["resume=my run", "trainer=gpu"], r"trainer=gpu chooses among options.*trainer\.<key>=<value>"),
        (["resume=my run", "~logger"], "chooses among options"),
        (["resume=my run", "hydra.run.dir=x"], "in its own folder"),
        (["resume=my run", "ckpt_path=x"], "from its newest checkpoint"),
    ],
)
def test_what_is_not_to_be_continued(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        expand(*arguments)


def test_the_folder_of_a_sweep_and_a_run_of_another_command(run):
    (run / ".hydra" / "config.yaml").write_text("task: classify\n")
    with pytest.raises(ValueError, match=r"a run of 'classify': continue it by prime_xmc\.classify"):
        expand("resume=my run")
    assert "++ckpt_path" not in " ".join(expand("resume=my run", name="classify"))
    (run / "multirun.yaml").touch()
    with pytest.raises(ValueError, match=r"folder of a sweep: run its command again with hydra\.sweep\.dir="):
        expand("resume=my run")


@pytest.mark.parametrize("name", ["train", "classify"])
def test_a_run_may_have_another_name_of_its_folder(run, name):
    """As `debug=fast` gives it one."""
    own = "ckpt_path: null\nmodel: {num_free_vectors: 4}\n" if name == "train" else "model: {dir: m}\n"
    (run / ".hydra" / "config.yaml").write_text(f"task: debug\n{own}")
    assert f"++run_dir='{run}'" in expand("resume=my run", name=name)
    (run / ".hydra" / "config.yaml").write_text("task: baseline\nmethod: {}\n")
    with pytest.raises(ValueError, match="a run of 'baseline', of which no run can be continued"):
        expand("resume=my run", name=name)


def test_a_configuration_that_sets_up_hydra_is_refused(run):
    (run / ".hydra" / "config.yaml").write_text("task: train\nhydra: {}\n")
    with pytest.raises(ValueError, match="has the key hydra, which no configuration of a run has"):
        expand("resume=my run")


@pytest.mark.parametrize("name", ["train.log", "checkpoints", "checkpoints/last.ckpt", "run.lock", "wandb"])
def test_a_link_out_of_the_folder_is_refused(run, tmp_path, monkeypatch, name):
    """The run would write there."""
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(tmp_path / "own")
    with pytest.raises(ValueError, match=rf"my run: .*{name} is a link to .*own, outside .*or add --trust-config"):
        expand("resume=my run")
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    assert f"++run_dir='{run}'" in expand("resume=my run")


def test_links_within_the_folder_and_those_of_wandb_stay(run, tmp_path):
    (run / "wandb").mkdir()
    (run / "wandb" / "debug-core.log").symlink_to(tmp_path / "own")
    (run / "latest").symlink_to("wandb")
    assert f"++run_dir='{run}'" in expand("resume=my run")


def test_settings_mean_what_they_did_where_the_run_was_started(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    path = list(sys.path)
    given = [
        *("dataset.dir=data", "cache_dir=new/cache", "+bank.directory='~/bank'", "encoder.source=owner/name"),
        *("model.dir=null", "dataset.dir.directory=${cache_dir}/x", "seed=1"),
    ]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert expand("resume=../my run", *given)[4:11] == [
        *(f"dataset.dir='{tmp_path}/elsewhere/data'", f"cache_dir='{tmp_path}/elsewhere/new/cache'"),
        *(f"+bank.directory='{tmp_path}/home/bank'", "encoder.source=owner/name"),
        *("model.dir=null", "dataset.dir.directory=${cache_dir}/x", "seed=1"),
    ]
    assert Path.cwd() == tmp_path
    assert sys.path == path, "nothing is imported from there"
    (tmp_path / "marker.py").touch()
    for command in (["-c", "import marker"], ["-m", "marker"]):  # as the other processes of a data-parallel run
        assert subprocess.run([sys.executable, *command], stderr=subprocess.DEVNULL).returncode == 1
    assert f"continuing in {tmp_path}" in capsys.readouterr().err
    assert os.path.isdir("my run")
