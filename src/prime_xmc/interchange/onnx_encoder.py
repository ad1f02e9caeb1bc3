"""The exported encoder in onnxruntime, fed with token ids as this package has them."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from jaxtyping import Float
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor

from prime_xmc.data.corpus import Ragged
from prime_xmc.interchange.encoder_graph import INPUT_IDS, MASK, quiet_exporter

_TEXTS = 32  # texts of a batch, which are of about the same length


class OnnxEncoder:
    """Embeds texts by an exported graph, on the CPU.

    Args:
        path: File of the graph.
        threads: Threads to compute with.
    """

    def __init__(self, path: Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def encode_tokens(self, tokens: Ragged) -> Float[Tensor, "text d"]:
        """Return the embeddings of texts."""
        order = np.argsort(tokens.lengths, kind="stable")
        parts = []
        for start in range(0, len(order), _TEXTS):
            rows = [tokens[row] for row in order[start : start + _TEXTS]]
            mask = np.arange(len(rows[-1])) < np.array([len(row) for row in rows])[:, None]
            input_ids = np.zeros(mask.shape, dtype=np.int64)
            input_ids[mask] = np.concatenate(rows)
            (embeddings,) = self._session.run(None, {INPUT_IDS: input_ids, MASK: mask.astype(np.int64)})
            parts.append(embeddings)
        embeddings = torch.from_numpy(np.concatenate(parts))
        return torch.empty_like(embeddings).index_copy_(0, torch.from_numpy(order), embeddings)


def quantise(source: Path, target: Path) -> None:
    """Write a graph whose matrices are 8-bit integers, and whose activations are rounded to such as they come.

    Args:
        source: File of a graph in float32.
        target: File to write.
    """
    with quiet_exporter():
        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, per_channel=True)
