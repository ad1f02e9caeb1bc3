import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._python_dispatch import TorchDispatchMode

from prime_xmc.model.summed_bce import LabelPairs, summed_bce

NUM_QUERIES, NUM_LABELS, DIM = 7, 50, 5


def pairs(mask):
    return LabelPairs(*mask.nonzero(as_tuple=True))


@pytest.fixture
def problem():
    """Queries, classifiers, positives and spared pairs, which exclude each other; the logits reach from -30 to 30."""
    generator = torch.Generator().manual_seed(0)
    query_emb = torch.randn(NUM_QUERIES, DIM, generator=generator, dtype=torch.float64)
    weight = 4 * torch.randn(NUM_LABELS, DIM, generator=generator, dtype=torch.float64)
    drawn = torch.rand(NUM_QUERIES, NUM_LABELS, generator=generator)
    return query_emb.requires_grad_(), weight.requires_grad_(), drawn < 0.1, (drawn > 0.9)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("label_block", [1, 8, 49, 50, 1000])
def test_loss_and_gradients_are_those_of_torch_whatever_the_block(problem, label_block):
    query_emb, weight, positives, spared = problem
    expected = binary_cross_entropy_with_logits(
        query_emb @ weight.T, positives.double(), weight=(~spared).double(), reduction="sum"
    )
    found = summed_bce(query_emb, weight, pairs(positives), pairs(spared), label_block=label_block)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        gradients(3 * found, query_emb, weight), gradients(3 * expected, query_emb, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_hand_made_value():
    """One query (1, 2) with the classifiers (1, 0), positive, and (0, -1): logits 1 and -2."""
    query_emb = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    nothing = LabelPairs(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    loss = summed_bce(query_emb, weight, LabelPairs(torch.tensor([0]), torch.tensor([0])), nothing)
    assert loss.item() == pytest.approx(0.3132616875 + 0.1269280110)  # log(1 + e^-1) + log(1 + e^-2)
    of_query, of_weight = gradients(loss, query_emb, weight)
    missing, false = 0.7310585786 - 1, 0.1192029220  # sigmoid(1) - 1, sigmoid(-2)
    torch.testing.assert_close(of_query, torch.tensor([[missing, -false]], dtype=torch.float64))
    torch.testing.assert_close(
        of_weight, torch.tensor([[missing, 2 * missing], [false, 2 * false]], dtype=torch.float64)
    )


def test_extreme_logits_stay_finite():
    query_emb = torch.tensor([[1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [1.0]], requires_grad=True)
    one = LabelPairs(torch.tensor([0]), torch.tensor([1]))
    loss = summed_bce(query_emb, weight, one, LabelPairs(torch.tensor([0]), torch.tensor([2])))
    assert loss.item() == 2000.0  # the wrong label, and the missed one; the spared one does not count
    of_query, of_weight = gradients(loss, query_emb, weight)
    assert of_query.item() == 2.0  # 1 * 1 + (-1) * (-1)
    assert of_weight.flatten().tolist() == [1000.0, -1000.0, 0.0]


def test_blocks_are_handed_over_in_order_and_may_be_stepped_at_once(problem):
    """The gradient of the queries is that of the table as it was."""
    query_emb, weight, positives, spared = problem
    expected = gradients(summed_bce(query_emb, weight, pairs(positives), pairs(spared)), query_emb, weight)
    table, starts, blocks = weight.detach().clone(), [], []

    def take(start, gradient):
        starts.append(start)
        blocks.append(gradient.clone())
        table[start : start + len(gradient)] -= 0.1 * gradient

    loss = summed_bce(query_emb, table, pairs(positives), pairs(spared), take=take, label_block=20)
    (of_query,) = gradients(loss, query_emb)
    assert starts == [0, 20, 40]
    torch.testing.assert_close(torch.cat(blocks), expected[1])
    torch.testing.assert_close(of_query, expected[0])
    torch.testing.assert_close(table, weight - 0.1 * expected[1])


def test_no_tensor_is_larger_than_a_block(problem):
    query_emb, weight, positives, spared = problem
    positives, spared, weight = pairs(positives), pairs(spared), weight.detach()
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        summed_bce(query_emb, weight, positives, spared, take=lambda *_: None, label_block=10)
    assert len(sizes) > 20
    assert max(sizes) <= NUM_QUERIES * 10 < weight.numel()


def test_products_are_rounded_as_autocast_says_and_sums_are_not(problem):
    query_emb, weight, positives, spared = (part.float() if part.is_floating_point() else part for part in problem)
    exact = gradients(summed_bce(query_emb, weight, pairs(positives), pairs(spared)), query_emb, weight)
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_bce(query_emb, weight, pairs(positives), pairs(spared), label_block=8)
    rounded = gradients(loss, query_emb, weight)
    assert loss.dtype == torch.float32
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, theirs)
        assert (ours - theirs).norm() < 0.02 * theirs.norm()
