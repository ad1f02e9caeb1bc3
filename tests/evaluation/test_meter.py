from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_xmc.data.corpus import Ragged
from prime_xmc.evaluation.meter import XMCMetrics, log_metrics
from prime_xmc.evaluation.metrics import evaluate


def ragged(rows):
    return Ragged.from_rows(rows, dtype=np.int32)


def random_problem(seed, num_queries, num_labels, width, longest=7):
    """Predictions in no order of any use, some rows short, some queries without positives."""
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.permutation(num_labels)[:width] for _ in range(num_queries)])
    ends = rng.integers(0, 2 * width, size=num_queries)
    indices[np.arange(width) >= ends[:, None]] = -1
    rows = [
        np.sort(rng.choice(num_labels, size=rng.integers(0, min(longest, num_labels) + 1), replace=False)).tolist()
        for _ in range(num_queries)
    ]
    return indices, rows, 1 + 5 * rng.random(num_labels)


class TestXMCMetrics:
    @given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 40), max_size=4))
    @settings(max_examples=20, deadline=None)
    def test_batches_add_up_to_evaluate(self, seed, cuts):
        indices, rows, weight = random_problem(seed, 40, 110, 105)
        metric = XMCMetrics(weight)
        bounds = sorted({0, 40, *cuts})
        for start, stop in pairwise(bounds):
            metric.update(indices[start:stop], ragged(rows[start:stop]))
        assert metric.compute() == pytest.approx(evaluate(indices, ragged(rows), weight), abs=1e-12)

    def test_reset(self):
        indices, rows, weight = random_problem(5, 10, 110, 100)
        metric = XMCMetrics(weight)
        metric.update(indices, ragged(rows))
        metric.reset()
        metric.update(indices[:4], ragged(rows[:4]))
        assert metric.compute() == evaluate(indices[:4], ragged(rows[:4]), weight)

    def test_processes_add_up(self):
        indices, rows, weight = random_problem(6, 30, 110, 100)
        parts = [XMCMetrics(weight), XMCMetrics(weight)]
        parts[0].update(indices[:11], ragged(rows[:11]))
        parts[1].update(indices[11:], ragged(rows[11:]))
        reduce = parts[0]._reductions["sums"]
        parts[0].sums = reduce(torch.stack([part.sums for part in parts]))
        assert parts[0].compute() == pytest.approx(evaluate(indices, ragged(rows), weight), abs=1e-12)

    def test_a_module_cast_to_bf16_still_counts_exactly(self):
        indices, rows, weight = random_problem(7, 300, 110, 100)
        metric = XMCMetrics(weight).to(torch.bfloat16)
        for row in range(300):
            metric.update(indices[row : row + 1], ragged(rows[row : row + 1]))
        assert metric.compute() == pytest.approx(evaluate(indices, ragged(rows), weight), abs=1e-12)


class Log:
    """Takes what a LightningModule would log."""

    def __init__(self):
        self.values = {}

    def log(self, name, value, **_):
        self.values[name] = value

    def log_dict(self, values):
        self.values |= values


class TestLogMetrics:
    def test_what_is_logged_keeps_its_precision(self):
        """0.58 in float32 is 0.5799999833106995, which `evaluate` would not say of the same predictions."""
        indices, rows, weight = random_problem(8, 50, 110, 100)
        metric, module = XMCMetrics(weight), Log()
        metric.update(indices, ragged(rows))
        log_metrics(module, metric, "val")
        logged = {name.removeprefix("val/"): float(value) for name, value in module.values.items()}
        assert logged == evaluate(indices, ragged(rows), weight)
        assert {value.dtype for value in module.values.values()} == {torch.float64}

    def test_without_any_label_nothing_is_logged(self):
        metric, module = XMCMetrics(np.ones(3)), Log()
        metric.update(np.array([[0, 1, 2]]), ragged([[]]))
        log_metrics(module, metric, "test")
        assert module.values == {}
