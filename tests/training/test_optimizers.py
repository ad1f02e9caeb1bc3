from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.optim import Adam, AdamW, SparseAdam

from prime_xmc.training import optimizers as module_under_test
from prime_xmc.training.optimizers import DenseAndSparse, RowAdam, clip_gradients


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (2,), (6, 2))]


def make(matrix, bias, table, lr=0.1):
    groups = [
        {"params": [matrix], "weight_decay": 0.01},
        {"params": [bias], "weight_decay": 0.0},
        {"params": [table], "sparse": True},
    ]
    return DenseAndSparse(groups, dense=partial(AdamW, lr=lr), sparse=partial(RowAdam, lr=lr))


def loss_of(matrix, bias, table, rows, sparse=True):
    return ((F.embedding(torch.tensor(rows), table, sparse=sparse) @ matrix.T).sum(1) + bias[0]).square().sum()


def test_steps_are_those_of_the_two_optimisers():
    """AdamW for the dense ones; Adam for the rows that have a gradient, while the others stay to the last bit."""
    ours, theirs = parameters(), parameters()
    optimizer = make(*ours)
    dense = AdamW([{"params": [theirs[0]], "weight_decay": 0.01}, {"params": [theirs[1]], "weight_decay": 0.0}], lr=0.1)
    table = Adam([theirs[2]], lr=0.1)
    for _ in range(3):
        for parameters_, sparse, steps in ((ours, True, [optimizer]), (theirs, False, [dense, table])):
            loss_of(*parameters_, [1, 4, 4], sparse).backward()
            for each in steps:
                each.step()
                each.zero_grad()
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)
    untouched = [0, 2, 3, 5]
    assert torch.equal(ours[2][untouched], parameters()[2][untouched])
    assert not torch.equal(ours[2][[1, 4]], parameters()[2][[1, 4]])


def test_a_schedule_reaches_all_groups():
    tensors = parameters()
    optimizer = make(*tensors)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    optimizer.step()  # of no gradient; schedulers want one first
    scheduler.step()
    loss_of(*tensors, [0]).backward()
    before = [tensor.detach().clone() for tensor in tensors]
    optimizer.step()
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


def test_the_closure_computes_gradients_and_its_loss_is_returned():
    tensors = parameters()
    optimizer = make(*tensors)

    def closure():
        loss = loss_of(*tensors, [2])
        loss.backward()
        return loss

    before = tensors[2].detach().clone()
    assert optimizer.step(closure).item() > 0
    assert (tensors[2] != before).any(dim=1).tolist() == [False, False, True, False, False, False]


def test_a_continued_optimiser_ends_as_the_uninterrupted_one():
    results = []
    for interrupted in (False, True):
        tensors = parameters()
        optimizer = make(*tensors)
        for step in range(4):
            if interrupted and step == 2:
                state = optimizer.state_dict()
                optimizer = make(*tensors)
                optimizer.load_state_dict(state)
            loss_of(*tensors, [step, 5]).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(tensors)
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_without_a_sparse_group():
    matrix, bias, _ = parameters()
    optimizer = DenseAndSparse(
        [{"params": [matrix, bias]}], dense=partial(AdamW, lr=0.1), sparse=partial(RowAdam, lr=0.1)
    )
    (matrix.sum() + bias.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(bias, parameters()[1] * (1 - 0.1 * 0.01) - 0.1)


@pytest.fixture(params=[True, False], ids=["cpu", "as on a GPU"])
def counts_rows(request, monkeypatch):
    """Whether the rows of a gradient are counted, which takes a wait for the device on a GPU."""
    monkeypatch.setattr(module_under_test, "_knows_number_of_rows", lambda gradient: request.param)
    return request.param


def test_row_adam_is_sparse_adam(counts_rows):
    """To the last bit where rows are summed in the same order; with repeated rows, and with none at all."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(30, 16, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizers = {
        ours: RowAdam([ours], lr=0.1, betas=(0.8, 0.9)),
        theirs: SparseAdam([theirs], lr=0.1, betas=(0.8, 0.9)),
    }
    for count in (40, 1, 0, 20):
        rows, weight = torch.randint(30, (count,), generator=generator), torch.randn(count, 16, generator=generator)
        for table, optimizer in optimizers.items():
            (F.embedding(rows, table, sparse=True) * weight).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    if counts_rows:
        assert torch.equal(ours, theirs)
    else:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("counts_rows")
class TestClipGradients:
    @staticmethod
    def with_gradients():
        matrix, bias, table = parameters()
        matrix.grad = torch.tensor([[3.0, 0.0]] * 3)
        rows = torch.tensor([[1.0, -2.0], [1.0, 0.0], [0.0, 3.0]])
        table.grad = torch.sparse_coo_tensor(
            torch.tensor([[4, 4, 1]]), rows, (6, 2), check_invariants=True
        )  # row 4 twice: (2, -2)
        return matrix, bias, table

    def test_norm(self):
        matrix, bias, table = self.with_gradients()
        clip_gradients([matrix, bias, table], 1.0)
        norm = (3 * 9 + 8 + 9) ** 0.5
        torch.testing.assert_close(matrix.grad, torch.tensor([[3 / norm, 0.0]] * 3))
        torch.testing.assert_close(table.grad.to_dense()[4], torch.tensor([2 / norm, -2 / norm]))
        assert bias.grad is None

    def test_a_small_norm_stays(self):
        matrix, bias, table = self.with_gradients()
        clip_gradients([matrix, bias, table], 100.0)
        assert matrix.grad[0, 0] == 3
        assert table.grad.to_dense()[1].tolist() == [0, 3]

    def test_value(self):
        matrix, bias, table = self.with_gradients()
        clip_gradients([matrix, bias, table], 1.5, "value")
        assert matrix.grad[0].tolist() == [1.5, 0]
        assert table.grad.to_dense()[[1, 4]].tolist() == [[0, 1.5], [1.5, -1.5]]

    @pytest.mark.parametrize("algorithm", ["norm", "value"])
    def test_rows_without_a_gradient_stay(self, algorithm):
        """Otherwise one of them would go on along its last gradient."""
        table = parameters()[2]
        optimizer = RowAdam([table], lr=0.1)
        for rows in ([0, 0, 1], [2, 2, 3, 3]):
            before = table.detach().clone()
            optimizer.zero_grad()
            (F.embedding(torch.tensor(rows), table, sparse=True) * torch.arange(1.0, 3.0)).sum().backward()
            clip_gradients([table], 1.0, algorithm)
            optimizer.step()
        assert torch.equal(table[:2], before[:2])
        assert (table[2:4] != before[2:4]).all()

    def test_unknown(self):
        with pytest.raises(ValueError, match="norm or value, got 'max'"):
            clip_gradients(self.with_gradients(), 1.0, "max")


def test_processes_agree_on_the_scale_of_clipped_gradients():
    """The norm is a long sum, which is rounded otherwise with another number of threads."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([3.0, 0.0, 4.0])
    clip_gradients([parameter], 1.0, agree=lambda scale: scale.fill_(0.5))
    assert parameter.grad.tolist() == [1.5, 0, 2]


def test_a_dense_gradient_is_refused_by_the_one_for_rows():
    table = torch.nn.Parameter(torch.ones(3, 2))
    table.grad = torch.ones(3, 2)
    with pytest.raises(
        ValueError, match=r"of shape \(3, 2\) has a dense one: look its rows up by an embedding with sparse"
    ):
        RowAdam([table]).step()
    assert torch.equal(table, torch.ones(3, 2))
