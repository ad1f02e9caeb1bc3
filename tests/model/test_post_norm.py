import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from prime_xmc.model.post_norm import LayerTail, TailParameters, is_known_by_hand, run_tail

DIM, INNER = 4, 3
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(DIM, DIM), (DIM,), (DIM,), (DIM,), (INNER, DIM), (INNER,), (DIM, INNER), (DIM,), (DIM,), (DIM,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def rows(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, DIM, generator=generator, dtype=torch.float64).requires_grad_()


class TestLayerTail:
    def test_definition(self):
        x, context = rows(1), rows(2)
        p = TailParameters(*parameters())
        norm = torch.nn.functional.layer_norm
        hidden = norm(
            x + context @ p.out_weight.T + p.out_bias, (DIM,), p.attention_norm_weight, p.attention_norm_bias, 1e-5
        )
        inner = torch.nn.functional.gelu(hidden @ p.up_weight.T + p.up_bias)
        output = hidden + inner @ p.down_weight.T + p.down_bias
        expected = norm(output, (DIM,), p.output_norm_weight, p.output_norm_bias, 1e-5)
        torch.testing.assert_close(LayerTail.apply(x, context, 1e-5, *p), expected)

    def test_gradcheck(self):
        def tail(x, context, *p):
            return LayerTail.apply(x, context, 1e-5, *p)

        assert torch.autograd.gradcheck(tail, (rows(1), rows(2), *parameters()))

    def test_what_is_kept(self):
        """Of what has the size of the input: the context, and before both norms; and the input of GELU."""
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            LayerTail.apply(rows(1), rows(2), 1e-5, *parameters())
        of_tokens = sizes[: -len(TailParameters._fields)]
        assert sorted(of_tokens) == [5] * 4 + [5 * INNER] + [5 * DIM] * 3


def test_dropout_is_where_it_belongs():
    x, context, p = rows(1), rows(2), TailParameters(*parameters())
    without_attention, _ = run_tail(x, context, p, 1e-5, torch.zeros_like)
    no_context = p._replace(out_weight=torch.zeros_like(p.out_weight), out_bias=torch.zeros_like(p.out_bias))
    torch.testing.assert_close(without_attention, run_tail(x, context, no_context, 1e-5)[0])
    without_inner, rest = run_tail(x, context, p, 1e-5, drop_2=torch.zeros_like)
    torch.testing.assert_close(rest.output, rest.hidden)
    assert not torch.allclose(without_inner, without_attention)


@pytest.mark.parametrize(
    ("model", "known"),
    [
        (lambda: BertModel(BertConfig(**SIZES)), True),
        (lambda: BertModel(BertConfig(**SIZES, hidden_act="relu")), False),
        (lambda: BertModel(BertConfig(**SIZES, is_decoder=True)), False),
        (lambda: DistilBertModel(DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=8, vocab_size=9)), True),
        (lambda: RobertaModel(RobertaConfig(**SIZES)), False),
    ],
)
def test_is_known_by_hand(model, known):
    assert is_known_by_hand(model()) == known
