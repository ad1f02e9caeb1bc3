"""BERT and DistilBERT layers over packed tokens: no padding, and few passes over memory.

The texts of a chunk are sorted by length and concatenated to one matrix [tokens, d]. Linear layers, norms and GELU work
on that matrix; only attention needs single texts, and pads them to the longest of the chunk. A whole layer is one
autograd node that computes in one dtype. On a CPU this saves what autocast and padding cost: casts of weights and
activations, and copies of tensors that are cheaper to compute again.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prime_xmc.model.frozen import FrozenLayers
from prime_xmc.model.post_norm import (
    Inner,
    InnerParameters,
    LayerModules,
    activation_of,
    dropouts_of,
    embed_words,
    eps_of,
    is_known_by_hand,
    layer_list,
    modules_of,
    norm_backward,
    run_inner,
    run_inner_backward,
)

# Matrices may have few different shapes: oneDNN compiles a kernel for each (2 ms) and keeps a thousand of them, and the
# heap is fragmented into blocks of as many sizes. Sizes are therefore rounded up to multiples of these numbers.
TOKEN_MULTIPLE = 128  # rows of a chunk
TEXT_MULTIPLE = 8  # texts of a chunk, in attention
MEMORY_MULTIPLE = 2**20  # entries of a tensor of attention
# A step needs fewer kernels than this, and the next step hardly uses them again; oneDNN's default is 1024. It reads the
# variable at its first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


class LengthGroup(NamedTuple):
    """Consecutive texts of one length: `texts` texts of `length` tokens each, from row `start` on."""

    start: int
    texts: int
    length: int


class PackedLayer(torch.autograd.Function):
    """One post-norm transformer layer (self-attention, then GELU feed-forward) on packed tokens.

    With D for dropout, t for the number of tokens and d_h for the size of a head:

        [q, k, v] = x W_qkv^T + b_qkv                 [t, 3 d], then [3, texts * heads, longest text, d_h]
        P = softmax(q k^T + padding bias)             [texts * heads, longest text, longest text]
        context = D_0(P) v                            back to [t, d]

    and then the output of `run_inner` and norm_2 of it.

    The scale 1 / sqrt(d_h) of the queries is expected in `qkv_weight` and `qkv_bias` already. Rows that belong to no
    group stay finite and get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "token d"],
        groups: list[LengthGroup],
        num_heads: int,
        eps: float,
        dropout: tuple[float, float, float],
        *parameters: Tensor,
    ) -> Float[Tensor, "token d"]:
        """Return the layer's output.

        Args:
            ctx: Context of autograd.
            x: Packed tokens.
            groups: Texts by length, in the order of their rows.
            num_heads: Attention heads.
            eps: Added to the variance in both norms.
            dropout: Probabilities for the attention weights, the attention output and the feed-forward output.
            parameters: Weight [3 d, d] and bias of queries, keys and values; tensors in the order of
                `InnerParameters`; weight and bias of norm_2.
        """
        qkv_weight, qkv_bias, *inner_parameters, norm_weight, norm_bias = parameters
        drops = [_Dropout(probability) for probability in dropout]
        # q, k and v of all heads, then spread over texts
        qkv = F.linear(x, qkv_weight, qkv_bias)
        context = torch.zeros_like(x)
        layout = _AttentionLayout(groups, num_heads)
        heads = layout.spread(qkv, 3)
        query, key, value = heads.flatten(1, 2)
        # attention weights P
        scores = _buffer(heads.shape[1:4] + heads.shape[3:4], x)
        torch.bmm(query, key.transpose(1, 2), out=scores.flatten(0, 1))
        probability = torch.softmax(scores.add_(layout.padding_bias(scores)), -1, out=_buffer(scores.shape, x))
        probability = probability.flatten(0, 1)
        # context = D_0(P) v, collected to packed rows
        kept = [drop.draw(like) for drop, like in zip(drops, (probability, x, x), strict=True)]
        mixed = torch.bmm(drops[0](probability, kept[0]), value, out=_buffer(value.shape, x))
        layout.collect(mixed.view(1, *heads.shape[1:]), context)
        output, inner = run_inner(
            x, context, InnerParameters(*inner_parameters), eps, *(partial(drops[i], kept=kept[i]) for i in (1, 2))
        )
        result, mean, rstd = torch.native_layer_norm(output, (x.shape[1],), norm_weight, norm_bias, eps)
        ctx.groups, ctx.num_heads, ctx.drops = groups, num_heads, drops
        ctx.save_for_backward(*kept, x, context, heads, probability, *inner, output, mean, rstd, *parameters)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "token d"]) -> tuple[Tensor | None, ...]:
        """Return the gradient of x, None for the four settings, and the gradients of the parameters in their order.

        See `run_inner_backward` for names and rules.
        """
        saved, drops = ctx.saved_tensors, ctx.drops
        *kept, x, context, heads, probability = saved[:7]
        inner, (output, mean, rstd) = Inner(*saved[7:12]), saved[12:15]
        qkv_weight, _, *inner_parameters, norm_weight, norm_bias = saved[15:]
        # result = norm_2(output): grad_output [t, d], weight and bias of the norm
        grad_output, d_norm_weight, d_norm_bias = norm_backward(grad, output, mean, rstd, norm_weight, norm_bias)
        grad_attended, grad_context, of_inner = run_inner_backward(
            *(grad_output, context, inner, InnerParameters(*inner_parameters)),
            *(partial(drops[i], kept=kept[i]) for i in (1, 2)),
        )
        layout = _AttentionLayout(ctx.groups, ctx.num_heads)
        query, key, value = heads.flatten(1, 2)
        # context = D_0(P) v, by texts: grad_P is grad_context v^T, masked and scaled
        grad_mixed = layout.spread(grad_context, 1)[0].flatten(0, 1)
        grad_probability = drops[0](torch.bmm(grad_mixed, value.transpose(1, 2)), kept[0])
        # P = softmax(scores): grad_scores = P * (grad_P - sum over keys of P * grad_P)
        grad_scores = torch._softmax_backward_data(grad_probability, probability, -1, probability.dtype)
        # scores = q k^T: grad_q = grad_scores k, grad_k = grad_scores^T q; and grad_v = D_0(P)^T grad_context
        grad_heads = _buffer(heads.shape, heads).flatten(1, 2)
        torch.bmm(grad_scores, key, out=grad_heads[0])
        torch.bmm(grad_scores.transpose(1, 2), query, out=grad_heads[1])
        torch.bmm(drops[0](probability, kept[0]).transpose(1, 2), grad_mixed, out=grad_heads[2])
        # back to packed rows [t, 3 d], where rows of no group stay 0
        grad_qkv = x.new_zeros(x.shape[0], 3 * x.shape[1])
        layout.collect(grad_heads.view(heads.shape), grad_qkv)
        d_qkv_weight, d_qkv_bias = grad_qkv.T @ x, grad_qkv.sum(0)
        # x is used twice: grad_x = grad_attended (residual) + grad_qkv W_qkv (in place of grad_attended)
        grad_x = grad_attended.addmm_(grad_qkv, qkv_weight)
        of_norm = d_norm_weight, d_norm_bias
        return (grad_x, None, None, None, None, d_qkv_weight, d_qkv_bias, *of_inner, *of_norm)


