"""One-vs-all binary cross-entropy over all labels, in blocks: the logits of all labels never exist at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import softplus

LABEL_BLOCK = 4096  # labels scored at once; with 512 queries, their logits take 8 MiB


class LabelPairs(NamedTuple):
    """Pairs of a query and a label, each once.

    Attributes:
        rows: int64 [pair], row of the query.
        label_ids: int64 [pair].
    """

    rows: Tensor
    label_ids: Tensor


def summed_bce(
    query_emb: Float[Tensor, "query d"],
    weight: Float[Tensor, "label d"],
    positives: LabelPairs,
    spared: LabelPairs,
    *,
    take: Callable[[int, Tensor], None] | None = None,
    label_block: int = LABEL_BLOCK,
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of sigmoid(x . w_l), summed over all queries and labels.

    Its gradient is made along with it, from that of the logits, sigmoid(x . w_l) - y; autograd sees neither logits nor
    loss. Beyond the arguments and their gradients, memory is a block of logits and a few copies of it. Products are
    computed in the dtype of the surrounding autocast, if there is one; all else in that of `query_emb`.

    Args:
        query_emb: Queries x, of any norm.
        weight: Classifiers w_l.
        positives: Pairs with y = 1; all others have y = 0.
        spared: Pairs that do not count, neither as positive nor as negative; none of them is among the positives.
        take: Function that gets the gradient of a block of classifiers and the number of the first of them, in order of
            the labels, as soon as the block has been used; it may change these rows of `weight`. The gradient of
            `weight` is then not kept. None: it is, and goes to autograd.
        label_block: Labels scored at once.

    Source: Renée, Jain et al. 2023; as one loop over blocks that also takes the step, ELMO, Zhang et al. 2025.
    """
    return _SummedBCE.apply(query_emb, weight, positives, spared, take, label_block)


class _SummedBCE(torch.autograd.Function):
    """Makes both gradients when it makes the loss, and hands them out in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query_emb: Tensor,
        weight: Tensor,
        positives: LabelPairs,
        spared: LabelPairs,
        take: Callable[[int, Tensor], None] | None,
        label_block: int,
    ) -> Tensor:
        gradient = None
        if take is None:
            gradient = torch.empty_like(weight)
            take = partial(_keep, gradient)
        loss, query_gradient = _sum_blocks(query_emb, weight, positives, spared, take, label_block)
        ctx.gradients = query_gradient, gradient
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        query_gradient, gradient = ctx.gradients
        del ctx.gradients  # large, and asked for once
        return scale * query_gradient, None if gradient is None else scale * gradient, None, None, None, None


def _keep(gradient: Tensor, start: int, block: Tensor) -> None:
    gradient[start : start + len(block)] = block


def _sum_blocks(
    query_emb: Float[Tensor, "query d"],
    weight: Float[Tensor, "label d"],
    positives: LabelPairs,
    spared: LabelPairs,
    take: Callable[[int, Tensor], None],
    label_block: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, "query d"]]:
    """Return the loss and the gradient of the queries; that of the classifiers goes to `take`."""
    device = query_emb.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query_emb.dtype
    with torch.autocast(device, enabled=False):
        queries = query_emb.to(dtype)
        loss, query_gradient = query_emb.new_zeros(()), torch.zeros_like(query_emb)
        for start in range(0, len(weight), label_block):
            vectors = weight[start : start + label_block].to(dtype)
            logits = (queries @ vectors.T).to(query_emb.dtype)  # [query, label of the block]
            is_positive, of_positives = _inside(positives, start, len(vectors))
            is_spared, of_spared = _inside(spared, start, len(vectors))
            loss += softplus(logits).sum()
            loss -= (logits[of_positives] * is_positive).sum()
            loss -= (softplus(logits[of_spared]) * is_spared).sum()
            gradient = logits.sigmoid_()
            gradient.index_put_(of_spared, -gradient[of_spared] * is_spared, accumulate=True)
            gradient.index_put_(of_positives, -is_positive.to(gradient.dtype), accumulate=True)
            gradient = gradient.to(dtype)
            query_gradient += gradient @ vectors
            take(start, (gradient.T @ queries).to(query_emb.dtype))
    return loss, query_gradient


def _inside(
    pairs: LabelPairs, start: int, length: int
) -> tuple[Tensor, tuple[Int64[Tensor, " pair"], Int64[Tensor, " pair"]]]:
    """Return which pairs have their label in a block, and row and column in it; those that have not, some column.

    To select those that have, the host would wait for a GPU to count them.
    """
    inside = (pairs.label_ids >= start) & (pairs.label_ids < start + length)
    return inside, (pairs.rows, (pairs.label_ids - start).clamp(0, length - 1))
