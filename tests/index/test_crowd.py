import numpy as np
import pytest

from prime_xmc.index.crowd import DEPTH, crowd, probabilities


def test_a_soft_maximum():
    scores = np.array([[0.6, 0.4, -np.inf], [0.6, 0.6, 0.6], [-np.inf, -np.inf, -np.inf]], dtype=np.float32)
    found = crowd(scores, temperature=0.1)
    assert found[0] == pytest.approx(0.6 + 0.1 * np.log(1 + np.exp(-2)), abs=1e-6)
    assert found[1] == pytest.approx(0.6 + 0.1 * np.log(3), abs=1e-6)
    assert found[2] == -np.inf


def test_what_is_beyond_the_depth_does_not_count():
    scores = np.full((1, DEPTH + 50), 0.2)
    assert crowd(scores, 0.05)[0] == pytest.approx(0.2 + 0.05 * np.log(DEPTH))


def test_probabilities():
    found = probabilities(np.array([[0.5, -np.inf]]), np.array([0.4]), (4.0, -2.0, -1.2))
    assert found == pytest.approx(np.array([[0.5, 0.0]]))
    assert probabilities(np.array([[-np.inf]]), np.array([-np.inf]), (4.0, -2.0, 1.0))[0, 0] == pytest.approx(0)
