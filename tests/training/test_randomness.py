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
        for other in ((6,), (5, 1), (5, 2), (6, 1)):
            seed_step(seed, other[0], torch.device(device), *other[1:])
            numbers = torch.rand(3)
            assert not any(torch.equal(numbers, known.cpu()) for known in expected)
            expected = (*expected, numbers)
