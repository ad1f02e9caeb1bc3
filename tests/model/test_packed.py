import math

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from prime_xmc.model import packed
from prime_xmc.model.packed import LengthGroup, PackedBackbone, PackedLayer, length_groups

LENGTHS = [1, 1, 2, 5, 5, 5, 9, 17]
DIM, HEADS, INNER = 16, 2, 24


def random_texts(lengths=LENGTHS):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(1, 50, (sum(lengths),), generator=rng), lengths


def run_packed(backbone, token_ids, lengths, *, chunk_tokens=8192, dtype=torch.float32):
    return PackedBackbone(backbone, chunk_tokens=chunk_tokens)(token_ids, lengths, dtype)


def run_padded(backbone, token_ids, lengths):
    """Mean over the tokens of what transformers computes from padded texts."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    input_ids = torch.zeros(mask.shape, dtype=torch.int64)
    input_ids[mask] = token_ids
    hidden = backbone(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
    return (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def gradients(backbone, pooled):
    """Gradients of all parameters of some function of the pooled outputs; None where there is none."""
    backbone.zero_grad()
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
    (pooled.float() * weight).sum().backward()
    return {name: parameter.grad for name, parameter in backbone.named_parameters()}


def assert_same_gradients(actual, expected, *, atol=1e-5):
    assert actual.keys() == expected.keys()
    for name in expected:
        if expected[name] is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=atol, msg=lambda m, n=name: n + m)


class TestPackedBackbone:
    def test_outputs_and_gradients_are_those_of_transformers(self, backbone):
        texts = random_texts()
        pooled, expected = run_packed(backbone, *texts), run_padded(backbone, *texts)
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
        assert_same_gradients(gradients(backbone, pooled), gradients(backbone, expected))

    def test_epsilon_of_the_config_counts(self, make_backbone):
        backbone = make_backbone("bert", layer_norm_eps=0.1)
        texts = random_texts()
        torch.testing.assert_close(run_packed(backbone, *texts), run_padded(backbone, *texts), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("lengths", [[1], [4, 4, 4], [20]])
    def test_one_group(self, backbone, lengths):
        texts = random_texts(lengths)
        torch.testing.assert_close(run_packed(backbone, *texts), run_padded(backbone, *texts), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("chunk_tokens", [1, 11])
    def test_chunks_change_nothing(self, backbone, chunk_tokens):
        """Also not where a text is longer than a chunk, or a chunk ends within texts of one length."""
        texts = random_texts()
        whole, chunked = run_packed(backbone, *texts), run_packed(backbone, *texts, chunk_tokens=chunk_tokens)
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)
        assert_same_gradients(gradients(backbone, chunked), gradients(backbone, whole))

    @pytest.mark.parametrize("chunk_tokens", [11, 8192])
    def test_frozen_layers_change_nothing_but_have_no_gradient(self, backbone, chunk_tokens):
        texts = random_texts()
        whole = run_packed(backbone, *texts)
        expected = gradients(backbone, whole)
        frozen = PackedBackbone(backbone, chunk_tokens=chunk_tokens, num_frozen=1)
        pooled = frozen(*texts, torch.float32)
        torch.testing.assert_close(pooled, whole, rtol=1e-5, atol=1e-5)
        lowest = ("embeddings.", "encoder.layer.0.", "transformer.layer.0.")
        assert_same_gradients(
            gradients(backbone, pooled), expected | {name: None for name in expected if name.startswith(lowest)}
        )
        # the outputs of the frozen part are all that the rest needs of the tokens
        outputs = frozen.frozen_outputs(*texts, torch.float32)
        assert outputs.shape == (len(texts[0]), DIM)
        assert not outputs.requires_grad
        torch.testing.assert_close(frozen(torch.zeros_like(texts[0]), texts[1], torch.float32, outputs), pooled)

    def test_for_a_while_none_is_frozen(self, backbone):
        texts = random_texts()
        expected = gradients(backbone, run_packed(backbone, *texts))
        frozen = PackedBackbone(backbone, num_frozen=1)
        with frozen.unfrozen():
            assert_same_gradients(gradients(backbone, frozen(*texts, torch.float32)), expected)
        without = [name for name, grad in gradients(backbone, frozen(*texts, torch.float32)).items() if grad is None]
        assert any(".layer.0." in name for name in without)
        assert not any(".layer.1." in name for name in without)

    def test_a_layer_is_left_to_train(self, backbone):
        assert PackedBackbone(backbone, num_frozen=7).num_frozen == 1
        with pytest.raises(ValueError, match=r"frozen_layers of at least 0, got -1"):
            PackedBackbone(backbone, num_frozen=-1)

    @pytest.mark.parametrize("chunk_tokens", [11, 8192])
    def test_computing_again_gives_the_same_gradients(self, backbone, chunk_tokens):
        texts = random_texts()
        kept = run_packed(backbone, *texts, chunk_tokens=chunk_tokens)
        again = PackedBackbone(backbone, chunk_tokens=chunk_tokens, recompute=True)(*texts, torch.float32)
        assert torch.equal(again, kept)
        assert_same_gradients(gradients(backbone, again), gradients(backbone, kept))

    def test_computing_again_keeps_nothing_of_the_layers(self, backbone):
        """What the backward pass holds is the same with one layer as with two."""
        texts = random_texts()
        sizes = []
        for recompute in (False, True):
            kept = {}
            with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.setdefault(id(t), t), lambda t: t):
                PackedBackbone(backbone, recompute=recompute)(*texts, torch.float32)
            sizes.append(sum(t.numel() for t in kept.values() if not isinstance(t, torch.nn.Parameter)))
        assert sizes[1] < sizes[0] / 4

    def test_rows_that_fill_up_a_chunk_have_no_influence(self, backbone, monkeypatch):
        texts = random_texts()
        filled = run_packed(backbone, *texts)
        filled_gradients = gradients(backbone, filled)
        monkeypatch.setattr(packed, "TOKEN_MULTIPLE", 1)
        bare = run_packed(backbone, *texts)
        torch.testing.assert_close(filled, bare, rtol=1e-5, atol=1e-6)
        assert_same_gradients(filled_gradients, gradients(backbone, bare))

    def test_bf16_is_close(self, backbone):
        texts = random_texts()
        exact, rounded = run_packed(backbone, *texts), run_packed(backbone, *texts, dtype=torch.bfloat16)
        assert rounded.dtype == torch.float32
        assert (torch.cosine_similarity(exact, rounded) > 0.99).all()
        exact_grad, rounded_grad = gradients(backbone, exact), gradients(backbone, rounded)
        for name in exact_grad:
            # of the keys' biases, which softmax cancels, only rounding errors are left
            if exact_grad[name] is not None and exact_grad[name].norm() > 1e-3:
                assert rounded_grad[name].dtype == torch.float32
                pair = exact_grad[name].flatten(), rounded_grad[name].flatten()
                assert torch.cosine_similarity(*pair, dim=0) > 0.98, name

    @pytest.mark.parametrize("num_frozen", [0, 1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_kept_layers_change_nothing(self, backbone, dtype, num_frozen):
        token_ids, lengths = random_texts()
        packed = PackedBackbone(backbone, num_frozen=num_frozen)
        with torch.no_grad():
            expected = packed(token_ids, lengths, dtype)
            packed.keep_layers(dtype)
            assert torch.equal(packed(token_ids, lengths, dtype), expected)
            for parameter in backbone.parameters():
                parameter.mul_(2)
        with torch.no_grad():  # they are kept indeed
            assert torch.equal(packed._kept[dtype][-1][0] * 2, packed._layers()[-1][0].to(dtype))
        assert packed(token_ids, lengths, dtype).requires_grad

    def test_weights_stay_those_of_the_backbone(self, backbone):
        texts = random_texts()
        runner = PackedBackbone(backbone)
        before = runner(*texts, torch.float32)
        with torch.no_grad():
            next(parameter for parameter in backbone.parameters() if parameter.shape == (INNER, DIM)).mul_(3)
        torch.testing.assert_close(runner(*texts, torch.float32), run_padded(backbone, *texts), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(runner(*texts, torch.float32), before)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (
                lambda _: RobertaModel(
                    RobertaConfig(
                        vocab_size=50, hidden_size=DIM, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
                    )
                ),
                "got roberta with gelu",
            ),
            (lambda make: make("bert", hidden_act="relu"), "got bert with relu"),
            (lambda make: make("bert", is_decoder=True), "got bert with gelu"),
            (lambda make: make("distilbert", activation="relu"), "got distilbert with relu"),
        ],
        ids=["type", "relu", "decoder", "distilbert relu"],
    )
    def test_what_it_cannot_do(self, model, message, make_backbone):
        with pytest.raises(ValueError, match=rf"bert and distilbert encoders with gelu, {message}: use VarlenBackbone"):
            PackedBackbone(model(make_backbone))


class TestDropout:
    @pytest.mark.parametrize(
        ("kind", "dropout"),
        [
            ("bert", {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}),
            ("distilbert", {"dropout": 0.2, "attention_dropout": 0.1}),
        ],
        ids=["bert", "distilbert"],
    )
    def test_it_does_on_average_what_that_of_transformers_does(self, kind, dropout, make_backbone):
        """Nothing in evaluation; in training, outputs spread as far about the same mean."""
        backbone, texts = make_backbone(kind, **dropout), random_texts([3, 3, 5, 8])
        packed_backbone = PackedBackbone(backbone)
        backbone.eval()
        torch.testing.assert_close(packed_backbone(*texts, torch.float32), run_padded(backbone, *texts))
        backbone.train()
        copies = 1500  # of each text, which dropout treats alike
        token_ids, lengths = texts
        many = (
            torch.cat([text.repeat(copies) for text in token_ids.split(lengths)]),
            [length for length in lengths for _ in range(copies)],
        )
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            ours, theirs = (
                pooled.unflatten(0, (len(lengths), copies))
                for pooled in (packed_backbone(*many, torch.float32), run_padded(backbone, *many))
            )
        torch.testing.assert_close(
            ours.mean(1), theirs.mean(1), rtol=0, atol=5 * float(theirs.std(1).max()) / copies**0.5
        )
        torch.testing.assert_close(ours.std(1), theirs.std(1), rtol=0.15, atol=0.01)

    def test_what_is_kept_is_scaled_up(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drop = packed._Dropout(0.25)
            dropped = drop(torch.ones(1000, 101), drop.draw(torch.ones(1000, 101)))
        assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
        assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)

    def test_none(self):
        drop, x = packed._Dropout(0.0), torch.ones(3)
        assert drop(x, drop.draw(x)) is x


class TestPackedLayer:
    GROUPS = (LengthGroup(0, 2, 1), LengthGroup(2, 1, 3))

    @staticmethod
    def parameters(dim=4, inner=3):
        rng = torch.Generator().manual_seed(0)
        shapes = [(3 * dim, dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,), (inner, dim), (inner,),
                  (dim, inner), (dim,), (dim,), (dim,)]  # fmt: skip
        return [torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_() for shape in shapes]

    @pytest.mark.parametrize("dropout", [(0.0, 0.0, 0.0), (0.4, 0.3, 0.2)])
    def test_gradcheck(self, dropout):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()

        def layer(x, *parameters):
            torch.manual_seed(0)
            return PackedLayer.apply(x, list(self.GROUPS), 2, 1e-5, dropout, *parameters)

        with torch.random.fork_rng():
            assert torch.autograd.gradcheck(layer, (x, *self.parameters()))

    def test_rows_of_no_group_are_apart(self):
        rng = torch.Generator().manual_seed(1)
        x = torch.randn(5, 4, generator=rng, dtype=torch.float64).requires_grad_()
        parameters = self.parameters()
        longer = torch.cat([x.detach(), 100 * torch.randn(3, 4, generator=rng, dtype=torch.float64)]).requires_grad_()
        weight = torch.randn(5, 4, generator=rng, dtype=torch.float64)
        outputs, gradients = [], []
        for rows in (x, longer):
            output = PackedLayer.apply(rows, list(self.GROUPS), 2, 1e-5, (0.0, 0.0, 0.0), *parameters)
            assert output.isfinite().all()
            outputs.append(output[:5])
            gradients.append(torch.autograd.grad((output[:5] * weight).sum(), [rows, *parameters]))
        torch.testing.assert_close(outputs[0], outputs[1])
        assert (gradients[1][0][5:] == 0).all()
        torch.testing.assert_close(gradients[0][0], gradients[1][0][:5])
        torch.testing.assert_close(gradients[0][1:], gradients[1][1:])

    def test_texts_do_not_see_each_other(self):
        rng = torch.Generator().manual_seed(1)
        x = torch.randn(5, 4, generator=rng, dtype=torch.float64)
        changed = x.clone()
        changed[3] += 1  # a token of the third text
        outputs = [
            PackedLayer.apply(rows, list(self.GROUPS), 2, 1e-5, (0.0, 0.0, 0.0), *self.parameters())
            for rows in (x, changed)
        ]
        assert torch.equal(outputs[0][:2], outputs[1][:2])
        assert (outputs[0][2:] != outputs[1][2:]).any(dim=1).all()


def test_length_groups_of_nothing():
    assert length_groups([]) == []


@pytest.mark.parametrize("chunk_tokens", [1, 6, 100])
def test_chunks_hold_all_texts_in_order(chunk_tokens):
    chunks = packed.cut_chunks(LENGTHS, chunk_tokens)
    assert [length for chunk in chunks for length in chunk] == LENGTHS
    fewest = math.ceil(sum(LENGTHS) / chunk_tokens)
    size = math.ceil(sum(LENGTHS) / fewest)
    assert len(chunks) <= fewest
    # each is as full as its share, by less than one text
    assert all(size <= sum(chunk) < size + chunk[-1] for chunk in chunks[:-1])
    assert 0 < sum(chunks[-1]) <= size + max(LENGTHS)
