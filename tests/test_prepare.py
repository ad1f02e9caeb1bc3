import json
import os
import subprocess
import sys

from prime_xmc.data.corpus import Corpus
from prime_xmc.prepare import run


def overrides(tiny_encoder_dir, toy_dataset, cache):
    return [
        "dataset=custom",
        f"dataset.dir={toy_dataset}",
        "dataset.max_length=12",
        f"encoder.source={tiny_encoder_dir}",
        f"cache_dir={cache}",
    ]


def test_prepares_once_and_describes(compose, tiny_encoder_dir, toy_dataset, tmp_path, capsys):
    config = compose(*overrides(tiny_encoder_dir, toy_dataset, tmp_path), name="prepare")
    corpus = run(config)
    assert (len(corpus.train), len(corpus.test), corpus.num_labels) == (240, 60, 48)
    assert corpus.manifest["max_length"] == 12
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert rows["labels"].strip() == "48"
    assert rows["folder"].strip() == str(corpus.directory)
    assert run(config).directory == corpus.directory
    assert len(list(tmp_path.iterdir())) == 1


def test_through_a_process(tiny_encoder_dir, toy_dataset, tmp_path):
    command = [sys.executable, "-m", "prime_xmc.prepare", *overrides(tiny_encoder_dir, toy_dataset, "cache")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "cache").iterdir()
    assert f"cache/{directory.name}" in done.stdout
    assert Corpus.open(directory).num_labels == 48
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert json.loads((directory / "manifest.json").read_text())["name"] == "custom"


def test_missing_files_are_named_with_a_hint(tmp_path):
    command = [sys.executable, "-m", "prime_xmc.prepare", "dataset=amazontitles131k", f"dataset.dir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"LF-AmazonTitles-131K: trn.json, tst.json, lbl.json (or .json.gz) not found in {tmp_path}" in done.stderr
    assert "Extreme Classification Repository" in done.stderr
    assert "Traceback" not in done.stderr
