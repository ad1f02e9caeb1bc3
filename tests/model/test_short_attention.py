import importlib
import inspect
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoModel, BertConfig

from prime_xmc.model import model_runner, packed_attention, short_attention
from prime_xmc.model.packed_attention import PackedTexts
from prime_xmc.model.short_attention import LONGEST, attend_in_short_texts, fits_short_attention, short_attention_runs
from prime_xmc.model.varlen import VarlenBackbone


def attend_exactly(query, key, value, lengths, window, scaling):
    """The definition, one text after another; gradients by autograd."""
    results = []
    for q, k, v in zip(*(rows.split(lengths.tolist()) for rows in (query, key, value)), strict=True):
        position = torch.arange(len(q), device=q.device)
        distance = position[:, None] - position  # of a query behind a key
        unseen = torch.zeros_like(distance, dtype=torch.bool)
        if window[0] >= 0:
            unseen |= distance > window[0]
        if window[1] >= 0:
            unseen |= -distance > window[1]
        scores = torch.einsum("qhd,khd->hqk", q, k) * scaling
        results.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(unseen, float("-inf")).softmax(-1), v))
    return torch.cat(results)


def check(device, dtype, size, window, lengths, tolerance, scaling=None, heads=2):
    """Compare output and gradients with those in float64, in every text by itself."""
    random = torch.Generator().manual_seed(0)
    tokens = int(lengths.sum())
    # rows that lie among others, and heads whose numbers do not lie behind one another
    joint = torch.randn(tokens, 2, heads, size, generator=random).to(device, dtype)
    across = torch.randn(size, heads, tokens, generator=random).to(device, dtype).permute(2, 1, 0)
    rows = [part.requires_grad_() for part in (*joint.unbind(1), across)]
    grad = torch.randn(size, heads, tokens, generator=random).to(device, dtype).permute(2, 1, 0)
    offsets = F.pad(lengths.cumsum(0), (1, 0)).int().to(device)
    found = attend_in_short_texts(*rows, offsets, window, scaling)
    assert (found.shape, found.dtype) == ((tokens, heads, size), dtype)
    exact_rows = [part.detach().double().requires_grad_() for part in rows]
    exact = attend_exactly(*exact_rows, lengths, window, size**-0.5 if scaling is None else scaling)
    pairs = {"output": (found, exact)}
    grads, exact_grads = torch.autograd.grad(found, rows, grad), torch.autograd.grad(exact, exact_rows, grad.double())
    pairs |= dict(zip(("query", "key", "value"), zip(grads, exact_grads, strict=True), strict=True))
    for name, (actual, expected) in pairs.items():
        for part, wanted in zip(*(both.split(lengths.tolist()) for both in (actual, expected)), strict=True):
            error, most = (part - wanted).norm(), tolerance * (wanted.norm() + 0.1 * wanted.numel() ** 0.5)
            assert error <= most, f"{name} of {len(part)} tokens: {error:.2e} > {most:.2e}"


def check_in_interpreter():
    """What a process with TRITON_INTERPRET=1 does: in float32 nothing but the algorithm can be wrong."""
    lengths = torch.tensor([3, 1, 32, 33, 100, 2])
    for window in ((-1, -1), (-1, 0), (40, 3)):  # all, the left, and a window that has whole tiles outside
        check("cpu", torch.float32, 32, window, lengths, tolerance=1e-5, scaling=0.3)
    check("cpu", torch.float32, 64, (-1, -1), lengths, tolerance=1e-5)
    check("cpu", torch.float16, 32, (-1, -1), torch.tensor([1, 5, 40]), tolerance=4e-3)  # bf16 it cannot multiply
    # schema, gradients, shapes, strides and compilation for any number of tokens and texts
    rows = [torch.randn(9, 2, 32, requires_grad=True) for _ in range(3)]
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32)
    torch.library.opcheck(short_attention._short_attention, (*rows, offsets, 0.2, -1, 3))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_definition_on_a_cpu():
    hook = "import jaxtyping; jaxtyping.install_import_hook('prime_xmc', 'beartype.beartype')"  # as in all tests
    command = f"{hook}; import runpy; runpy.run_path({__file__!r})['check_in_interpreter']()"
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "longest", "fits"),
    [
        (4, 4, 32, 128, True),
        (4, 4, 64, 1, True),
        (4, 4, 32, 129, False),
        (4, 4, 16, 20, False),
        (4, 4, 128, 20, False),
        (4, 2, 32, 20, False),
    ],
)
def test_what_takes_the_place_of_flash_attention(heads, key_heads, size, longest, fits, monkeypatch):
    query, key = (torch.zeros(1, number, 150, size, dtype=torch.bfloat16) for number in (heads, key_heads))
    assert fits_short_attention(query[0].transpose(0, 1), key[0].transpose(0, 1), longest) == fits
    called = []

    def attend(name):
        return lambda query, *_: called.append(name) or query

    monkeypatch.setattr(packed_attention, "attend_in_short_texts", attend("short"))
    monkeypatch.setattr(packed_attention._current, "flash", attend("flash"))
    monkeypatch.setattr(packed_attention._current, "texts", PackedTexts(torch.tensor([0, 150]).int(), longest))
    for short in (True, False):
        monkeypatch.setattr(packed_attention._current, "short", short)
        packed_attention.packed_attention(torch.nn.Module(), query, key, key, None)
    assert called == ["short" if fits else "flash", "flash"]
    # neither rounds float32 nor knows dropout
    monkeypatch.setattr(packed_attention._current, "short", True)
    monkeypatch.setattr(packed_attention._current, "texts", PackedTexts(torch.tensor([0, 150]).int(), 150))
    packed_attention.packed_attention(torch.nn.Module(), query.float(), key.float(), key.float(), None)
    packed_attention.packed_attention(torch.nn.Module(), query, key, key, None, dropout=0.1)
    assert len(called) == 2


