import pytest
import torch

from prime_xmc.model.attribution import shapley_values


def test_shares_of_three_parts():
    worth = {
        ("a",): 1.0,
        ("b",): 2.0,
        ("c",): 0.0,
        ("a", "b"): 4.0,
        ("a", "c"): 1.0,
        ("b", "c"): 2.0,
        ("a", "b", "c"): 4.0,
    }
    shares = shapley_values(["a", "b", "c"], lambda parts: torch.tensor([worth[parts], 2 * worth[parts]]))
    # c adds nothing to anything; what a and b have more together than apart, 1, is halved
    assert {name: share.tolist() for name, share in shares.items()} == {
        "a": pytest.approx([1.5, 3.0]),
        "b": pytest.approx([2.5, 5.0]),
        "c": pytest.approx([0.0, 0.0]),
    }


def test_one_part_has_it_all():
    assert shapley_values(["text"], lambda _: torch.tensor(0.7))["text"] == torch.tensor(0.7)
