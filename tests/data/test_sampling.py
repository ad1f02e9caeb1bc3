import logging
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_xmc.data import sampling
from prime_xmc.data.corpus import Ragged
from prime_xmc.data.sampling import (
    ClusterBatchSampler,
    LabelBatchSampler,
    TrainLoader,
    cluster_size_at,
    draw_mined,
    draw_positives,
)

NUM_LABELS = 7
rows_of_labels = st.lists(st.sets(st.integers(0, NUM_LABELS - 1)).map(sorted), min_size=1, max_size=30)


def make_sampler(num_queries=100, *, lengths=(1, 2, 3), query_ids=None, **changes):
    """A sampler over queries q whose positives are some of the labels q, q+1, q+2."""
    rows = [list(range(q, q + lengths[q % len(lengths)])) for q in range(num_queries)]
    arguments = {"batch_size": 16, "num_positives": 2, "weight": np.ones(num_queries + max(lengths)), "seed": 5}
    query_ids = np.arange(num_queries) if query_ids is None else query_ids
    return ClusterBatchSampler(Ragged.from_rows(rows, dtype=np.int32), query_ids, **(arguments | changes))


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for (left_ids, left_drawn), (right_ids, right_drawn) in zip(left, right, strict=True):
        np.testing.assert_array_equal(left_ids, right_ids)
        np.testing.assert_array_equal(left_drawn, right_drawn)


class TestDrawPositives:
    def test_short_rows_are_filled_with_minus_one(self):
        positives = Ragged.from_rows([[4], [], [1, 3]], dtype=np.int32)
        drawn = draw_positives(positives, np.ones(5), np.array([1, 0, 0]), 2, np.random.default_rng(0))
        assert drawn.dtype == np.int64
        np.testing.assert_array_equal(drawn, [[-1, -1], [4, -1], [4, -1]])

    def test_no_queries(self):
        positives = Ragged.from_rows([[4]], dtype=np.int32)
        drawn = draw_positives(positives, np.ones(5), np.empty(0, dtype=np.int64), 2, np.random.default_rng(0))
        assert drawn.shape == (0, 2)

    def test_successive_draws_follow_the_weights(self):
        """P(i first) = w_i / sum(w) and P(j second | i first) = w_j / (sum(w) - w_i), each within 4 sigma."""
        positives = Ragged.from_rows([[0], [1, 2, 4]], dtype=np.int32)
        weight = np.array([9.0, 1.0, 2.0, 9.0, 5.0])
        num_draws = 40_000
        query_ids = np.ones(num_draws, dtype=np.int64)
        drawn = draw_positives(positives, weight, query_ids, 2, np.random.default_rng(3))
        total = weight[[1, 2, 4]].sum()
        for first in (1, 2, 4):
            for second in {1, 2, 4} - {first}:
                expected = weight[first] / total * weight[second] / (total - weight[first])
                found = np.mean((drawn == [first, second]).all(axis=1))
                assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / num_draws)

    @given(rows_of_labels, st.integers(1, 9), st.integers(0, 2**32 - 1))
    def test_draws_are_distinct_positives_and_as_many_as_there_are(self, rows, num_positives, seed):
        rng = np.random.default_rng(seed)
        query_ids = rng.integers(len(rows), size=12)
        weight = rng.uniform(0.1, 30, NUM_LABELS)
        drawn = draw_positives(Ragged.from_rows(rows, dtype=np.int32), weight, query_ids, num_positives, rng)
        for query, labels in zip(query_ids, drawn, strict=True):
            count = min(num_positives, len(rows[query]))
            assert len(set(labels[:count])) == count
            assert set(labels[:count]) <= set(rows[query])
            assert (labels[count:] == -1).all()


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, None), (9, None), (10, 8), (24, 8), (25, 16), (199, 4 * 2**7), (299, 4 * 2**8)]
)
def test_cluster_size_of_the_public_schedule(epoch, expected):
    double_at = [10, 25, 50, 75, 100, 125, 150, 200]
    assert cluster_size_at(epoch, first_epoch=10, initial_size=4, double_at=double_at) == expected


