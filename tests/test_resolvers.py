"""What configuration files ask this machine for."""

import pytest

from prime_xmc.resolvers import by_device


@pytest.mark.parametrize(
    ("accelerator", "there", "expected"),
    [("cpu", True, 4), ("gpu", False, 20), ("cuda", True, 20), ("auto", True, 20), ("auto", False, 4)],
)
def test_a_value_by_the_device(accelerator, there, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert by_device(accelerator, 4, 20) == expected
