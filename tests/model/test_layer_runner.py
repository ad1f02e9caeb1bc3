import pytest
import torch
import torch.nn.functional as F

from prime_xmc.model import varlen
from prime_xmc.model.packed import PackedBackbone
from prime_xmc.model.varlen import VarlenBackbone

LENGTHS = torch.tensor([9, 1, 2, 17, 5, 1, 5])  # in any order


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """The ways that a GPU takes; attention itself pads."""
    monkeypatch.setattr(varlen, "flash_runs", lambda *_: True)
    monkeypatch.setattr(VarlenBackbone, "_is_by_hand", lambda *_: False)


def make(backbone, **settings):
    own = PackedBackbone(backbone, num_frozen=settings.get("num_frozen", 0))
    return VarlenBackbone(backbone, by_hand=own, **settings)


def tokens():
    return torch.randint(3, 50, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(1))


def gradients(backbone, pooled):
    backbone.zero_grad()
    (pooled * torch.linspace(-1, 1, pooled.numel()).view(pooled.shape)).sum().backward()
    return {name: p.grad for name, p in backbone.named_parameters()}


class Watch:
    """What runs the layers."""

    def __init__(self, runner, monkeypatch):
        self.parts = []
        for name in ("layer_runner", "model_runner"):
            own = getattr(runner, name)
            monkeypatch.setattr(own, "run", self.watched(name, own.run))

    def watched(self, name, run):
        def watched(*args):
            self.parts.append((name, args[-1]))
            return run(*args)

        return watched


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("chunk", [1, 12, 4096])
def test_outputs_and_gradients_are_those_of_the_model(backbone, recompute, chunk, monkeypatch):
    runner = make(backbone, recompute=recompute, chunk_tokens=lambda _: chunk)
    watch = Watch(runner, monkeypatch)
    found = runner(tokens(), LENGTHS, torch.float32)
    of_found = gradients(backbone, found)
    assert {name for name, _ in watch.parts} == {"layer_runner"}
    expected = VarlenBackbone(backbone)(tokens(), LENGTHS, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, grad in gradients(backbone, expected).items():
        assert (grad is None) == (of_found[name] is None), name
        if grad is not None:
            torch.testing.assert_close(of_found[name], grad, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: n + m)


def test_frozen_layers(backbone, monkeypatch):
    expected = VarlenBackbone(backbone)(tokens(), LENGTHS, torch.float32)
    of_expected = gradients(backbone, expected)
    runner = make(backbone, num_frozen=1, chunk_tokens=lambda _: 12)
    watch = Watch(runner, monkeypatch)
    found = runner(tokens(), LENGTHS, torch.float32)
    assert {*watch.parts} == {("layer_runner", "below"), ("layer_runner", "above")}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    last = [name for name in of_expected if "layer.1." in name]
    assert len(last) == 16
    for name, grad in gradients(backbone, found).items():
        assert (grad is not None) == (name in last), name
        if grad is not None:
            torch.testing.assert_close(grad, of_expected[name], rtol=1e-4, atol=2e-5)


def test_bf16_is_close_and_gradients_are_float32(backbone):
    exact = make(backbone)(tokens(), LENGTHS, torch.float32)
    rounded = make(backbone)(tokens(), LENGTHS, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert (F.cosine_similarity(exact, rounded) > 0.999).all()
    exact_grad, rounded_grad = gradients(backbone, exact), gradients(backbone, rounded)
    for name, grad in exact_grad.items():
        # of the keys' biases, which softmax cancels, only rounding errors are left
        if grad is not None and grad.norm() > 1e-2:
            assert rounded_grad[name].dtype == torch.float32
            assert F.cosine_similarity(grad.flatten(), rounded_grad[name].flatten(), dim=0) > 0.98, name


def test_modules_that_were_replaced(backbone):
    runner = make(backbone)
    is_bert = backbone.config.model_type == "bert"
    path = "encoder.layer.1.intermediate.dense" if is_bert else "transformer.layer.1.ffn.lin1"
    backbone.set_submodule(path, torch.nn.Linear(16, 24), strict=True)
    expected = VarlenBackbone(backbone)(tokens(), LENGTHS, torch.float32)
    torch.testing.assert_close(runner(tokens(), LENGTHS, torch.float32), expected, rtol=1e-5, atol=1e-5)


def test_with_dropout_the_model_itself_runs(make_backbone, monkeypatch):
    backbone = make_backbone("bert", hidden_dropout_prob=0.3).train()
    runner = make(backbone)
    watch = Watch(runner, monkeypatch)
    first, second = (runner(tokens(), LENGTHS, torch.float32) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-2)
    backbone.eval()
    without = runner(tokens(), LENGTHS, torch.float32)
    assert [name for name, _ in watch.parts] == ["model_runner", "model_runner", "layer_runner"]
    torch.testing.assert_close(without, VarlenBackbone(backbone)(tokens(), LENGTHS, torch.float32))


def test_elsewhere_the_model_itself_runs(backbone, monkeypatch):
    monkeypatch.setattr(varlen, "flash_runs", lambda *_: False)  # as in float32, or before Ampere
    runner = make(backbone)
    watch = Watch(runner, monkeypatch)
    runner(tokens().sort().values, LENGTHS.sort().values, torch.float32)
    assert watch.parts == [("model_runner", "all")]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    @pytest.mark.parametrize("longest", [17, 200])
    def test_close_to_the_model_in_float32(self, longest, make_backbone):
        """By the kernels for short texts and by flash attention."""
        config = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96}
        backbone = make_backbone("bert", **config, max_position_embeddings=256).cuda()
        lengths = torch.tensor([9, 1, 2, longest, 5])
        ids = torch.randint(3, 50, (int(lengths.sum()),), generator=torch.Generator().manual_seed(1)).cuda()
        runner = make(backbone)
        exact = VarlenBackbone(backbone)(ids, lengths, torch.float32)
        rounded = runner(ids, lengths, torch.bfloat16)
        assert (F.cosine_similarity(exact, rounded) > 0.999).all()
        exact_grads, grads = (
            torch.cat([g.flatten() for g in gradients_on(backbone, pooled) if g is not None])
            for pooled in (exact, rounded)
        )
        assert F.cosine_similarity(exact_grads, grads, dim=0) > 0.99

    def test_the_host_does_not_wait(self, make_backbone, without_waiting):
        runner = make(make_backbone("bert", hidden_size=64).cuda())
        ids, lengths = torch.arange(40).cuda(), torch.tensor([9, 15, 16])
        without_waiting(lambda: runner(ids, lengths, torch.bfloat16).sum().backward())


def gradients_on(backbone, pooled):
    backbone.zero_grad()
    (pooled * torch.linspace(-1, 1, pooled.shape[1], device=pooled.device)).sum().backward()
    return [p.grad for p in backbone.parameters()]
