"""Data sets of things that name one another, in the raw files of the Extreme Classification Repository."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

MIN_QUERIES_PER_LABEL = 2
TEST_SHARE = 0.3
SEED = 0

Queries = list[tuple[str, list[int]]]


def write_raw_files(
    out: Path, texts: Mapping[str, Mapping[str, str]], related: Mapping[str, Set[str]], *, names_in_headers: bool
) -> None:
    """Write `{trn,tst,lbl}.json.gz` and `filter_labels_{train,test}.txt`.

    A label is a thing that at least `MIN_QUERIES_PER_LABEL` others name, a query one that names a label. A query that
    is also a label is filtered out of its own answers.

    Args:
        out: Folder for the files, made if it is missing.
        texts: Fields of each thing, by its identifier.
        related: Identifiers of the other things that each thing names.
        names_in_headers: Whether the header of a compressed file names it. Either is right; the files that the package
            carries differ in it, and a build gives them byte for byte.
    """
    count = Counter(label for labels in related.values() for label in labels)
    labels = sorted(label for label, queries in count.items() if queries >= MIN_QUERIES_PER_LABEL)
    label_ids = {label: row for row, label in enumerate(labels)}
    queries = [(uid, sorted(label_ids[label] for label in related[uid] if label in label_ids)) for uid in related]
    train, test = split_queries(sorted((uid, positives) for uid, positives in queries if positives))

    def records(split: Queries) -> Iterator[dict[str, Any]]:
        return ({"uid": uid, **texts[uid], "target_ind": positives} for uid, positives in split)

    out.mkdir(parents=True, exist_ok=True)
    files = {
        "trn.json.gz": records(train),
        "tst.json.gz": records(test),
        "lbl.json.gz": ({"uid": uid, **texts[uid]} for uid in labels),
    }
    for file, content in files.items():
        write_records(out / file, content, name_in_header=names_in_headers)
    for file, split in (("filter_labels_train.txt", train), ("filter_labels_test.txt", test)):
        own = ((row, label_ids[uid]) for row, (uid, _) in enumerate(split) if uid in label_ids)
        (out / file).write_text("".join(f"{row} {label}\n" for row, label in own))


def split_queries(queries: Queries) -> tuple[Queries, Queries]:
    """Return training and test queries, drawn at random such that every label keeps a training query."""
    shuffled = list(queries)
    random.Random(SEED).shuffle(shuffled)
    left = Counter(label for _, labels in shuffled for label in labels)
    num_test = int(TEST_SHARE * len(shuffled))
    train: Queries = []
    test: Queries = []
    for query, labels in shuffled:
        if len(test) < num_test and all(left[label] > 1 for label in labels):
            test.append((query, labels))
            left.subtract(labels)
        else:
            train.append((query, labels))
    return train, test


def write_records(path: Path, records: Iterable[Mapping[str, Any]], *, name_in_header: bool) -> None:
    """Write records as lines of JSON compressed with gzip; the same records make the same file.

    Args:
        path: The file, which is written in place.
        records: The records.
        name_in_header: Whether the file's header names it.
    """
    # no time of writing in the header
    name = path.name if name_in_header else ""
    with path.open("wb") as raw, gzip.GzipFile(name, "wb", fileobj=raw, mtime=0) as file:
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
