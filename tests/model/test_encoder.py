import inspect
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    MPNetConfig,
    Qwen2Config,
    RobertaConfig,
    T5Config,
)

from prime_xmc.model.banks import RowBank
from prime_xmc.model.encoder import TextEncoder, gather_rows, load_backbone, pool

LENGTHS = torch.tensor([7, 1, 12, 3, 7, 3, 20, 1])


def random_tokens(lengths, seed=0):
    return torch.randint(1000, 20000, (int(lengths.sum()),), generator=torch.Generator().manual_seed(seed))


def permute(token_ids, lengths, order):
    parts = token_ids.split(lengths.tolist())
    return torch.cat([parts[row] for row in order]), lengths[order]


@pytest.fixture(scope="module")
def tiny_decoder_dir(tmp_path_factory):
    """A folder with a random Llama (2 layers, 2 heads, d = 32)."""
    directory = tmp_path_factory.mktemp("tiny_decoder")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaModel(LlamaConfig(**sizes, vocab_size=20000, initializer_range=0.2)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["packed", "transformers", "decoder", "packed decoder"])
def encoder(request, tiny_encoder_dir, tiny_decoder_dir):
    if request.param.endswith("decoder"):
        implementation = "packed" if request.param.startswith("packed") else "transformers"
        return TextEncoder(str(tiny_decoder_dir), implementation=implementation, pooling="last").eval()
    return TextEncoder(str(tiny_encoder_dir), implementation=request.param).eval()


