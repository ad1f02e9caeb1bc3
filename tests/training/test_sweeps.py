"""Hydra's own sweeps, in this process, of a job that takes no time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from prime_xmc.training.sweeps import (
    _continued,
    _how_to_continue,
    fingerprint,
    note_finished,
    objective,
    run_job,
    show,
)

CONF = """
seed: 0
lr: 1.0
fail: false
run_dir: ${hydra:runtime.output_dir}
cache_dir: cache
ckpt_path: null
size: half
callbacks: {table: {path: "${run_dir}/metrics.csv"}, progress: null}
defaults:
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
hydra:
  sweep: {dir: sweep, subdir: "${job_folder:}"}
  callbacks: {sweep: {_target_: prime_xmc.training.sweeps.SweepTable}}
"""
ran = []  # folder and checkpoint of each job that has been trained


def train(config: DictConfig) -> None:
    """Leave what a run leaves; fail or be interrupted where the configuration says so."""
    run_dir = Path(config.run_dir)
    ran.append((run_dir.name, config.ckpt_path))
    if config.fail == "defect" and not Path("mended").exists():
        raise ZeroDivisionError("a defect")
    if config.fail == "interrupt" and config.ckpt_path is None:
        (run_dir / "checkpoints").mkdir()
        (run_dir / "checkpoints" / "last.ckpt").touch()
        os.kill(os.getpid(), signal.SIGTERM)
    (run_dir / "metrics.json").write_text(json.dumps({"val/P@1": config.lr / 10, "test/P@1": config.seed / 10}))


def task(config: DictConfig) -> float | None:
    return run_job(config, train)


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Runs a sweep with some overrides; returns its exit status, what it printed and the folders that were trained."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text(CONF)
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[int, str, list[tuple[str, str | None]]]:
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["train", "-m", *overrides])
        status = 0
        try:
            hydra.main(version_base="1.3", config_path=str(tmp_path / "conf"), config_name="train")(task)()
        except SystemExit as exit_:
            status = exit_.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err, list(ran)

    return run


def record(folder: str) -> dict:
    return json.loads(Path("sweep", folder, "job.json").read_text())


def test_every_job_has_a_row_with_what_sets_it_apart(sweep):
    status, printed, folders = sweep("seed=1,2", "lr=3")
    assert status == 0
    assert folders == [("0", None), ("1", None)]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert rows == [["seed=1", "done", "30.0", "10.0", "0"], ["seed=2", "done", "30.0", "20.0", "1"]]


def test_escapes_in_a_sweep_of_somebody_else_are_shown(tmp_path, capsys):
    job = {"number": 0, "overrides": ["seed=\x1b[31m1"], "status": "failed", "message": "\x1b]0;owned\x07"}
    show({tmp_path / "0": job}, tmp_path)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "seed=\\x1b[31m1" in printed
    assert "\\x1b]0;owned\\x07" in printed.replace("\n", "")


def test_a_failed_job_leaves_its_traceback_and_only_it_runs_again(sweep):
    status, printed, folders = sweep("fail=defect,false")
    assert status == 1
    assert [folder for folder, _ in folders] == ["0", "1"], "the others go on"
    assert "ZeroDivisionError: a defect" in Path("sweep/0/error.txt").read_text()
    assert "Traceback" in Path("sweep/0/error.txt").read_text()
    assert [record(folder)["status"] for folder in "01"] == ["failed", "done"]
    assert "hydra.sweep.dir='sweep'" in printed

    Path("mended").touch()
    status, printed, folders = sweep("fail=defect,false")
    assert status == 0
    assert [folder for folder, _ in folders] == ["0"]
    assert [record(folder)["status"] for folder in "01"] == ["done", "skipped"]
    assert printed.count("10.0") == 2, "metrics of the skipped job too"
    assert not Path("sweep/0/error.txt").exists()


def test_more_seeds_leave_finished_jobs_where_they_are(sweep):
    sweep("lr=1,2", "seed=1")
    before = {path: path.read_bytes() for path in Path("sweep").glob("*/.hydra/*") if path.name != "hydra.yaml"}
    assert len(before) == 4
    status, _, folders = sweep("lr=1,2", "seed=1,2")
    assert status == 0
    assert len(folders) == 2
    assert folders[0][0].startswith("1-"), "1 is the folder of lr=2 seed=1"
    assert folders[1][0] == "3"
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads(Path("sweep", folders[0][0], "metrics.json").read_text()) == {"val/P@1": 0.1, "test/P@1": 0.2}


def test_a_job_that_was_finished_on_other_data_is_skipped_with_a_warning(sweep, caplog):
    for name in ("data", "data/trn.json"):
        Path(name).write_text("{}") if name.endswith("json") else Path(name).mkdir()
    given = ["seed=1", "+dataset.dir=data"]
    sweep(*given)
    assert sweep(*given)[2] == []
    assert not caplog.records
    later = Path("sweep/0/metrics.json").stat().st_mtime + 10
    os.utime("data/trn.json", (later, later))
    assert sweep(*given)[2] == []
    assert "sweep/0 was finished before trn.json in data changed: " in caplog.text
    assert "Remove its folder to train it again" in caplog.text


def test_another_spelling_of_a_finished_configuration_refers_to_it(sweep):
    sweep("seed=1")
    status, printed, folders = sweep("seed=1", "lr=1.0")
    assert (status, folders) == (0, [])
    assert "../0" in printed
    (folder,) = (path.name for path in Path("sweep").glob("0-*"))
    assert record(folder)["results"] == "../0"
    assert not Path("sweep", folder, "metrics.json").exists()
    assert record("0")["overrides"] == ["seed=1"]


def test_an_interrupted_job_continues_from_its_checkpoint(sweep):
    status, printed, _ = sweep("fail=false,interrupt,interrupt")
    assert status == 143
    assert "hydra.sweep.dir=" in printed
    assert [record(folder)["status"] for folder in "01"] == ["done", "interrupted"]
    assert not Path("sweep/2").exists(), "the sweep ends"
    status, _, folders = sweep("fail=interrupt")
    assert status == 0
    assert folders == [("1", str(Path("sweep/1/checkpoints/last.ckpt").absolute()))]


def test_a_job_that_was_continued_by_itself_is_done(tmp_path):
    config = OmegaConf.create({"run_dir": str(tmp_path), "ckpt_path": None, "callbacks": {}})
    (tmp_path / "metrics.json").write_text("{}")
    note_finished(config)
    assert not (tmp_path / "job.json").exists(), "it is no job"
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(config, tmp_path / ".hydra" / "config.yaml")
    job = {"fingerprint": fingerprint(config), "number": 3, "status": "failed"}
    (tmp_path / "job.json").write_text(json.dumps({**job, "message": "full disk"}))
    (tmp_path / "error.txt").touch()
    resumed = OmegaConf.merge(config, {"ckpt_path": "last.ckpt", "resume": str(tmp_path)})
    note_finished(resumed)
    assert json.loads((tmp_path / "job.json").read_text()) == {**job, "status": "done", "results": "."}
    assert not (tmp_path / "error.txt").exists()
    note_finished(OmegaConf.merge(resumed, {"max_epochs": 30}))
    assert json.loads((tmp_path / "job.json").read_text())["fingerprint"] != job["fingerprint"], "it is another job now"


def test_a_job_that_began_at_a_checkpoint_and_was_continued_by_itself_is_still_that_job(tmp_path):
    """And not the one of the sweep that has begun without it."""
    begun = OmegaConf.create({"run_dir": str(tmp_path), "ckpt_path": "other.ckpt", "callbacks": {}})
    job = {"fingerprint": fingerprint(begun), "number": 0, "status": "interrupted"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "metrics.json").touch()
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(begun, tmp_path / ".hydra" / "config.yaml")
    note_finished(OmegaConf.merge(begun, {"ckpt_path": "last.ckpt", "resume": str(tmp_path)}))
    assert json.loads((tmp_path / "job.json").read_text()) == {**job, "status": "done", "results": "."}
    assert job["fingerprint"] != fingerprint(OmegaConf.merge(begun, {"ckpt_path": None}))


def test_a_job_that_began_at_another_run_s_checkpoint_continues_from_its_own(tmp_path):
    config = OmegaConf.create({"run_dir": str(tmp_path), "ckpt_path": "other.ckpt"})
    assert _continued(config) == config
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert _continued(config).ckpt_path == str(tmp_path / "checkpoints" / "last.ckpt")


def test_the_command_that_continues_a_sweep_begins_where_its_jobs_do(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/prime-xmc-train", "-m", "ckpt_path=a.ckpt,null", "hydra.sweep.dir=old"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    again = "/bin/prime-xmc-train -m ckpt_path=a.ckpt,null hydra.sweep.dir=new"
    assert _how_to_continue(Path("new")).splitlines()[-1].strip() == again


def test_a_second_stage_looks_for_its_checkpoint_itself(tmp_path):
    config = OmegaConf.create({"run_dir": str(tmp_path), "resume": None})
    OmegaConf.set_struct(config, True)
    assert _continued(config) == config
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert _continued(config) == {"run_dir": str(tmp_path), "resume": str(tmp_path)}


def test_what_is_optimised_is_of_the_prototypes_or_of_classifiers_by_themselves():
    alone = {"val/theta/P@1": 0.1, "val/W/P@1": 0.2, "test/W/P@1": 0.3}
    assert [objective(alone), objective(alone, "test"), objective({})] == [0.2, 0.3, None]
    assert objective(alone | {"val/P@1": 0.4}) == 0.4


def test_a_folder_of_another_job_is_refused(sweep):
    status, printed, folders = sweep("seed=1,2", "hydra.sweep.subdir=same")
    assert status == 1
    assert len(folders) == 1
    assert "is the folder of another job: give each its own" in printed
    assert record("same")["overrides"] == ["seed=1"]


def test_jobs_of_earlier_starts_are_not_in_the_table(sweep):
    sweep("fail=defect")
    status, printed, _ = sweep("seed=5")
    assert status == 0
    assert "defect" not in printed


def test_a_sweeper_that_minimises_is_refused(sweep):
    status, _, folders = sweep("+hydra.sweeper.direction=minimize", "seed=1,2")
    assert "take hydra/sweeper=tune" in status
    assert folders == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of an Optuna of 2022
def test_a_failed_trial_does_not_end_a_study(sweep):
    own = Path(__file__).parents[2] / "conf"
    study = ["--config-dir", str(own), "hydra/sweeper=tune", "hydra.sweeper.n_trials=3", "lr=interval(1,2)"]
    status, _, _ = sweep(*study, "fail=choice(defect,false)")
    assert status == 1
    states = [record(str(number))["status"] for number in range(3)]
    assert set(states) == {"done", "failed"}
    best = OmegaConf.load("sweep/optimization_results.yaml")
    rates = [json.loads(path.read_text())["val/P@1"] for path in Path("sweep").glob("*/metrics.json")]
    assert best.best_value == pytest.approx(max(rates))
    _, _, again = sweep(*study, "fail=choice(defect,false)")
    assert [folder for folder, _ in again] == [str(number) for number in range(3) if states[number] == "failed"]


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("seed=1", True),
        ("run_dir=b", False),
        ("cache_dir=b", False),
        ("callbacks.progress.x=1", False),
        ("callbacks.collapse.violators=0.5", False),
        ("logger.name=b", False),
        ("verify=full", False),
    ],
)
def test_a_fingerprint_is_of_what_changes_the_result(override, changes):
    config = OmegaConf.create(
        {"seed": 0, "run_dir": "a", "cache_dir": "a", "path": "${run_dir}/x", "data": "${cache_dir}"}
    )
    other = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
    assert (fingerprint(config) != fingerprint(other)) is changes


def test_the_fingerprint_of_a_configuration_is_that_of_version_0_1_0():
    """Otherwise a sweep that was begun with it would run finished jobs again."""
    config = OmegaConf.create({"seed": 0, "run_dir": "a", "logger": None, "callbacks": {"progress": {"x": 1}}})
    assert fingerprint(config) == "fe712fbb76e52c2c"


@pytest.mark.parametrize(("typed", "kept"), [(32, "32"), (-0.5, "-0.5"), (1e-05, "1e-05")])
def test_a_number_that_is_made_a_text_is_of_the_same_job(typed, kept):
    """The folder of a job is named before the check of its configuration makes it one, and found again then."""
    before, after = ({"trainer": {"precision": value}, "run_dir": "r"} for value in (typed, kept))
    assert fingerprint(OmegaConf.create(before)) == fingerprint(OmegaConf.create(after))
    assert fingerprint(OmegaConf.create(before)) != fingerprint(OmegaConf.create({"trainer": {"precision": "32-true"}}))


def test_values_that_do_not_resolve_have_a_fingerprint():
    """Their job is to fail in its own folder."""
    missing, other = (OmegaConf.create({"dir": "???", "file": "${dir}/x", "seed": seed}) for seed in (0, 1))
    assert fingerprint(missing) != fingerprint(other)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_run_side_by_side(launcher, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text(CONF)
    main = "\nhydra.main(version_base='1.3', config_path='conf', config_name='train')(task)()\n"
    (tmp_path / "train.py").write_text(Path(__file__).read_text() + main)
    command = [sys.executable, "train.py", "-m", f"hydra/launcher={launcher}", "fail=false,false,defect"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stderr
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/job.json")}
    assert found["2"]["status"] == "failed"
    finished = {path.parent.name for path in tmp_path.glob("sweep/*/metrics.json")}
    assert finished & {"0", "1"}, "of two equal jobs, at most one is refused because the other is running"
    for name in finished:
        assert json.loads((tmp_path / "sweep" / name / "metrics.json").read_text())["val/P@1"] == 0.1
    assert "ZeroDivisionError: a defect" in done.stdout
