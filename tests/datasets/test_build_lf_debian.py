import gzip
import json

INDEX = """\
Package: editor
Section: editors
Depends: libc6 (>= 2.3), spell:any | dictionary, editor
Suggests: spell [amd64],
 reader
Description: edits texts

Package: spell
Section: text
Enhances: editor
Description: finds mistakes

Package: reader
Recommends: spell, unknown

Package: libc6
Section: libs
Depends: reader
"""


def test_packages_that_a_package_names(script):
    module = script("LF-Debian-18K", "build_lf_debian")
    related = module.related_packages(module.read_packages(INDEX))
    assert related == {
        "editor": {"spell", "reader"},  # no shared library, not itself, nothing outside the index
        "spell": {"editor"},
        "reader": {"spell"},
        "libc6": {"reader"},
    }


def test_raw_files_of_an_index(script, tmp_path):
    script("LF-Debian-18K", "build_lf_debian").main(INDEX, tmp_path)
    with gzip.open(tmp_path / "lbl.json.gz", "rt") as file:
        assert [json.loads(line) for line in file] == [
            {"uid": "reader", "title": "reader: "},
            {"uid": "spell", "title": "spell: finds mistakes"},
        ]
