import importlib
import inspect
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    Gemma2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen2Config,
    RobertaConfig,
)

from prime_xmc.model import model_runner, packed_attention, varlen
from prime_xmc.model.encoder import pool
from prime_xmc.model.varlen import VarlenBackbone, check_packable, pool_packed

LENGTHS = torch.tensor([9, 1, 2, 17, 5, 1, 5])
SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS = {
    "bert": lambda: BertConfig(**SIZES, max_position_embeddings=20),
    "distilbert": lambda: DistilBertConfig(vocab_size=50, dim=32, n_layers=3, n_heads=4, hidden_dim=48),
    "roberta": lambda: RobertaConfig(**SIZES, max_position_embeddings=20, pad_token_id=1),
    # the others of their layers see a window of the text alone, to both sides and to the left
    "modernbert": lambda: ModernBertConfig(**SIZES, **SPECIAL, local_attention=4, global_attn_every_n_layers=2),
    "qwen2": lambda: Qwen2Config(
        **SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2),
}


def make(config, *, noise=0.2):
    """A model without dropout, with values in biases and norms too: at 0 and 1 a mistake with them would not show."""
    for name in ("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.use_cache = False
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModel.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request):
    return make(CONFIGS[request.param]()).train()


def random_tokens(lengths=LENGTHS):
    return torch.randint(3, 50, (int(lengths.sum()),), generator=torch.Generator().manual_seed(1))


def run_padded(model, token_ids, lengths=LENGTHS):
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    input_ids = torch.full(mask.shape, model.config.pad_token_id or 0)
    input_ids[mask] = token_ids
    return pool(model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state, mask, "mean")


def gradients(model, pooled):
    """Gradients of all parameters of some function of the pooled outputs; None where there is none."""
    model.zero_grad()
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
    (pooled * weight).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        if expected[name] is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: n + m)


