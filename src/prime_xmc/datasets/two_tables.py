"""Two CSV files to try things on: queries.csv and labels.csv, made from the training split of LF-Debian-18K.

    python -m prime_xmc.datasets.two_tables csv                 # all 29,610 queries and 17,953 labels
    python -m prime_xmc.datasets.two_tables csv --queries 1500  # the first ones, and their labels

A query is a Debian package, with its name as `id` and its description as `text`; `labels` are the names of the packages
that it depends on, recommends, suggests or enhances, separated by semicolons. labels.csv has their `name` and `text`.
"""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

CARRIED = Path(__file__).parent / "LF-Debian-18K"


def write_two_tables(folder: Path, num_queries: int | None = None) -> tuple[int, int]:
    """Write queries.csv and labels.csv and return how many rows they have.

    Args:
        folder: Folder for the files, made if it is missing.
        num_queries: Number of queries, the first ones; None: all.
    """
    with gzip.open(CARRIED / "lbl.json.gz") as lines:
        labels = [json.loads(line) for line in lines]
    with gzip.open(CARRIED / "trn.json.gz") as lines:
        queries = [json.loads(line) for line in islice(lines, num_queries)]
    used = sorted({label for query in queries for label in query["target_ind"]})
    folder.mkdir(parents=True, exist_ok=True)
    names = [label["uid"] for label in labels]
    rows = (
        [query["uid"], query["title"], ";".join(names[label] for label in query["target_ind"])] for query in queries
    )
    _write(folder / "queries.csv", ["id", "text", "labels"], rows)
    _write(folder / "labels.csv", ["name", "text"], ([names[label], labels[label]["title"]] for label in used))
    return len(queries), len(used)


def _write(path: Path, header: list[str], rows: Iterable[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def main() -> None:
    """Write the files that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for queries.csv and labels.csv")
    parser.add_argument("--queries", type=int, help="number of queries; all where it is left out")
    arguments = parser.parse_args()
    num_queries, num_labels = write_two_tables(arguments.folder, arguments.queries)
    sys.stdout.write(f"{arguments.folder}: {num_queries:,} queries, {num_labels:,} labels\n")


if __name__ == "__main__":
    main()
