import gzip
import json
import sqlite3
from contextlib import closing

import pytest

TERMS = [
    (1, "all", "all", "universal", None),
    (2, "GO:2", "growth", "BP", "Increase  in\nsize."),
    (3, "GO:3", "cell growth", "BP", None),
    (4, "GO:4", "binding", "MF", "A contact."),
    (5, "GO:5", "membrane", "CC", "A layer."),
]
PARENTS = {
    "bp": [(2, 1, "isa"), (3, 2, "isa"), (3, 2, "part of"), (3, 3, "regulates"), (3, 5, "part of")],
    "mf": [(4, 2, "part of"), (4, 1, "isa")],
    "cc": [(5, 2, "isa")],
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a folder" / "GO.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE go_term (_id, go_id, term, ontology, definition)")
        database.executemany("INSERT INTO go_term VALUES (?, ?, ?, ?, ?)", TERMS)
        for ontology, pairs in PARENTS.items():
            database.execute(f"CREATE TABLE go_{ontology}_parents (_id, _parent_id, relationship_type)")
            database.executemany(f"INSERT INTO go_{ontology}_parents VALUES (?, ?, ?)", pairs)
    return path


def test_terms_and_relations_of_a_database(path, script):
    module = script("LF-GO-15K", "build_lf_go")
    with closing(sqlite3.connect(path)) as database:
        terms = module.read_terms(database)
        related = module.related_terms(database, terms.keys())
    assert terms["GO:2"] == {"title": "growth", "content": "Increase in size."}
    assert terms["GO:3"] == {"title": "cell growth", "content": ""}
    assert terms.keys() == {"GO:2", "GO:3", "GO:4", "GO:5"}
    assert related == {"GO:3": {"GO:2", "GO:5"}, "GO:4": {"GO:2"}, "GO:5": {"GO:2"}}, "neither itself nor the root"


def test_raw_files_of_a_database(path, script, tmp_path):
    script("LF-GO-15K", "build_lf_go").main(path, tmp_path / "out")
    with gzip.open(tmp_path / "out" / "lbl.json.gz", "rt") as file:
        assert [json.loads(line) for line in file] == [
            {"uid": "GO:2", "title": "growth", "content": "Increase in size."}
        ]


def test_a_missing_database_is_not_made(script, tmp_path):
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
        script("LF-GO-15K", "build_lf_go").main(tmp_path / "GO.sqlite", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
