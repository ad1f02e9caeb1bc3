import json
from pathlib import Path

import numpy as np
import pytest

from prime_xmc.data.propensity import inverse_propensity

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "xc_metrics.json").read_text())


@pytest.mark.parametrize(("a", "b"), [(0.55, 1.5), (0.6, 2.6), (0.5, 0.4)])
def test_equals_pyxclib(a, b):
    rows = FIXTURE["train_labels"]
    frequency = np.bincount(np.concatenate(rows).astype(np.int64), minlength=FIXTURE["num_labels"])
    expected = FIXTURE["expected"][f"A={a},B={b}"]["inverse_propensity"]
    np.testing.assert_allclose(inverse_propensity(frequency, len(rows), a, b), expected, rtol=0, atol=1e-9)


def test_is_the_formula_of_the_paper():
    # C = (ln 20 - 1) 2^1, and 1 + C / (n + 1) for A = B = 1
    c = 2 * (np.log(20) - 1)
    np.testing.assert_allclose(inverse_propensity(np.array([0, 1, 3]), 20, 1.0, 1.0), [1 + c, 1 + c / 2, 1 + c / 4])


def test_falls_with_frequency_and_stays_above_one():
    weight = inverse_propensity(np.arange(1000), 1000, 0.55, 1.5)
    assert (np.diff(weight) < 0).all()
    assert weight[-1] > 1


@pytest.mark.parametrize(
    ("num_queries", "a", "b", "message"),
    [(2, 0.5, 0.4, "num_queries is 2"), (9, -0.1, 0.4, r"A = -0\.1"), (9, 0.5, 0.0, r"B = 0\.0")],
)
def test_refuses_constants_out_of_range(num_queries, a, b, message):
    with pytest.raises(ValueError, match=message):
        inverse_propensity(np.array([1]), num_queries, a, b)
