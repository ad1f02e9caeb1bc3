"""Any transformer over packed tokens: the texts of a batch lie behind one another, without padding.

transformers lets a function take the place of a model's attention. Here it is one that is told where each text starts,
so that the rest of the model (linear layers, norms, activations) works on one long row of tokens. On a GPU the
attention is `torch.nn.attention.varlen`, which is flash attention for texts of any lengths, forward and backward, and
where all texts are short, `prime_xmc.model.short_attention`.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from prime_xmc.model.activations import computed_again, find_activations
from prime_xmc.model.encoder_folder import Pooling
from prime_xmc.model.frozen import FrozenLayers, send
from prime_xmc.model.packed import PackedBackbone, cut_chunks
from prime_xmc.model.short_attention import attend_in_short_texts, fits_short_attention, short_attention_runs

ATTENTION = "prime_xmc_packed"  # its name among transformers' implementations of attention
_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_BLOCK = 128  # flash attention works in blocks of so many rows, so that a longest text rounded up to it costs nothing
_TOKEN_MULTIPLE = 512  # of the tokens of a batch on a GPU: for each new number, its libraries choose their kernels anew
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

    Flash attention knows neither float32 nor dropout of the attention weights, and no head whose size is above 256 or
    not a multiple of 8: these, and everything on a CPU or a GPU before Ampere, are computed by PyTorch's scaled dot
    product over padded texts, in the dtype that is given. Nothing is rounded that was not.

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
    texts = _current.texts
    assert texts is not None
    assert attention_mask is None
    unknown = [name for name in _UNKNOWN if settings.get(name) is not None]
    if unknown:
        raise ValueError(f"packed attention has no {' and no '.join(unknown)}")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0 if causal else reach)
    q, k, v = (heads.squeeze(0).transpose(0, 1) for heads in (query, key, value))  # [token, head, size]
    size = q.shape[-1]
    if _current.flash is not None and dropout == 0.0 and q.dtype in _FLASH_DTYPES and size % 8 == 0 and size <= 256:
        if _current.short and fits_short_attention(q, k, texts.max_length):
            result = attend_in_short_texts(q, k, v, texts.offsets, window, scaling)
        else:
            result = _current.flash(q, k, v, texts, window, scaling)
    else:
        result = _padded(q, k, v, texts, window, scaling, dropout)
    return result[None], None


AttentionInterface.register(ATTENTION, packed_attention)


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


class _Cast(torch.autograd.Function):
    """Casts many tensors in one launch for all, and their gradients back in another."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in another dtype."""
        ctx.set_materialize_grads(False)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return tuple(_cast(list(tensors), [dtype] * len(tensors)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients in the dtypes of the tensors."""
        known = [place for place, grad in enumerate(grads) if grad is not None]
        result: list[Tensor | None] = [None] * len(grads)
        cast = _cast([grads[place] for place in known], [ctx.dtypes[place] for place in known])  # type: ignore[misc]
        for place, grad in zip(known, cast, strict=True):
            result[place] = grad
        return (None, *result)


def _cast(tensors: list[Tensor], dtypes: list[torch.dtype]) -> list[Tensor]:
    result = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    if result:
        torch._foreach_copy_(result, tensors)
    return result


def pool_packed(
    hidden: Float[Tensor, "token d"], offsets: Int[Tensor, " text_1"], pooling: Pooling
) -> Float[Tensor, "text d"]:
    """Return the mean of each text's tokens, its last or its first token ("cls"), float32.

    Args:
        hidden: Hidden states of packed tokens.
        offsets: Row of each text's first token, and behind the last text the number of tokens.
        pooling: Kind of pooling.
    """
    if pooling == "mean":
        # unsafe: without a look at the offsets, for which the host would wait
        return torch.segment_reduce(hidden.float(), "mean", offsets=offsets.long(), axis=0, unsafe=True)
    return hidden.index_select(0, offsets[:-1] if pooling == "cls" else offsets[1:] - 1).float()


def filling_texts(missing: int, longest: int) -> Int[Tensor, " fill"]:
    """Return the lengths of the fewest texts that have so many tokens, none of them longer than the longest.

    Example:
        >>> filling_texts(7, longest=3)
        tensor([3, 3, 1])
    """
    full, rest = divmod(missing, longest)
    return torch.tensor([longest] * full + [rest] * (rest > 0), dtype=torch.int64)


class VarlenBackbone:
    """Runs a transformer of transformers on packed tokens, with its own layers and weights.

    The layers compute in one dtype throughout. Where the weights have another, all are cast at once, and so are their
    gradients: autocast would cast each by itself, and everything around the norms to float32 and back.

    Args:
        backbone: Transformer, with or without adapters, that `check_packable` accepts. Its dropout applies in training
            mode.
        pooling: Part of the last layer that is returned.
        chunk_tokens: Function that returns, for a device, the approximate limit of the tokens that go through a layer
            at once.
        recompute: Whether chunks are computed again in the backward pass instead of being kept for it.
        num_frozen: Number of layers, from the first one on, that are not trained, nor the embeddings below them. The
            last layer is trained in any case.
        compile: Whether to compile the layers with torch.compile; all of them share one compilation.
        by_hand: What runs the same model on a CPU faster, if there is such. It shares the frozen layers.

    Raises:
        ValueError: If the number of frozen layers is negative, or the layers are not found.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        pooling: Pooling = "mean",
        chunk_tokens: Callable[[torch.device], int] = lambda _: 65536,
        recompute: bool = False,
        num_frozen: int = 0,
        compile: bool = False,
        by_hand: PackedBackbone | None = None,
    ):
        self.model: Any = without_adapters(backbone)
        self.pooling = pooling
        self.chunk_tokens = chunk_tokens
        self.recompute = recompute
        self.by_hand = by_hand
        self.compile = compile
        self._run_layer: Callable[..., Any] = torch.compile(_run_layer) if compile else _run_layer
        self.layers = find_layers(self.model) if compile or num_frozen else []
        # a compiler decides for itself what it keeps, and what is computed again as a whole keeps nothing
        self._activations = [] if compile or recompute else find_activations(self.model)
        # What adds positions and normalises, below the layers of an encoder, computes in float32 as it does by hand:
        # few rows of its tables get the gradients of all tokens.
        self.embeddings: Any = getattr(self.model, "embeddings", None)
        if by_hand is None:
            lowest = self.model.get_input_embeddings() if self.embeddings is None else self.embeddings
            self.frozen = FrozenLayers(lowest, self.layers, num_frozen)
        else:
            self.frozen = by_hand.frozen
        words = self.model.get_input_embeddings().weight
        self._names = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter is not words and not name.startswith(("pooler.", "embeddings."))
        ]
        below = {id(parameter) for module in self.frozen.modules for parameter in module.parameters()}
        self._below = {name for name in self._names if id(self.model.get_parameter(name)) in below}
        # RoBERTa and its kin number positions from padding_idx + 1 on.
        self.first_position = first_position(self.model)

    @property
    def num_frozen(self) -> int:
        """Number of layers that are not trained."""
        return self.frozen.number

    def unfrozen(self) -> Any:
        """Let no layer be frozen, for the duration of the context."""
        return self.frozen.lifted()

    def __call__(
        self,
        token_ids: Int[Tensor, " token"],
        lengths: Int[Tensor, " text"],
        dtype: torch.dtype,
        frozen: Float[Tensor, "token d"] | None = None,
    ) -> Float[Tensor, "text d"]:
        """Return the pooled output of the last layer, in float32.

        Args:
            token_ids: Ids of all texts, concatenated.
            lengths: Tokens of each text, on the CPU; ascending where `needs_order`.
            dtype: Dtype in which the layers compute.
            frozen: What `frozen_outputs` returns for these texts, if it is known already.
        """
        if self.num_frozen and frozen is None:
            frozen = self.frozen_outputs(token_ids, lengths, dtype)
        if self._is_by_hand(token_ids):
            assert self.by_hand is not None
            return self.by_hand(token_ids, lengths.tolist(), dtype, frozen)
        num_texts = len(lengths)
        fill = self._filling(token_ids, lengths, dtype)
        lengths = torch.cat([lengths, fill])
        missing = int(fill.sum())
        if self.num_frozen:
            assert frozen is not None
            rows = F.pad(frozen, (0, 0, 0, missing)) if missing else frozen
        else:
            token_ids = F.pad(token_ids, (0, missing)) if missing else token_ids
            # for all chunks at once, since each gradient of this table has a row for every token of the vocabulary
            rows = self.model.get_input_embeddings()(token_ids)
        weights = self._weights(dtype, "above" if self.num_frozen else "all")
        pooled = []
        for part, texts, positions in self._in_chunks(rows, lengths):
            if self.recompute and torch.is_grad_enabled():
                pooled.append(checkpoint(self._encode, part, texts, positions, weights, dtype, use_reentrant=False))
            else:
                with self._activations_again():
                    pooled.append(self._encode(part, texts, positions, weights, dtype))
        return (torch.cat(pooled) if len(pooled) > 1 else pooled[0])[:num_texts]

    @torch.no_grad()
    def frozen_outputs(
        self, token_ids: Int[Tensor, " token"], lengths: Int[Tensor, " text"], dtype: torch.dtype
    ) -> Float[Tensor, "token d"]:
        """Return the output of the last frozen layer for every token, in `dtype`; there is no dropout up to there."""
        if self._is_by_hand(token_ids):
            assert self.by_hand is not None
            return self.by_hand.frozen_outputs(token_ids, lengths.tolist(), dtype)
        rows = self.model.get_input_embeddings()(token_ids)
        weights = self._weights(dtype, "below")
        training = self.model.training
        self.model.eval()
        try:
            return torch.cat(
                [
                    self._run(part, texts, positions, weights, dtype, "below")
                    for part, texts, positions in self._in_chunks(rows, lengths)
                ]
            )
        finally:
            self.model.train(training)

    def needs_order(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether texts should come sorted by length, because attention pads them."""
        return not flash_runs(device, dtype)

    def _filling(
        self, token_ids: Int[Tensor, " token"], lengths: Int[Tensor, " text"], dtype: torch.dtype
    ) -> Int[Tensor, " fill"]:
        """Return the lengths of texts that nobody wants, with which a batch of one chunk has a multiple of tokens."""
        missing = -len(token_ids) % _TOKEN_MULTIPLE
        if self.needs_order(token_ids.device, dtype) or len(token_ids) + missing > self.chunk_tokens(token_ids.device):
            return lengths[:0]
        return filling_texts(missing, int(lengths.max()))

    def _activations_again(self) -> AbstractContextManager[None]:
        return computed_again(self._activations) if self._activations and torch.is_grad_enabled() else nullcontext()

    def _is_by_hand(self, token_ids: Tensor) -> bool:
        return self.by_hand is not None and token_ids.device.type == "cpu"

    def _weights(self, dtype: torch.dtype, part: Literal["all", "below", "above"]) -> dict[str, Tensor]:
        """Return those weights that have another dtype than the layers compute in, cast to it."""
        names = self._names
        if part != "all":
            names = [name for name in names if (name in self._below) == (part == "below")]
        parameters = {name: self.model.get_parameter(name) for name in names}
        others = {name: p for name, p in parameters.items() if p.is_floating_point() and p.dtype != dtype}
        trained = [name for name, p in others.items() if p.requires_grad and torch.is_grad_enabled()]
        weights = dict(zip(trained, _Cast.apply(dtype, *[others[name] for name in trained]), strict=True))
        rest = [name for name in others if name not in weights]
        with torch.no_grad():
            weights |= zip(rest, _cast([others[name] for name in rest], [dtype] * len(rest)), strict=True)
        return weights

    def _in_chunks(
        self, rows: Float[Tensor, "token d"], lengths: Int[Tensor, " text"]
    ) -> Iterator[tuple[Float[Tensor, "part d"], PackedTexts, Int[Tensor, " part"]]]:
        """Yield the rows of each chunk, where its texts are, and the positions of its tokens."""
        budget = self.chunk_tokens(rows.device)
        if len(rows) <= budget:
            parts: Any = [(rows, lengths)]
        else:
            chunks = cut_chunks(lengths.tolist(), budget)
            parts = zip(
                rows.split([sum(chunk) for chunk in chunks]), lengths.split([len(c) for c in chunks]), strict=True
            )
        for part, own in parts:
            ends = own.cumsum(0)
            offsets = send(F.pad(ends, (1, 0)).int(), rows.device)
            positions = torch.arange(self.first_position, self.first_position + len(part))
            positions -= torch.repeat_interleave(ends - own, own)
            yield part, PackedTexts(offsets, int(own.max())), send(positions, rows.device)

    def _encode(
        self,
        rows: Float[Tensor, "token d"],
        texts: PackedTexts,
        positions: Int[Tensor, " token"],
        weights: dict[str, Any],
        dtype: torch.dtype,
    ) -> Float[Tensor, "text d"]:
        hidden = self._run(rows, texts, positions, weights, dtype, "above" if self.num_frozen else "all")
        return pool_packed(hidden, texts.offsets, self.pooling)

    def _run(
        self,
        rows: Float[Tensor, "token d"],
        texts: PackedTexts,
        positions: Int[Tensor, " token"],
        weights: dict[str, Tensor],
        dtype: torch.dtype,
        part: Literal["all", "below", "above"],
    ) -> Float[Tensor, "token d"]:
        """Run all layers or those that are frozen on embeddings of words, or those above them on outputs of these."""
        found: list[Tensor] = []
        if self.embeddings is None or part == "above":
            rows = rows.to(dtype)
        with self._prepared(texts, rows[None], dtype, part, found):
            inputs = {"inputs_embeds": rows[None], "position_ids": positions[None]}
            output = functional_call(self.model, weights, (), inputs).last_hidden_state
        return (found[0] if part == "below" else output).squeeze(0)

    @contextmanager
    def _prepared(
        self, texts: PackedTexts, rows: Float[Tensor, "1 token d"], dtype: torch.dtype, part: str, found: list[Tensor]
    ) -> Iterator[None]:
        """Let the model use packed attention on these tokens, and run the wanted layers of it alone."""
        number = self.num_frozen
        with ExitStack() as stack:
            stack.enter_context(_attention_of(self.model, texts))
            if self.embeddings is not None:
                embed = self.embeddings.forward
                stack.enter_context(
                    _forward_of(
                        self.embeddings,
                        lambda *args, **kwargs: rows if part == "above" else embed(*args, **kwargs).to(dtype),
                    )
                )
            for place, layer in enumerate(self.layers):
                if part != "all" and (place < number) != (part == "below"):
                    stack.enter_context(_forward_of(layer, _stand_in(rows, found, part)))
                elif self.compile:
                    stack.enter_context(_forward_of(layer, _compiled(self._run_layer, layer)))
            yield


def _stand_in(rows: Tensor, found: list[Tensor], part: str) -> Callable[..., Tensor]:
    """Return what is called instead of a layer: above the wanted ones it hands on, below it returns the rows."""

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        if part == "above":
            return rows
        found.append(hidden)
        return hidden

    return forward


def _compiled(run: Callable[..., Any], layer: nn.Module) -> Callable[..., Any]:
    """Return a layer's forward by `run`, a compiled `_run_layer`, for which the number of tokens and texts is open."""

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert _current.texts is not None
        offsets, longest = _current.texts
        if _current.flash is not None:
            longest = -(-longest // _BLOCK) * _BLOCK
        tokens = hidden.shape[1]
        torch._dynamo.maybe_mark_dynamic(offsets, 0)
        for tensor in _tensors((hidden, args, kwargs)):
            for dim, size in enumerate(tensor.shape):
                if size == tokens:
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return run(layer, offsets, longest, hidden, *args, **kwargs)

    return forward


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _run_layer(layer: nn.Module, offsets: Tensor, longest: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    # here, since a compiler takes numbers of an object for constants and arguments for variables
    _current.texts = PackedTexts(offsets, longest)
    return type(layer).forward(layer, hidden, *args, **kwargs)


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else, for the duration of the context."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _attention_of(model: Any, texts: PackedTexts) -> Iterator[None]:
    """Let a model use packed attention, for the duration of the context, and leave out its pooler."""
    before, pooler = model.config._attn_implementation, getattr(model, "pooler", None)
    model.config._attn_implementation = ATTENTION
    if pooler is not None:
        model.pooler = None
    outer = _current.texts, _current.flash, _current.short
    device = texts.offsets.device
    has_flash = flash_runs(device, torch.bfloat16)
    _current.texts = texts
    _current.flash = _flash_attention() if has_flash else None
    _current.short = has_flash and short_attention_runs(device)
    try:
        yield
    finally:
        _current.texts, _current.flash, _current.short = outer
        model.config._attn_implementation = before
        if pooler is not None:
            model.pooler = pooler


def without_adapters(backbone: Any) -> Any:
    """Return the model of transformers within one of peft, whose layers hold the adapters; another one as it is."""
    return backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone


def find_layers(model: Any) -> list[Any]:
    """Return the layers of a transformer.

    Raises:
        ValueError: If there is not one list of as many as the configuration says.
    """
    number = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise ValueError(
        f"{model.config.model_type} has no list of its {number} layers: give encoder.frozen_layers=0 "
        "encoder.compile=false, or encoder.implementation=transformers"
    )


def first_position(model: nn.Module) -> int:
    """Return the number of a text's first position, 0 but for RoBERTa and its kin, which count from the padding on."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return max(
        (t.padding_idx + 1 for t in tables if isinstance(t, nn.Embedding) and t.padding_idx is not None), default=0
    )


def check_packable(backbone: Any) -> None:
    """Refuse a transformer that does not compute the same from packed texts as from each alone.

    Both are computed for two short texts. Attention of the model's own, or anything else that sees neighbouring tokens
    or numbers positions in a way of its own, shows in the result.

    Raises:
        ValueError: If it is such a one, with what to use instead.
    """
    kind = backbone.config.model_type
    instead = "give encoder.implementation=transformers"
    lengths = torch.tensor([5, 3])
    ids = torch.arange(int(lengths.sum())) + min(10, backbone.config.vocab_size - int(lengths.sum()))
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            runner = VarlenBackbone(backbone)
            found = runner(ids, lengths, backbone.dtype)
            alone = [backbone(input_ids=part[None]).last_hidden_state[0] for part in ids.split(lengths.tolist())]
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{kind} does not run on packed tokens ({type(error).__name__}: {error}): {instead}"
        ) from error
    finally:
        backbone.train(training)
    expected = torch.stack([hidden.float().mean(dim=0) for hidden in alone])
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(f"{kind} computes something else from packed tokens than from each text alone: {instead}")
