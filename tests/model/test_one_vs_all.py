import pytest
import torch

from prime_xmc.model.one_vs_all import OneVsAll
from prime_xmc.model.summed_bce import LabelPairs, summed_bce

NOTHING = LabelPairs(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


def test_the_start_is_small_and_random():
    torch.manual_seed(0)
    table = OneVsAll(2000, 16, std=0.02)
    assert table.num_labels == 2000
    assert table.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert table.weight.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert OneVsAll(2000, 16, dtype="bfloat16").weight.dtype == torch.bfloat16


def test_vectors_are_not_normalised():
    table = OneVsAll(3, 4, dtype="bfloat16")
    assert table.vectors().dtype == torch.float32
    assert torch.equal(table.vectors(), table.weight.float())
    assert not table.vectors().requires_grad


def test_dropout_in_training_alone():
    torch.manual_seed(0)
    table = OneVsAll(3, 64, dropout=0.5)
    query_emb, positives = torch.randn(2, 64), LabelPairs(torch.tensor([0, 1]), torch.tensor([2, 0]))
    expected = summed_bce(query_emb, table.weight, positives, NOTHING)
    assert torch.equal(table.eval()(query_emb, positives, NOTHING), expected)
    torch.manual_seed(1)
    found = table.train()(query_emb, positives, NOTHING)
    torch.manual_seed(1)
    dropped = torch.nn.functional.dropout(query_emb, 0.5)
    assert torch.equal(found, summed_bce(dropped, table.weight, positives, NOTHING))
    assert not torch.equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "expected model.dtype float32 or bfloat16, got 'float16'"),
        ({"std": 0.0}, "expected model.std above 0, got 0.0"),
        ({"dropout": 1.0}, "expected model.dropout of at least 0 and below 1, got 1.0"),
        ({"label_block": 0}, "expected model.label_block of at least 1, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        OneVsAll(3, 4, **settings)
