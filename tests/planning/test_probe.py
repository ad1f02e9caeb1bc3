"""Made-up data with the means asked for, and a watch that sees memory come and go."""

import numpy as np
import pytest
import torch

from prime_xmc.planning.probe import Watch, make_up_corpus, probe
from prime_xmc.planning.sizes import Sizes

SIZES = Sizes(5000, 4000, 10, labels_per_query=2.4, tokens_per_query=20, tokens_per_label=6)


@pytest.fixture(scope="module")
def make(configure):
    """Makes up a corpus for batches of 64 queries with two positives each."""
    config = configure("dataset.max_length=32", "sampling.batch_size=64", "sampling.num_positives=2")
    return lambda sizes=SIZES, num_queries=2500: make_up_corpus(config, sizes, num_queries=num_queries)


class TestCorpus:
    def test_it_has_the_means_that_it_is_given(self, make):
        corpus = make()
        assert (len(corpus.train), corpus.num_labels) == (2500, 16 * 64 * 2)
        assert corpus.train.tokens.lengths.mean() == pytest.approx(20, rel=0.03)
        assert corpus.label_tokens.lengths.mean() == pytest.approx(6, rel=0.05)
        assert corpus.train.positives.lengths.mean() == pytest.approx(2.4, rel=0.02)
        assert corpus.train.positives.lengths.min() >= 1
        assert corpus.train.filtered.lengths.sum() == 0

    def test_lengths_are_spread_within_bounds(self, make):
        lengths = make().train.tokens.lengths
        assert 1 <= lengths.min() < 10
        assert 30 < lengths.max() <= 32

    def test_tokens_and_labels_are_those_there_are(self, make):
        corpus = make(SIZES._replace(num_labels=300))
        assert 0 <= corpus.train.tokens.values.min() < corpus.train.tokens.values.max() < 30522
        assert corpus.num_labels == 300
        assert corpus.train.positives.values.max() == 299

    @pytest.mark.parametrize(("mean", "length"), [(32, 32), (1, 1)])
    def test_all_of_one_length(self, make, mean, length):
        assert set(make(SIZES._replace(tokens_per_query=mean)).train.tokens.lengths) == {length}


class TestProbe:
    def test_steps_have_the_configured_batches(self, configure):
        module, measured = probe(configure("probe_steps=2", "sampling.batch_size=64"), SIZES)
        assert 55 < measured.labels_in_batch <= 64  # of 1024, few are drawn twice
        assert len(module.query_memory) == 3 * 64
        assert min(measured.step_seconds, measured.encode_seconds, measured.search_seconds) > 0
        assert measured.program > 1e8

    def test_labels_that_are_searched_join_the_batches(self, configure):
        settings = ["probe_steps=2", "sampling.batch_size=64", "trainer.limit_train_batches=1"]
        _, measured = probe(configure(*settings, "model=ance", "sampling.mined.num_drawn=2"), SIZES)
        assert 2.5 * 64 < measured.labels_in_batch <= 3 * 64

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_cuda(self, configure):
        overrides = ["probe_steps=3", "sampling.batch_size=64", "trainer=gpu", "index=exact"]
        module, measured = probe(configure(*overrides), SIZES)
        assert len(module.query_memory) == 6 * 64
        assert min(measured.step_seconds, measured.encode_seconds, measured.cluster_seconds) > 0
        assert min(measured.step.device, measured.encoding.device) > 0

    def test_a_batch_has_each_query_once_where_there_are_too_few(self, configure):
        module, _ = probe(configure("probe_steps=0", "sampling.batch_size=64"), SIZES._replace(num_queries=10))
        assert len(module.query_memory) == 10


class TestWatch:
    def test_the_peak_is_that_since_the_restart(self, make):
        watch = Watch(torch.device("cpu"), make(), 3)
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
            Watch(torch.device("cuda"), make(), 3)
