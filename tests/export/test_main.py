"""`python -m prime_xmc.export`, in this process."""

import gzip
import shutil

import pytest

from prime_xmc.export.__main__ import run


@pytest.fixture
def settings(toy_bundle, toy_dataset, tmp_path):
    data = ["dataset=custom", f"dataset.dir={toy_dataset}", f"cache_dir={tmp_path / 'cache'}"]
    return [f"model.dir={toy_bundle}", f"output={tmp_path / 'exported'}", *data]


def test_it_exports_and_measures(compose, settings, tmp_path, capsys):
    results = run(compose(*settings, "int8=true", "test=true", name="export"))
    assert results["difference"] < 1e-5
    assert results["onnxruntime, float32/P@1"] == results["torch, float32/P@1"]
    assert 0 <= results["onnxruntime, int8/P@1"] <= 1
    shown = " ".join(capsys.readouterr().out.split())  # the lines are as long as the folder's name lets them
    assert "difference from torch" in shown
    assert "onnxruntime, int8: " in shown
    assert (tmp_path / "exported" / "README.md").is_file()


def test_other_formats_are_refused(compose, settings):
    with pytest.raises(ValueError, match="expected format=onnx, the one that there is, got gguf"):
        run(compose(*settings, "format=gguf", name="export"))


def test_another_data_set_is_refused_before_the_export(compose, settings, toy_dataset, tmp_path):
    other = shutil.copytree(toy_dataset, tmp_path / "other")
    with gzip.open(other / "lbl.json.gz", "at") as file:
        file.write('{"uid": "l48", "title": "one more"}\n')
    with pytest.raises(ValueError, match=r"the model has 48 labels, .* has 49"):
        run(compose(*settings, f"dataset.dir={other}", "test=true", name="export"))
    assert not (tmp_path / "exported").exists()
