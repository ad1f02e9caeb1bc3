import numpy as np
import pytest
import torch

from prime_xmc.planning.budget import Sizes
from prime_xmc.planning.probe import Meter, batches, make_up_corpus

SIZES = Sizes(5000, 4000, 10, labels_per_query=2.4, tokens_per_query=20, tokens_per_label=6)


def corpus(sizes=SIZES, **changed):
    settings = {"num_queries": 2000, "num_labels": 3000, "max_length": 32, "vocabulary": 500}
    return make_up_corpus(sizes, **settings | changed)


class TestCorpus:
    def test_it_has_the_means_that_it_is_given(self):
        made = corpus()
        assert (len(made.train), made.num_labels) == (2000, 3000)
        assert made.train.tokens.lengths.mean() == pytest.approx(20, rel=0.03)
        assert made.label_tokens.lengths.mean() == pytest.approx(6, rel=0.03)
        assert made.train.positives.lengths.mean() == pytest.approx(2.4, rel=0.02)
        assert made.train.positives.lengths.min() >= 1
        assert made.train.filtered.lengths.sum() == 0

    def test_lengths_are_spread_within_bounds(self):
        lengths = corpus().train.tokens.lengths
        assert 1 <= lengths.min() < 10
        assert 30 < lengths.max() <= 32

    def test_tokens_and_labels_are_those_there_are(self):
        made = corpus()
        assert 0 <= made.train.tokens.values.min() <= made.train.tokens.values.max() == 499
        assert made.train.positives.values.max() < 3000

    @pytest.mark.parametrize(("mean", "length"), [(32, 32), (1, 1)])
    def test_all_of_one_length(self, mean, length):
        made = corpus(SIZES._replace(tokens_per_query=mean))
        assert set(made.train.tokens.lengths) == {length}


class TestBatches:
    def test_queries_come_in_turn_with_labels_of_theirs(self):
        made = corpus()
        loader = batches(made, batch_size=64, num_batches=3, num_positives=2, loss_positives="all")
        found = list(loader)
        assert [batch.query_ids.tolist() for batch in found] == [list(range(i, i + 64)) for i in (0, 64, 128)]
        for batch in found:
            assert batch.positives.any(dim=1).all()
            assert 110 < len(batch.label_ids) <= 128  # of 3000, few are drawn twice
            assert len(batch.lengths) == 64 + len(batch.label_ids)

    def test_a_batch_has_each_query_once_where_there_are_too_few(self):
        made = corpus(num_queries=10)
        (batch,) = batches(made, batch_size=64, num_batches=1, num_positives=1, loss_positives="drawn")
        assert batch.query_ids.tolist() == list(range(10))


class TestMeter:
    def test_the_peak_is_that_since_the_start(self):
        meter = Meter(torch.device("cpu"))
        np.ones(2**26, dtype=np.uint8)
        before = meter.start()
        assert meter.peak().host - before.host < 2**25
        block = np.ones(2**27, dtype=np.uint8)
        assert meter.now().host - before.host == pytest.approx(2**27, rel=0.1)
        del block
        assert meter.now().host - before.host < 2**25
        assert meter.peak().host - before.host == pytest.approx(2**27, rel=0.1)
        assert meter.peak().device == 0

    @pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
    def test_a_gpu_that_is_not_there(self):
        with pytest.raises(ValueError, match="there is none here to measure: plan on the machine of the run"):
            Meter(torch.device("cuda"))
