import importlib.util

import pytest
import torch
import transformers

from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.lora import add_adapters, merged

LENGTHS = torch.tensor([3, 7, 1])
TOKEN_IDS = torch.randint(1000, 20000, (11,), generator=torch.Generator().manual_seed(0))


def make(directory, **lora):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextEncoder(str(directory), implementation="transformers", lora=lora).eval()


def train(encoder):
    """A few steps that turn embeddings towards the first axis."""
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (-encoder(TOKEN_IDS, LENGTHS)[:, 0].sum()).backward()
        optimizer.step()


class TestAddAdapters:
    def test_at_the_start_they_change_nothing(self, tiny_encoder_dir):
        plain = TextEncoder(str(tiny_encoder_dir), implementation="transformers").eval()
        assert torch.equal(make(tiny_encoder_dir, r=4)(TOKEN_IDS, LENGTHS), plain(TOKEN_IDS, LENGTHS))

    def test_they_alone_have_gradients(self, tiny_encoder_dir):
        """Otherwise data-parallel training would wait for the missing ones."""
        encoder = make(tiny_encoder_dir, r=4)
        encoder(TOKEN_IDS, LENGTHS)[:, 0].sum().backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None) == ("lora_" in name), name

    def test_every_linear_layer_but_the_pooler_unless_named(self, tiny_encoder_dir):
        def adapted(**settings):
            parameters = make(tiny_encoder_dir, r=4, **settings).named_parameters()
            return {
                name.split(".lora_A")[0].removeprefix("backbone.base_model.model.")
                for name, _ in parameters
                if "lora_A" in name
            }

        linear = {
            name
            for name, module in TextEncoder(str(tiny_encoder_dir)).backbone.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        assert adapted() == linear - {"pooler.dense"}
        assert adapted(target_modules=["query", "dense"]) == {
            name for name in linear - {"pooler.dense"} if name.endswith(("query", "dense"))
        }

    def test_rank_and_scale(self, tiny_encoder_dir):
        backbone = make(tiny_encoder_dir, r=4, alpha=12, dropout=0.25, target_modules=["query"]).backbone
        layer = backbone.get_submodule("base_model.model.encoder.layer.0.attention.self.query")
        assert layer.lora_A["default"].weight.shape == (4, 32)
        assert layer.scaling["default"] == 3.0
        assert layer.lora_dropout["default"].p == 0.25

    def test_recompute_gives_the_same_gradients(self, tiny_encoder_dir):
        """Though what goes into the chunks has none."""
        gradients = []
        for recompute in (False, True):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                encoder = TextEncoder(
                    str(tiny_encoder_dir),
                    implementation="transformers",
                    lora={"r": 4},
                    recompute=recompute,
                    chunk_tokens=4,
                )
            encoder(TOKEN_IDS, LENGTHS)[:, 0].sum().backward()
            gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
        torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize(
        ("lora", "message"),
        [({"r": 0}, r"encoder\.lora with r=0"), ({"target_modules": ["q_proj"]}, r"encoder\.lora with .*q_proj")],
    )
    def test_settings_that_do_not_work(self, lora, message, tiny_encoder_dir):
        with pytest.raises(ValueError, match=message):
            make(tiny_encoder_dir, **lora)

    def test_without_peft(self, tiny_encoder_dir, monkeypatch):
        backbone = TextEncoder(str(tiny_encoder_dir)).backbone
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r'pip install ".\[lora\]" in the clone'):
            add_adapters(backbone)


class TestMerged:
    def test_without_adapters_it_is_the_transformer_itself(self, tiny_encoder_dir):
        backbone = TextEncoder(str(tiny_encoder_dir)).backbone
        assert merged(backbone) is backbone

    def test_the_plain_transformer_computes_the_same(self, tiny_encoder_dir, tmp_path):
        encoder = make(tiny_encoder_dir, r=4)
        start = encoder(TOKEN_IDS, LENGTHS)
        train(encoder)
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        plain = merged(encoder.backbone)
        assert isinstance(plain, transformers.BertModel)
        plain.save_pretrained(tmp_path)
        again = TextEncoder(str(tmp_path)).eval()(TOKEN_IDS, LENGTHS)
        torch.testing.assert_close(again, encoder(TOKEN_IDS, LENGTHS), rtol=1e-4, atol=1e-5)
        assert (again - start).abs().max() > 0.01
        # training may go on: the adapters are where they were
        assert before.keys() == encoder.state_dict().keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