class TestVarlenBackbone:
    def test_outputs_and_gradients_are_those_of_padded_texts(self, model):
        pooled = VarlenBackbone(model)(random_tokens(), LENGTHS, torch.float32)
        assert pooled.dtype == torch.float32
        expected = run_padded(model, random_tokens())
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
        assert_same_gradients(gradients(model, pooled), gradients(model, expected))

    def test_two_threads_do_not_disturb_each_other(self, model):
        """Who answers in several threads shares the model, which each changes for a while."""
        backbone = VarlenBackbone(model)
        few = torch.tensor([4, 3])
        asked = [(random_tokens(), LENGTHS, torch.bfloat16), (random_tokens(few), few, torch.float32)]
        answer = torch.no_grad()(lambda place: backbone(*asked[place]))
        expected = [answer(0), answer(1)]
        second: list[Future] = []
        is_inside, is_done = threading.Event(), threading.Event()

        def meet(*_):
            """Halfway through the first, the second begins, and stays halfway until the first is done, if it can."""
            if threading.current_thread() is not threading.main_thread():
                is_inside.set()
                is_done.wait(timeout=10)
            elif not second:
                second.append(thread.submit(answer, 1))
                is_inside.wait(timeout=0.3)

        with ThreadPoolExecutor(max_workers=1) as thread:
            hook = model_runner.find_layers(model)[1].register_forward_pre_hook(meet)
            first = answer(0)
            is_done.set()
            found = [first, second[0].result()]
            hook.remove()
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("recompute", [False, True])
    def test_chunks_change_nothing(self, model, recompute):
        whole = VarlenBackbone(model)(random_tokens(), LENGTHS, torch.float32)
        expected = gradients(model, whole)
        for tokens in (1, 12):
            chunked = VarlenBackbone(model, chunk_tokens=lambda _, n=tokens: n, recompute=recompute)
            pooled = chunked(random_tokens(), LENGTHS, torch.float32)
            torch.testing.assert_close(pooled, whole, rtol=1e-5, atol=1e-5)
            assert_same_gradients(gradients(model, pooled), expected)

    @pytest.mark.parametrize("num_frozen", [0, 2])
    @pytest.mark.parametrize("multiple", [8, 7, 64])
    def test_a_multiple_of_tokens_as_on_a_gpu_changes_nothing(self, model, num_frozen, multiple, monkeypatch):
        runner = VarlenBackbone(model, num_frozen=num_frozen)
        try:
            expected = runner(random_tokens(), LENGTHS, torch.float32)
            of_expected = gradients(model, expected)
            monkeypatch.setattr(runner, "needs_order", lambda *_: False)
            monkeypatch.setattr(varlen, "_TOKEN_MULTIPLE", multiple)
            sizes = []
            norm = next(m for m in reversed(list(model.modules())) if type(m).__name__.endswith("Norm"))
            with norm.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[-2])):
                pooled = runner(random_tokens(), LENGTHS, torch.float32)
            assert sizes[-1] == -(-int(LENGTHS.sum()) // multiple) * multiple
            torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
            assert_same_gradients(gradients(model, pooled), of_expected)
        finally:
            model.requires_grad_(True)

    def test_computing_again_keeps_nothing_of_the_layers(self, model):
        sizes = []
        for recompute in (False, True):
            kept = {}
            runner = VarlenBackbone(model, recompute=recompute)
            runner.model_runner.activations = []  # whose hooks would take the place of those below
            with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.setdefault(id(t), t), lambda t: t):
                runner(random_tokens(), LENGTHS, torch.float32)
            sizes.append(sum(t.numel() for t in kept.values() if not isinstance(t, torch.nn.Parameter)))
        assert sizes[1] < sizes[0] / 4

    def test_frozen_layers_change_nothing_but_have_no_gradient(self, model):
        token_ids = random_tokens()
        whole = VarlenBackbone(model)(token_ids, LENGTHS, torch.float32)
        expected = gradients(model, whole)
        frozen = VarlenBackbone(model, num_frozen=2, chunk_tokens=lambda _: 12)
        try:
            pooled = frozen(token_ids, LENGTHS, torch.float32)
            torch.testing.assert_close(pooled, whole, rtol=1e-5, atol=1e-5)
            lowest = ("embeddings.", "embed_tokens.", *(f"{at}.{i}." for at in LAYERS for i in (0, 1)))
            below = {name: None for name in expected if name.startswith(lowest)}
            assert len(below) > 5
            assert_same_gradients(gradients(model, pooled), expected | below)
            # the outputs of the frozen part are all that the rest needs of the tokens
            outputs = frozen.frozen_outputs(token_ids, LENGTHS, torch.float32)
            assert outputs.shape == (len(token_ids), 32)
            assert not outputs.requires_grad
            again = frozen(torch.zeros_like(token_ids), LENGTHS, torch.float32, outputs)
            torch.testing.assert_close(again, pooled)
            with frozen.unfrozen():
                assert_same_gradients(gradients(model, frozen(token_ids, LENGTHS, torch.float32)), expected)
        finally:
            model.requires_grad_(True)

    def test_bf16_is_close_and_gradients_are_float32(self, model):
        token_ids = random_tokens()
        exact = VarlenBackbone(model)(token_ids, LENGTHS, torch.float32)
        rounded = VarlenBackbone(model)(token_ids, LENGTHS, torch.bfloat16)
        assert rounded.dtype == torch.float32
        assert (F.cosine_similarity(exact, rounded) > 0.999).all()
        exact_grad, rounded_grad = gradients(model, exact), gradients(model, rounded)
        for name in exact_grad:
            # of the keys' biases, which softmax cancels, only rounding errors are left
            if exact_grad[name] is not None and exact_grad[name].norm() > 1e-2:
                assert rounded_grad[name].dtype == torch.float32
                pair = exact_grad[name].flatten(), rounded_grad[name].flatten()
                assert F.cosine_similarity(*pair, dim=0) > 0.98, name

    def test_weights_are_cast_at_once(self, operators):
        """Autocast would cast each by itself, and hidden states at every norm: 200 casts for three layers."""
        model = make(CONFIGS["bert"]())
        runner = VarlenBackbone(model)
        with operators() as forward:
            pooled = runner(random_tokens(), LENGTHS, torch.bfloat16).sum()
        with operators() as backward:
            pooled.backward()
        for operators in (forward, backward):
            assert operators.counts["_foreach_copy_"] == 1
            assert operators.counts["_to_copy"] <= 4
        matrices = sum(p.ndim == 2 for name, p in model.named_parameters() if ".layer." in name)
        assert forward.counts["addmm"] == backward.counts["mm"] / 2 == matrices

    def test_weights_that_are_not_trained_get_no_gradient(self):
        model = make(CONFIGS["bert"]())
        bias = model.encoder.layer[1].output.dense.bias.requires_grad_(False)
        VarlenBackbone(model)(random_tokens(), LENGTHS, torch.bfloat16).sum().backward()
        assert bias.grad is None
        assert model.encoder.layer[0].output.dense.bias.grad is not None

    def test_dropout_only_while_training(self):
        model = make(CONFIGS["bert"]())
        runner = VarlenBackbone(model)
        without = runner(random_tokens(), LENGTHS, torch.float32)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        model.eval()
        assert torch.equal(runner(random_tokens(), LENGTHS, torch.float32), without)
        model.train()
        first, second = (runner(random_tokens(), LENGTHS, torch.float32) for _ in range(2))
        assert not torch.allclose(first, second, atol=1e-2)

    def test_the_model_stays_what_it_is(self, model):
        names = {name for name, _ in model.named_modules()}
        VarlenBackbone(model, num_frozen=1)(random_tokens(), LENGTHS, torch.bfloat16)
        model.requires_grad_(True)
        assert model.config._attn_implementation == "eager"
        assert {name for name, _ in model.named_modules()} == names
        assert not any("forward" in vars(module) for module in model.modules())

    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
    def test_all_layers_share_a_compilation(self, monkeypatch):
        """Of forward and backward, for any number of tokens and texts; one more when the longest text changes."""
        # the tests' check of types is not for the compiler
        for module, name in CHECKED:
            monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
        attention = inspect.unwrap(packed_attention.packed_attention)
        monkeypatch.setitem(AttentionInterface._global_mapping, packed_attention.ATTENTION, attention)
        model = make(CONFIGS["bert"]()).eval()
        model.requires_grad_(True)
        plain, compiled = VarlenBackbone(model), VarlenBackbone(model, compile=True)
        counter = importlib.import_module("torch._dynamo.testing").CompileCounterWithBackend("aot_eager")
        compiled.model_runner._run_layer = torch.compile(model_runner._run_layer, backend=counter)
        for lengths in ([3, 5, 2], [7, 1, 4, 4], [9, 8], [6] * 4):
            texts = random_tokens(torch.tensor(lengths)), torch.tensor(lengths)
            pooled, expected = (runner(*texts, torch.float32) for runner in (compiled, plain))
            torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
            assert_same_gradients(gradients(model, pooled), gradients(model, expected))
        assert counter.frame_count == 2

    def test_layers_that_are_not_there(self):
        model = make(CONFIGS["bert"]())
        model.config.num_hidden_layers = 5
        with pytest.raises(ValueError, match=r"bert has no list of its 5 layers: give encoder\.frozen_layers=0"):
            VarlenBackbone(model, num_frozen=1)


