from datetime import UTC, datetime

import pytest

from prime_xmc.reporting.contents import make_report
from prime_xmc.reporting.writing import write_report


@pytest.fixture
def report(study):
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    return make_report([study], title=None, command="python -m prime_xmc.report", num_resamples=300, now=now)


def test_page_markdown_and_tables_are_written(report, tmp_path):
    assert write_report(report, tmp_path / "report") == tmp_path / "report" / "index.html"
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["evil", "index.html", "report.md"]
    names = {path.name for path in (tmp_path / "report" / "evil").iterdir()}
    assert {"results.csv", "results.tex", "bins_PSP5.csv", "runs.csv", "examples.csv"} <= names


def test_markdown_says_what_the_page_says(report, tmp_path):
    write_report(report, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert markdown.startswith("# 2 configurations compared on evil\n\n6 finished runs of 2 configurations")
    assert "Made on 1 March 2026 at 12:30 UTC" in markdown
    assert "```\npython -m prime_xmc.report\n```" in markdown
    assert "## evil\n\n“batch_size=128” has the highest P@1" in markdown
    assert "with 300 resamples" in markdown
