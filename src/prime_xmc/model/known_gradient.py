"""A value whose gradient is computed along with it, instead of by autograd."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable


class KnownGradient(torch.autograd.Function):
    """A value that depends on a few entries of a matrix, whose gradient is known along with the value.

    Autograd would keep, and go back through, some twenty tensors for each term of the loss. There is no second
    derivative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        similarity: Float[Tensor, "anchor candidate"],
        value: Float[Tensor, ""],
        hardest: Int64[Tensor, "anchor negative"] | None,
        of_negatives: Float[Tensor, "anchor negative"],
        pairs: tuple[Int64[Tensor, " pair"], Int64[Tensor, " pair"]],
        of_pairs: Float[Tensor, " pair"],
    ) -> Float[Tensor, ""]:
        """Return the value.

        Args:
            ctx: Context of autograd.
            similarity: Matrix.
            value: Value.
            hardest: Columns of each anchor's negatives, each once; None: all of them.
            of_negatives: Gradient of their entries.
            pairs: Anchor and candidate of further entries, each once.
            of_pairs: Gradient of these, to which the other is added where an entry is in both.
        """
        ctx.shape, ctx.is_transposed = similarity.shape, similarity.stride(0) < similarity.stride(1)
        ctx.save_for_backward(hardest, of_negatives, *pairs, of_pairs)
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        """Return the gradient of the matrix."""
        hardest, of_negatives, anchor, column, of_pairs = ctx.saved_tensors
        result = of_negatives * grad
        if hardest is not None:
            rows, columns = ctx.shape
            empty = result.new_zeros((columns, rows)).T if ctx.is_transposed else result.new_zeros(ctx.shape)
            result = empty.scatter_(1, hardest, result)
        # without accumulation, which would sort the entries on a GPU or, by other operators, add them in no fixed order
        result.index_put_((anchor, column), result[anchor, column] + of_pairs * grad)
        return result, None, None, None, None, None