class TestTextEncoder:
    def test_unit_vectors(self, encoder):
        embeddings = encoder(random_tokens(LENGTHS), LENGTHS)
        assert embeddings.shape == (len(LENGTHS), encoder.dim)
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(LENGTHS)))

    def test_rows_follow_the_texts(self, encoder):
        token_ids = random_tokens(LENGTHS)
        embeddings = encoder(token_ids, LENGTHS)
        order = torch.tensor([6, 0, 3, 5, 1, 7, 2, 4])
        torch.testing.assert_close(encoder(*permute(token_ids, LENGTHS, order)), embeddings[order])
        assert (torch.cdist(embeddings, embeddings) + torch.eye(len(LENGTHS)) > 1e-3).all()  # they can be told apart

    def test_each_text_alone(self, encoder):
        token_ids = random_tokens(LENGTHS)
        embeddings = encoder(token_ids, LENGTHS)
        for row, part in enumerate(token_ids.split(LENGTHS.tolist())):
            torch.testing.assert_close(encoder(part, LENGTHS[row : row + 1]), embeddings[row : row + 1])

    def test_no_text(self, encoder):
        embeddings = encoder(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
        assert embeddings.shape == (0, encoder.dim)

    def test_exactly_the_parameters_with_gradient_get_one(self, encoder):
        """Otherwise data-parallel training would wait for the missing ones."""
        encoder.zero_grad()
        encoder(random_tokens(LENGTHS), LENGTHS)[:, 0].sum().backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None) == ("pooler" not in name), name
        is_bert = encoder.backbone.config.model_type == "bert"
        assert any("pooler" in name for name, _ in encoder.named_parameters()) == is_bert

    def test_autocast_decides_on_the_dtype(self, encoder):
        token_ids = random_tokens(LENGTHS)
        exact = encoder(token_ids, LENGTHS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = encoder(token_ids, LENGTHS)
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        assert ((rounded * exact).sum(dim=1) > 0.99).all()

    @pytest.mark.parametrize("chunk_tokens", [1, 24])
    @pytest.mark.parametrize("implementation", ["packed", "transformers"])
    def test_chunks_change_nothing(self, implementation, chunk_tokens, tiny_encoder_dir):
        token_ids = random_tokens(LENGTHS)
        whole, chunked = (
            TextEncoder(str(tiny_encoder_dir), implementation=implementation, chunk_tokens=size).eval()
            for size in (8192, chunk_tokens)
        )
        torch.testing.assert_close(chunked(token_ids, LENGTHS), whole(token_ids, LENGTHS))

    @pytest.mark.parametrize(
        ("implementation", "dropout"), [("packed", 0.0), ("packed", 0.3), ("transformers", 0.0), ("transformers", 0.3)]
    )
    def test_computing_again_gives_the_same_gradients(self, implementation, dropout, tiny_encoder_dir):
        """With dropout too: it is drawn as it was drawn before."""
        found = []
        for recompute in (False, True):
            settings = {"implementation": implementation, "dropout": dropout, "recompute": recompute}
            encoder = TextEncoder(str(tiny_encoder_dir), chunk_tokens=24, **settings).train()
            torch.manual_seed(0)
            embeddings = encoder(random_tokens(LENGTHS), LENGTHS)
            (embeddings @ embeddings.T)[:, 0].square().sum().backward()
            found.append([embeddings.detach(), *(p.grad for p in encoder.parameters() if p.requires_grad)])
        for again, kept in zip(*found, strict=True):
            torch.testing.assert_close(again, kept, rtol=1e-5, atol=1e-6)

    def test_adapters_and_frozen_layers(self, tiny_encoder_dir):
        with pytest.raises(ValueError, match=r"encoder\.frozen_layers=1: adapters leave .* so give .*frozen_layers=0"):
            TextEncoder(str(tiny_encoder_dir), frozen_layers=1, lora={"r": 2})

    @pytest.mark.parametrize("chunk_tokens", [0, -1, "many"])
    def test_chunks_of_nothing(self, chunk_tokens, tiny_encoder_dir):
        make = inspect.unwrap(TextEncoder.__init__)  # see test_unknown_pooling
        with pytest.raises(ValueError, match=rf"chunk_tokens to be a positive number or auto, got {chunk_tokens!r}"):
            make(TextEncoder.__new__(TextEncoder), str(tiny_encoder_dir), chunk_tokens=chunk_tokens)

    def test_chunks_follow_the_device_unless_given(self, tiny_encoder_dir):
        auto, given = TextEncoder(str(tiny_encoder_dir)), TextEncoder(str(tiny_encoder_dir), chunk_tokens=100)
        assert (auto.chunk_tokens, given.chunk_tokens) == (4096, 100)
        cuda = torch.device("cuda")
        assert (auto.budget(cuda), given.budget(cuda)) == (65536, 100)
        assert auto.packed.chunk_tokens(cuda) == 65536
        assert auto.packed.by_hand.chunk_tokens == 4096

    def test_layers_by_hand_are_for_what_they_can(self, tiny_encoder_dir, tiny_decoder_dir):
        def by_hand(source, **settings):
            return TextEncoder(str(source), **settings).packed.by_hand is not None

        assert by_hand(tiny_encoder_dir)
        assert by_hand(tiny_encoder_dir, frozen_layers=1)
        assert not by_hand(tiny_encoder_dir, pooling="cls")
        assert not by_hand(tiny_encoder_dir, lora={"r": 2})
        assert not by_hand(tiny_decoder_dir)

    def test_what_cannot_be_packed(self, tmp_path):
        MPNetConfig(
            vocab_size=20000, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        ).save_pretrained(tmp_path)
        for settings in ({"implementation": "packed"}, {"implementation": "auto", "frozen_layers": 1}):
            with pytest.raises(ValueError, match=r"mpnet computes .*: give encoder\.implementation=transformers"):
                TextEncoder(str(tmp_path), pretrained=False, **settings)
        assert TextEncoder(str(tmp_path), pretrained=False, implementation="auto").packed is None

    def test_auto_pads_on_a_cpu(self, tiny_decoder_dir):
        """Where nothing is gained by packing, results stay what they were."""
        token_ids = random_tokens(LENGTHS)
        settings = {"implementation": "auto", "pooling": "last"}
        auto, packed, padded = (
            TextEncoder(str(tiny_decoder_dir), **(settings | {"implementation": implementation})).eval()
            for implementation in ("auto", "packed", "transformers")
        )
        assert auto.packed is not None  # for a GPU
        assert torch.equal(auto(token_ids, LENGTHS), padded(token_ids, LENGTHS))
        torch.testing.assert_close(packed(token_ids, LENGTHS), padded(token_ids, LENGTHS), rtol=1e-5, atol=1e-5)
        # frozen layers are for packed texts
        frozen = TextEncoder(str(tiny_decoder_dir), **settings, frozen_layers=1).eval()
        assert torch.equal(frozen(token_ids, LENGTHS), packed(token_ids, LENGTHS))

    @pytest.mark.parametrize("lora", [None, {"r": 2}])
    @pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
    @pytest.mark.parametrize("source", ["tiny_encoder_dir", "tiny_decoder_dir"])
    def test_packed_texts_without_layers_by_hand(self, source, pooling, lora, request):
        """Every pooling, with adapters and without: the same embeddings and gradients as from padded texts."""
        results = []
        for implementation in ("packed", "transformers"):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                encoder = TextEncoder(
                    str(request.getfixturevalue(source)), implementation=implementation, pooling=pooling, lora=lora
                )
            if encoder.packed is not None:
                encoder.packed.by_hand = None
            embeddings = encoder(random_tokens(LENGTHS), LENGTHS)
            embeddings[:, :3].sum().backward()
            results.append([embeddings, *(p.grad for p in encoder.parameters() if p.requires_grad)])
        for packed, padded in zip(*results, strict=True):
            torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_frozen_layers_are_computed_once_for_a_text(self, dtype, tiny_encoder_dir, monkeypatch):
        encoder = TextEncoder(str(tiny_encoder_dir), frozen_layers=1).eval()
        token_ids = random_tokens(LENGTHS)
        expected = encoder(token_ids, LENGTHS)
        encoder.keep_frozen_outputs(np.concatenate([[3], LENGTHS.numpy(), [2]]), RowBank, dtype)
        computed = []
        compute = encoder.packed.frozen_outputs
        monkeypatch.setattr(
            encoder.packed, "frozen_outputs", lambda ids, *others: computed.append(len(ids)) or compute(ids, *others)
        )
        first = [4, 1]  # of LENGTHS; behind one more text in the table
        tokens = token_ids.split(LENGTHS.tolist())
        some = encoder(torch.cat([tokens[text] for text in first]), LENGTHS[first], torch.tensor(first) + 1)
        tolerance = {"float32": 1e-5, "float16": 2e-3}[dtype]
        torch.testing.assert_close(some, expected[first], rtol=0, atol=tolerance)
        for _ in range(2):
            again = encoder(token_ids, LENGTHS, torch.arange(len(LENGTHS)) + 1)
            torch.testing.assert_close(again, expected, rtol=0, atol=tolerance)
        num_first = int(LENGTHS[first].sum())
        assert computed == [num_first, int(LENGTHS.sum()) - num_first]

    def test_frozen_layers_need_the_packed_implementation(self, tiny_encoder_dir):
        with pytest.raises(ValueError, match=r"encoder\.frozen_layers=1 needs encoder\.implementation=packed"):
            TextEncoder(str(tiny_encoder_dir), implementation="transformers", frozen_layers=1)

    def test_implementations_agree(self, tiny_encoder_dir):
        token_ids = random_tokens(LENGTHS)
        embeddings, gradients = [], []
        for implementation, attention in (("packed", "eager"), ("transformers", "eager"), ("transformers", "sdpa")):
            encoder = TextEncoder(str(tiny_encoder_dir), implementation=implementation, attention=attention).train()
            embeddings.append(encoder(token_ids, LENGTHS))
            embeddings[-1][:, :3].sum().backward()
            gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
        for other in (1, 2):
            torch.testing.assert_close(embeddings[0], embeddings[other], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(gradients[0], gradients[other], rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("implementation", ["packed", "transformers"])
    def test_dropout_only_while_training(self, implementation, tiny_encoder_dir):
        token_ids = random_tokens(LENGTHS)
        without = TextEncoder(str(tiny_encoder_dir)).eval()(token_ids, LENGTHS)
        encoder = TextEncoder(str(tiny_encoder_dir), implementation=implementation, dropout=0.3)
        torch.testing.assert_close(encoder.eval()(token_ids, LENGTHS), without, rtol=1e-5, atol=1e-5)
        encoder.train()
        assert not torch.allclose(encoder(token_ids, LENGTHS), encoder(token_ids, LENGTHS), atol=1e-2)

    def test_no_dropout_unless_asked_for(self, tiny_encoder_dir):
        """The config in the folder says 0.1, as pre-trained ones do."""
        assert json.loads((tiny_encoder_dir / "config.json").read_text())["hidden_dropout_prob"] == 0.1
        encoder = TextEncoder(str(tiny_encoder_dir), implementation="transformers").train()
        token_ids = random_tokens(LENGTHS)
        assert torch.equal(encoder(token_ids, LENGTHS), encoder(token_ids, LENGTHS))

    def test_parameters_are_those_of_the_backbone(self, tiny_encoder_dir):
        encoder = TextEncoder(str(tiny_encoder_dir))
        assert encoder.state_dict().keys() == {f"backbone.{name}" for name in encoder.backbone.state_dict()}

    def test_max_length_is_the_number_of_positions(self, tiny_encoder_dir):
        encoder = TextEncoder(str(tiny_encoder_dir))
        assert encoder.max_length == 64
        encoder.backbone.config.max_position_embeddings = -1
        assert encoder.max_length is None
        encoder.backbone.config = T5Config()  # relative positions
        assert encoder.max_length is None

    def test_roberta_has_fewer_positions_than_rows(self, tmp_path):
        """It numbers them from padding_idx + 1 on."""
        config = RobertaConfig(
            vocab_size=20000,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=18,
            pad_token_id=1,
        )
        config.save_pretrained(tmp_path)
        encoder = TextEncoder(str(tmp_path), pretrained=False, implementation="transformers")
        assert encoder.max_length == 16
        longest = torch.tensor([3, 16])
        assert encoder(random_tokens(longest), longest).isfinite().all()
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            encoder(random_tokens(longest + 1), longest + 1)

    @pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
    def test_pooling_of_a_text(self, pooling, tiny_decoder_dir):
        """Padding, which is on the right, has no part."""
        encoder = TextEncoder(str(tiny_decoder_dir), implementation="transformers", pooling=pooling).eval()
        token_ids = random_tokens(LENGTHS)
        found = encoder(token_ids, LENGTHS)
        for row, part in enumerate(token_ids.split(LENGTHS.tolist())):
            hidden = encoder.backbone(input_ids=part[None]).last_hidden_state[0]
            expected = {"mean": hidden.mean(dim=0), "last": hidden[-1], "cls": hidden[0]}[pooling]
            torch.testing.assert_close(found[row], expected / expected.norm(), rtol=1e-4, atol=1e-5)

    def test_a_folder_that_pools_the_first_token(self, tiny_encoder_dir, tmp_path):
        source = shutil.copytree(tiny_encoder_dir, tmp_path / "source")
        modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
        (source / "modules.json").write_text(json.dumps(modules))
        (source / "1_Pooling").mkdir()
        (source / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
        (source / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
        encoder = TextEncoder(
            str(source), implementation="transformers", query_prompt="auto", label_prompt="l: "
        ).eval()
        assert (encoder.pooling, encoder.prompts) == ("cls", ("q: ", "l: "))
        given = TextEncoder(str(tiny_encoder_dir), implementation="transformers", pooling="cls").eval()
        token_ids = random_tokens(LENGTHS)
        assert torch.equal(encoder(token_ids, LENGTHS), given(token_ids, LENGTHS))
        packed = TextEncoder(str(source)).eval()
        assert packed.pooling == "cls"
        torch.testing.assert_close(packed(token_ids, LENGTHS), given(token_ids, LENGTHS), rtol=1e-5, atol=1e-5)
        assert TextEncoder(str(source), pooling="mean").pooling == "mean"

    def test_number_of_tokens(self, tiny_encoder_dir, tiny_decoder_dir):
        assert TextEncoder(str(tiny_encoder_dir)).num_tokens == 30522
        lora = {"r": 2}
        assert TextEncoder(str(tiny_decoder_dir), implementation="transformers", lora=lora).num_tokens == 20000

    def test_unknown_pooling(self, tiny_encoder_dir):
        # unwrapped: the tests' own check of types is for programmers, the message for users
        make = inspect.unwrap(TextEncoder.__init__)
        with pytest.raises(ValueError, match=r"encoder\.pooling to be auto or one of .*, got 'max'"):
            make(TextEncoder.__new__(TextEncoder), str(tiny_encoder_dir), pooling="max")

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("implementation", ["packed", "transformers"])
    @pytest.mark.parametrize("source", ["tiny_encoder_dir", "tiny_decoder_dir"])
    def test_cuda_agrees_with_cpu(self, source, implementation, request):
        """Embeddings and gradients: exactly in float32, and within rounding in bf16."""
        token_ids = random_tokens(LENGTHS)
        encoder = TextEncoder(str(request.getfixturevalue(source)), implementation=implementation).train()

        def run(device, dtype=torch.float32):
            encoder.to(device).zero_grad()
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
                embeddings = encoder(token_ids.to(device), LENGTHS)
            (embeddings * torch.linspace(-1, 1, encoder.dim, device=device)).sum().backward()
            gradients = [p.grad.flatten() for p in encoder.parameters() if p.requires_grad]
            assert all(gradient.dtype == torch.float32 for gradient in gradients)
            return embeddings.detach().cpu(), torch.cat(gradients).cpu()

        on_cpu, on_cuda, rounded = run("cpu"), run("cuda"), run("cuda", torch.bfloat16)
        torch.testing.assert_close(on_cuda[0], on_cpu[0], rtol=1e-3, atol=1e-3)
        assert F.cosine_similarity(on_cuda[1], on_cpu[1], dim=0) > 0.9999
        assert ((rounded[0] * on_cpu[0]).sum(dim=1) > 0.99).all()
        assert F.cosine_similarity(rounded[1], on_cpu[1], dim=0) > 0.98

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize(
        "settings",
        [{}, {"chunk_tokens": 24, "recompute": True}, {"pooling": "last"}, {"frozen_layers": 1}, {"dropout": 0.1}],
    )
    def test_the_host_does_not_wait_for_cuda(self, settings, tiny_encoder_dir, without_waiting):
        encoder = TextEncoder(str(tiny_encoder_dir), **settings).train()
        encoder.keep_frozen_outputs(LENGTHS.numpy(), RowBank, "float16")
        encoder.cuda()
        token_ids, text_ids = random_tokens(LENGTHS).cuda(), torch.arange(len(LENGTHS))

        def step():
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = encoder(token_ids, LENGTHS, text_ids)[:, :3].sum()
            loss.backward()

        without_waiting(step, times=3)


class TestPool:
    HIDDEN = torch.tensor([[[1.0], [3.0], [8.0]], [[5.0], [9.0], [9.0]]], dtype=torch.bfloat16)
    MASK = torch.tensor([[True, True, False], [True, False, False]])

    @pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 5.0]), ("last", [3.0, 5.0]), ("cls", [1.0, 5.0])])
    def test_definition(self, pooling, expected):
        pooled = pool(self.HIDDEN, self.MASK, pooling)
        assert pooled.dtype == torch.float32
        assert pooled[:, 0].tolist() == expected


class TestLoadBackbone:
    def test_missing_folder(self, tmp_path):
        missing = tmp_path / "missing"
        with pytest.raises(ValueError, match=rf"encoder\.source={missing} cannot be loaded(.|\n)*Give a folder"):
            load_backbone(str(missing))

    def test_folder_without_a_model(self, tmp_path):
        with pytest.raises(ValueError, match=rf"encoder\.source={tmp_path} cannot be loaded"):
            load_backbone(str(tmp_path))

    def test_weights_that_are_missing(self, tiny_encoder_dir, tmp_path):
        """transformers would draw them at random."""
        source = shutil.copytree(tiny_encoder_dir, tmp_path / "source")
        weights = load_file(source / "model.safetensors")
        del weights["encoder.layer.1.output.dense.weight"], weights["encoder.layer.1.output.dense.bias"]
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            ValueError, match=r"2 weights that its config\.json asks for are missing .*layer\.1\.output"
        ):
            load_backbone(str(source))
        load_backbone(str(source), num_layers=1)
        load_backbone(str(source), pretrained=False)

    def test_a_pooler_may_be_missing(self, tiny_encoder_dir, tmp_path):
        """It is no part of an embedding."""
        source = shutil.copytree(tiny_encoder_dir, tmp_path / "source")
        weights = {n: w for n, w in load_file(source / "model.safetensors").items() if not n.startswith("pooler")}
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        load_backbone(str(source))

    def test_pickled_weights_are_not_read(self, tiny_encoder_dir, tmp_path):
        shutil.copy(tiny_encoder_dir / "config.json", tmp_path)
        torch.save(load_backbone(str(tiny_encoder_dir)).state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_backbone(str(tmp_path))

    def test_code_in_the_folder_is_not_run(self, tiny_encoder_dir, tmp_path):
        source = tmp_path / "source"
        shutil.copytree(tiny_encoder_dir, source)
        config = json.loads((source / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
        (source / "config.json").write_text(json.dumps(config))
        (source / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n")
        assert type(load_backbone(str(source))).__name__ == "BertModel"
        assert not (tmp_path / "was_run").exists()

    def test_nothing_is_printed(self, tiny_encoder_dir, capfd):
        load_backbone(str(tiny_encoder_dir))
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("implementation", ["packed", "transformers"])
    def test_only_the_first_layers(self, implementation, tiny_encoder_dir):
        whole = TextEncoder(str(tiny_encoder_dir))
        first = TextEncoder(str(tiny_encoder_dir), num_layers=1, implementation=implementation)
        kept = {name: tensor for name, tensor in whole.state_dict().items() if "encoder.layer.1." not in name}
        assert first.state_dict().keys() == kept.keys() < whole.state_dict().keys()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in first.state_dict().items())
        token_ids = random_tokens(LENGTHS)
        whole.backbone.encoder.layer = whole.backbone.encoder.layer[:1]
        torch.testing.assert_close(first(token_ids, LENGTHS), whole(token_ids, LENGTHS), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("num_layers", [0, 3])
    def test_layers_that_are_not_there(self, num_layers, tiny_encoder_dir):
        with pytest.raises(ValueError, match=rf"encoder\.num_layers={num_layers}: expected 1 to 2, the layers of"):
            load_backbone(str(tiny_encoder_dir), num_layers=num_layers)

    def test_only_the_first_layers_of_a_decoder_that_lists_their_types(self, tmp_path):
        Qwen2Config(vocab_size=50, hidden_size=8, num_hidden_layers=3, num_attention_heads=1).save_pretrained(tmp_path)
        assert len(load_backbone(str(tmp_path), pretrained=False, num_layers=2).layers) == 2

    def test_encoder_with_a_decoder(self, tmp_path):
        T5Config().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="expected an encoder or a decoder, t5 is both"):
            load_backbone(str(tmp_path), pretrained=False)

    def test_dropout_by_the_names_of_gpt(self, tmp_path):
        GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
        config = load_backbone(str(tmp_path), pretrained=False, dropout=0.3).config
        assert (config.attn_pdrop, config.embd_pdrop, config.resid_pdrop) == (0.3, 0.3, 0.3)

    def test_random_weights_follow_torchs_seed(self, tiny_encoder_dir):
        def weights(seed):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                backbone = load_backbone(str(tiny_encoder_dir), pretrained=False)
            return backbone.encoder.layer[1].intermediate.dense.weight

        pretrained = load_backbone(str(tiny_encoder_dir)).encoder.layer[1].intermediate.dense.weight
        assert torch.equal(weights(1), weights(1))
        for other in (weights(2), pretrained):
            assert not torch.allclose(weights(1), other, atol=0.1)
        assert weights(1).std().item() == pytest.approx(0.2, rel=0.1)  # initializer_range of the configuration
        assert weights(1).dtype == torch.float32

    def test_intermediate_size(self, tiny_encoder_dir):
        source = str(tiny_encoder_dir)
        backbone = load_backbone(source, pretrained=False, intermediate_size=48)
        assert backbone.encoder.layer[0].intermediate.dense.weight.shape == (48, 32)
        with pytest.raises(ValueError, match=r"encoder\.intermediate_size=48 needs encoder\.pretrained=false"):
            load_backbone(source, intermediate_size=48)

    def test_intermediate_size_of_an_encoder_without_one(self, tmp_path):
        DistilBertConfig().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"encoder\.intermediate_size=48: distilbert has no such setting"):
            load_backbone(str(tmp_path), pretrained=False, intermediate_size=48)

    @pytest.mark.parametrize("implementation", ["packed", "transformers"])
    def test_what_a_random_encoder_saves_is_loaded_as_it_is(self, implementation, tiny_encoder_dir, tmp_path):
        small = {"pretrained": False, "num_layers": 1, "intermediate_size": 48}
        encoder = TextEncoder(str(tiny_encoder_dir), **small, implementation=implementation).eval()
        encoder.backbone.save_pretrained(tmp_path)
        again = TextEncoder(str(tmp_path), implementation=implementation).eval()
        token_ids = random_tokens(LENGTHS)
        assert torch.equal(again(token_ids, LENGTHS), encoder(token_ids, LENGTHS))


@given(st.data())
def test_gather_rows(data):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    order = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    texts = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    expected = [token for row in order for token in texts[row].tolist()]
    order = torch.tensor(order, dtype=torch.int64)
    assert gather_rows(torch.tensor(lengths), order).tolist() == expected
