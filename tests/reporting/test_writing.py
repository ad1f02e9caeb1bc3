import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from prime_xmc.reporting.contents import make_report
from prime_xmc.reporting.writing import _TABLES, write_report


@pytest.fixture
def report(study):
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    return make_report([study], title=None, command="python -m prime_xmc.report", num_resamples=300, now=now)


def test_page_markdown_and_tables_are_written(report, tmp_path):
    assert write_report(report, tmp_path / "report") == tmp_path / "report" / "index.html"
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        *("evil", "index.html", "report.md", "summary.md")
    ]
    names = {path.name for path in (tmp_path / "report" / "evil").iterdir()}
    assert {"results.csv", "results.tex", "bins_PSP5.csv", "runs.csv", "examples.csv"} <= names


def test_tables_of_an_earlier_report_go(report, tmp_path):
    (tmp_path / "evil").mkdir()
    for name in ("bins_P3.csv", "bins_P3.tex", "PSP5_against_gpu.svg", "results.csv", "notes.csv"):
        (tmp_path / "evil" / name).write_text("of before")
    write_report(report, tmp_path)
    names = {path.name for path in (tmp_path / "evil").iterdir()}
    assert not {"bins_P3.csv", "bins_P3.tex", "PSP5_against_gpu.svg"} & names
    assert (tmp_path / "evil" / "notes.csv").read_text() == "of before"  # not a name of a table
    assert (tmp_path / "evil" / "results.csv").read_text() != "of before"


def test_every_table_is_known_by_its_name(report):
    assert all(_TABLES.fullmatch(f"{table.name}.csv") for table in report.chapters[0].tables)


def test_markdown_says_what_the_page_says(report, tmp_path):
    write_report(report, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert markdown.startswith("# 2 configurations compared on evil\n\n6 finished runs of 2 configurations")
    assert "Made on 1 March 2026 at 12:30 UTC" in markdown
    assert "```\npython -m prime_xmc.report\n```" in markdown
    assert "## evil\n\n“batch\\_size=128” has the highest P@1" in markdown
    assert "with 300 resamples" in markdown
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("## evil\n\n“batch\\_size=128” has the highest P@1")
    assert [line for line in summary.splitlines() if line.startswith("#")] == [
        "## evil",
        "### Test metrics",
        "### Cost",
    ]
    assert summary.partition("### Test metrics")[2].partition("###")[0] in markdown


def test_several_data_sets_have_a_table_across_them(study, tmp_path):
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    other = replace(study, runs=replace(study.runs, name="other"))
    report = make_report([study, other], title=None, command=None, num_resamples=300, now=now)
    write_report(report, tmp_path)
    assert (tmp_path / "across.csv").read_text(encoding="utf-8").count("\n") == 1 + 2 * 2 * 3
    assert r"\label{tab:across}" in (tmp_path / "across.tex").read_text(encoding="utf-8")
    for name in ("report.md", "summary.md"):
        headings = [line for line in (tmp_path / name).read_text(encoding="utf-8").splitlines() if line[:3] == "## "]
        assert headings[:3] == ["## Across data sets", "## evil", "## other"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<a href="#across">Across data sets</a>' in page
    assert "other: PSP@5" in page
    write_report(replace(report, across=None), tmp_path)
    assert not [*tmp_path.glob("across.*")]


def renamed(report, name):
    (chapter,) = report.chapters
    study = replace(chapter.study, runs=replace(chapter.study.runs, name=name))
    return replace(report, chapters=[replace(chapter, study=study)])


@pytest.mark.parametrize(
    "name", ["..", ".", "../..", "index.html", "report.md", "summary.md", "across.csv", "/etc", "a/../../b"]
)
def test_nothing_is_written_outside_of_the_folder(report, tmp_path, name):
    report = renamed(report, name)
    folder = tmp_path / "deep" / "report"
    write_report(report, folder)
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} - {folder} == {
        path for path in folder.iterdir() if path.is_dir()
    }
    assert (folder / "index.html").is_file()


def test_markdown_has_no_html_of_the_runs(report, tmp_path):
    write_report(renamed(report, "<img src=x onerror=alert(1)> [a](javascript:b)"), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "## &lt;img src=x onerror=alert(1)&gt; \\[a\\](javascript:b)" in text


def test_figures_of_cost_are_files_that_the_markdown_shows(runs_dir, study_of, tmp_path):
    for path in runs_dir.glob("[0-5]/metrics.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"train/cpu_seconds": 100.0}))
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    report = make_report([study_of(runs_dir)], title=None, command=None, num_resamples=300, now=now)
    page = write_report(report, tmp_path / "report")
    figure = tmp_path / "report" / "evil" / "P1_against_cpu.svg"
    assert figure.read_text(encoding="utf-8").startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    assert "![P@1 (%) against CPU seconds of training](evil/P1_against_cpu.svg)" in markdown
    assert '<figure class="chart wide">' in page.read_text(encoding="utf-8")