class _Dropout:
    """Dropout with random bytes, eight from each number drawn, since a number per entry would cost a third of a step.

    Args:
        probability: Probability that an entry is dropped, in [0, 1), rounded to a multiple of 1/256.
    """

    def __init__(self, probability: float):
        self.threshold = round(256 * probability)

    def draw(self, like: Tensor) -> Tensor | None:
        """Return which entries of a tensor of this shape are kept, or None where all are."""
        if self.threshold == 0:
            return None
        words = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
        words.random_(-(2**63), None)  # the whole range of int64
        return (words.view(torch.uint8)[: like.numel()] >= self.threshold).view(like.shape)

    def __call__(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """Return x with dropped entries at 0 and the others scaled up to the same mean; x itself where all are kept."""
        return x if kept is None else (x * kept).mul_(256 / (256 - self.threshold))


class _AttentionLayout:
    """Places of packed rows in attention, where texts are padded: [texts, heads, longest text, head size].

    Padding costs little there: the texts of a chunk have nearly one length, and attention is a small part of a layer.

    Args:
        groups: Texts by length, in the order of their rows.
        num_heads: Attention heads.
    """

    def __init__(self, groups: list[LengthGroup], num_heads: int):
        self.groups = groups
        self.num_heads = num_heads
        self.texts = _round_up(sum(group.texts for group in groups), TEXT_MULTIPLE)
        self.length = groups[-1].length

    def spread(self, rows: Float[Tensor, "token width"], parts: int) -> Float[Tensor, "{parts} text head length size"]:
        """Return rows of `parts` vectors for all heads in the layout of attention, with 0 in the padding."""
        size = rows.shape[1] // parts // self.num_heads
        result = _buffer((parts, self.texts, self.num_heads, self.length, size), rows).zero_()
        for tokens, texts, length in self._places():
            packed = rows[tokens].view(-1, length, parts, self.num_heads, size)
            result[:, texts, :, :length] = packed.permute(2, 0, 3, 1, 4)
        return result

    def collect(self, heads: Float[Tensor, "part text head length size"], rows: Float[Tensor, "token width"]) -> None:
        """Write what `spread` returned, or a tensor of its shape, back into packed rows."""
        for tokens, texts, length in self._places():
            packed = rows[tokens].view(-1, length, heads.shape[0], self.num_heads, heads.shape[-1])
            packed.copy_(heads[:, texts, :, :length].permute(1, 3, 0, 2, 4))

    def padding_bias(self, scores: Float[Tensor, "text head length length"]) -> Float[Tensor, "text 1 1 length"]:
        """Return a bias that keeps the softmax over keys off the padding; finite, since a text may be all padding."""
        bias = scores.new_full((self.texts, self.length), -1e4)
        for _, texts, length in self._places():
            bias[texts, :length] = 0
        return bias[:, None, None, :]

    def _places(self) -> Iterator[tuple[slice, slice, int]]:
        """Yield rows, texts and length of each group."""
        first = 0
        for start, texts, length in self.groups:
            yield slice(start, start + texts * length), slice(first, first + texts), length
            first += texts


def _buffer(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised tensor whose memory has one of few sizes, see `MEMORY_MULTIPLE`."""
    size = math.prod(shape)
    return like.new_empty(_round_up(size, MEMORY_MULTIPLE))[:size].view(*shape)


def _cast(layers: list[list[Tensor]], dtype: torch.dtype) -> list[list[Tensor]]:
    return [[parameter.to(dtype) for parameter in layer] for layer in layers]


def _pad_rows(rows: Float[Tensor, "token d"], number: int) -> Float[Tensor, "{number} d"]:
    return F.pad(rows, (0, 0, 0, number - len(rows)))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


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
    """Runs the layers of a BERT or DistilBERT model of transformers on packed tokens, with that model's own weights.

    Args:
        backbone: BertModel or DistilBertModel with GELU and absolute positions. Its dropout applies in training mode.
        chunk_tokens: Approximate limit of the tokens that go through a layer at once. It bounds the temporary memory;
            results do not depend on it beyond rounding.
        recompute: Whether chunks are computed again in the backward pass instead of being kept for it. Memory is then
            that of one chunk, whatever the size of the batch, and a step takes a third more time. Gradients are the
            same (GradCache, Gao et al. 2021).
        num_frozen: Number of layers, from the first one on, that are not trained, nor the embeddings below them. The
            last layer is trained in any case.

    Raises:
        ValueError: If the model is of another kind, with what to use instead, or the number is negative.
    """

    def __init__(self, backbone: Any, *, chunk_tokens: int = 4096, recompute: bool = False, num_frozen: int = 0):
        if not is_known_by_hand(backbone):
            raise ValueError(
                f"{type(self).__name__} runs bert and distilbert encoders with gelu, got {backbone.config.model_type} "
                f"with {activation_of(backbone)}: use VarlenBackbone"
            )
        self.embedding_dropout, *dropout = dropouts_of(backbone)
        self.dropout: tuple[float, ...] = tuple(dropout)
        self.backbone = backbone
        self.chunk_tokens = chunk_tokens
        self.recompute = recompute
        self.num_heads: int = backbone.config.num_attention_heads
        self.eps = eps_of(backbone)
        self.frozen = FrozenLayers(backbone.embeddings, list(layer_list(backbone)), num_frozen)
        self._kept: dict[torch.dtype, list[list[Tensor]]] = {}

    @property
    def num_frozen(self) -> int:
        """Number of layers that are not trained."""
        return self.frozen.number

    def unfrozen(self) -> AbstractContextManager[None]:
        """Let no layer be frozen, for the duration of the context."""
        return self.frozen.lifted()

    @torch.no_grad()
    def keep_layers(self, dtype: torch.dtype) -> None:
        """Cast the layers' weights once, for all calls without gradients that compute in this dtype from now on.

        For a few texts, casting takes longer than computing. The backbone's weights may not change any more.
        """
        self._kept[dtype] = _cast(self._layers(), dtype)

    def __call__(
        self,
        token_ids: Int[Tensor, " token"],
        lengths: list[int],
        dtype: torch.dtype,
        frozen: Float[Tensor, "token d"] | None = None,
    ) -> Float[Tensor, "text d"]:
        """Return the mean over the tokens of each text of the last layer's output, in float32.

        Args:
            token_ids: Ids of all texts, concatenated.
            lengths: Tokens of each text, ascending.
            dtype: Dtype in which the layers compute. Parameters stay as they are and are cast once per call.
            frozen: What `frozen_outputs` returns for these texts, if it is known already.
        """
        if self.num_frozen:
            rows = self.frozen_outputs(token_ids, lengths, dtype) if frozen is None else frozen.to(dtype)
        else:
            # for all chunks at once, since each gradient of this table has a row for every token of the vocabulary
            rows = self.backbone.embeddings.word_embeddings(token_ids)
        layers = self._in_dtype(slice(self.num_frozen, None), dtype)
        pooled = []
        for part, groups, num_rows in self._in_chunks(rows, lengths):
            if self.recompute and torch.is_grad_enabled():
                pooled.append(
                    checkpoint(self._encode_chunk, part, groups, num_rows, layers, dtype, use_reentrant=False)
                )
            else:
                pooled.append(self._encode_chunk(part, groups, num_rows, layers, dtype))
        return torch.cat(pooled)

    @torch.no_grad()
    def frozen_outputs(
        self, token_ids: Int[Tensor, " token"], lengths: list[int], dtype: torch.dtype
    ) -> Float[Tensor, "token d"]:
        """Return the output of the last frozen layer for every token, in `dtype`; there is no dropout up to there.

        Args:
            token_ids: Ids of all texts, concatenated.
            lengths: Tokens of each text, ascending.
            dtype: Dtype in which the layers compute.
        """
        words = self.backbone.embeddings.word_embeddings(token_ids)
        layers = self._in_dtype(slice(self.num_frozen), dtype)
        result = words.new_empty(words.shape, dtype=dtype)
        start = 0
        for part, groups, num_rows in self._in_chunks(words, lengths):
            hidden = _pad_rows(self._embed(part, groups).to(dtype), num_rows)
            for parameters in layers:
                hidden = PackedLayer.apply(hidden, groups, self.num_heads, self.eps, (0.0, 0.0, 0.0), *parameters)
            result[start : start + len(part)] = hidden[: len(part)]
            start += len(part)
        return result

    def _in_chunks(
        self, rows: Float[Tensor, "token d"], lengths: list[int]
    ) -> Iterator[tuple[Float[Tensor, "part d"], list[LengthGroup], int]]:
        """Yield the rows of each chunk, its texts by length, and the number of rows that its layers compute."""
        chunks = cut_chunks(lengths, self.chunk_tokens)
        for chunk, part in zip(chunks, rows.split([sum(chunk) for chunk in chunks]), strict=True):
            yield part, length_groups(chunk), _round_up(sum(chunk), TOKEN_MULTIPLE)

    def _encode_chunk(
        self,
        rows: Float[Tensor, "token d"],
        groups: list[LengthGroup],
        num_rows: int,
        layers: list[list[Tensor]],
        dtype: torch.dtype,
    ) -> Float[Tensor, "text d"]:
        training = self.backbone.training
        dropout = self.dropout if training else (0.0, 0.0, 0.0)
        if not self.num_frozen:
            rows = F.dropout(self._embed(rows, groups), self.embedding_dropout, training).to(dtype)
        hidden = _pad_rows(rows, num_rows)
        for parameters in layers:
            hidden = PackedLayer.apply(hidden, groups, self.num_heads, self.eps, dropout, *parameters)
        pooled = []
        for row, texts, length in groups:
            tokens = hidden[row : row + texts * length].view(texts, length, -1)
            pooled.append(tokens.mean(dim=1, dtype=torch.float32))
        return torch.cat(pooled)

    def _embed(self, words: Float[Tensor, "token d"], groups: list[LengthGroup]) -> Float[Tensor, "token d"]:
        """Return what the first layer gets, from the embeddings of the words alone."""
        positions = torch.arange(groups[-1].length, device=words.device)
        position = torch.cat([positions[:length].repeat(texts) for _, texts, length in groups])
        return embed_words(self.backbone, words, position)

    def _in_dtype(self, which: slice, dtype: torch.dtype) -> list[list[Tensor]]:
        if dtype in self._kept and not torch.is_grad_enabled():
            return self._kept[dtype][which]
        return _cast(self._layers()[which], dtype)

    def _layers(self) -> list[list[Tensor]]:
        """Return the tensors of each layer in the order of `PackedLayer`."""
        return [self._parameters(modules_of(layer)) for layer in layer_list(self.backbone)]

    def _parameters(self, m: LayerModules) -> list[Tensor]:
        scale = (m.query.in_features // self.num_heads) ** -0.5
        return [
            torch.cat([m.query.weight * scale, m.key.weight, m.value.weight]),
            torch.cat([m.query.bias * scale, m.key.bias, m.value.bias]),
            *m.behind_attention(),
        ]


def cut_chunks(lengths: list[int], chunk_tokens: int) -> list[list[int]]:
    """Cut the lengths into the fewest runs of about `chunk_tokens` tokens or less, with about equally many each."""
    size = -(-sum(lengths) // -(-sum(lengths) // chunk_tokens))
    chunks: list[list[int]] = []
    room = 0
    for length in lengths:
        if room <= 0:
            chunks.append([])
            room = size
        chunks[-1].append(length)
        room -= length
    return chunks
