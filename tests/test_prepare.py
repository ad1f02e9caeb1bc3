import json

import pytest

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


def test_through_a_process(tiny_encoder_dir, toy_dataset, call, tmp_path):
    done = call("prepare", *overrides(tiny_encoder_dir, toy_dataset, "cache"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "cache").iterdir()
    assert f"cache/{directory.name}" in done.stdout
    assert Corpus.open(directory).num_labels == 48
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert json.loads((directory / "manifest.json").read_text())["name"] == "custom"


def test_missing_files_are_named_with_a_hint(compose, tmp_path):
    config = compose("dataset=amazontitles131k", f"dataset.dir={tmp_path}", f"cache_dir={tmp_path}", name="prepare")
    with pytest.raises(FileNotFoundError, match="Extreme Classification Repository") as missing:
        run(config)
    assert f"LF-AmazonTitles-131K: trn.json, tst.json, lbl.json (or .json.gz) not found in {tmp_path}" in str(
        missing.value
    )
