"""Any transformer over packed tokens: the texts of a batch lie behind one another, without padding."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from prime_xmc.model.encoder_folder import Pooling
from prime_xmc.model.frozen import FrozenLayers, send
from prime_xmc.model.layer_runner import LayerRunner
from prime_xmc.model.model_runner import ModelRunner, Part, find_layers, without_adapters
from prime_xmc.model.packed import PackedBackbone, cut_chunks
from prime_xmc.model.packed_attention import PackedTexts, attention_watched, flash_runs

_TOKEN_MULTIPLE = 512  # of the tokens of a batch on a GPU: for each new number, its libraries choose their kernels anew


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
        return _MeanOfTexts.apply(hidden, offsets.long())
    return hidden.index_select(0, offsets[:-1] if pooling == "cls" else offsets[1:] - 1).float()


class _MeanOfTexts(torch.autograd.Function):
    """Means over the rows of each text, float32. Autograd would keep all rows in float32 for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "token d"], offsets: Int64[Tensor, " text_1"]
    ) -> Float[Tensor, "text d"]:
        """Return the means."""
        ctx.dtype, ctx.num_tokens = hidden.dtype, len(hidden)
        ctx.save_for_backward(offsets)
        # unsafe: without a look at the offsets, for which the host would wait
        return torch.segment_reduce(hidden.float(), "mean", offsets=offsets, axis=0, unsafe=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "text d"]) -> tuple[Tensor, None]:
        """Return the gradient of the rows, which all rows of a text share."""
        (offsets,) = ctx.saved_tensors
        lengths = offsets.diff()
        text = torch.repeat_interleave(lengths, output_size=ctx.num_tokens)
        return (grad / lengths[:, None]).to(ctx.dtype).index_select(0, text), None


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

    The layers compute in one dtype throughout, see `ModelRunner`. Where flash attention runs, those of `by_hand` do by
    `LayerRunner`, but while they train with dropout.

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
        by_hand: What runs the same model on a CPU, if its layers are those of `prime_xmc.model.post_norm`. The frozen
            layers are its own.

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
        if by_hand is None:
            lowest = getattr(self.model, "embeddings", None) or self.model.get_input_embeddings()
            self.frozen = FrozenLayers(lowest, find_layers(self.model) if num_frozen else [], num_frozen)
        else:
            self.frozen = by_hand.frozen
        # what is computed again as a whole keeps nothing
        self.model_runner = ModelRunner(self.model, self.frozen, compile=compile, keeps_activations=recompute)
        self.layer_runner = None if by_hand is None else LayerRunner(self.model, self.frozen)
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
        runner = self._runner(rows.device, dtype)
        part: Part = "above" if self.num_frozen else "all"
        weights = runner.weights(dtype, part)
        pooled = []
        for chunk in self._in_chunks(rows, lengths, runner.needs_positions(part)):
            if self.recompute and torch.is_grad_enabled():
                pooled.append(checkpoint(self._encode, runner, *chunk, weights, dtype, part, use_reentrant=False))
            else:
                pooled.append(self._encode(runner, *chunk, weights, dtype, part))
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
        training = self.model.training
        self.model.eval()
        try:
            runner = self._runner(rows.device, dtype)
            weights = runner.weights(dtype, "below")
            chunks = self._in_chunks(rows, lengths, runner.needs_positions("below"))
            return torch.cat([runner.run(*chunk, weights, dtype, "below") for chunk in chunks])
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

    def _is_by_hand(self, token_ids: Tensor) -> bool:
        return self.by_hand is not None and token_ids.device.type == "cpu"

    def _runner(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return what runs the layers: those written out have the attention of a GPU, and no dropout."""
        own = self.layer_runner
        if own is None or not flash_runs(device, dtype) or (own.has_dropout and self.model.training):
            return self.model_runner
        return own

    def _in_chunks(
        self, rows: Float[Tensor, "token d"], lengths: Int[Tensor, " text"], with_positions: bool
    ) -> Iterator[tuple[Float[Tensor, "part d"], PackedTexts, Int[Tensor, " part"] | None]]:
        """Yield the rows of each chunk, where its texts are, and the positions of its tokens if they are wanted."""
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
            texts = PackedTexts(offsets, int(own.max()))
            if with_positions:
                positions = torch.arange(self.first_position, self.first_position + len(part))
                positions -= torch.repeat_interleave(ends - own, own)
                yield part, texts, send(positions, rows.device)
            else:
                yield part, texts, None

    def _encode(
        self,
        runner: Any,
        rows: Float[Tensor, "token d"],
        texts: PackedTexts,
        positions: Int[Tensor, " token"] | None,
        weights: Any,
        dtype: torch.dtype,
        part: Part,
    ) -> Float[Tensor, "text d"]:
        hidden = runner.run(rows, texts, positions, weights, dtype, part)
        return pool_packed(hidden, texts.offsets, self.pooling)


def first_position(model: nn.Module) -> int:
    """Return the number of a text's first position, 0 but for RoBERTa and its kin, which count from the padding on."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return max(
        (t.padding_idx + 1 for t in tables if isinstance(t, nn.Embedding) and t.padding_idx is not None), default=0
    )


def check_packable(backbone: Any) -> None:
    """Refuse a transformer that does not compute the same from packed texts as from each alone.

    Both are computed for two short texts. Anything that sees neighbouring tokens or numbers positions in a way of its
    own shows in the result; attention of the model's own need not, where weights are small, as at the start.

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
        with torch.no_grad(), attention_watched() as asked:
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
    if not asked or not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(f"{kind} computes something else from packed tokens than from each text alone: {instead}")
