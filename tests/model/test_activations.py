import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, DistilBertConfig, LlamaConfig, ModernBertConfig
from transformers.activations import ACT2FN

from prime_xmc.model.activations import computed_again, find_activations
from prime_xmc.model.varlen import VarlenBackbone

LENGTHS = torch.tensor([9, 1, 2, 17, 5])
CONFIGS = {
    "bert": BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
    "distilbert": DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=48, dropout=0.0),
    "modernbert": ModernBertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "llama": LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, use_cache=False
    ),
}


def make_parts(activation):
    torch.manual_seed(0)
    return nn.Linear(6, 8), activation, nn.Linear(8, 3)


def gradients_of(parts, compute, *, again):
    """Gradients of the first parameters, and whether the output of the activation was kept for them."""
    first, activation, last = parts
    outputs = []
    handle = activation.register_forward_hook(lambda *args: outputs.append(weakref.ref(args[2])))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    with computed_again([activation] if again else []):
        loss = compute(last, activation(first(x))).square().sum()
    handle.remove()
    kept = outputs[0]() is not None
    return torch.autograd.grad(loss, list(first.parameters())), kept


@pytest.mark.parametrize("name", ["gelu", "gelu_pytorch_tanh", "silu"])
def test_an_output_is_not_kept_and_gradients_are_equal_to_the_bit(name):
    parts = make_parts(ACT2FN[name])
    assert find_activations(nn.Sequential(*parts)) == [parts[1]]
    expected, kept = gradients_of(parts, lambda last, x: last(x), again=False)
    assert kept
    found, kept = gradients_of(parts, lambda last, x: last(x), again=True)
    assert not kept
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in found)


@pytest.mark.parametrize(
    "compute",
    [
        lambda last, x: last(x.mul_(3)),  # not what was made any more
        lambda last, x: last(x[1:4]),
        lambda last, x: x.T @ x,  # other entries in the same places
        lambda last, x: last(x.view(1, 5, 8)).flatten(0, 1),
        lambda last, x: last(x) + last(x.exp()),
    ],
    ids=["changed in place", "of a part", "transposed", "another shape", "twice"],
)
def test_gradients_are_equal_whatever_is_made_of_an_output(compute):
    parts = make_parts(nn.SiLU())
    expected, _ = gradients_of(parts, compute, again=False)
    found, _ = gradients_of(parts, compute, again=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_activations_of_one_kind_do_not_take_each_others_place():
    first, second = nn.Linear(6, 8), nn.Linear(6, 8)
    activation, x = nn.GELU(), torch.randn(5, 6)
    results = []
    for activations in ([], [activation]):
        with computed_again(activations):
            one, other = activation(first(x)), activation(second(x))
            loss = (one * other).square().sum()  # both are kept, after both were made
        results.append(torch.autograd.grad(loss, [first.weight, second.weight]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_second_derivatives_are_right():
    first, activation, last = (part.double() for part in make_parts(nn.GELU()))

    def function(x):
        with computed_again([activation]):
            return last(activation(first(x)))

    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_a_module_is_as_it_was_afterwards():
    activation = nn.GELU()
    with computed_again([activation]):
        assert "forward" in vars(activation)
        with pytest.raises(RuntimeError):
            activation(torch.zeros(2, dtype=torch.bool))
    assert "forward" not in vars(activation)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_transformer_keeps_no_outputs_of_activations(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(CONFIGS[name], attn_implementation="eager").eval()
    activations = find_activations(model)
    assert len(activations) == 2
    token_ids = torch.randint(3, 50, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(1))
    outputs = []
    for activation in activations:
        activation.register_forward_hook(lambda *args: outputs.append(weakref.ref(args[2])))
    runner, results = VarlenBackbone(model), []
    for watched in (activations, []):
        runner.model_runner.activations = watched
        outputs.clear()
        pooled = runner(token_ids, LENGTHS, torch.float32)
        # the product of a gated unit keeps both of its factors: the other one is no output of an activation
        assert [output() is not None for output in outputs] == [not watched] * 2
        model.zero_grad()
        pooled.square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    pairs = [(a, b) for a, b in zip(*results, strict=True) if a is not None or b is not None]
    assert len(pairs) > 10
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("settings", [{"recompute": True}, {"compile": True}])
def test_what_keeps_nothing_anyway_is_left_alone(settings, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    model = AutoModel.from_config(CONFIGS["distilbert"])
    assert VarlenBackbone(model, **settings).model_runner.activations == []
    assert len(VarlenBackbone(model).model_runner.activations) == 2