class TestDrawMined:
    def test_labels_of_the_query_each_once_and_none_where_there_are_too_few(self):
        mined = np.array([[5, 6, 7, 8], [3, -1, -1, -1], [-1, -1, -1, -1]], dtype=np.int32)
        drawn = draw_mined(mined, np.array([2, 1, 0]), 2, np.random.default_rng(0))
        assert drawn.dtype == np.int64
        np.testing.assert_array_equal(drawn[:2], [[-1, -1], [3, -1]])
        assert len(set(drawn[2])) == 2
        assert set(drawn[2]) <= {5, 6, 7, 8}

    def test_uniformly(self):
        """Each of 4 labels in half of the draws of 2, within 4 sigma."""
        mined = np.array([[5, 6, 7, 8]], dtype=np.int32)
        drawn = draw_mined(mined, np.zeros(10_000, dtype=np.int64), 2, np.random.default_rng(1))
        shares = np.bincount(drawn.ravel(), minlength=9)[5:] / 10_000
        assert (abs(shares - 0.5) < 4 * 0.005).all()


class TestBatches:
    @settings(deadline=None)
    @given(st.data())
    def test_each_query_once_and_sizes_equal(self, data):
        num_queries = data.draw(st.integers(1, 60))
        query_ids = np.array(sorted(data.draw(st.sets(st.integers(0, num_queries - 1), min_size=1))))
        batch_size = data.draw(st.integers(1, 70))
        sampler = make_sampler(num_queries, query_ids=query_ids, batch_size=batch_size)
        if data.draw(st.booleans()):
            num_clusters = data.draw(st.integers(1, 10))
            sampler.set_clusters(np.random.default_rng(0).integers(num_clusters, size=len(query_ids)))
        batches = list(sampler)
        assert len(batches) == len(sampler) == -(-len(query_ids) // batch_size)
        sizes = [len(batch) for batch, _ in batches]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        np.testing.assert_array_equal(np.sort(np.concatenate([batch for batch, _ in batches])), query_ids)

    def test_positives_belong_to_the_query(self):
        for query_ids, drawn in make_sampler(lengths=(1, 2, 3)):
            for query, labels in zip(query_ids, drawn, strict=True):
                count = min(1 + query % 3, 2)
                assert set(labels[:count]) <= set(range(query, query + 1 + query % 3))
                assert (labels[count:] == -1).all()

    def test_queries_without_positives_are_left_out_with_a_warning(self, caplog):
        with caplog.at_level(logging.WARNING):
            sampler = make_sampler(12, lengths=(0, 1, 1), query_ids=np.array([0, 1, 2, 3, 4]))
        assert "2 of 5 training queries have no positive" in caplog.text
        np.testing.assert_array_equal(sampler.query_ids, [1, 2, 4])
        np.testing.assert_array_equal(np.sort(np.concatenate([batch for batch, _ in sampler])), [1, 2, 4])

    def test_clusters_stay_together(self):
        sampler = make_sampler(96, batch_size=24)
        clusters = np.random.default_rng(1).permutation(np.arange(96) // 8)
        sampler.set_clusters(clusters)
        for query_ids, _ in sampler:
            assert len(np.unique(clusters[query_ids])) == 3
        order = [tuple(query_ids) for query_ids, _ in sampler]
        sampler.set_epoch(1)
        again = [tuple(query_ids) for query_ids, _ in sampler]
        pairs, pairs_again = ({frozenset(clusters[list(batch)]) for batch in batches} for batches in (order, again))
        assert pairs != pairs_again, "other clusters meet in the next epoch"

    def test_clusters_none_is_random_again(self):
        sampler = make_sampler()
        random = list(sampler)
        sampler.set_clusters(np.arange(100) // 4)
        assert not np.array_equal(random[0][0], next(iter(sampler))[0])
        sampler.set_clusters(None)
        assert_same_batches(random, list(sampler))


class TestDeterminism:
    def test_iteration_is_a_function_of_seed_and_epoch(self):
        sampler = make_sampler()
        first = list(sampler)
        np.random.seed(0)  # noqa: NPY002 -- the global generator must not matter
        assert_same_batches(first, list(sampler))
        assert_same_batches(first, list(make_sampler()))
        sampler.set_epoch(1)
        assert not np.array_equal(first[0][0], next(iter(sampler))[0])
        assert not np.array_equal(first[0][0], next(iter(make_sampler(seed=6)))[0])
        sampler.set_epoch(0)
        assert_same_batches(first, list(sampler))

    def test_draws_differ_between_epochs_and_batches(self):
        def one_query_per_batch(epoch):
            sampler = make_sampler(64, lengths=(30,), batch_size=1, num_positives=1, weight=np.ones(94))
            sampler.set_epoch(epoch)
            return {int(query[0]): int(drawn[0, 0] - query[0]) for query, drawn in sampler}

        assert len(set(one_query_per_batch(0).values())) > 10
        assert one_query_per_batch(0) != one_query_per_batch(1)

    @pytest.mark.parametrize("clustered", [False, True])
    def test_a_restored_sampler_yields_the_same_batches(self, clustered):
        sampler = make_sampler()
        sampler.set_epoch(3)
        if clustered:
            sampler.set_clusters(np.arange(100) // 4)
        restored = make_sampler()
        restored.load_state_dict(sampler.state_dict())
        assert_same_batches(list(sampler), list(restored))
        for either in (sampler, restored):
            either.set_epoch(4)
        assert_same_batches(list(sampler), list(restored))


class TestContinuing:
    @pytest.mark.parametrize("position", [0, 3, 7])
    def test_the_batches_that_were_trained_are_left_out_once(self, position):
        """Of an epoch of seven batches, until the next epoch begins."""
        sampler, restored = make_sampler(), make_sampler()
        for either in (sampler, restored):
            either.set_epoch(2)
        whole = list(sampler)
        iterator = iter(sampler)
        for _ in range(position):
            next(iterator)
        restored.load_state_dict(sampler.state_dict() if position else make_sampler().state_dict())
        restored.set_epoch(2)
        assert_same_batches(list(restored), whole[position:])
        assert_same_batches(list(restored), whole)

    def test_an_epoch_that_is_complete_is_followed_by_a_whole_one(self):
        sampler, restored = make_sampler(), make_sampler()
        assert len(list(sampler)) == 7
        restored.load_state_dict(sampler.state_dict())
        for either in (sampler, restored):
            either.set_epoch(1)
        assert_same_batches(list(restored), list(sampler))

    def test_a_state_of_version_0_1_0_starts_with_the_first_batch(self):
        sampler = make_sampler()
        sampler.load_state_dict({"epoch": 0, "clusters": None})
        assert_same_batches(list(sampler), list(make_sampler()))

    @pytest.mark.parametrize("ahead", [False, True])
    def test_a_loader_keeps_the_position_of_its_sampler(self, ahead, monkeypatch):
        """Also while the thread has the batch after it already."""
        monkeypatch.setattr(sampling, "works_ahead", lambda device: ahead)

        class Ids(torch.utils.data.Dataset):
            def __getitem__(self, drawn):
                return drawn

        loader, other = (TrainLoader(Ids(), make_sampler()) for _ in range(2))
        iterator = iter(loader)
        whole = [next(iterator) for _ in range(7)]
        assert_same_batches(whole, list(make_sampler()))
        for position in (1, 3):
            iterator = iter(loader)
            for _ in range(position):
                next(iterator)
            time.sleep(0.05)
            assert loader.state_dict() == {"position": position}
            other.load_state_dict(loader.state_dict())
            assert_same_batches(list(other), whole[position:])
            assert_same_batches(list(iterator), whole[position:])

    @pytest.mark.parametrize("ahead", [False, True])
    def test_clusters_that_come_after_the_iterator_make_its_batches(self, ahead, monkeypatch):
        """The Trainer asks for it before the callbacks at the start of an epoch make clusters."""
        monkeypatch.setattr(sampling, "works_ahead", lambda device: ahead)

        class Ids(torch.utils.data.Dataset):
            def __getitem__(self, drawn):
                return drawn

        loader, expected = TrainLoader(Ids(), make_sampler()), make_sampler()
        iterator = iter(loader)
        for sampler in (loader.sampler, expected):
            sampler.set_epoch(3)
            sampler.set_clusters(np.arange(100) // 4)
        assert_same_batches(list(iterator), list(expected))


class TestBadArguments:
    def test_no_positives_at_all(self):
        with pytest.raises(ValueError, match="no training query has a positive label"):
            make_sampler(3, lengths=(0,))

    @pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
    def test_weight(self, bad):
        with pytest.raises(ValueError, match=f"label 2 has {bad}"):
            make_sampler(3, weight=np.array([1.0, 1.0, bad, 1.0, 1.0, 1.0]))

    @pytest.mark.parametrize("changes", [{"batch_size": 0}, {"num_positives": -1}])
    def test_sizes(self, changes):
        with pytest.raises(ValueError, match="expected batch_size >= 1 and num_positives >= 0, got"):
            make_sampler(3, **changes)

    def test_clusters_of_other_queries(self):
        with pytest.raises(ValueError, match="each of 100 queries, got 99"):
            make_sampler().set_clusters(np.zeros(99, dtype=np.int64))


class TestMined:
    def test_they_come_with_the_batches_and_leave_the_rest_as_it_is(self):
        mined = np.stack([np.arange(100) + 10, np.arange(100) + 20], axis=1).astype(np.int32)
        without, sampler = list(make_sampler()), make_sampler(num_mined=1)
        sampler.set_mined(mined)
        batches = list(sampler)
        assert_same_batches([item[:2] for item in batches], without)
        for query_ids, _, labels in batches:
            assert labels.shape == (len(query_ids), 1)
            assert np.isin(labels[:, 0] - query_ids, [10, 20]).all()
        drawn = np.concatenate([labels[:, 0] - query_ids for query_ids, _, labels in batches])
        assert set(drawn) == {10, 20}

    def test_a_continued_run_has_them(self):
        sampler, other = make_sampler(), make_sampler()
        assert "mined" not in sampler.state_dict()
        sampler.set_mined(np.arange(300, dtype=np.int32).reshape(100, 3))
        other.load_state_dict(sampler.state_dict())
        for left, right in zip(sampler, other, strict=True):
            np.testing.assert_array_equal(left[2], right[2])

    def test_none_again(self):
        sampler = make_sampler()
        sampler.set_mined(np.zeros((100, 1), dtype=np.int32))
        sampler.set_mined(None)
        assert {len(item) for item in sampler} == {2}


class TestLabelBatches:
    @staticmethod
    def make(**changes):
        rows = [[q % 5, 5 + q % 3] for q in range(40)] + [[8]]
        arguments = {"batch_size": 4, "num_positives": 1, "weight": np.ones(10), "seed": 5}
        positives = Ragged.from_rows(rows, dtype=np.int32)
        return LabelBatchSampler(positives, np.arange(1, 41), **(arguments | changes)), rows

    @pytest.mark.parametrize("num_queries", [1, 2, 50])
    def test_each_label_once_with_so_many_of_its_queries(self, num_queries):
        sampler, rows = self.make(num_queries=num_queries)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 3  # 9 labels with queries
        seen = []
        for query_ids, labels in batches:
            assert len(set(query_ids)) == len(query_ids)
            pairs = [(q, label) for q, row in zip(query_ids, labels, strict=True) for label in row if label >= 0]
            assert all(label in rows[q] for q, label in pairs)
            of_batch = sorted({label for _, label in pairs})
            assert len(of_batch) == 3
            for label in of_batch:
                has = sum(label in rows[q] for q in range(1, 41))
                assert sum(other == label for _, other in pairs) == min(num_queries, has)
            seen += of_batch
        assert sorted(seen) == list(range(9))

    def test_other_queries_in_other_epochs(self):
        sampler, _ = self.make()
        first = list(sampler)
        sampler.set_epoch(1)
        assert any(not np.array_equal(a[0], b[0]) for a, b in zip(first, sampler, strict=True))

    def test_there_are_no_clusters(self):
        sampler, _ = self.make()
        sampler.set_clusters(np.zeros(40, dtype=np.int64))
        with pytest.raises(ValueError, match="first_epoch=null"):
            next(iter(sampler))

    def test_a_number_of_queries_is_needed(self):
        with pytest.raises(ValueError, match="num_queries of at least 1"):
            self.make(num_queries=0)
