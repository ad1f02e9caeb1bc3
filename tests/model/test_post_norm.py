import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from prime_xmc.model.post_norm import InnerParameters, LayerInner, NormAndProject, is_known_by_hand, run_inner

DIM, INNER = 4, 3
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(DIM, DIM), (DIM,), (DIM,), (DIM,), (INNER, DIM), (INNER,), (DIM, INNER), (DIM,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def of_projection():
    """Weight and bias of a product, then those of a norm."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(6, DIM), (6,), (DIM,), (DIM,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def rows(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, DIM, generator=generator, dtype=torch.float64).requires_grad_()


def norm(x, weight, bias):
    return F.layer_norm(x, (DIM,), weight, bias, 1e-5)


class TestLayerInner:
    def test_definition(self):
        x, context = rows(1), rows(2)
        p = InnerParameters(*parameters())
        hidden = norm(x + context @ p.out_weight.T + p.out_bias, p.norm_weight, p.norm_bias)
        expected = hidden + F.gelu(hidden @ p.up_weight.T + p.up_bias) @ p.down_weight.T + p.down_bias
        torch.testing.assert_close(LayerInner.apply(x, context, 1e-5, *p), expected)

    def test_gradcheck(self):
        def inner(x, context, *p):
            return LayerInner.apply(x, context, 1e-5, *p)

        assert torch.autograd.gradcheck(inner, (rows(1), rows(2), *parameters()))

    def test_what_is_kept(self):
        """Of what has the size of the input: the context and the input of the norm; and the input of GELU."""
        kept = kept_sizes(LayerInner, rows(1), rows(2), 1e-5, *parameters())
        assert sorted(kept) == [5] * 2 + [5 * INNER] + [5 * DIM] * 2


class TestNormAndProject:
    def test_definition(self):
        output, (weight, bias, of_norm, of_bias) = rows(1), of_projection()
        x, projected = NormAndProject.apply(output, 1e-5, of_norm, of_bias, weight, bias)
        torch.testing.assert_close(x, norm(output, of_norm, of_bias))
        torch.testing.assert_close(projected, x @ weight.T + bias)

    def test_gradcheck(self):
        def project(output, weight, bias, of_norm, of_bias):
            return NormAndProject.apply(output, 1e-5, of_norm, of_bias, weight, bias)

        assert torch.autograd.gradcheck(project, (rows(1), *of_projection()))

    def test_what_is_kept(self):
        weight, bias, of_norm, of_bias = of_projection()
        kept = kept_sizes(NormAndProject, rows(1), 1e-5, of_norm, of_bias, weight, bias)
        assert sorted(kept) == [5] * 2 + [5 * DIM]


def kept_sizes(function, *arguments):
    """Sizes of what is kept besides parameters."""
    parameters = {id(each) for each in arguments if isinstance(each, torch.Tensor) and each.shape[:1] != (5,)}
    sizes = []

    def pack(tensor):
        if id(tensor) not in parameters:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function.apply(*arguments)
    return sizes


def test_dropout_is_where_it_belongs():
    x, context, p = rows(1), rows(2), InnerParameters(*parameters())
    without_attention, _ = run_inner(x, context, p, 1e-5, torch.zeros_like)
    no_context = p._replace(out_weight=torch.zeros_like(p.out_weight), out_bias=torch.zeros_like(p.out_bias))
    torch.testing.assert_close(without_attention, run_inner(x, context, no_context, 1e-5)[0])
    without_inner, rest = run_inner(x, context, p, 1e-5, drop_2=torch.zeros_like)
    torch.testing.assert_close(without_inner, rest.hidden)
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
