import pytest
import torch

from prime_xmc.model.known_gradient import KnownGradient

OF_NEGATIVES = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
PAIRS = torch.tensor([0, 1]), torch.tensor([2, 1])
OF_PAIRS = torch.tensor([10.0, 20.0])


@pytest.mark.parametrize("layout", ["rows", "columns", "part"])
def test_gradient_of_chosen_entries(layout):
    """The second pair is among the negatives too, where both gradients add up."""
    leaf = {"rows": torch.zeros(2, 3), "columns": torch.zeros(3, 2), "part": torch.zeros(2, 5)}[layout].requires_grad_()
    similarity = {"rows": leaf, "columns": leaf.T, "part": leaf[:, 1:4]}[layout]
    hardest = torch.tensor([[1, 0], [2, 1]])
    value = KnownGradient.apply(similarity, torch.tensor(7.0), hardest, OF_NEGATIVES, PAIRS, OF_PAIRS)
    assert value.item() == 7
    (3 * value).backward()
    expected = 3 * torch.tensor([[2.0, 1.0, 10.0], [0.0, 28.0, 4.0]])
    found = {"rows": leaf.grad, "columns": leaf.grad.T, "part": leaf.grad[:, 1:4]}[layout]
    assert torch.equal(found, expected)
    assert leaf.grad.sum() == expected.sum()


def test_gradient_of_all_entries():
    similarity = torch.zeros(2, 2, requires_grad=True)
    pairs = torch.tensor([0]), torch.tensor([1])
    KnownGradient.apply(similarity, torch.tensor(0.0), None, OF_NEGATIVES, pairs, torch.tensor([10.0])).backward()
    assert similarity.grad.tolist() == [[1.0, 12.0], [4.0, 8.0]]
    assert OF_NEGATIVES[0, 1] == 2  # what was given stays as it was
