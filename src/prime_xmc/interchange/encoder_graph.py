"""The encoder as an ONNX graph: token ids and mask to unit embeddings."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.encoder_folder import Pooling

INPUT_IDS, MASK, EMBEDDING = "input_ids", "attention_mask", "text_embedding"


class EncoderGraph(nn.Module):
    """What `TextEncoder` computes, as a function of padded texts.

    Args:
        encoder: The encoder; its transformer is used, not copied.
    """

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.backbone = encoder.backbone
        self.pooling: Pooling = encoder.pooling
        self.normalize = encoder.normalize

    def forward(
        self, input_ids: Int64[Tensor, "text token"], attention_mask: Int64[Tensor, "text token"]
    ) -> Float[Tensor, "text d"]:
        """Return unit vectors, unless the encoder does not normalise.

        Args:
            input_ids: Token ids, with any ids behind a text that is shorter than the longest.
            attention_mask: 1 at tokens of a text, 0 behind them.
        """
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "mean":
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        elif self.pooling == "cls":
            pooled = hidden[:, 0]
        else:  # gather, since the number of texts is none of the graph's
            last = (attention_mask.sum(dim=1) - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
            pooled = hidden.gather(1, last)[:, 0]
        return F.normalize(pooled, dim=1) if self.normalize else pooled


def export_encoder(encoder: TextEncoder, path: Path) -> None:
    """Write the graph of an encoder in float32, for any number of texts of any length.

    Args:
        encoder: The encoder, on the CPU in eval mode.
        path: File to write.

    Raises:
        ValueError: If its transformer cannot be exported.
    """
    # two texts of different lengths, so that nothing is taken for a constant
    input_ids = torch.ones((2, 5), dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    shapes = {name: {0: "texts", 1: "tokens"} for name in (INPUT_IDS, MASK)}
    try:
        with torch.no_grad(), quiet_exporter():
            program = torch.onnx.export(
                EncoderGraph(encoder).eval(),
                (input_ids, mask),
                dynamo=True,
                input_names=[INPUT_IDS, MASK],
                output_names=[EMBEDDING],
                dynamic_shapes=shapes,
                verbose=False,
            )
        assert program is not None
        program.save(str(path))
    except Exception as error:  # the exporter wraps whatever a model's code raises
        (reason, *_) = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        kind = encoder.backbone.config.model_type
        raise ValueError(
            f"the encoder, a {kind} of transformers, cannot be exported to ONNX: {reason.strip()}. Encoders of the "
            "kinds bert and distilbert, such as MiniLM, can"
        ) from error


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep remarks of exporter and quantiser on their own workings, dozens of lines, to themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
