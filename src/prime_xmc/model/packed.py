"""BERT and DistilBERT layers over packed tokens: no padding, and few passes over memory.

All texts of a chunk lie behind one another, sorted by length, as one matrix [tokens, d]. Linear layers, norms and GELU
see that matrix; only attention needs the texts, and texts of one length form one batch of small matrix products. The
whole layer is one autograd node in the compute dtype, which spares what autocast and padding cost on a CPU: casts of
weights and activations, masks, and copies of what is cheaper to compute again.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

# Chunks are filled up with empty rows to a multiple of this, so that the matrix shapes, for each of which oneDNN
# keeps a compiled kernel and malloc a block of its own, are few.
TOKEN_MULTIPLE = 256


class LengthGroup(NamedTuple):
    """Texts of one length that lie behind one another: `texts` texts of `length` tokens from row `start`."""

    start: int
    texts: int
    length: int


class LayerParameters(NamedTuple):
    """The tensors of a post-norm transformer layer, as [out, in] weights and biases, in the order of `PackedLayer`."""

    qkv_weight: Tensor
    qkv_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    attention_norm_weight: Tensor
    attention_norm_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor
    down_weight: Tensor
    down_bias: Tensor
    output_norm_weight: Tensor
    output_norm_bias: Tensor


class PackedLayer(torch.autograd.Function):
    """One post-norm transformer layer (self-attention, then GELU feed-forward) on packed tokens.

    Queries are expected to be scaled by 1 / sqrt(head size) in `qkv_weight` already. Rows of no group stay finite and
    get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "token d"],
        groups: list[LengthGroup],
        num_heads: int,
        eps: float,
        *parameters: Tensor,
    ) -> Float[Tensor, "token d"]:
        """Return the layer's output."""
        p = LayerParameters(*parameters)
        dim = x.shape[1]
        qkv = F.linear(x, p.qkv_weight, p.qkv_bias)
        context = torch.zeros_like(x)
        attention: list[Tensor] = []
        for start, count, length in groups:
            rows = slice(start, start + count * length)
            heads = qkv[rows].view(count, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4).contiguous()
            query, key, value = heads.view(3, count * num_heads, length, -1).unbind(0)
            probability = _softmax(torch.bmm(query, key.transpose(1, 2)))
            mixed = torch.bmm(probability, value).view(count, num_heads, length, -1)
            context[rows].view(count, length, num_heads, -1).copy_(mixed.transpose(1, 2))
            attention += [query, key, value, probability]
        attended = F.linear(context, p.out_weight, p.out_bias).add_(x)
        hidden, mean_1, rstd_1 = torch.native_layer_norm(
            attended, (dim,), p.attention_norm_weight, p.attention_norm_bias, eps
        )
        up = F.linear(hidden, p.up_weight, p.up_bias)
        output = F.linear(F.gelu(up), p.down_weight, p.down_bias).add_(hidden)
        result, mean_2, rstd_2 = torch.native_layer_norm(output, (dim,), p.output_norm_weight, p.output_norm_bias, eps)
        ctx.groups, ctx.num_heads = groups, num_heads
        ctx.save_for_backward(
            x, context, attended, mean_1, rstd_1, hidden, up, output, mean_2, rstd_2, *parameters, *attention
        )
        return result

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "token d"]) -> tuple[Tensor | None, ...]:
        """Return the gradient of x, None for the three settings, and the gradients of the parameters in their order."""
        x, context, attended, mean_1, rstd_1, hidden, up, output, mean_2, rstd_2, *rest = ctx.saved_tensors
        p = LayerParameters(*rest[: len(LayerParameters._fields)])
        attention = rest[len(LayerParameters._fields) :]
        norm_backward = torch.ops.aten.native_layer_norm_backward
        shape, all_three = (x.shape[1],), [True, True, True]

        grad_output, d_output_norm_weight, d_output_norm_bias = norm_backward(
            grad, output, shape, mean_2, rstd_2, p.output_norm_weight, p.output_norm_bias, all_three
        )
        d_down_weight, d_down_bias = grad_output.T @ F.gelu(up), grad_output.sum(0)
        grad_up = torch.ops.aten.gelu_backward(grad_output @ p.down_weight, up)
        d_up_weight, d_up_bias = grad_up.T @ hidden, grad_up.sum(0)
        grad_hidden = grad_output.addmm_(grad_up, p.up_weight)
        grad_attended, d_attention_norm_weight, d_attention_norm_bias = norm_backward(
            grad_hidden, attended, shape, mean_1, rstd_1, p.attention_norm_weight, p.attention_norm_bias, all_three
        )
        d_out_weight, d_out_bias = grad_attended.T @ context, grad_attended.sum(0)
        grad_context = grad_attended @ p.out_weight
        grad_qkv = x.new_zeros(x.shape[0], 3 * x.shape[1])
        for index, (start, count, length) in enumerate(ctx.groups):
            query, key, value, probability = attention[4 * index : 4 * index + 4]
            rows = slice(start, start + count * length)
            grad_mixed = grad_context[rows].view(count, length, ctx.num_heads, -1).transpose(1, 2).contiguous()
            grad_mixed = grad_mixed.view(count * ctx.num_heads, length, -1)
            grad_scores = _softmax_backward(torch.bmm(grad_mixed, value.transpose(1, 2)), probability)
            grad_heads = torch.stack(
                [
                    torch.bmm(grad_scores, key),
                    torch.bmm(grad_scores.transpose(1, 2), query),
                    torch.bmm(probability.transpose(1, 2), grad_mixed),
                ]
            )
            grad_qkv[rows].view(count, length, 3, ctx.num_heads, -1).copy_(
                grad_heads.view(3, count, ctx.num_heads, length, -1).permute(1, 3, 0, 2, 4)
            )
        d_qkv_weight, d_qkv_bias = grad_qkv.T @ x, grad_qkv.sum(0)
        grad_x = grad_attended.addmm_(grad_qkv, p.qkv_weight)
        return (
            grad_x,
            None,
            None,
            None,
            d_qkv_weight,
            d_qkv_bias,
            d_out_weight,
            d_out_bias,
            d_attention_norm_weight,
            d_attention_norm_bias,
            d_up_weight,
            d_up_bias,
            d_down_weight,
            d_down_bias,
            d_output_norm_weight,
            d_output_norm_bias,
        )


