import pytest
import torch

from prime_xmc.model.one_vs_all import OneVsAll
from prime_xmc.model.summed_bce import LabelPairs
from prime_xmc.training.fused_sgd import FusedSGD
from prime_xmc.training.optimizers import DenseAndSparse


def steps(optimizer, table, *, fused, number=5):
    """Steps of a table, whose gradient is computed in blocks of 7 labels, with a learning rate that changes."""
    generator = torch.Generator().manual_seed(1)
    for step in range(number):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        query_emb = torch.randn(6, 8, generator=generator)
        positives = LabelPairs(torch.arange(6), torch.randint(20, (6,), generator=generator))
        spared = LabelPairs(torch.tensor([0]), torch.tensor([(int(positives.label_ids[0]) + 1) % 20]))
        take = (lambda *block: optimizer.step_rows(table.weight, *block)) if fused else None
        loss = table(query_emb.requires_grad_(), positives, spared, take)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fused_steps_are_those_of_torch(weight_decay):
    tables = []
    for fused in (False, True):
        torch.manual_seed(0)
        table = OneVsAll(20, 8, label_block=7)
        make = FusedSGD if fused else torch.optim.SGD
        steps(make([table.weight], lr=1.0, weight_decay=weight_decay), table, fused=fused)
        assert (table.weight.grad is None) is fused
        tables.append(table.weight.detach())
    torch.testing.assert_close(tables[1], tables[0])
    assert (tables[0] - OneVsAll(20, 8).weight).norm() > 0.5


def test_a_table_in_bfloat16_takes_on_average_the_steps_of_one_in_float32():
    torch.manual_seed(0)
    start = torch.randn(20, 8).mul(0.02).bfloat16().float()
    exact = OneVsAll(20, 8)
    exact.weight.data.copy_(start)
    steps(FusedSGD([exact.weight], lr=1.0), exact, fused=True, number=1)
    means = []
    for _ in range(300):
        rounded = OneVsAll(20, 8, dtype="bfloat16")
        rounded.weight.data.copy_(start)
        steps(FusedSGD([rounded.weight], lr=1.0), rounded, fused=True, number=1)
        means.append(rounded.weight.detach().float())
    change = exact.weight.detach() - start
    assert (torch.stack(means).mean(0) - start - change).norm() < 0.01 * change.norm()
    assert len({mean.sum().item() for mean in means}) > 1


def test_the_rate_is_that_of_the_group_also_within_another_optimizer():
    table, other = torch.nn.Parameter(torch.zeros(4, 2)), torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [other]}, {"params": [table], "sparse": True}]
    both = DenseAndSparse(
        groups,
        dense=lambda chosen: torch.optim.SGD(chosen, lr=0.1),
        sparse=lambda chosen: FusedSGD(chosen, lr=0.5, weight_decay=1.0),
    )
    (fused,) = [part for part in both.parts if isinstance(part, FusedSGD)]
    both.param_groups[1]["lr"] = 0.25
    fused.step_rows(table, 1, torch.ones(2, 2))
    fused.step_rows(table, 1, torch.ones(2, 2))
    # -0.25, then -0.25 - 0.25 (1 - 0.25)
    assert table.tolist() == [[0.0, 0.0], [-0.4375, -0.4375], [-0.4375, -0.4375], [0.0, 0.0]]
    assert both.step() is None
    assert fused.step(lambda: 3) == 3


def test_a_gradient_that_it_would_pass_over_is_refused():
    table = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = FusedSGD([table], lr=1.0)
    torch.nn.functional.embedding(torch.tensor([1]), table, sparse=True).sum().backward()
    with pytest.raises(ValueError, match=r"one of shape \(4, 2\) has a gradient .* such as optimizer=adamw"):
        optimizer.step()
    assert not table.any()
