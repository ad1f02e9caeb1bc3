import math

import pytest
import torch

from prime_xmc.index.evidence import LabelQueries

# training queries at 0, 10, 20, ... degrees, with their labels
ROWS = [[0, 2], [0], [1, 2], [], [2]]


def at(degrees):
    return torch.tensor([[math.cos(math.radians(each)), math.sin(math.radians(each))] for each in degrees])


@pytest.fixture
def queries():
    lengths = torch.tensor([0, *map(len, ROWS)]).cumsum(0)
    return LabelQueries(at([0, 10, 20, 30, 40]), torch.tensor([label for row in ROWS for label in row]), lengths, 4)


@pytest.mark.parametrize("block", [1, 64])
def test_the_nearest_that_carry_the_label(queries, block, monkeypatch):
    monkeypatch.setattr("prime_xmc.index.evidence._QUERY_BLOCK", block)
    similarity, rows = queries.nearest(at([30, 0]), torch.tensor([[2, 3, 0], [1, 2, -1]]), 2)
    assert rows.tolist() == [[[2, 4], [-1, -1], [1, 0]], [[2, -1], [0, 2], [-1, -1]]]
    degrees = torch.tensor([[[10, 10], [0, 0], [20, 30]], [[20, 0], [0, 20], [0, 0]]])
    expected = torch.cos(torch.deg2rad(degrees.float())).masked_fill(rows < 0, -torch.inf)
    torch.testing.assert_close(similarity, expected)


def test_no_answers(queries):
    similarity, rows = queries.nearest(at([30]), torch.tensor([[-1]]), 3)
    assert rows.tolist() == [[[-1, -1, -1]]]
    assert similarity.tolist() == [[[-math.inf] * 3]]
