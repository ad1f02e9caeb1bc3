import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prime_xmc.model.rounding import round_stochastically

finite = st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda value: abs(value) < 1e38)


def neighbours(value):
    """The two numbers of bfloat16 between which a float32 lies, that nearer to zero first; where it is one, itself."""
    bits = torch.tensor(value).view(torch.int32)
    nearer = bits & -(1 << 16)
    return [part.view(torch.float32).item() for part in (nearer, nearer + (1 << 16))] if bits != nearer else [value] * 2


@given(finite)
def test_never_leaves_the_neighbouring_numbers(value):
    found = round_stochastically(torch.full((64,), value))
    assert found.dtype == torch.bfloat16
    assert set(found.float().tolist()) <= set(neighbours(value))


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159, -1e-20, 0.30000001])
def test_the_mean_is_the_value(value):
    """Within four standard errors, of 200,000 draws; rounding to the nearest would miss it by far more."""
    torch.manual_seed(0)
    nearer, farther = neighbours(value)
    exact = torch.tensor(value).item()
    share = (exact - nearer) / (farther - nearer)
    number = 200_000
    found = round_stochastically(torch.full((number,), value)).double().mean().item()
    error = abs(farther - nearer) * math.sqrt(share * (1 - share) / number)
    assert abs(found - exact) <= 4 * error
    assert abs(torch.tensor(value).bfloat16().item() - exact) > 10 * error


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -2.0, math.inf, -math.inf])
def test_what_bfloat16_holds_stays(value):
    found = round_stochastically(torch.full((100,), value)).float()
    assert (found == value).all()
    assert (found.signbit() == torch.tensor(value).signbit()).all()


@pytest.mark.parametrize("bits", [0x7FC00000, -0x00400000, 0x7FFFFFFF, -1])
def test_nan_stays(bits):
    """Those of the host with either sign, and those of a GPU, whose bits are all set."""
    values = torch.full((100,), bits, dtype=torch.int32).view(torch.float32)
    assert values.isnan().all()
    assert round_stochastically(values).isnan().all()


def test_small_steps_add_up():
    """A thousand steps of a thousandth each: to the nearest, 1 would stay 1."""
    torch.manual_seed(0)
    values, plain = torch.ones(4000).bfloat16(), torch.ones(4000).bfloat16()
    for _ in range(1000):
        values = round_stochastically(values.float() + 1e-3)
        plain = (plain.float() + 1e-3).bfloat16()
    assert plain.float().mean() == 1.0
    assert values.float().mean().item() == pytest.approx(2.0, abs=0.01)
