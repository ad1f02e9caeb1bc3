import importlib.util
import sys

import pytest

from prime_xmc import report


@pytest.fixture
def config(compose, runs_dir, cache_dir, tmp_path):
    def make(*overrides):
        given = [f"runs={runs_dir}/**", f"output={tmp_path / 'report'}", f"cache_dir={cache_dir}"]
        return compose(*given, "num_resamples=100", "num_examples=2", *overrides, name="report")

    return make


def test_runs_become_a_page(config, tmp_path, capsys):
    (study,) = report.run(config("baseline='batch_size=128'", "title=Batches"), command="the command")
    assert study.baseline.name == "batch_size=128"
    assert {name for name, _ in study.comparisons} == {"batch_size=64"}
    page = tmp_path / "report" / "index.html"
    assert capsys.readouterr().out == f"{page}\n"
    html = page.read_text(encoding="utf-8")
    assert "<title>Batches</title>" in html
    assert "the command" in html
    assert "with 100 resamples" in html


def test_the_page_names_the_command_that_made_it(compose, runs_dir, cache_dir, tmp_path, monkeypatch):
    given = [f"runs={runs_dir}/**", f"output={tmp_path}", f"cache_dir={cache_dir}", "num_resamples=10"]
    monkeypatch.setattr(sys, "argv", ["report.py", *given])
    monkeypatch.setattr(report, "run_app", lambda task, name: task(compose(*given, name="report")))
    report.main()
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert f"python -m prime_xmc.report &#39;runs={runs_dir}/**&#39; output={tmp_path}" in html


def test_several_patterns(config, runs_dir):
    (study,) = report.run(config(f"runs=['{runs_dir}/0','{runs_dir}/[34]']"))
    assert [len(configuration.runs) for configuration in study.runs.configurations] == [1, 2]


def test_a_missing_library_is_named(config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install '\.\[report\]' in the clone"):
        report.run(config())


def test_published_results_are_listed_where_there_are_any(config, tmp_path, caplog):
    table = tmp_path / "published.csv"
    table.write_text("dataset,method,metric,value\nevil,<b>DPR</b>,P@1,44.64\n", encoding="utf-8")
    report.run(config(f"published={table}"))
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;DPR" in html
    assert "<b>DPR" not in html
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert r"| &lt;b&gt;DPR&lt;/b&gt; (published) | – | 44.64 | – |" in markdown
    assert caplog.text == ""
    report.run(config("published=paper"))
    assert "published=paper has no results on evil" in caplog.text
    assert "(published)" not in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
