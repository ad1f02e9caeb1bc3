import importlib.util

import pytest

from prime_xmc import report


@pytest.fixture
def config(compose, runs_dir, cache_dir, tmp_path):
    def make(*overrides):
        given = [f"runs={runs_dir}/**", f"output={tmp_path / 'report'}", f"cache_dir={cache_dir}"]
        return compose(*given, "num_resamples=100", "num_examples=2", *overrides, name="report")

    return make


def test_page_and_tables_are_written(config, tmp_path, capsys):
    (study,) = report.run(config("baseline='batch_size=128'"))
    assert study.baseline.name == "batch_size=128"
    assert {name for name, _ in study.comparisons} == {"batch_size=64"}
    output = tmp_path / "report"
    assert capsys.readouterr().out == f"{output / 'index.html'}\n"
    assert sorted(path.name for path in output.iterdir()) == ["evil", "index.html", "report.md"]
    names = {path.name for path in (output / "evil").iterdir()}
    assert {"results.csv", "results.tex", "bins_PSP5.csv", "runs.csv", "examples.csv"} <= names
    markdown = (output / "report.md").read_text(encoding="utf-8")
    assert "## evil" in markdown
    assert "of 100 resamples" in markdown
    assert "| batch\\_size=128 (baseline) | 3 |" in markdown


def test_the_baseline_may_be_the_folder_of_a_run(config, runs_dir):
    (study,) = report.run(config(f"baseline={runs_dir / '4'}"))
    assert study.baseline.name == "batch_size=128"


def test_the_first_configuration_with_predictions_is_the_baseline(config, runs_dir):
    for number in range(3):
        (runs_dir / str(number) / "predictions.npz").unlink()
    (study,) = report.run(config())
    assert study.baseline.name == "batch_size=128"


def test_an_unknown_baseline_lists_the_names(config):
    with pytest.raises(ValueError, match=r"(?s)baseline=nothing is no configuration.*batch_size=64\n  batch_size=128"):
        report.run(config("baseline=nothing"))


def test_several_patterns(config, runs_dir):
    (study,) = report.run(config(f"runs=['{runs_dir}/0','{runs_dir}/[34]']"))
    assert [len(configuration.runs) for configuration in study.runs.configurations] == [1, 2]


def test_a_missing_library_is_named(config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'prime_xmc\[report\]'"):
        report.run(config())
