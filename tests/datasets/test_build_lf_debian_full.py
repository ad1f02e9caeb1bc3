import gzip
import json

import pytest

INDEX = """\
Package: editor
Description: edits texts
Description-md5: aa

Package: spell
Description: finds mistakes
Section: text
Description-md5: bb
"""
TRANSLATION = """\
Package: editor
Description-md5: aa
Description-en: edits texts
 An editor for
 texts.
 .
 It has:
  * windows
  * menus

Package: spell
Description-md5: cc
Description-en: finds mistakes
 On another architecture.

Package: spell
Description-md5: bb
Description-en: finds mistakes
"""


@pytest.fixture
def module(script):
    return script("LF-Debian-18K-Full", "build_lf_debian_full")


@pytest.fixture
def raw(tmp_path):
    records = {
        "trn": {"uid": "editor", "title": "editor: edits texts", "target_ind": [0]},
        "tst": {"uid": "editor", "title": "editor: edits texts", "target_ind": [0]},
        "lbl": {"uid": "spell", "title": "spell: finds mistakes"},
    }
    for name, record in records.items():
        with gzip.open(tmp_path / f"{name}.json.gz", "wt") as file:
            file.write(json.dumps(record) + "\n")
    return tmp_path


def test_a_thing_has_the_description_that_its_index_names(module, raw):
    (raw / "Packages").write_text(INDEX)
    (raw / "Translation-en").write_text(TRANSLATION)
    module.main(raw / "Packages", raw / "Translation-en", raw / "out", raw)
    with gzip.open(raw / "out" / "contents.json.gz", "rt") as file:
        assert [json.loads(line) for line in file] == [
            {"uid": "editor", "content": "An editor for texts.\nIt has: * windows * menus"},
            {"uid": "spell", "content": ""},
        ]


@pytest.mark.parametrize("changed", ["finds more mistakes", None])
def test_another_index_than_that_of_the_titles_is_refused(module, raw, changed):
    titles = module.read_titles(raw)
    translation = "" if changed is None else TRANSLATION.replace("finds mistakes", changed)
    with pytest.raises(
        ValueError, match=r"the title is '.*' and the synopsis .*is the index that of the point release"
    ):
        list(module.contents_of(titles, INDEX, translation))
