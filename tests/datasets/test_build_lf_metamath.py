import gzip
import json

import pytest

HEAD = """\
$( Contributor list:
   AL   Ada Lovelace
   KG   Kurt Goedel   FL Frederic Line
   HTML code for accented names: none $)
"""
DATABASE = (
    HEAD
    + """\
$( A rule. $)
ax-1 $a |- ph $.
$( Syntax, which is no label. $)
wn $a wff -. ph $.
$( A first theorem. (Contributed by KG, 5-Jan-2000.) $)
one $p |- ( ph -> ps ) $= ( ax-1 wn ) ABC $.
$( An older version. $)
oneOLD $p |- ( ph -> ps ) $= ( ax-1 ) AB $.
$( Not of what follows. $)
$v ph $.
two $p |- ps $= ( one ) A $.
$( A second theorem, see ~ one or _the book_ by [Lang] p. 3. Proof by Ada Lovelace. $)
three $p |- ( ps $( inner $) -> ph ) $= ( one three wn ax-1 ) ABCD $.
"""
)


@pytest.fixture
def module(script):
    return script("LF-Metamath-22K", "build_lf_metamath")


def test_statements_of_a_database(module):
    statements = module.read_statements(DATABASE)
    assert list(statements) == ["ax-1", "one", "three"], "no syntax, no old version, none without a comment of its own"
    assert statements["ax-1"] == ("A rule.", "ph", ())
    assert statements["one"] == ("A first theorem.", "( ph -> ps )", ("ax-1", "wn"))
    assert statements["three"].title == "A second theorem, see or the book by [Lang] p. 3."
    assert statements["three"].content == "( ps -> ph )"


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("Theorem 5 of [Lang] p. 3.  (Contributed by NM,\n 5-Aug-1993.) (Proof shortened by AL, 1-Jan-2001.)", None),
        ("Theorem 5 of [Lang] p. 3. Kurt Goedel found it.", None),
        ("Theorem 5 of [Lang] p. 3. (New usage is discouraged.)", None),
        ("A `ph ~ _ps_` stays, ~ ref and http://x.org go &amp; <i>so</i>.", "A ph ~ _ps_ stays, and go & so."),
        ("Line 12, p. 120 cites a book.", "Line 12, p. 120 cites a book."),
        ("(Contributed by NM, 5-Aug-1993.)", ""),
    ],
)
def test_comments_lose_what_is_about_their_making(module, comment, expected):
    credit = module.credits_pattern(DATABASE)
    assert module.clean(comment, credit) == ("Theorem 5 of [Lang] p. 3." if expected is None else expected)


def test_the_commonest_labels_are_dropped(module, monkeypatch):
    statements = module.read_statements(DATABASE)
    monkeypatch.setattr(module, "COMMONEST_DROPPED", 1)
    assert module.related_statements(statements) == {"ax-1": set(), "one": set(), "three": {"one"}}
    monkeypatch.setattr(module, "COMMONEST_DROPPED", 0)
    assert module.related_statements(statements)["three"] == {"one", "ax-1"}, "neither syntax nor itself"


def test_raw_files_of_a_database(module, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "COMMONEST_DROPPED", 0)
    (tmp_path / "set.mm").write_text(DATABASE, encoding="ascii")
    module.main(tmp_path / "set.mm", tmp_path / "out")
    with gzip.open(tmp_path / "out" / "lbl.json.gz", "rt") as file:
        assert [json.loads(line) for line in file] == [{"uid": "ax-1", "title": "A rule.", "content": "ph"}]
