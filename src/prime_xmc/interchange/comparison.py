"""How well and how fast an exported encoder does what torch does, on a test split."""

import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.evaluation.metrics import evaluate
from prime_xmc.evaluation.rank import rank_by


@runtime_checkable
class TokenEncoder(Protocol):
    """What makes embeddings of token ids."""

    def encode_tokens(self, tokens: Ragged) -> Float[Tensor, "text d"]:
        """Return the embeddings of texts."""


class EncoderResult(NamedTuple):
    """What an encoder does.

    Attributes:
        metrics: Metrics of the ranking by its embeddings, fractions.
        speed: Texts in a second, encoded in batches.
        single: Seconds for a text alone, the median.
    """

    metrics: dict[str, float]
    speed: float
    single: float


def compare(
    encoders: Mapping[str, TokenEncoder],
    split: Split,
    vectors: Float[Tensor, "label d"],
    weights: Float64[np.ndarray, " label"],
    *,
    num_single: int = 50,
) -> dict[str, EncoderResult]:
    """Return what each encoder does with the queries of a test split.

    Args:
        encoders: The encoders, by name.
        split: The queries, tokenised.
        vectors: Vectors of the labels, which rank them by the inner product.
        weights: Inverse propensities of the labels.
        num_single: Number of queries that are encoded alone to take the time.
    """
    rows = np.arange(min(num_single, len(split)))
    found = {}
    for name, encoder in encoders.items():
        encoder.encode_tokens(split.tokens.take(rows))  # the first call is slower
        start = time.perf_counter()
        query_emb = encoder.encode_tokens(split.tokens)
        speed = len(split) / (time.perf_counter() - start)
        times = []
        for row in rows:
            start = time.perf_counter()
            encoder.encode_tokens(split.tokens.take(rows[row : row + 1]))
            times.append(time.perf_counter() - start)
        indices, _ = rank_by(vectors, query_emb, split.filtered)
        found[name] = EncoderResult(evaluate(indices, split.positives, weights), speed, float(np.median(times)))
    return found


def describe(found: Mapping[str, EncoderResult]) -> list[str]:
    """Return sentences for people on the speed of each encoder, against the first."""
    first = next(iter(found.values()))
    return [
        f"{name}: {each.speed:,.0f} texts a second in batches ({each.speed / first.speed:.2f} x), "
        f"{each.single * 1e3:.1f} ms for a text alone ({first.single / each.single:.2f} x)"
        for name, each in found.items()
    ]
