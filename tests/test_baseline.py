import json
import os
import subprocess
import sys

import pytest

from prime_xmc import baseline
from prime_xmc.composing import compose


@pytest.mark.slow
def test_sweep_goes_on_where_an_environment_cannot_be_made(tmp_path, tiny_encoder_dir, toy_dataset):
    settings = ["encoder=local", f"encoder.source={tiny_encoder_dir}", "dataset=custom", f"dataset.dir={toy_dataset}"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "prime_xmc.baseline", "-m", "method=xr_linear,popularity", *settings),
            *("hydra.sweep.dir=sweep", "tfidf.min_df=1"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)},  # as without a network
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    jobs = [json.loads((tmp_path / "sweep" / number / "job.json").read_text()) for number in "01"]
    assert [job["status"] for job in jobs] == ["failed", "done"]
    assert "method=xr_linear needs an environment of its own, and that could not be made" in jobs[0]["message"]
    assert not (tmp_path / "sweep" / "0" / "metrics.json").exists()
    assert json.loads((tmp_path / "sweep" / "1" / "metrics.json").read_text())["test/P@1"] >= 0
    assert "tfidf.min_df=1: no effect, since this method has no tf-idf vectors" in done.stdout
    assert "method=popularity" in done.stdout  # in the table of the jobs


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(baseline, "find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(ValueError, match=r"a baseline needs scikit-learn: pip install '\.\[baselines\]' in the clone"):
        baseline.run(compose("baseline", []))


def test_command_returns_what_sweepers_optimise(tmp_path, tiny_encoder_dir, toy_dataset):
    settings = [
        *("encoder=local", f"encoder.source={tiny_encoder_dir}", "dataset=custom", f"dataset.dir={toy_dataset}"),
        *("method=zero_shot_tfidf", f"cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"),
    ]
    found = baseline.run(compose("baseline", settings))
    assert found == json.loads((tmp_path / "run" / "metrics.json").read_text())["val/P@1"]
    assert found > 0.5  # a query has the words of its labels
