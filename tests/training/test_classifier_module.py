"""Steps of the second stage; tests/model/test_classifiers.py has its loss, tests/test_classify.py whole runs."""

import numpy as np
import pytest
import torch

from prime_xmc.data.batch import BatchBuilder
from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.index.search import ExactSearch
from prime_xmc.model.banks import RowBank
from prime_xmc.model.classifiers import Classifiers, hardest_of_all
from prime_xmc.model.losses import InfoNCE, Triplet
from prime_xmc.training.classifier_module import ClassifierModule
from prime_xmc.training.optimizers import RowAdam

NUM_LABELS, DIM = 20, 8


@pytest.fixture
def made():
    """A module with the labels of a batch as negatives, and a batch."""
    generator = torch.Generator().manual_seed(0)
    positives = Ragged.from_rows([[1, 2], [3], [2, 7, 9]], dtype=np.int32)
    split = Split(Ragged.from_rows([[1]] * 3), positives, Ragged.from_rows([[], [9], []], dtype=np.int32))
    bank = RowBank(3, DIM, dtype="float16")
    bank.put(torch.arange(3), torch.randn(3, DIM, generator=generator))
    module = ClassifierModule(
        Classifiers(torch.randn(NUM_LABELS, DIM, generator=generator)),
        bank,
        split,
        Triplet(gamma_min=1.0, gamma_max=1.0, num_negatives=2),
        ExactSearch(),
        negatives="sampled",
        dropout=0.5,
        inverse_propensity=np.ones(NUM_LABELS),
        optimizer=RowAdam,
        scheduler=torch.optim.lr_scheduler.LambdaLR,
        warmup_fraction=0.0,
        seed=0,
    )
    builder = BatchBuilder(split, Ragged.from_rows([[1]] * NUM_LABELS), loss_positives="all")
    return module, builder[np.arange(3), np.array([[1, -1], [3, -1], [7, 9]])]


@pytest.mark.parametrize("loss", [Triplet(gamma_min=1.0, gamma_max=1.0, num_negatives=2), InfoNCE()])
def test_the_host_waits_for_no_result_of_a_step(made, loss, never_waits):
    module, batch = made
    module.loss = loss
    optimizer = RowAdam(module.parameters(), lr=0.1)
    before = module.classifiers.weight.detach().clone()
    with never_waits:
        for number in range(2):
            module.training_step(batch.to(torch.device("cpu")), number).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (module.classifiers.weight != before).any(dim=1).nonzero().flatten().tolist() == [1, 3, 7, 9]


def test_divergence_is_noticed_with_advice_for_the_second_stage(made):
    module, _ = made
    module.require_finite()
    module.classifiers.weight.data[0, 0] = float("nan")
    for check in (module.require_finite, module.on_train_end, module.on_validation_epoch_start):
        with pytest.raises(
            ValueError, match=r"weights are not finite after 0 steps .*classify_settings=\[optimizer\.lr"
        ):
            check()
    with pytest.raises(ValueError, match="diverged"):
        module.on_save_checkpoint({})


def test_the_sparse_gradient_is_clipped(made):
    module, batch = made
    module.training_step(batch, 0).backward()
    before = module.classifiers.weight.grad.to_dense().norm()
    assert before > 0.01
    module.configure_gradient_clipping(RowAdam(module.parameters()), 0.01, "norm")
    torch.testing.assert_close(module.classifiers.weight.grad.to_dense().norm(), torch.tensor(0.01), rtol=1e-3, atol=0)


def test_hardest_of_all_labels_are_found_without_waiting(made, never_waits):
    module, _ = made
    rows, labels = torch.tensor([0, 2, 2]), torch.tensor([1, 7, 19])
    with never_waits:
        hardest_of_all(module(torch.arange(3)), module.classifiers.weight.detach(), rows, labels, 4, label_block=7)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_embeddings_go_where_the_classifiers_are_trained(made):
    """And a step there is that of the CPU."""
    module, batch = made
    module.dropout = 0.0
    expected = module.training_step(batch, 0)
    module = module.cuda()
    assert module.query_memory.rows.is_cuda
    moved = batch.pin_memory().to(torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = module.training_step(moved, 0)
        found.backward()
        RowAdam(module.parameters(), lr=0.1).step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected)
