"""Builds LF-GO: which terms of the Gene Ontology is a term directly related to?

    python build_lf_go.py GO.sqlite OUT

reads the database of Bioconductor's GO.db and writes the Extreme Classification Repository's raw files to the folder
OUT: `{trn,tst,lbl}.json.gz` and `filter_labels_{train,test}.txt`. It needs an installation of prime_xmc.
"""

import sqlite3
import sys
from collections import defaultdict
from collections.abc import Set
from contextlib import closing
from pathlib import Path

from prime_xmc.datasets.building import write_raw_files

ONTOLOGIES = ("bp", "mf", "cc")  # biological process, molecular function, cellular component
ROOT = "universal"  # ontology of the artificial term "all" above the three


def read_terms(database: sqlite3.Connection) -> dict[str, dict[str, str]]:
    """Return name and definition of each term, by its identifier; a definition may be empty."""
    rows = database.execute("SELECT go_id, term, definition FROM go_term WHERE ontology != ?", (ROOT,))
    return {uid: {"title": _clean(name), "content": _clean(definition or "")} for uid, name, definition in rows}


def related_terms(database: sqlite3.Connection, uids: Set[str]) -> dict[str, set[str]]:
    """Return the terms that each term is directly related to, by whatever relation.

    Args:
        database: The database.
        uids: Terms to choose from.
    """
    related = defaultdict(set)
    for ontology in ONTOLOGIES:
        for term, other in database.execute(
            f"SELECT term.go_id, other.go_id FROM go_{ontology}_parents AS pair "
            "JOIN go_term AS term ON term._id = pair._id JOIN go_term AS other ON other._id = pair._parent_id"
        ):
            if term != other and term in uids and other in uids:
                related[term].add(other)
    return dict(related)


def _clean(text: str) -> str:
    """Return a text with each run of white space made one space."""
    return " ".join(text.split())


def main(path: Path, out: Path) -> None:
    """Write the raw files of a database to a folder."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        terms = read_terms(database)
        write_raw_files(out, terms, related_terms(database, terms.keys()), names_in_headers=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
