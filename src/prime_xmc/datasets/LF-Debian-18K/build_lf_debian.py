"""Builds LF-Debian: which packages does a Debian package depend on, recommend, suggest or enhance?

    python build_lf_debian.py OUT < Packages

reads an APT `Packages` index and writes the Extreme Classification Repository's raw files to the folder OUT:
`{trn,tst,lbl}.json.gz` and `filter_labels_{train,test}.txt`.
"""

import gzip
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FIELDS = ("Depends", "Recommends", "Suggests", "Enhances")
DROPPED_SECTIONS = {"libs", "oldlibs"}  # shared libraries say how a package was linked, not what it is about
MIN_QUERIES_PER_LABEL = 2
TEST_SHARE = 0.3
SEED = 0

Package = dict[str, str]
Queries = list[tuple[str, list[int]]]


def read_packages(index: str) -> dict[str, Package]:
    """Return the fields of each package of an APT index, by its name."""
    return {package["Package"]: package for package in map(_fields, index.split("\n\n")) if "Package" in package}


def _fields(stanza: str) -> Package:
    fields: Package = {}
    key = None
    for line in stanza.split("\n"):
        if line.startswith((" ", "\t")):
            if key is not None:
                fields[key] += " " + line.strip()
        elif ":" in line:
            key, value = line.split(":", 1)
            fields[key] = value.strip()
    return fields


def related_packages(packages: dict[str, Package]) -> dict[str, set[str]]:
    """Return the packages that each package names, shared libraries and itself left out."""
    related = defaultdict(set)
    for name, package in packages.items():
        for field in FIELDS:
            for alternative in re.split(r"[,|]", package.get(field, "")):
                other = re.split(r"[\s(:\[]", alternative.strip(), maxsplit=1)[0]
                if other in packages and other != name and packages[other].get("Section") not in DROPPED_SECTIONS:
                    related[name].add(other)
    return dict(related)


def split_queries(queries: Queries) -> tuple[Queries, Queries]:
    """Return training and test queries such that every label keeps a training query."""
    left = Counter(label for _, labels in queries for label in labels)
    num_test = int(TEST_SHARE * len(queries))
    train: Queries = []
    test: Queries = []
    for query, labels in queries:
        if len(test) < num_test and all(left[label] > 1 for label in labels):
            test.append((query, labels))
            left.subtract(labels)
        else:
            train.append((query, labels))
    return train, test


def main(index: str, out: Path) -> None:
    """Write the raw files of an APT index to a folder."""
    packages = read_packages(index)
    related = related_packages(packages)
    count = Counter(label for labels in related.values() for label in labels)
    labels = sorted(label for label, queries in count.items() if queries >= MIN_QUERIES_PER_LABEL)
    label_ids = {label: row for row, label in enumerate(labels)}
    queries = [(name, sorted(label_ids[label] for label in related[name] if label in label_ids)) for name in related]
    queries = sorted((name, positives) for name, positives in queries if positives)
    random.Random(SEED).shuffle(queries)
    train, test = split_queries(queries)

    def record(name: str) -> dict[str, Any]:
        synopsis = packages[name].get("Description", "").split("\n")[0]
        return {"uid": name, "title": f"{name}: {synopsis}"}

    out.mkdir(parents=True, exist_ok=True)
    for file, split in (("trn.json.gz", train), ("tst.json.gz", test)):
        _write(out / file, ({**record(name), "target_ind": positives} for name, positives in split))
    _write(out / "lbl.json.gz", map(record, labels))
    for file, split in (("filter_labels_train.txt", train), ("filter_labels_test.txt", test)):
        own = ((row, label_ids[name]) for row, (name, _) in enumerate(split) if name in label_ids)
        (out / file).write_text("".join(f"{row} {label}\n" for row, label in own))


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main(sys.stdin.read(), Path(sys.argv[1]))
