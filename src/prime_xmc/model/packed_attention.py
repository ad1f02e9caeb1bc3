"""Attention within each text of packed tokens, which lie behind one another without padding.

transformers lets a function take the place of a model's attention. This one is told where each text starts. On a GPU it
is `torch.nn.attention.varlen`, which is flash attention for texts of any lengths, forward and backward, and where all
texts are short, `prime_xmc.model.short_attention`; elsewhere it pads.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from prime_xmc.model.short_attention import attend_in_short_texts, fits_short_attention, short_attention_runs

ATTENTION = "prime_xmc_packed"  # its name among transformers' implementations of attention
_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_BLOCK = 128  # flash attention works in blocks of so many rows, so that a longest text rounded up to it costs nothing
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some models ask of attention and is not computed here


class PackedTexts(NamedTuple):
    """Where the texts of some packed tokens are.

    Attributes:
        offsets: Row of each text's first token, and behind the last text the number of tokens; int32, on the device.
        max_length: Tokens of the longest text.
    """

    offsets: Int[Tensor, " text_1"]
    max_length: int


class _Current:
    """What attention has to know of the tokens that are in a transformer now: models drop unknown keyword arguments.

    Attributes:
        texts: Where their texts are.
        flash: Flash attention, where the device has it.
        short: Whether the device has the kernels for short texts too.
    """

    texts: PackedTexts | None = None
    flash: Callable[..., Tensor] | None = None
    short: bool = False


_current = _Current()
one_thread = threading.RLock()
"""Held by who uses these texts, or lets a model compute something else for a while: of the threads in which somebody
answers queries, one would compute attention within the texts of another."""


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 head token size"],
    key: Float[Tensor, "1 key_head token size"],
    value: Float[Tensor, "1 key_head token size"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "1 token head size"], None]:
    """Compute attention within each of the current texts, as transformers asks for it.

    Args:
        module: The layer of attention.
        query: Queries.
        key: Keys, whose heads may be fewer: each then serves several heads of the queries.
        value: Values, likewise.
        attention_mask: None, since nothing is padded.
        dropout: Probability that an attention weight is dropped.
        scaling: Factor of the scores; None for 1 / sqrt(size).
        sliding_window: Distance from which on a token does not see another; None sees all.
        is_causal: Whether a token sees those before it alone; None asks the module.
        settings: What else the model says; nothing of it may change the result.

    Raises:
        ValueError: If the model asks for what is not computed here.
    """
    assert attention_mask is None
    unknown = [name for name in _UNKNOWN if settings.get(name) is not None]
    if unknown:
        raise ValueError(f"packed attention has no {' and no '.join(unknown)}")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    reach = -1 if sliding_window is None else sliding_window - 1
    q, k, v = (heads.squeeze(0).transpose(0, 1) for heads in (query, key, value))  # [token, head, size]
    return attend(q, k, v, (reach, 0 if causal else reach), scaling, dropout)[None], None


AttentionInterface.register(ATTENTION, packed_attention)


@contextmanager
def attention_watched() -> Iterator[list[nn.Module]]:
    """Yield a list of the layers of attention that ask for `packed_attention`, for the duration of the context.

    Other threads wait for its end before their attention is within texts, and are not watched.
    """
    asked: list[nn.Module] = []

    def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        asked.append(module)
        return packed_attention(module, *args, **kwargs)

    with one_thread:
        AttentionInterface.register(ATTENTION, watched)
        try:
            yield asked
        finally:
            AttentionInterface.register(ATTENTION, packed_attention)


@contextmanager
def attention_within(texts: PackedTexts) -> Iterator[None]:
    """Let attention be within these texts, by what their device has, for the duration of the context.

    Other threads wait for its end.
    """
    device = texts.offsets.device
    has_flash = flash_runs(device, torch.bfloat16)
    with one_thread:
        outer = _current.texts, _current.flash, _current.short
        _current.texts = texts
        _current.flash = _flash_attention() if has_flash else None
        _current.short = has_flash and short_attention_runs(device)
        try:
            yield
        finally:
            _current.texts, _current.flash, _current.short = outer


def attend(
    query: Float[Tensor, "token head size"],
    key: Float[Tensor, "token key_head size"],
    value: Float[Tensor, "token key_head size"],
    window: tuple[int, int] = (-1, -1),
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "token head size"]:
    """Compute attention within each of the texts of `attention_within`.

    Flash attention knows neither float32 nor dropout of the attention weights, and no head whose size is above 256 or
    not a multiple of 8: these, and everything on a CPU or a GPU before Ampere, are computed by PyTorch's scaled dot
    product over padded texts, in the dtype that is given. Nothing is rounded that was not.

    Args:
        query: Queries.
        key: Keys, whose heads may be fewer: each then serves several heads of the queries.
        value: Values, likewise.
        window: Number of tokens that a token sees to its left and to its right; -1 sees all.
        scaling: Factor of the scores; None for 1 / sqrt(size).
        dropout: Probability that an attention weight is dropped.
    """
    texts = _current.texts
    assert texts is not None
    size = query.shape[-1]
    if _current.flash is None or dropout > 0.0 or query.dtype not in _FLASH_DTYPES or size % 8 or size > 256:
        return _padded(query, key, value, texts, window, scaling, dropout)
    if _current.short and fits_short_attention(query, key, texts.max_length):
        return attend_in_short_texts(query, key, value, texts.offsets, window, scaling)
    return _current.flash(query, key, value, texts, window, scaling)


def current_texts() -> PackedTexts:
    """Return the texts of the innermost `attention_within`, with the number of tokens that attention works in."""
    texts = _current.texts
    assert texts is not None
    if _current.flash is None:
        return texts
    return texts._replace(max_length=-(-texts.max_length // _BLOCK) * _BLOCK)


def set_texts(texts: PackedTexts) -> None:
    """Say anew where the texts are, within `attention_within`."""
    _current.texts = texts


def flash_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether flash attention computes in this dtype on this device."""
    return device.type == "cuda" and dtype in _FLASH_DTYPES and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _flash_attention() -> Callable[..., Tensor]:
    """Return PyTorch's attention over texts of any lengths, imported where it is used since that takes seconds."""
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn
    shares_heads = "enable_gqa" in inspect.signature(varlen_attn).parameters  # whether keys may have fewer heads

    def attend(
        query: Tensor, key: Tensor, value: Tensor, texts: PackedTexts, window: tuple[int, int], scaling: float | None
    ) -> Tensor:
        shared = {}
        if key.shape[1] != query.shape[1]:
            if shares_heads:
                shared["enable_gqa"] = True
            else:
                key, value = _repeat_heads(key, query), _repeat_heads(value, query)
        offsets, longest = texts
        return varlen_attn(
            query, key, value, offsets, offsets, longest, longest, scale=scaling, window_size=window, **shared
        )

    return attend


