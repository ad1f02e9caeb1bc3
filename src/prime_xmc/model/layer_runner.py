"""BERT and DistilBERT on packed tokens with few kernels: how a GPU runs their layers."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prime_xmc.model.casting import cast_joined
from prime_xmc.model.frozen import FrozenLayers
from prime_xmc.model.model_runner import Part
from prime_xmc.model.packed_attention import PackedTexts, attend, attention_within
from prime_xmc.model.post_norm import (
    InnerParameters,
    LayerInner,
    NormAndProject,
    dropouts_of,
    embed_words,
    eps_of,
    layer_list,
    modules_of,
)


class LayerRunner:
    """Runs the layers of a BERT or DistilBERT model of transformers, written out, in one dtype throughout.

    A layer is a product for queries, keys and values together, attention and `LayerInner`; its last norm goes with the
    next layer's product, `NormAndProject`. There is no dropout.

    Args:
        model: BertModel or DistilBertModel, see `is_known_by_hand`.
        frozen: Its frozen layers.
    """

    def __init__(self, model: Any, frozen: FrozenLayers):
        self.model = model
        self.frozen = frozen
        self.has_dropout = any(dropouts_of(model))
        self.num_heads: int = model.config.num_attention_heads
        self.eps = eps_of(model)

    def needs_positions(self, part: Part) -> bool:
        """Return whether `run` needs the positions of tokens: they are added below the layers."""
        return part != "above"

    def weights(self, dtype: torch.dtype, part: Part) -> list[list[Tensor]]:
        """Return weights and biases of each of some layers in a dtype, in the order of `PackedLayer`."""
        groups: list[tuple[Tensor, ...]] = []
        for m in map(modules_of, list(layer_list(self.model))[self._which(part)]):
            groups += [(m.query.weight, m.key.weight, m.value.weight), (m.query.bias, m.key.bias, m.value.bias)]
            groups += [(tensor,) for tensor in m.behind_attention()]
        cast = cast_joined(dtype, groups)
        size = 2 + len(InnerParameters._fields) + 2
        return [cast[start : start + size] for start in range(0, len(cast), size)]

    def run(
        self,
        rows: Float[Tensor, "token d"],
        texts: PackedTexts,
        positions: Int[Tensor, " token"] | None,
        weights: list[list[Tensor]],
        dtype: torch.dtype,
        part: Part,
    ) -> Float[Tensor, "token d"]:
        """Return the output of some layers.

        Args:
            rows: Embeddings of words; where those above run, the outputs of the frozen layers.
            texts: Where the texts are.
            positions: Position of each token in its text, see `needs_positions`.
            weights: What `weights` returns for these layers.
            dtype: Dtype in which they compute.
            part: Which layers.
        """
        if positions is not None:
            rows = embed_words(self.model, rows, positions)
        x = rows.to(dtype)
        tokens, dim = x.shape
        output: Tensor = x  # of the layer before, whose norm is still to come
        norm: tuple[Tensor, ...] = ()
        with attention_within(texts):
            for qkv_weight, qkv_bias, *inner, norm_weight, norm_bias in weights:
                if norm:
                    x, qkv = NormAndProject.apply(output, self.eps, *norm, qkv_weight, qkv_bias)
                else:
                    qkv = F.linear(x, qkv_weight, qkv_bias)
                query, key, value = qkv.view(tokens, 3, self.num_heads, dim // self.num_heads).unbind(1)
                output = LayerInner.apply(x, attend(query, key, value).flatten(1), self.eps, *inner)
                norm = norm_weight, norm_bias
        norm_weight, norm_bias = norm
        return F.layer_norm(output, (dim,), norm_weight, norm_bias, self.eps)

    def _which(self, part: Part) -> slice:
        if part == "all":
            return slice(None)
        return slice(self.frozen.number) if part == "below" else slice(self.frozen.number, None)
