"""Weights in the dtype in which layers compute: many are cast at once, since each by itself is a kernel on a GPU."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor


def cast_joined(dtype: torch.dtype, groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the tensors of each group in another dtype, joined along the first dimension, in one launch for all.

    Their gradients are cast back in one launch, too.

    Args:
        dtype: Dtype of the results.
        groups: Tensors on one device, those of a group alike but for the first dimension.
    """
    if not groups:
        return []
    return list(_Cast.apply(dtype, [len(group) for group in groups], *[tensor for group in groups for tensor in group]))


class _Cast(torch.autograd.Function):
    """`cast_joined`, given the numbers of tensors in the groups."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, sizes: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the joined tensors."""
        ctx.set_materialize_grads(False)
        ctx.sizes, ctx.like = sizes, [(tensor.shape, tensor.dtype) for tensor in tensors]
        results: list[Tensor] = []
        parts: list[Tensor] = []
        for group in _in_groups(tensors, sizes):
            shapes = [tensor.shape for tensor in group]
            result = group[0].new_empty(_joined(shapes), dtype=dtype)
            results.append(result)
            parts += _split(result, shapes)
        torch._foreach_copy_(parts, list(tensors))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the tensors, in their dtypes."""
        results: list[Tensor | None] = []
        made: list[Tensor] = []
        parts: list[Tensor] = []
        for grad, like in zip(grads, _in_groups(ctx.like, ctx.sizes), strict=True):
            if grad is None:
                results += [None] * len(like)
            else:
                new = [grad.new_empty(shape, dtype=dtype) for shape, dtype in like]
                results += new
                made += new
                parts += _split(grad, [shape for shape, _ in like])
        if made:
            torch._foreach_copy_(made, parts)
        return (None, None, *results)


def _in_groups(items: Iterable[Any], sizes: list[int]) -> list[list[Any]]:
    iterator = iter(items)
    return [list(islice(iterator, size)) for size in sizes]


def _joined(shapes: list[torch.Size]) -> torch.Size:
    return shapes[0] if len(shapes) == 1 else torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:]))


def _split(joined: Tensor, shapes: list[torch.Size]) -> Sequence[Tensor]:
    return (joined,) if len(shapes) == 1 else joined.split([shape[0] for shape in shapes])
