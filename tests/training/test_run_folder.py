import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from prime_xmc.training.run_folder import claimed, new_folder, record_changes

CONF = """
run_dir: ${hydra:runtime.output_dir}
fail: false
defaults:
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
hydra:
  run: {dir: "${new_folder:runs/now}"}
  callbacks: {claim: {_target_: prime_xmc.training.run_folder.ClaimRunFolder}}
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs a task under Hydra with some overrides, after which it has written metrics.json; returns its folder."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text(CONF)
    monkeypatch.chdir(tmp_path)
    folders = []

    def task(config):
        folders.append(Path(config.run_dir))
        with claimed(folders[-1]) as claim:
            if config.fail == "early":
                raise SystemExit(143)
            claim.begin(continued=False)
            if config.fail == "late":
                raise SystemExit(143)
            (folders[-1] / "metrics.json").write_text("{}")

    def run(*overrides: str) -> Path:
        monkeypatch.setattr(sys, "argv", ["train", *overrides])
        hydra.main(version_base="1.3", config_path=str(tmp_path / "conf"), config_name="train")(task)()
        return folders[-1]

    return run


def test_a_folder_is_made_once_whoever_asks(tmp_path):
    names = [Path(new_folder(f"{tmp_path}/a/run")).name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_runs_that_start_at_the_same_time_have_folders_of_their_own(start):
    assert [start().name, start().name] == ["now", "now-2"]


def test_a_folder_in_which_another_process_works_is_refused(start, tmp_path):
    """Before Hydra overwrites what it has written about the other run."""
    code = "import sys\nfrom pathlib import Path\nfrom prime_xmc.training.run_folder import claimed\n"
    code += "with claimed(Path('run')):\n    print('claimed', flush=True)\n    sys.stdin.read()"
    env = os.environ | {"PYTHONPATH": str(Path(sys.modules["prime_xmc"].__file__).parents[1])}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as other:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(SystemExit, match=rf"another process \(pid {other.pid}\).*hydra\.run\.dir"):
            start("hydra.run.dir=run")
        assert not Path("run", ".hydra").exists()
        with pytest.raises(ValueError, match=f"pid {other.pid}"), claimed(Path("run")):
            pytest.fail("it must not begin")
        other.kill()
    assert start("hydra.run.dir=run").name == "run", "the end of a process gives its claim back"


def test_metadata_and_results_in_a_folder_are_of_one_run(start):
    folder = start("hydra.run.dir=run")
    before = (folder / ".hydra" / "config.yaml").read_text()
    with pytest.raises(SystemExit):
        start("hydra.run.dir=run", "fail=early")
    assert (folder / "metrics.json").is_file()
    assert (folder / ".hydra" / "config.yaml").read_text() == before
    with pytest.raises(SystemExit):
        start("hydra.run.dir=run", "fail=late")
    assert not (folder / "metrics.json").exists()
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").fail == "late"


@pytest.mark.parametrize("continued", [True, False])
def test_a_run_that_continues_keeps_what_it_wrote_on_the_way(tmp_path, continued):
    for name in ("model/index.faiss", "csv/metrics.csv", "classify/metrics.json", "checkpoints/last.ckpt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for name in ("metrics.json", "metrics.csv", "predictions.npz", "train.log", "run.lock"):
        (tmp_path / name).touch()
    with claimed(tmp_path) as claim:
        claim.begin(continued=continued)
    kept = {"metrics.csv", "model", "csv", "checkpoints"} if continued else set()
    assert {path.name for path in tmp_path.iterdir()} == kept | {"train.log", "run.lock"}


def test_a_run_that_has_been_trained_keeps_what_came_after(tmp_path):
    (tmp_path / "classify").mkdir()
    (tmp_path / "predictions.npz").touch()
    with claimed(tmp_path) as claim:
        claim.begin(continued=True, trained=True)
    assert {path.name for path in tmp_path.iterdir()} == {"classify", "predictions.npz", "run.lock"}


def test_what_is_no_result_of_a_run_is_not_removed(tmp_path):
    """Such as the code of a project in whose folder a run is started."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "network.py").touch()
    for _ in range(2):
        with claimed(tmp_path) as claim, pytest.raises(ValueError, match=r"not the folder of a run and has model, wh"):
            claim.begin(continued=False)
        (tmp_path / ".hydra").mkdir(exist_ok=True)  # as Hydra does before a run begins
        assert (tmp_path / "model" / "network.py").is_file()
    with claimed(tmp_path) as claim:
        claim.begin(continued=True)
    with claimed(tmp_path) as claim:
        claim.begin(continued=False)
    assert not (tmp_path / "model").exists(), "a run has been there"


def test_a_result_that_the_next_run_reads_is_not_removed(tmp_path):
    for name in ("run.lock", "metrics.json"):
        (tmp_path / name).touch()
    (tmp_path / "model").mkdir()
    with claimed(tmp_path) as claim, pytest.raises(ValueError, match=r"model is a result of an earlier run in "):
        claim.begin(continued=False, reads=[tmp_path / "model"])
    assert {path.name for path in tmp_path.iterdir()} == {"model", "metrics.json", "run.lock"}


def test_what_a_killed_run_has_half_written_goes_when_the_folder_is_claimed(tmp_path, half_written):
    left = half_written(tmp_path / "checkpoints" / "last.ckpt", 2**22 + 1)
    own = half_written(tmp_path / "model" / "README.md", os.getpid())
    with claimed(tmp_path):
        assert not left.exists()
        assert own.exists()


