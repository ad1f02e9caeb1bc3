import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.metrics import hits
from prime_xmc.reporting.statistics import (
    BINS,
    bin_names,
    bin_of_label,
    binned_precision,
    bootstrap,
    compare,
    holm,
    macro_metrics,
    summary,
)


def ones(num_queries):
    return np.ones((num_queries, 1, 1), dtype=np.float32)


class TestBootstrap:
    @pytest.mark.parametrize("num_denominators", [1, 2])
    def test_equals_a_loop_over_resamples(self, num_denominators):
        rng = np.random.default_rng(0)
        numerators = rng.random((7, 2, 3)).astype(np.float32)
        denominators = rng.random((7, num_denominators, 3)).astype(np.float32)
        found = bootstrap(numerators, denominators, np.array([0, 1]), 5, seed=3)
        draws = np.random.default_rng(3).integers(7, size=(5, 7))
        for resample, drawn in enumerate(draws):
            for run in range(2):
                own = denominators[drawn, min(run, num_denominators - 1)]
                expected = numerators[drawn, run].sum(axis=0) / own.sum(axis=0)
                assert found[resample, run] == pytest.approx(expected, abs=1e-5)

    def test_the_spread_over_queries_is_the_standard_error(self):
        hit = (np.random.default_rng(0).random((2000, 1, 1)) < 0.3).astype(np.float32)
        found = bootstrap(hit, ones(2000), np.array([0]), 4000, seed=0)
        assert found.mean() == pytest.approx(hit.mean(), abs=0.001)
        assert found.std() == pytest.approx(hit.std() / np.sqrt(2000), rel=0.05)

    def test_the_spread_over_seeds_is_that_of_their_mean(self):
        """All queries agree, so that only seeds vary; without the scale, two would spread by 1 / sqrt(2) of this."""
        means = np.array([0.2, 0.5, 0.6], dtype=np.float32)
        numerators = np.broadcast_to(means[None, :, None], (10, 3, 1))
        found = bootstrap(numerators, ones(10), np.zeros(3, dtype=np.int64), 20_000, seed=0)
        assert found.mean() == pytest.approx(means.mean(), abs=0.005)
        assert found.std() == pytest.approx(means.std(ddof=1) / np.sqrt(3), rel=0.03)

    def test_queries_are_paired(self):
        """A constant lead of every query is certain, however much queries vary."""
        base = np.random.default_rng(0).random((50, 1, 1)).astype(np.float32)
        found = bootstrap(np.concatenate([base, base + 0.125], axis=1), ones(50), np.array([0, 1]), 200, seed=0)
        assert found[:, 1] - found[:, 0] == pytest.approx(0.125, abs=1e-6)

    def test_nothing_to_attain_is_zero(self):
        found = bootstrap(np.zeros((3, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32), np.array([0]), 2, seed=0)
        assert (found == 0).all()


class TestCompare:
    def test_of_the_same(self):
        same = np.random.default_rng(0).random(100)
        assert compare(same, same, 0.0) == (0.0, 0.0, 0.0, 1.0)

    def test_p_is_small_but_never_zero(self):
        found = compare(np.full(999, 2.0), np.full(999, 1.0), 1.0)
        assert (found.low, found.high) == (1, 1)
        assert found.p == pytest.approx(2 / 1000)

    def test_p_is_uniform_where_there_is_no_difference(self):
        """Of a hundred comparisons of two rankers as good as each other, about five come out below 0.05."""
        rng = np.random.default_rng(1)
        hit = (rng.random((400, 200, 1)) < 0.5).astype(np.float32)
        found = bootstrap(hit, ones(400), np.arange(200), 500, seed=0)[:, :, 0]
        p = [compare(found[:, 2 * i], found[:, 2 * i + 1], 0.0).p for i in range(100)]
        assert 1 <= np.sum(np.array(p) < 0.05) <= 11


@pytest.mark.parametrize("seed", range(10))
def test_holm_equals_statsmodels(seed):
    rng = np.random.default_rng(seed)
    p_values = rng.random(rng.integers(1, 20)).round(2)  # some are equal
    _, expected, _, _ = multipletests(p_values, method="holm")
    assert holm(p_values) == pytest.approx(expected)


def test_one_seed_has_no_deviation():
    assert summary([0.25]) == (0.25, None)
    assert summary([0.0, 1.0]) == (0.5, pytest.approx(0.5**0.5))


class TestBins:
    def test_every_frequency_is_in_the_bin_that_says_so(self):
        for frequency in range(300):
            low, high = BINS[bin_of_label(np.array([frequency]))[0]]
            assert low <= frequency
            assert high is None or frequency <= high
        assert bin_names() == ["0", "1", "2–5", "6–20", "21–100", "> 100"]

    def test_contributions_add_up_to_the_metric(self):
        indices = np.array([[0, 1, -1], [2, 0, 1]], dtype=np.int32)
        hit = hits(indices, Ragged.from_rows([[1], [0, 1]], np.int32))
        found = binned_precision(hit, indices, np.array([0, 2, 5]), np.array([1.0, 3.0, 9.0]), attainable=10.0)
        assert found.tolist() == [0.1, 0, 0.6, 0, 0, 0]


class TestMacro:
    @given(st.integers(0, 2**32 - 1), st.integers(1, 4))
    @settings(max_examples=30, deadline=None)
    def test_equals_a_loop_over_labels(self, seed, k):
        rng = np.random.default_rng(seed)
        indices = np.stack([rng.permutation(8)[:4] for _ in range(6)]).astype(np.int32)
        indices[rng.random((6, 4)) < 0.2] = -1
        rows = [np.flatnonzero(rng.random(8) < 0.3).tolist() for _ in range(6)]
        positives = Ragged.from_rows(rows, np.int32)
        found = macro_metrics(hits(indices, positives), indices, positives, 8, k)
        by_label = []
        for label in {label for row in rows for label in row}:
            predicted = [label in row[:k] for row in indices.tolist()]
            true = [label in row for row in rows]
            both = sum(p and t for p, t in zip(predicted, true, strict=True))
            by_label.append(
                (
                    both / sum(predicted) if any(predicted) else 0,
                    both / sum(true),
                    2 * both / (sum(predicted) + sum(true)),
                    both > 0,
                )
            )
        expected = np.mean(by_label, axis=0) if by_label else np.zeros(4)
        names = (f"macro-P@{k}", f"macro-R@{k}", f"macro-F1@{k}", f"coverage@{k}")
        assert [found[name] for name in names] == pytest.approx(expected.tolist())
