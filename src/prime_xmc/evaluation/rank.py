"""Ranking the labels for queries: search, and removal of the filtered pairs before the top k."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int
from torch import Tensor

from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.evaluation.metrics import TOP_K, hits
from prime_xmc.index.search import ExactSearch
from prime_xmc.progress import track

_CHUNK = 4096  # queries ranked at once

Ranking = tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]


@runtime_checkable
class Ranker(Protocol):
    """What embeds token ids and searches the labels, such as a `Predictor`."""

    @property
    def num_labels(self) -> int:
        """L."""

    def encode_tokens(self, tokens: Ragged) -> Float[Tensor, "text d"]:
        """Return the embeddings of texts."""

    def search(
        self, query_emb: Float[Tensor, "query d"], top_k: int, tokens: Ragged | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores, descending, and ids of the nearest labels."""


def remove_filtered(
    indices: Int[np.ndarray, "query width"],
    scores: Float32[np.ndarray, "query width"],
    filtered: Ragged,
    k: int,
) -> tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """Return each query's first k labels that are not filtered, in their order.

    Args:
        indices: label ids, best first; -1 marks the end of a row that has no more labels to offer. ``k`` + the longest
            filtered row columns always suffice.
        scores: their scores.
        filtered: labels that are never an answer of the query (in most datasets, the query's own label).
        k: labels to keep, per query.

    Returns:
        Ids and scores of k columns. Only a row that itself ended in -1 comes back short, filled with -1 and -inf.

    Raises:
        ValueError: when a row would come back short although it did not end, naming the row and the width to ask for.
    """
    kept = (indices >= 0) & ~hits(indices, filtered)
    kept &= kept.cumsum(axis=1, dtype=np.int32) <= k
    num_kept = kept.sum(axis=1)
    cut_short = np.flatnonzero((num_kept < k) & (indices >= 0).all(axis=1))
    if cut_short.size:
        row = cut_short[0]
        raise ValueError(
            f"row {row} keeps {num_kept[row]} of its {indices.shape[1]} labels, expected {k}: search for {k} + the "
            f"longest filtered row = {k + int(filtered.lengths.max())} labels, and pad a row that has no more with -1"
        )
    filled = np.arange(k) < num_kept[:, None]  # [query, k]
    top_indices = np.full((len(indices), k), -1, dtype=indices.dtype)
    top_scores = np.full((len(indices), k), -np.inf, dtype=np.float32)
    top_indices[filled] = indices[kept]
    top_scores[filled] = scores[kept]
    return top_indices, top_scores


def search_unfiltered(
    search: Callable[[Float[Tensor, "query d"], int], tuple[Tensor, Tensor]],
    query_emb: Float[Tensor, "query d"],
    filtered: Ragged,
    k: int,
) -> tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """Search so many labels that k are left to each query without its filtered ones.

    Args:
        search: returns scores, descending, and label ids of the best k labels, or of all where there are fewer.
        query_emb: embeddings of the queries.
        filtered: labels that are never an answer of the query.
        k: labels per query.

    Returns:
        Ids and scores of k columns; -1 and -inf where a query has no more labels.
    """
    wanted = k + int(filtered.lengths.max(initial=0))
    scores, ids = search(query_emb, wanted)
    missing = ((0, 0), (0, wanted - ids.shape[1]))
    all_ids = np.pad(ids.cpu().numpy(), missing, constant_values=-1)
    all_scores = np.pad(scores.float().cpu().numpy(), missing, constant_values=-np.inf)
    return remove_filtered(all_ids, all_scores, filtered, k)


def rank_split(
    predictor: Ranker, split: Split, k: int = TOP_K
) -> tuple[Int[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """Return ids and scores of the k best labels of every query, filtered pairs left out.

    Args:
        predictor: The model, whose tokenizer has made the split's token ids.
        split: The queries.
        k: Labels per query; where there are fewer, -1 and -inf fill up.

    Raises:
        ValueError: If the split has no queries.
    """
    if len(split) == 0:
        raise ValueError("the split has no queries to rank the labels for: add a test file, tst.json, to the raw files")

    parts = []
    for start in track(range(0, len(split), _CHUNK), "rank"):
        rows = np.arange(start, min(start + _CHUNK, len(split)))
        tokens = split.tokens.take(rows)

        def search(query_emb: Float[Tensor, "query d"], top_k: int, tokens: Ragged = tokens) -> tuple[Tensor, Tensor]:
            return predictor.search(query_emb, min(top_k, predictor.num_labels), tokens)

        parts.append(search_unfiltered(search, predictor.encode_tokens(tokens), split.filtered.take(rows), k))
    indices, scores_ = zip(*parts, strict=True)
    return np.concatenate(indices), np.concatenate(scores_)


def rank_by(vectors: Float[Tensor, "label d"], query_emb: Float[Tensor, "query d"], filtered: Ragged) -> Ranking:
    """Return ids and scores of the `TOP_K` best labels of every query, filtered pairs left out."""
    search = ExactSearch()
    search.build(vectors)
    return search_unfiltered(search.search, query_emb, filtered, TOP_K)