def test_kernels_that_do_not_run(caplog):
    """For want of Triton, of a GPU or of a compiler: it is said, and flash attention remains."""
    assert not short_attention_runs.__wrapped__(torch.device("cpu"))
    assert "do not run here, so that flash attention takes their place" in caplog.text


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
    @pytest.mark.parametrize(("size", "window"), [(32, (-1, -1)), (64, (-1, -1)), (64, (-1, 0)), (64, (40, 3))])
    def test_definition_for_all_lengths(self, dtype, tolerance, size, window):
        lengths = 1 + torch.randperm(LONGEST, generator=torch.Generator().manual_seed(0))
        check("cuda", dtype, size, window, lengths, tolerance, scaling=0.2)

    def test_equal_inputs_have_equal_results(self):
        rows = [torch.randn(300, 12, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        offsets = torch.tensor([0, 100, 120, 240, 300], dtype=torch.int32, device="cuda")
        runs = []
        for _ in range(2):
            output = attend_in_short_texts(*rows, offsets, (-1, -1), None)
            runs.append((output, *torch.autograd.grad(output, rows, torch.ones_like(output))))
        for first, second in zip(*runs, strict=True):
            assert torch.equal(first, second)

    @pytest.fixture
    def model(self):
        config = BertConfig(
            vocab_size=50,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=96,
            max_position_embeddings=200,
            initializer_range=0.2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AutoModel.from_config(config, attn_implementation="eager").cuda().eval()

    @pytest.fixture
    def launches(self, monkeypatch):
        """The names of the kernels that ran."""
        kernels = importlib.import_module("prime_xmc.model.short_attention_kernels")
        names = []

        def counted(name, launch):
            return lambda *args: names.append(name) or launch(*args)

        for name in ("launch_forward", "launch_backward"):
            monkeypatch.setattr(kernels, name, counted(name, getattr(kernels, name)))
        return names

    @staticmethod
    def run(model, runner, lengths, dtype):
        """Pooled outputs and gradients of all parameters."""
        ids = torch.randint(3, 50, (sum(lengths),), generator=torch.Generator().manual_seed(1)).cuda()
        model.zero_grad()
        pooled = runner(ids, torch.tensor(lengths), dtype)
        (pooled * torch.linspace(-1, 1, 64, device=pooled.device)).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return pooled.detach(), grads

    @pytest.mark.parametrize("lengths", [[5, 128, 1, 60], [5, 129, 1, 60]])
    def test_a_model(self, model, lengths, launches):
        assert short_attention_runs(torch.device("cuda", torch.cuda.current_device()))
        launches.clear()
        runner = VarlenBackbone(model)
        exact, exact_grads = self.run(model, runner, lengths, torch.float32)
        assert launches == []
        found, grads = self.run(model, runner, lengths, torch.bfloat16)
        short = ["launch_forward"] * 3 + ["launch_backward"] * 3
        assert launches == (short if max(lengths) <= LONGEST else [])
        assert (F.cosine_similarity(found, exact) > 0.999).all()
        assert F.cosine_similarity(grads, exact_grads, dim=0) > 0.99

    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
    def test_a_compiled_model(self, model, launches, monkeypatch):
        # the tests' check of types is not for the compiler
        checked = {
            model_runner: ("_run_layer", "set_texts"),
            packed_attention: ("attend", "attend_in_short_texts", "fits_short_attention"),
        }
        for module, name in ((module, name) for module, names in checked.items() for name in names):
            monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
        attention = inspect.unwrap(packed_attention.packed_attention)
        monkeypatch.setitem(AttentionInterface._global_mapping, packed_attention.ATTENTION, attention)
        plain, compiled = VarlenBackbone(model), VarlenBackbone(model, compile=True)
        counter = importlib.import_module("torch._dynamo.testing").CompileCounterWithBackend("aot_eager")
        compiled.model_runner._run_layer = torch.compile(model_runner._run_layer, backend=counter)
        for lengths in ([3, 5, 2], [7, 1, 4, 100], [9, 128], [6] * 4):
            expected, expected_grads = self.run(model, plain, lengths, torch.bfloat16)
            launches.clear()
            found, grads = self.run(model, compiled, lengths, torch.bfloat16)
            assert launches == ["launch_forward"] * 3 + ["launch_backward"] * 3
            assert (F.cosine_similarity(found, expected) > 0.999).all()
            assert F.cosine_similarity(grads, expected_grads, dim=0) > 0.99
        assert counter.frame_count == 1

    def test_the_host_does_not_wait(self, model, without_waiting):
        runner = VarlenBackbone(model)
        ids, lengths = torch.arange(40).cuda(), torch.tensor([9, 30, 1])
        without_waiting(lambda: runner(ids, lengths, torch.bfloat16).sum().backward())