def _softmax(scores: Float[Tensor, "batch length length"]) -> Float[Tensor, "batch length length"]:
    return torch.softmax(scores, dim=-1)


def _softmax_backward(
    grad: Float[Tensor, "batch length length"], probability: Float[Tensor, "batch length length"]
) -> Float[Tensor, "batch length length"]:
    return torch._softmax_backward_data(grad, probability, -1, probability.dtype)


def length_groups(lengths: list[int]) -> list[LengthGroup]:
    """Group sorted lengths into runs of equal ones.

    Example:
        >>> length_groups([3, 3, 5])
        [LengthGroup(start=0, texts=2, length=3), LengthGroup(start=6, texts=1, length=5)]
    """
    groups: list[LengthGroup] = []
    for length in lengths:
        if groups and groups[-1].length == length:
            groups[-1] = groups[-1]._replace(texts=groups[-1].texts + 1)
        else:
            start = groups[-1].start + groups[-1].texts * groups[-1].length if groups else 0
            groups.append(LengthGroup(start, 1, length))
    return groups


class PackedBackbone:
    """Runs the layers of a transformers BERT or DistilBERT model on packed tokens; the weights stay that model's.

    Args:
        backbone: BertModel or DistilBertModel with GELU, absolute positions and no dropout.
        chunk_tokens: Tokens that go through a layer at once. Bounds the temporary memory; results do not depend on it
            beyond rounding.

    Raises:
        ValueError: If the model is of another kind or has dropout, with what to use instead.
    """

    def __init__(self, backbone: nn.Module, *, chunk_tokens: int = 8192):
        config: Any = backbone.config
        instead = "use encoder.implementation=transformers"
        if config.model_type not in ("bert", "distilbert"):
            raise ValueError(f"the packed implementation knows bert and distilbert, got {config.model_type}: {instead}")
        activation = config.activation if config.model_type == "distilbert" else config.hidden_act
        if activation != "gelu":
            raise ValueError(f"the packed implementation knows gelu, got {activation}: {instead}")
        dropout = [config.dropout, config.attention_dropout] if config.model_type == "distilbert" else []
        dropout += [getattr(config, "hidden_dropout_prob", 0.0), getattr(config, "attention_probs_dropout_prob", 0.0)]
        if any(dropout):
            raise ValueError(f"the packed implementation has no dropout, got encoder.dropout={max(dropout)}: {instead}")
        self.backbone: Any = backbone
        self.chunk_tokens = chunk_tokens
        self.num_heads: int = config.num_attention_heads
        self.eps: float = 1e-12 if config.model_type == "distilbert" else config.layer_norm_eps

    def __call__(
        self, token_ids: Int[Tensor, " token"], lengths: list[int], dtype: torch.dtype
    ) -> Float[Tensor, "text d"]:
        """Return the mean over the tokens of the last layer's output, float32.

        Args:
            token_ids: Ids of all texts behind one another.
            lengths: Tokens of each text, ascending.
            dtype: In which the layers compute; parameters stay as they are and are cast once per call.
        """
        embedded = self._embed(token_ids, lengths).to(dtype)
        layers = [[parameter.to(dtype) for parameter in layer] for layer in self._layers()]
        pooled = []
        start = 0
        for chunk in _chunks(lengths, self.chunk_tokens):
            size = sum(chunk)
            groups = length_groups(chunk)
            hidden = F.pad(embedded[start : start + size], (0, 0, 0, -size % TOKEN_MULTIPLE))
            for parameters in layers:
                hidden = PackedLayer.apply(hidden, groups, self.num_heads, self.eps, *parameters)
            for row, count, length in groups:
                texts = hidden[row : row + count * length].view(count, length, -1)
                pooled.append(texts.mean(dim=1, dtype=torch.float32))
            start += size
        return torch.cat(pooled)

    def _embed(self, token_ids: Int[Tensor, " token"], lengths: list[int]) -> Float[Tensor, "token d"]:
        embeddings = self.backbone.embeddings
        positions = torch.arange(max(lengths), device=token_ids.device)
        position = torch.cat([positions[:length].repeat(count) for _, count, length in length_groups(lengths)])
        embedded = embeddings.word_embeddings(token_ids) + embeddings.position_embeddings(position)
        if hasattr(embeddings, "token_type_embeddings"):
            embedded = embedded + embeddings.token_type_embeddings.weight[0]
        return embeddings.LayerNorm(embedded)

    def _layers(self) -> list[LayerParameters]:
        if hasattr(self.backbone, "transformer"):
            return [self._distilbert_layer(layer) for layer in self.backbone.transformer.layer]
        return [self._bert_layer(layer) for layer in self.backbone.encoder.layer]

    def _bert_layer(self, layer: Any) -> LayerParameters:
        attention, output = layer.attention.self, layer.attention.output
        return self._layer_parameters(
            (attention.query, attention.key, attention.value),
            (output.dense, output.LayerNorm, layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm),
        )

    def _distilbert_layer(self, layer: Any) -> LayerParameters:
        attention, ffn = layer.attention, layer.ffn
        return self._layer_parameters(
            (attention.q_lin, attention.k_lin, attention.v_lin),
            (attention.out_lin, layer.sa_layer_norm, ffn.lin1, ffn.lin2, layer.output_layer_norm),
        )

    def _layer_parameters(self, qkv: tuple[Any, Any, Any], others: tuple[Any, ...]) -> LayerParameters:
        scale = (qkv[0].in_features // self.num_heads) ** -0.5
        return LayerParameters(
            torch.cat([qkv[0].weight * scale, qkv[1].weight, qkv[2].weight]),
            torch.cat([qkv[0].bias * scale, qkv[1].bias, qkv[2].bias]),
            *[tensor for module in others for tensor in (module.weight, module.bias)],
        )


def _chunks(lengths: list[int], chunk_tokens: int) -> list[list[int]]:
    """Cut the lengths into runs of at most `chunk_tokens` tokens, at least one text each."""
    chunks: list[list[int]] = []
    room = 0
    for length in lengths:
        if length > room or not chunks:
            chunks.append([])
            room = max(chunk_tokens, length)
        chunks[-1].append(length)
        room -= length
    return chunks
