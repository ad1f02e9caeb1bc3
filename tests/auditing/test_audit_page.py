import html5lib
import pytest

from prime_xmc.auditing.audit_data import audit
from prime_xmc.auditing.audit_page import render
from prime_xmc.auditing.summary import summary
from prime_xmc.data.raw import RawFiles


@pytest.fixture
def found(tmp_path):
    (tmp_path / "lbl.json").write_text(
        '{"title": "<script>alert(1)</script>"}\n{"title": "<script>alert(1)</script>"}\n'
    )
    (tmp_path / "trn.json").write_text('{"title": "a", "target_ind": [0]}\n{"title": "", "target_ind": [1]}\n')
    return audit(RawFiles(tmp_path, "toy & more", num_test=None))


def test_page_is_valid_and_escapes_what_the_data_say(found):
    page = render(found, "python -m prime_xmc.audit dataset=custom")
    html5lib.HTMLParser(strict=True).parse(page)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Audit of toy &amp; more" in page
    assert "src=" not in page
    assert "href=" not in page


def test_page_lists_what_was_not_found_but_nothing_that_was_not_looked_for(found):
    page = render(found, None)
    clean = page[page.index("What was looked for and not found") :]
    assert "Labels with the same uid as an earlier one" in clean
    assert "Texts with more tokens than are read" not in clean  # no tokens were counted
    assert "training queries too" not in clean  # there are no test queries
    assert "Queries without text" not in clean


def test_summary(found):
    assert summary(found).splitlines() == [
        "2 training queries, 2 labels, 2 training pairs, 1.0 labels per training query, 1.0 training queries per label",
        "warning  trn.json: queries without text: 1 of 2 (50.0 %)",
        "           line 2: ",
        "           Remove them, or add another field to dataset.fields.",
        "warning  lbl.json: labels with the same text as an earlier one: 1 of 2 (50.0 %)",
        "           line 2: <script>alert(1)</script>",
        "           Merge those that mean the same; to others add what distinguishes them (dataset.label_fields).",
    ]
