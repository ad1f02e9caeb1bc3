"""Made-up data with the means asked for, and a watch that sees memory come and go."""

import numpy as np
import pytest
import torch

from prime_xmc.planning.probe import Watch, make_up_data
from prime_xmc.planning.sizes import Sizes

SIZES = Sizes(5000, 4000, 10, labels_per_query=2.4, tokens_per_query=20, tokens_per_label=6)


@pytest.fixture(scope="module")
def make(configure):
    """Makes up data with some overrides."""

    def make_data(sizes=SIZES, *overrides, batch_size=64, num_batches=40):
        config = configure("dataset.max_length=32", "sampling.num_positives=2", *overrides)
        return make_up_data(config, sizes, batch_size=batch_size, num_batches=num_batches)

    return make_data


class TestData:
    def test_it_has_the_means_that_it_is_given(self, make):
        corpus = make().corpus
        assert (len(corpus.train), corpus.num_labels) == (64 * 40, 16 * 64 * 2)
        assert corpus.train.tokens.lengths.mean() == pytest.approx(20, rel=0.03)
        assert corpus.label_tokens.lengths.mean() == pytest.approx(6, rel=0.05)
        assert corpus.train.positives.lengths.mean() == pytest.approx(2.4, rel=0.02)
        assert corpus.train.positives.lengths.min() >= 1
        assert corpus.train.filtered.lengths.sum() == 0

    def test_lengths_are_spread_within_bounds(self, make):
        lengths = make().corpus.train.tokens.lengths
        assert 1 <= lengths.min() < 10
        assert 30 < lengths.max() <= 32

    def test_tokens_and_labels_are_those_there_are(self, make):
        data = make(SIZES._replace(num_labels=300))
        tokens = data.corpus.train.tokens.values
        assert 0 <= tokens.min() < tokens.max() < len(data.tokenizer)
        assert data.corpus.num_labels == 300
        assert data.corpus.train.positives.values.max() == 299

    @pytest.mark.parametrize(("mean", "length"), [(32, 32), (1, 1)])
    def test_all_of_one_length(self, make, mean, length):
        assert set(make(SIZES._replace(tokens_per_query=mean)).corpus.train.tokens.lengths) == {length}

    def test_batches_have_the_labels_of_their_queries(self, make):
        batches = list(make(num_batches=3).train_dataloader())
        assert sorted(np.concatenate([batch.query_ids for batch in batches])) == list(range(192))
        for batch in batches:
            assert batch.positives.any(dim=1).all()
            assert 110 < len(batch.label_ids) <= 128  # of 2048, few are drawn twice
            assert len(batch.lengths) == 64 + len(batch.label_ids)


class TestWatch:
    def test_the_peak_is_that_since_the_restart(self, make):
        watch = Watch(torch.device("cpu"), make())
        np.ones(2**26, dtype=np.uint8)
        before = watch.restart()
        assert watch.peak().host - before.host < 2**25
        block = np.ones(2**27, dtype=np.uint8)
        del block
        assert watch.peak().host - before.host == pytest.approx(2**27, rel=0.1)
        assert watch.restart().host - before.host < 2**25
        assert watch.peak().device == 0

    @pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
    def test_a_gpu_that_is_not_there(self, make):
        with pytest.raises(ValueError, match="there is none here to measure: plan on the machine of the run"):
            Watch(torch.device("cuda"), make())
