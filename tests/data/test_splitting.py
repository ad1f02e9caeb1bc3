import numpy as np
import pytest

from prime_xmc.data.corpus import Ragged
from prime_xmc.data.splitting import choose_test_queries, hold_out_queries


def choose(rows, num_labels, num_test, seed=0, **options):
    positives = Ragged.from_rows(rows)
    frequency = np.bincount(positives.values, minlength=num_labels)
    return choose_test_queries(positives, frequency, num_test, seed, **options).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_every_label_keeps_a_training_query_where_there_are_enough_others(seed):
    rng = np.random.default_rng(seed)
    rows = [[int(label)] for label in rng.integers(6, size=60)] + [[6], [7, 0]]
    chosen = choose(rows, 8, 12, seed)
    assert len(set(chosen)) == 12
    assert chosen == sorted(chosen)
    trained = {label for row, labels in enumerate(rows) if row not in chosen for label in labels}
    assert trained == set(range(8))


def test_queries_that_a_label_cannot_spare_come_last():
    assert choose([[0], [1], [2], [3], [3]], 4, 1) in ([3], [4])
    assert len(choose([[0], [1], [2], [3]], 4, 2)) == 2
    assert choose([[0], [1], [2], [3]], 4, 2, spare_only=True) == []
    assert choose([[0], [1], [2], [3], [3]], 4, 2, spare_only=True) in ([3], [4])


def test_queries_without_labels_are_never_chosen_and_one_with_labels_is_left():
    assert choose([[], [], []], 1, 2) == []
    assert len(choose([[], [0], [0], []], 1, 4)) == 1


@pytest.mark.parametrize("seed", range(20))
def test_queries_of_one_text_are_chosen_together(seed):
    texts = np.array([5, 5, 5, 6, 7, 7, 8, 9, 10, 11])
    chosen = choose([[0], [1], [0, 1], [0], [1], [], [0], [1], [0], [1]], 2, 5, seed, same_text=texts)
    assert len(chosen) == 5
    assert len({0, 1, 2} & set(chosen)) in (0, 3)
    assert 5 not in chosen  # it has no label


def test_a_text_that_too_many_queries_share_is_not_chosen():
    assert choose([[0], [0], [0], [1], [1]], 2, 2, same_text=np.array([1, 1, 1, 2, 2])) == [3, 4]
    assert choose([[0], [0], [0]], 1, 2, same_text=np.zeros(3, dtype=np.int64)) == []


def test_a_label_that_one_text_has_alone_keeps_its_queries():
    same_text = np.array([1, 1, 2, 3])
    assert choose([[0], [0], [1], [1]], 2, 2, same_text=same_text, spare_only=True) in ([2], [3])


def test_seed():
    rows = [[0]] * 100
    assert choose(rows, 1, 20) == choose(rows, 1, 20)
    assert choose(rows, 1, 20) != choose(rows, 1, 20, seed=1)


class TestHoldOutQueries:
    def test_texts_that_differ_are_held_out_in_the_order_of_the_seed(self):
        texts = Ragged.from_rows([[row, 7] for row in range(50)])
        expected = np.sort(np.random.default_rng(3).permutation(50)[:8])
        np.testing.assert_array_equal(hold_out_queries(texts, 8, seed=3), expected)
        assert hold_out_queries(texts, 0, seed=3).tolist() == []

    def test_equal_texts_are_on_one_side(self):
        rows = [[row // 3, 7, 7] for row in range(60)]
        for seed in range(5):
            chosen = hold_out_queries(Ragged.from_rows(rows), 20, seed)
            assert len(chosen) == 18  # the most that groups of three make
            held_out = {rows[row][0] for row in chosen}
            assert held_out.isdisjoint(rows[row][0] for row in set(range(60)) - set(chosen.tolist()))

    def test_one_by_one(self):
        texts = Ragged.from_rows([[row // 3, 7, 7] for row in range(60)])
        expected = np.sort(np.random.default_rng(3).permutation(60)[:20])
        np.testing.assert_array_equal(hold_out_queries(texts, 20, 3, one_by_one=True), expected)
        assert len(hold_out_queries(texts, 0, 3, one_by_one=True)) == 0

    def test_what_is_not_the_same_text(self):
        """Other orders, repeated tokens, a beginning of another one, and no tokens at all."""
        texts = Ragged.from_rows([[1, 2], [2, 1], [1], [1, 1], [1, 1, 1], [], [0], [0, 0]])
        # each of them may be chosen alone: two of one text would need room for both
        assert {hold_out_queries(texts, 1, seed).item() for seed in range(100)} == set(range(8))
        assert len(hold_out_queries(texts, 7, seed=0)) == 7

    def test_one_text_for_all_is_held_out_with_a_warning(self, caplog):
        chosen = hold_out_queries(Ragged.from_rows([[4, 4]] * 30), 5, seed=0)
        np.testing.assert_array_equal(chosen, np.sort(np.random.default_rng(0).permutation(30)[:5]))
        assert "the 5 queries held out for validation have texts that queries to train on have too" in caplog.text
