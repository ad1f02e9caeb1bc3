import pytest
import torch

from prime_xmc.model.finiteness import not_finite

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_single_number_is_found(value, dtype):
    table = torch.randn(300, 7).to(dtype)
    table[217, 3] = value
    assert not_finite([("fine", torch.ones(3)), ("table", table), ("whole numbers", torch.arange(3))]) == ["table"]


def test_large_finite_numbers_and_empty_tensors_pass():
    greatest = torch.finfo(torch.float32).max
    assert not_finite([("large", torch.tensor([greatest, greatest, -greatest])), ("empty", torch.zeros(0, 3))]) == []


def test_names_keep_their_order():
    assert not_finite([("b", torch.tensor(NAN)), ("a", torch.tensor([1.0, INF])), ("c", torch.ones(()))]) == ["b", "a"]
