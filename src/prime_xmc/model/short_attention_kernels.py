"""The kernels of attention within short texts, in Triton: imported where they run, since not every machine has it.

One program computes one head of one text. Nothing is kept for the backward pass but the output and the logarithm of
each row's sum of exponentials. Sums and softmax are in float32; probabilities and gradients of scores are rounded to
the dtype of the rows before they are multiplied, as flash attention does. Exponentials are to base 2, which a GPU
computes faster: scores are multiplied by 1.44, the logarithm of e to base 2.

Source: Dao, FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning (2023), algorithms 1, 2.
"""

from typing import no_type_check  # a program of Triton is not one of Python

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32  # rows of queries and keys that a program has in registers at once
WARPS = 2


@triton.jit
@no_type_check
def _load(start_of, row_stride, rows, columns, length):
    return tl.load(start_of + rows[:, None] * row_stride + columns[None, :], mask=rows[:, None] < length, other=0.0)


@triton.jit
@no_type_check
def _store(start_of, row_stride, rows, columns, length, values):
    tl.store(
        start_of + rows[:, None] * row_stride + columns[None, :],
        values.to(start_of.dtype.element_ty),
        mask=rows[:, None] < length,
    )


@triton.jit
@no_type_check
def _seen(rows, keys, length, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    seen = (keys[None, :] < length) & (rows[:, None] < length)
    distance = rows[:, None] - keys[None, :]
    if LEFT >= 0:
        seen = seen & (distance <= LEFT)
    if RIGHT >= 0:
        seen = seen & (-distance <= RIGHT)
    return seen


@triton.jit(do_not_specialize=["tokens"])
@no_type_check
def _forward_kernel(
    Q, K, V, OUT, LOG_SUM, OFFSETS, scale, tokens,
    q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start = tl.load(OFFSETS + text).to(tl.int64)
    length = (tl.load(OFFSETS + text + 1) - start).to(tl.int32)
    inner, columns = tl.arange(0, BLOCK), tl.arange(0, SIZE)
    q_at, k_at = Q + start * q_row + head * q_head, K + start * k_row + head * k_head
    v_at, o_at = V + start * v_row + head * v_head, OUT + start * o_row + head * o_head
    for first in range(0, length, BLOCK):
        rows = first + inner
        q = _load(q_at, q_row, rows, columns, length)
        highest = tl.full([BLOCK], -1e30, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        mixed = tl.zeros([BLOCK, SIZE], tl.float32)
        for other in range(0, length, BLOCK):
            keys = other + inner
            k = _load(k_at, k_row, keys, columns, length)
            v = _load(v_at, v_row, keys, columns, length)
            seen = _seen(rows, keys, length, LEFT, RIGHT)
            score = tl.where(seen, tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634), -1e30)
            now = tl.maximum(highest, tl.max(score, 1))
            p = tl.where(seen, tl.exp2(score - now[:, None]), 0.0)
            shrink = tl.exp2(highest - now)
            total = total * shrink + tl.sum(p, 1)
            mixed = mixed * shrink[:, None] + tl.dot(p.to(v.dtype), v)
            highest = now
        total = tl.where(rows < length, total, 1.0)
        _store(o_at, o_row, rows, columns, length, mixed / total[:, None])
        tl.store(LOG_SUM + head * tokens + start + rows, highest + tl.log2(total), mask=rows < length)


@triton.jit(do_not_specialize=["tokens"])
@no_type_check
def _backward_kernel(
    Q, K, V, OUT, GRAD, DQ, DK, DV, LOG_SUM, OFFSETS, scale, tokens,
    q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head, g_row, g_head,
    dq_row, dq_head, dk_row, dk_head, dv_row, dv_head,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start = tl.load(OFFSETS + text).to(tl.int64)
    length = (tl.load(OFFSETS + text + 1) - start).to(tl.int32)
    inner, columns = tl.arange(0, BLOCK), tl.arange(0, SIZE)
    q_at, k_at = Q + start * q_row + head * q_head, K + start * k_row + head * k_head
    v_at, o_at = V + start * v_row + head * v_head, OUT + start * o_row + head * o_head
    g_at, sum_at = GRAD + start * g_row + head * g_head, LOG_SUM + head * tokens + start
    dq_at, dk_at = DQ + start * dq_row + head * dq_head, DK + start * dk_row + head * dk_head
    dv_at = DV + start * dv_row + head * dv_head
    for other in range(0, length, BLOCK):  # gradients of keys and values
        keys = other + inner
        k = _load(k_at, k_row, keys, columns, length)
        v = _load(v_at, v_row, keys, columns, length)
        dk = tl.zeros([BLOCK, SIZE], tl.float32)
        dv = tl.zeros([BLOCK, SIZE], tl.float32)
        for first in range(0, length, BLOCK):
            rows = first + inner
            q = _load(q_at, q_row, rows, columns, length)
            g = _load(g_at, g_row, rows, columns, length)
            o = _load(o_at, o_row, rows, columns, length)
            log_sum = tl.load(sum_at + rows, mask=rows < length, other=0.0)
            seen = _seen(rows, keys, length, LEFT, RIGHT)
            score = tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634)
            p = tl.where(seen, tl.exp2(tl.where(seen, score - log_sum[:, None], 0.0)), 0.0)
            delta = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
            ds = p * (tl.dot(g, tl.trans(v)) - delta[:, None]) * scale
            dv += tl.dot(tl.trans(p.to(g.dtype)), g)
            dk += tl.dot(tl.trans(ds.to(q.dtype)), q)
            if length <= BLOCK:  # all there is of the text
                _store(dq_at, dq_row, rows, columns, length, tl.dot(ds.to(k.dtype), k))
        _store(dk_at, dk_row, keys, columns, length, dk)
        _store(dv_at, dv_row, keys, columns, length, dv)
    if length > BLOCK:
        for first in range(0, length, BLOCK):  # gradients of queries
            rows = first + inner
            q = _load(q_at, q_row, rows, columns, length)
            g = _load(g_at, g_row, rows, columns, length)
            o = _load(o_at, o_row, rows, columns, length)
            log_sum = tl.load(sum_at + rows, mask=rows < length, other=0.0)
            delta = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
            dq = tl.zeros([BLOCK, SIZE], tl.float32)
            for other in range(0, length, BLOCK):
                keys = other + inner
                k = _load(k_at, k_row, keys, columns, length)
                v = _load(v_at, v_row, keys, columns, length)
                seen = _seen(rows, keys, length, LEFT, RIGHT)
                score = tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634)
                p = tl.where(seen, tl.exp2(tl.where(seen, score - log_sum[:, None], 0.0)), 0.0)
                ds = p * (tl.dot(g, tl.trans(v)) - delta[:, None]) * scale
                dq += tl.dot(ds.to(k.dtype), k)
            _store(dq_at, dq_row, rows, columns, length, dq)


def launch_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    offsets: Tensor,
    scale: float,
    left: int,
    right: int,
) -> None:
    """Fill the output, [token, head, size], and the logarithms of the sums, [head, token]."""
    tokens, heads, size = query.shape
    rows = (query, key, value, output)
    strides = [stride for tensor in rows for stride in tensor.stride()[:2]]
    _forward_kernel[(len(offsets) - 1, heads)](
        *rows, log_sums, offsets, scale, tokens, *strides,
        LEFT=left, RIGHT=right, SIZE=size, BLOCK=BLOCK, num_warps=WARPS, num_stages=1,
    )  # fmt: skip


def launch_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    grad: Tensor,
    query_grad: Tensor,
    key_grad: Tensor,
    value_grad: Tensor,
    log_sums: Tensor,
    offsets: Tensor,
    scale: float,
    left: int,
    right: int,
) -> None:
    """Fill the gradients of queries, keys and values, given that of the output; all are [token, head, size]."""
    tokens, heads, size = query.shape
    rows = (query, key, value, output, grad, query_grad, key_grad, value_grad)
    strides = [stride for tensor in rows for stride in tensor.stride()[:2]]
    _backward_kernel[(len(offsets) - 1, heads)](
        *rows, log_sums, offsets, scale, tokens, *strides,
        LEFT=left, RIGHT=right, SIZE=size, BLOCK=BLOCK, num_warps=WARPS, num_stages=1,
    )  # fmt: skip
