import numpy as np
import pytest

from prime_xmc.conversion.store import TEST, TRAIN, LabelRow, Place, QueryRow, open_store


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path, memory_limit="100MB", threads=1) as store:
        yield store


def fill(store):
    rows = [
        QueryRow(2, "a", ["x", "y"], ["red", "blue"]),
        QueryRow(5, "b", ["z", ""], []),
        QueryRow(6, "a", ["x", "y"], ["red", "green", "red"]),
    ]
    assert store.add_queries(TRAIN, rows) == 3
    assert store.add_queries(TEST, [QueryRow(2, "a", ["x", "y"], ["mauve"])]) == 1
    assert store.add_labels([LabelRow(2, "1", "blue", ["Blue"]), LabelRow(3, "2", "red", ["Red"])]) == 2


def test_rows_of_a_query_become_one_within_a_split(store):
    fill(store)
    assert (store.repeats("uid"), store.repeats("digest"), store.most_labels()) == (1, 1, 3)
    store.group_queries("uid")
    assert store.number_labels(add_unknown=True) == (4, 0)  # blue, red, then green, mauve
    assert list(store.read_queries(TRAIN)) == [(0, "a", ["x", "y"], [1, 0, 2]), (1, "b", ["z", ""], [])]
    assert list(store.read_queries(TEST)) == [(0, "a", ["x", "y"], [3])]
    assert [uid for uid, *_ in store.read_labels()] == ["1", "2", "green", "mauve"]
    rows, positives = store.positives(TRAIN)
    assert rows.tolist() == [0, 1]
    assert [sorted(labels.tolist()) for labels in (positives[0], positives[1])] == [[0, 1, 2], []]
    assert store.same_text(TRAIN) is None


def test_each_row_is_a_query_and_unknown_labels_are_dropped(store):
    fill(store)
    store.group_queries(None)
    assert store.num_queries(TRAIN) == 3
    first, second, third = store.same_text(TRAIN).tolist()
    assert first == third != second
    assert store.number_labels(add_unknown=False) == (2, 0)
    assert [labels for *_, labels in store.read_queries(TRAIN)] == [[1, 0], [], [1]]


def test_unknown_references_with_their_first_places(store):
    fill(store)
    assert store.unknown_references(1) == (2, [Place("green", TRAIN, 6, 1)])
    assert [place.value for place in store.unknown_references(5)[1]] == ["green", "mauve"]


def test_conflicts(store):
    fill(store)
    assert store.different_texts() is None
    assert store.conflicting_labels("uid") is None
    store.add_queries(TRAIN, [QueryRow(9, "a", ["other", ""], [])])
    assert store.different_texts() == Place("a", TRAIN, 2, 2)
    store.add_labels([LabelRow(8, "3", "red", ["Crimson"])])
    assert store.conflicting_labels("reference") == Place("red", -1, 3, 2)


def test_many_long_texts_are_added_in_batches(store, monkeypatch):
    monkeypatch.setattr("prime_xmc.conversion.store._BATCH_CHARACTERS", 100)
    store.add_queries(TRAIN, (QueryRow(row, str(row), ["x" * 60], ["l"]) for row in range(7)))
    store.group_queries(None)
    store.number_labels(add_unknown=True)
    assert [row for row, *_ in store.read_queries(TRAIN)] == list(range(7))


def test_the_order_of_the_file_is_kept_beyond_a_batch(store):
    store.add_queries(TRAIN, (QueryRow(row, str(row), ["x"], [f"l{row % 1000}"]) for row in range(20_000)))
    store.group_queries(None)
    assert store.number_labels(add_unknown=True) == (1000, 0)
    names = np.array([uid for uid, *_ in store.read_labels()])
    assert names.tolist() == sorted(names.tolist())
    read = list(store.read_queries(TRAIN))
    assert [uid for _, uid, *_ in read] == [str(row) for row in range(20_000)]
    assert all(names[labels[0]] == f"l{row % 1000}" for row, *_, labels in read)
