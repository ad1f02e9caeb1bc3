import pytest
import torch

from prime_xmc.model.banks import RowBank
from prime_xmc.model.frozen import FrozenLayers, FrozenOutputs, send, token_rows

LENGTHS = torch.tensor([2, 1, 3, 2])


class TestFrozenOutputs:
    def test_every_text_is_computed_once(self):
        """Whatever is new in a batch, wherever it stands there; outputs here are the tokens themselves."""
        kept = FrozenOutputs(LENGTHS.numpy(), 1, RowBank, "float32")
        tokens = (10 * torch.arange(4)).repeat_interleave(LENGTHS) + torch.tensor([1, 2, 1, 1, 2, 3, 1, 2])
        computed = []

        def compute(ids, lengths):
            computed.append((ids.tolist(), lengths.tolist()))
            return ids[:, None].float()

        for texts in ([2, 0], [0, 3, 2, 1], [1, 3]):
            texts = torch.tensor(texts)
            rows = token_rows((LENGTHS.cumsum(0) - LENGTHS)[texts], LENGTHS[texts])
            found = kept.take(texts, tokens[rows], LENGTHS[texts], compute)
            assert torch.equal(found[:, 0], tokens[rows].float())
        assert computed == [([21, 22, 23, 1, 2], [3, 2]), ([31, 32, 11], [2, 1])]
        kept.forget()
        kept.take(torch.tensor([1]), torch.tensor([7]), torch.tensor([1]), compute)
        assert computed[2:] == [([7], [1])]


class TestFrozenLayers:
    def test_what_is_below_is_frozen_too(self):
        modules = [torch.nn.Linear(1, 1) for _ in range(4)]

        def trained():
            return [module.weight.requires_grad for module in modules]

        FrozenLayers(modules[0], modules[1:], 0)
        assert trained() == [True] * 4
        frozen = FrozenLayers(modules[0], modules[1:], 1)
        assert (frozen.number, trained()) == (1, [False, False, True, True])
        with frozen.lifted():
            assert (frozen.number, trained()) == (0, [True] * 4)
        assert (frozen.number, trained()) == (1, [False, False, True, True])
        assert FrozenLayers(modules[0], modules[1:], 9).number == 2

    def test_a_negative_number(self):
        with pytest.raises(ValueError, match=r"encoder\.frozen_layers of at least 0, got -1"):
            FrozenLayers(torch.nn.Identity(), [], -1)


def test_what_is_sent_to_the_cpu_stays_there():
    tensor = torch.arange(3)
    assert send(tensor, torch.device("cpu")) is tensor
