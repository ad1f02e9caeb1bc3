import gzip
import json
from collections import Counter

import pytest

from prime_xmc.datasets.building import split_queries, write_raw_files

# c and d are named by two things or more and are labels; a and e are named by one, so that f is no query
RELATED = {"a": {"c", "d"}, "b": {"d", "c"}, "c": {"d"}, "e": {"c", "a"}, "f": {"e"}}
TEXTS = {uid: {"title": f"{uid}: é", "content": ""} for uid in "abcdef"}


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class TestWriteRawFiles:
    def test_every_query_has_the_labels_that_it_names(self, tmp_path):
        write_raw_files(tmp_path / "new" / "out", TEXTS, RELATED, names_in_headers=False)
        train, test, labels = (lines(tmp_path / "new" / "out" / f"{name}.json.gz") for name in ("trn", "tst", "lbl"))
        assert labels == [{"uid": "c", **TEXTS["c"]}, {"uid": "d", **TEXTS["d"]}]
        expected = {"a": [0, 1], "b": [0, 1], "c": [1], "e": [0]}
        assert {query["uid"]: query["target_ind"] for query in train + test} == expected
        assert all(query["title"] == TEXTS[query["uid"]]["title"] for query in train + test)
        assert [len(train), len(test)] == [3, 1]

    def test_a_query_is_filtered_out_of_its_own_answers(self, tmp_path):
        write_raw_files(tmp_path, TEXTS, RELATED, names_in_headers=False)
        filtered = set()
        for name, split in (("trn", "train"), ("tst", "test")):
            uids = [query["uid"] for query in lines(tmp_path / f"{name}.json.gz")]
            pairs = (tmp_path / f"filter_labels_{split}.txt").read_text().splitlines()
            filtered |= {(uids[int(row)], int(label)) for row, label in map(str.split, pairs)}
        assert filtered == {("c", 0)}

    @pytest.mark.parametrize("named", [True, False])
    def test_the_same_things_make_the_same_bytes(self, tmp_path, named):
        backwards = dict(reversed(RELATED.items()))
        write_raw_files(tmp_path / "first", TEXTS, RELATED, names_in_headers=named)
        write_raw_files(tmp_path / "second", TEXTS, backwards, names_in_headers=named)
        first = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
        assert first == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
        assert (b"lbl.json\0" in first["lbl.json.gz"]) == named


def test_every_label_keeps_a_training_query():
    queries = [(f"q{row:03}", sorted({row % 7, row % 40, 40 + row})) for row in range(200)]
    queries += [(f"r{row:03}", [row % 7]) for row in range(200)]
    train, test = split_queries(queries)
    assert sorted(train + test) == sorted(queries)
    assert Counter(label for _, labels in train for label in labels).keys() == {
        label for _, labels in queries for label in labels
    }
    assert {query[0] for query, _ in test} == {"r"}, "a label with a single query keeps it"
    assert len(test) == 120
