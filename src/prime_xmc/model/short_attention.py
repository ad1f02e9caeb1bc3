"""Attention within short texts on a GPU, where flash attention would mostly compute nothing.

Flash attention works in tiles of 128 rows, of which a text of 20 tokens fills a sixth, and its backward pass clears a
whole tile in float32 for every text. Kernels of this package work in tiles of 32 rows and clear nothing: over 65,000
tokens in texts of about 20, with 12 heads of 64, forward and backward pass take 0.72 ms on an H100 instead of 4.93 ms.
The advantage shrinks as texts fill the tiles: with about 60 tokens in a text it is 1.13 ms instead of 1.86 ms.

Nothing here imports Triton before the kernels are to run.
"""

import logging
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

logger = logging.getLogger(__name__)

LONGEST = 128  # tokens of a text for which the kernels were measured; a tile of flash attention has as many rows
SIZES = (32, 64)  # sizes of a head, likewise


def fits_short_attention(query: Tensor, key: Tensor, max_length: int) -> bool:
    """Return whether these heads and texts are of sizes at which the kernels were measured.

    Args:
        query: Queries in bf16 or fp16; [token, head, size].
        key: Keys, likewise; heads of keys that serve several of the queries are for flash attention.
        max_length: Tokens of the longest text.
    """
    return max_length <= LONGEST and query.shape[-1] in SIZES and query.shape[1] == key.shape[1]


@cache
def short_attention_runs(device: torch.device) -> bool:
    """Return whether the kernels run on this GPU; if they do not, the log says why.

    PyTorch's builds for CUDA bring Triton, but not on every system, and Triton needs a C compiler and the headers of
    Python, which a machine may lack. The kernels are therefore tried on a text of one token.
    """
    rows = torch.zeros(1, 1, SIZES[0], dtype=torch.bfloat16, device=device)
    offsets = torch.arange(2, dtype=torch.int32, device=device)
    try:
        attend_in_short_texts(rows, rows, rows, offsets, (-1, -1), None)
    except Exception as error:  # whatever a compiler may say
        logger.warning(
            "The kernels for short texts do not run here, so that flash attention takes their place, which is slower "
            f"for these ({type(error).__name__}: {error})"
        )
        return False
    return True


def attend_in_short_texts(
    query: Float[Tensor, "token head size"],
    key: Float[Tensor, "token head size"],
    value: Float[Tensor, "token head size"],
    offsets: Int[Tensor, " text_1"],
    window: tuple[int, int],
    scaling: float | None,
) -> Float[Tensor, "token head size"]:
    """Compute attention within each text, rounded as flash attention is: sums and softmax are in float32.

    Texts may be of any lengths, but those of more than `LONGEST` tokens were not measured. Nothing depends on the order
    in which the GPU computes: equal inputs have equal results and gradients.

    Args:
        query: Queries in bf16 or fp16.
        key: Keys, in the same dtype.
        value: Values, in the same dtype.
        offsets: Row of each text's first token, and behind the last text the number of tokens; int32.
        window: Number of tokens that a token sees to its left and to its right; -1 sees all.
        scaling: Factor of the scores; None for 1 / sqrt(size).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _short_attention(query, key, value, offsets, scale, *window)[0]


# Operators of their own rather than functions of autograd, since a compiler of the model cannot look into kernels.
@torch.library.custom_op("prime_xmc::short_attention", mutates_args=())
def _short_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, scale: float, left: int, right: int
) -> tuple[Tensor, Tensor]:
    from prime_xmc.model import short_attention_kernels

    query, key, value = (_with_dense_heads(rows) for rows in (query, key, value))
    output, log_sums = _new_outputs(query)
    with torch.cuda.device_of(query):
        short_attention_kernels.launch_forward(query, key, value, output, log_sums, offsets, scale, left, right)
    return output, log_sums


@torch.library.custom_op("prime_xmc::short_attention_backward", mutates_args=())
def _short_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    offsets: Tensor,
    scale: float,
    left: int,
    right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from prime_xmc.model import short_attention_kernels

    grads = _new_grads(query)
    query, key, value, output, grad = (_with_dense_heads(rows) for rows in (query, key, value, output, grad))
    with torch.cuda.device_of(query):
        short_attention_kernels.launch_backward(
            query, key, value, output, grad, *grads, log_sums, offsets, scale, left, right
        )
    return grads


def _with_dense_heads(rows: Tensor) -> Tensor:
    """Return the rows with each head's numbers behind one another, which is how the kernels read them."""
    return rows if rows.stride(2) == 1 else rows.contiguous()


def _new_outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for the output, and for the logarithm to base 2 of the sum of each softmax."""
    tokens, heads, size = query.shape
    return query.new_empty(tokens, heads, size), query.new_empty(heads, tokens, dtype=torch.float32)


def _new_grads(query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return room for the gradients of queries, keys and values."""
    tokens, heads, size = query.shape
    return tuple(query.new_empty(tokens, heads, size) for _ in range(3))  # type: ignore[return-value]


@_short_attention.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(query)


@_short_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _new_grads(query)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, offsets, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, *output, offsets)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = _short_attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (*grads, None, None, None, None)


_short_attention.register_autograd(_backward, setup_context=_keep)