def _padded(
    query: Float[Tensor, "token head size"],
    key: Float[Tensor, "token key_head size"],
    value: Float[Tensor, "token key_head size"],
    texts: PackedTexts,
    window: tuple[int, int],
    scaling: float | None,
    dropout: float,
) -> Float[Tensor, "token head size"]:
    key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    offsets, length = texts
    rows = torch.arange(len(query), dtype=torch.int32, device=query.device)
    text = torch.searchsorted(offsets, rows, right=True) - 1
    places = text * length + rows - offsets[text]  # where all texts are padded to the longest one and then joined
    seen = _seen(offsets.diff(), length, window)
    q, k, v = (_pad(rows, places, len(offsets) - 1, length) for rows in (query, key, value))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], dropout_p=dropout, scale=scaling)
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, places)


def _pad(
    rows: Float[Tensor, "token head size"], places: Int[Tensor, " token"], texts: int, length: int
) -> Float[Tensor, "{texts} head {length} size"]:
    padded = rows.new_zeros(texts * length, *rows.shape[1:]).index_copy(0, places, rows)
    return padded.unflatten(0, (texts, length)).transpose(1, 2)


def _repeat_heads(
    heads: Float[Tensor, "token key_head size"], like: Float[Tensor, "token head size"]
) -> Float[Tensor, "token head size"]:
    times = like.shape[1] // heads.shape[1]
    return heads if times == 1 else heads.repeat_interleave(times, dim=1)


def _seen(
    lengths: Int[Tensor, " text"], length: int, window: tuple[int, int]
) -> Bool[Tensor, "text {length} {length}"]:
    """Return which key each query sees. Padding sees itself, since a softmax over nothing is not a number."""
    position = torch.arange(length, device=lengths.device)
    distance = position[:, None] - position  # of a query behind a key
    near = torch.ones_like(distance, dtype=torch.bool)
    if window[0] >= 0:
        near &= distance <= window[0]
    if window[1] >= 0:
        near &= -distance <= window[1]
    return (near & (position < lengths[:, None])[:, None, :]) | (distance == 0)