def test_settings_with_which_a_run_is_continued_hold_from_then_on(tmp_path):
    config = OmegaConf.create({"run_dir": "${a}", "a": 1, "resume": None, "ckpt_path": None})
    with claimed(tmp_path) as claim:
        claim.record(config, continued=False)
    before = (tmp_path / ".hydra" / "config.yaml").read_text()
    record_changes(OmegaConf.merge(config, {"resume": "x", "ckpt_path": "y"}), tmp_path)
    assert (tmp_path / ".hydra" / "config.yaml").read_text() == before
    record_changes(OmegaConf.merge(config, {"resume": "x", "ckpt_path": "y", "a": 2}), tmp_path)
    written = OmegaConf.load(tmp_path / ".hydra" / "config.yaml")
    assert OmegaConf.to_container(written) == {"run_dir": "${a}", "a": 2, "resume": None, "ckpt_path": None}


def test_a_configuration_gets_no_keys_that_it_has_not(tmp_path):
    """A job of a sweep with one more would be another job."""
    config = OmegaConf.create({"run_dir": ".", "resume": None, "a": 1})
    with claimed(tmp_path) as claim:
        claim.record(config, continued=False)
    record_changes(OmegaConf.merge(config, {"resume": "x", "a": 2}), tmp_path)
    assert recorded(tmp_path)[0] == {"run_dir": ".", "resume": None, "a": 2}


@pytest.mark.parametrize("resume", ["x", None])
def test_settings_that_are_given_again_replace_those_of_the_start(resume, tmp_path, monkeypatch):
    config = OmegaConf.create({"run_dir": ".", "a": 1, "resume": None, "ckpt_path": None})
    with claimed(tmp_path) as claim:
        claim.record(config, continued=False)
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[a=1, b=0]")
    monkeypatch.setattr("prime_xmc.training.run_folder.given_settings", lambda: ["a=2", "ckpt_path=y"])
    record_changes(OmegaConf.merge(config, {"resume": resume, "ckpt_path": "y", "a": 2}), tmp_path)
    assert recorded(tmp_path) == ({"run_dir": ".", "a": 2, "resume": None, "ckpt_path": None}, ["a=2", "b=0"])


def test_a_configuration_is_recorded_in_the_place_of_that_of_an_earlier_run(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {method: bonsai}}}")
    for seed in (1, 2):
        with claimed(tmp_path) as claim:
            claim.record(OmegaConf.create({"seed": seed}), continued=False)
            claim.begin(continued=False)
        assert recorded(tmp_path) == ({"seed": seed}, [])
    with claimed(tmp_path) as claim:
        claim.record(OmegaConf.create({"seed": 3}), continued=True)
    assert recorded(tmp_path) == ({"seed": 2}, [])
    assert not (tmp_path / ".hydra" / "hydra.yaml").exists()


def test_the_configuration_of_results_comes_back_where_another_run_ends_before_it_begins(tmp_path):
    with claimed(tmp_path) as claim:
        claim.record(OmegaConf.create({"seed": 1}), continued=False)
        claim.begin(continued=False)
    choices = tmp_path / ".hydra" / "hydra.yaml"
    choices.write_text("{}")
    with claimed(tmp_path) as claim:
        claim.record(OmegaConf.create({"seed": 2}), continued=False)
        assert recorded(tmp_path) == ({"seed": 2}, [])
    assert recorded(tmp_path) == ({"seed": 1}, [])
    assert choices.read_text() == "{}"
    choices.unlink()
    with claimed(tmp_path) as claim:
        claim.record(OmegaConf.create({"seed": 2}), continued=False)
        choices.write_text("{choices: those of the second}")
    assert recorded(tmp_path) == ({"seed": 1}, [])
    assert not choices.exists()


def recorded(folder):
    return tuple(OmegaConf.load(folder / ".hydra" / f"{name}.yaml") for name in ("config", "overrides"))


def test_the_settings_and_choices_are_those_of_the_command(tmp_path, monkeypatch):
    """With run_dir=, Hydra writes them to a folder of its own."""
    other = tmp_path / "by Hydra"
    (other / ".hydra").mkdir(parents=True)
    (other / ".hydra" / "overrides.yaml").write_text("[method=parabel]")
    (other / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {method: parabel}}}")
    (other / ".hydra" / "config.yaml").write_text("{task: baseline, seed: 5}")
    given = {"runtime": {"output_dir": str(other)}}
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(given))
    folder = tmp_path / "run"
    with claimed(folder) as claim:
        claim.record(OmegaConf.create({"task": "baseline"}), continued=False)
        claim.begin(continued=False)
    assert recorded(folder) == ({"task": "baseline"}, ["method=parabel"])
    assert OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.runtime.choices.method == "parabel"
    with claimed(folder) as claim:
        claim.record(OmegaConf.create({"task": "classify"}), continued=False)
        claim.begin(continued=False)
    assert recorded(folder) == ({"task": "classify"}, [])
    link = tmp_path / "link"
    link.symlink_to(other)
    for place in (other, link):  # to which Hydra has written
        with claimed(place) as claim:
            claim.record(OmegaConf.create({"task": "baseline"}), continued=False)
    assert recorded(other) == ({"task": "baseline", "seed": 5}, ["method=parabel"])
