import pytest
import torch
from transformers import BertConfig, BertModel

from prime_xmc.interchange.encoder_graph import EncoderGraph, export_encoder
from prime_xmc.model.encoder import TextEncoder


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_it_is_what_the_encoder_computes(tiny_encoder_dir, pooling):
    encoder = TextEncoder(str(tiny_encoder_dir), implementation="transformers", pooling=pooling).eval()
    lengths = torch.tensor([1, 4, 7, 2])
    mask = torch.arange(7) < lengths[:, None]
    ids = torch.randint(1, 1000, (4, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder(ids[mask], lengths)
        found = EncoderGraph(encoder)(ids, mask.long())
        behind = EncoderGraph(encoder)(ids.masked_fill(~mask, 5), mask.long())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(behind, found, atol=1e-6, rtol=0)


def test_what_cannot_be_exported_is_named(tiny_encoder_dir, tmp_path):
    encoder = TextEncoder(str(tiny_encoder_dir))

    class Branching(BertModel):
        def forward(self, input_ids, attention_mask):
            if float(input_ids.sum()) > 0:  # a choice by the values, which no graph can make
                return super().forward(input_ids=input_ids, attention_mask=attention_mask)
            raise AssertionError

    encoder.backbone = Branching(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1))
    with pytest.raises(ValueError, match="the encoder, a bert of transformers, cannot be exported to ONNX: "):
        export_encoder(encoder, tmp_path / "encoder.onnx")
    assert list(tmp_path.iterdir()) == []