CHECKED = [
    *((model_runner, name) for name in ("_run_layer", "set_texts")),
    *((packed_attention, name) for name in ("attend", "_padded", "_pad", "_repeat_heads", "_seen")),
]
LAYERS = ("encoder.layer", "transformer.layer", "layers")


class TestCheckPackable:
    def test_what_can_be_packed(self, model):
        check_packable(model.eval())
        assert not model.training
        model.train()

    @pytest.mark.parametrize(
        "config",
        [
            lambda: MPNetConfig(**SIZES),
            lambda: DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c"]),
            lambda: Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, pad_token_id=0),
        ],
        ids=["mpnet", "deberta-v2", "gemma2"],
    )
    @pytest.mark.parametrize("noise", [0.0, 0.2])
    def test_what_cannot(self, config, noise):
        """Attention of the model's own, or scores that are capped; also where weights are small, as at the start."""
        model = make(config(), noise=noise)
        with pytest.raises(ValueError, match=rf"{model.config.model_type} .*: give encoder\.implementation=transf"):
            check_packable(model)
        assert model.training

    def test_attention_of_its_own_that_does_not_show(self):
        """With weights of 0 in its attention, it computes the same by chance, and something else when trained."""
        model = make(MPNetConfig(**SIZES))
        with torch.no_grad():
            for layer in model.encoder.layer:
                layer.attention.attn.o.weight.zero_()
        with pytest.raises(ValueError, match=r"mpnet computes something else .*: give encoder\.implementation=transf"):
            check_packable(model)


class TestPoolPacked:
    @pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 8.0]), ("last", [3.0, 8.0]), ("cls", [1.0, 8.0])])
    def test_definition(self, pooling, expected):
        hidden = torch.tensor([[1.0], [3.0], [8.0]], dtype=torch.bfloat16, requires_grad=True)
        pooled = pool_packed(hidden, torch.tensor([0, 2, 3], dtype=torch.int32), pooling)
        assert pooled.dtype == torch.float32
        assert pooled[:, 0].tolist() == expected
        (pooled[:, 0] * torch.tensor([1.0, 10.0])).sum().backward()
        assert hidden.grad[:, 0].tolist() == {"mean": [0.5, 0.5, 10], "last": [0, 1, 10], "cls": [1, 0, 10]}[pooling]

    def test_a_mean_is_exact_to_float32(self):
        """A difference of cumulative sums, or a sum in bf16, would not be."""
        lengths = torch.tensor([300, 1, 200])
        hidden = 100 + torch.randn(501, 3, generator=torch.Generator().manual_seed(0))
        offsets = F.pad(lengths.cumsum(0), (1, 0)).int()
        expected = torch.stack([part.double().mean(0) for part in hidden.split(lengths.tolist())])
        torch.testing.assert_close(pool_packed(hidden, offsets, "mean").double(), expected, rtol=1e-6, atol=0)
