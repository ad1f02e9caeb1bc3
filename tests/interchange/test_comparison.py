import numpy as np
import pytest
import torch

from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.interchange.comparison import compare, describe


class Looking:
    """Embeds a text as the unit vector of its first token, or as that of the next one."""

    def __init__(self, shift=0):
        self.shift = shift

    def encode_tokens(self, tokens):
        first = torch.tensor([int(tokens[row][0]) for row in range(len(tokens))])
        return torch.eye(8)[(first + self.shift) % 8]


def test_each_encoder_is_measured():
    ids = [[row] for row in range(8)]
    split = Split(Ragged.from_rows(ids), Ragged.from_rows(ids), Ragged.from_rows([[] for _ in ids]))
    encoders = {"right": Looking(), "wrong": Looking(1)}
    found = compare(encoders, split, torch.eye(8), np.ones(8), num_single=3)
    assert [found[name].metrics["P@1"] for name in encoders] == [1.0, 0.0]
    assert all(each.speed > 0 and each.single > 0 for each in found.values())
    lines = describe(found)
    assert lines[0].startswith("right: ")
    assert lines[0].count("(1.00 x)") == 2
    ratio = found["wrong"].speed / found["right"].speed
    assert f"in batches ({ratio:.2f} x)" in lines[1]


@pytest.mark.parametrize("count", [0, 1])
def test_few_queries(count):
    ids = [[row] for row in range(count + 1)]
    split = Split(Ragged.from_rows(ids), Ragged.from_rows(ids), Ragged.from_rows([[] for _ in ids]))
    assert compare({"a": Looking()}, split, torch.eye(8), np.ones(8))["a"].metrics["P@1"] == 1
