import pytest
import torch

from prime_xmc.index.full_precision import full_float32


def test_autocast_is_off():
    matrix = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16), full_float32(torch.device("cpu")):
        assert (matrix @ matrix).dtype == torch.float32


def test_tf32_is_off_and_comes_back():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(RuntimeError), full_float32(torch.device("cuda")):
            raise RuntimeError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_last_of_several_threads_restores_it():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    first, second = full_float32(torch.device("cuda")), full_float32(torch.device("cuda"))
    try:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
