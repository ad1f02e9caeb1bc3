import pytest
import torch

from prime_xmc.training.randomness import seed_step


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
@pytest.mark.parametrize("seed", [0, -3, 2**40])
def test_numbers_are_those_of_manual_seed(seed, device):
    with torch.random.fork_rng():
        torch.manual_seed(hash((seed, 5)))
        expected = torch.rand(3), torch.rand(3, device=device)
        seed_step(seed, 5, torch.device(device))
        found = torch.rand(3), torch.rand(3, device=device)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        seed_step(seed, 6, torch.device(device))
        assert not torch.equal(torch.rand(3), found[0])
