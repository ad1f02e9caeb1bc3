import numpy as np
import pytest

from prime_xmc.data.corpus import Ragged
from prime_xmc.data.label_rows import LabelRowSampler
from prime_xmc.data.sampling import ClusterBatchSampler

NUM_QUERIES, NUM_LABELS = 30, 12


def make(kind=LabelRowSampler, **changes):
    rows = [[query % NUM_LABELS, (query + 5) % NUM_LABELS] for query in range(NUM_QUERIES)]
    arguments = {"batch_size": 8, "num_positives": 2, "weight": np.ones(NUM_LABELS), "seed": 3}
    return kind(Ragged.from_rows(rows, dtype=np.int32), np.arange(NUM_QUERIES), **(arguments | changes))


def test_every_query_and_every_label_is_in_one_batch_of_an_epoch():
    sampler = make()
    batches = list(sampler)
    assert len(batches) == len(sampler) == 6  # 42 rows
    assert {len(ids) for ids, _ in batches} == {7}
    ids = np.concatenate([ids for ids, _ in batches])
    assert sorted(ids) == list(range(NUM_QUERIES + NUM_LABELS))
    for ids, drawn in batches:
        is_label = ids >= NUM_QUERIES
        assert list(is_label) == sorted(is_label), "queries come first"
        assert 1 <= is_label.sum() <= 3, "a share of 2 in 7"
        assert (drawn[is_label, 0] == ids[is_label] - NUM_QUERIES).all()
        assert (drawn[is_label, 1] == -1).all()
        assert (drawn[~is_label] >= 0).all()


def test_queries_are_taken_in_the_order_of_a_sampler_without_label_rows():
    """Of the same clusters; only where batches end differs."""
    clusters = np.arange(NUM_QUERIES) // 4
    orders = []
    for kind in (LabelRowSampler, ClusterBatchSampler):
        sampler = make(kind)
        sampler.set_clusters(clusters)
        sampler.set_epoch(2)
        ids = np.concatenate([ids for ids, _ in sampler])
        orders.append(ids[ids < NUM_QUERIES])
    np.testing.assert_array_equal(*orders)


def test_nothing_else_knows_of_them():
    sampler = make()
    np.testing.assert_array_equal(sampler.query_ids, np.arange(NUM_QUERIES))
    assert sampler.state_dict().keys() == make(ClusterBatchSampler).state_dict().keys()


def test_label_rows_come_in_another_order_in_each_epoch():
    sampler = make()
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        ids = np.concatenate([ids for ids, _ in sampler])
        orders.append(list(ids[ids >= NUM_QUERIES]))
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("position", [0, 2, 5])
def test_an_epoch_continues_where_it_was(position):
    whole = list(make())
    sampler = make()
    sampler.resume_at(position)
    for (left_ids, left_drawn), (right_ids, right_drawn) in zip(list(sampler), whole[position:], strict=True):
        np.testing.assert_array_equal(left_ids, right_ids)
        np.testing.assert_array_equal(left_drawn, right_drawn)


def test_no_labels_are_drawn_where_none_are_needed():
    for ids, drawn in make(num_positives=0):
        assert drawn.shape == (len(ids), 0)
