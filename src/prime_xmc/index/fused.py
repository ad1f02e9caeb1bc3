"""Several scorers added up, as one search.

score(q, l) = theta * h_q . z_l + W * h_q . w_l + neighbours * vote(q, l) + lexical * (x_q . c_l + b_l)

The first two terms are h_q . (theta * z_l + W * w_l), an inner product with one vector per label.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from prime_xmc.index.full_precision import full_float32
from prime_xmc.index.lexical import LexicalIndex, query_block
from prime_xmc.index.neighbours import QUERY_BLOCK, Neighbours, as_rows, only_allowed_votes, pair_scores
from prime_xmc.index.search import (
    Asked,
    FaissSearch,
    Found,
    Search,
    inner_products,
    only_allowed,
    ranked,
    some_rows,
    top_labels,
)

_DEEPER = 4  # times k: the candidates of each scorer where the linear search is approximate


class Weights(NamedTuple):
    """Weights of the scorers in the ensemble.

    Attributes:
        theta: Weight of the prototypes.
        W: Weight of the classifiers.
        neighbours: Weight of the vote of nearest training queries, at least 0.
        lexical: Weight of the lexical score, at least 0.
    """

    theta: float
    W: float
    neighbours: float
    lexical: float = 0.0


PROTOTYPES = Weights(1.0, 0.0, 0.0)  # alone


def mixture(
    prototypes: Float[Tensor, "label d"], classifiers: Float[Tensor, "label d"] | None, weights: Weights
) -> Float[Tensor, "label d"]:
    """Return the vectors theta * z_l + W * w_l, whose inner products are the linear part of the score."""
    if classifiers is None or weights.W == 0:
        return prototypes if weights.theta == 1 else weights.theta * prototypes
    return weights.theta * prototypes + weights.W * classifiers


class FusedSearch(Search):
    """Finds the labels with the highest sum of an inner product and of a weighted vote.

    score(q, l) = q . v_l + weight * vote(q, l)

    Votes are never negative, so the best labels are among the best by inner product and those with a vote; the inner
    products of the latter are computed too. The result is as exact as the search of the inner products is.

    Args:
        linear: Search of the vectors v_l.
        vectors: The vectors v_l, on the device to compute on.
        neighbours: Training queries that vote.
        weight: Weight of the vote, at least 0.

    Raises:
        ValueError: If the weight is negative.
    """

    def __init__(self, linear: Search, vectors: Float[Tensor, "label d"], neighbours: Neighbours, weight: float):
        if weight < 0:
            raise ValueError(f"expected a weight of the neighbours of at least 0, got {weight}")
        self.linear = linear
        self.vectors = vectors
        self.neighbours = neighbours
        self.weight = weight

    def _search(self, asked: Asked) -> Found:
        query_emb, k, _, allowed = asked
        blocks = query_emb.to(self.vectors.device).split(QUERY_BLOCK)
        parts = [self._search_block(block, k, allowed) for block in blocks]
        scores, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        return scores, ids

    def _search_block(
        self, query_emb: Float32[Tensor, "query d"], k: int, allowed: Bool[Tensor, " label"] | None
    ) -> Found:
        votes = only_allowed_votes(self.neighbours.votes(query_emb), allowed)
        rows, label_ids = votes.rows.to(query_emb.device), votes.label_ids.to(query_emb.device)
        fused = pair_scores(query_emb, self.vectors, rows, label_ids) + self.weight * votes.scores.to(query_emb.device)
        scores, ids = self.linear.search(query_emb, k, allowed=allowed)
        # a label with a vote has its score from the votes alone
        num_labels = len(self.vectors)
        keys = torch.arange(len(ids), device=ids.device)[:, None] * num_labels + ids
        has_vote = torch.isin(keys, rows * num_labels + label_ids)
        voted = as_rows(rows, fused, len(query_emb), -torch.inf), as_rows(rows, label_ids, len(query_emb), -1)
        best_scores, best_ids = ranked(
            torch.cat([scores.masked_fill(has_vote, -torch.inf), voted[0]], dim=1),
            torch.cat([ids.masked_fill(has_vote, -1), voted[1]], dim=1),
        )
        return best_scores[:, : ids.shape[1]], best_ids[:, : ids.shape[1]]


class LexicalFusedSearch(Search):
    """Finds the labels with the highest sum of an inner product, a weighted vote and a weighted lexical score.

    score(q, l) = q . v_l + neighbours * vote(q, l) + lexical * (x_q . c_l + b_l)

    The sums of all labels are computed, block by block of the queries, so the result is exact. Where the linear search
    is an approximate Faiss index, only candidates are summed up, exactly: its best labels, those with the best lexical
    scores, four times as many of each as are asked for, and those with a vote. Where some labels alone are allowed, the
    sums of all labels are computed with any linear search.

    Args:
        linear: Search of the vectors v_l.
        vectors: The vectors v_l, on the device to compute on.
        neighbours: Training queries that vote; None: there are none.
        lexical: Lexical vectors c_l of the labels, on the same device.
        weights: Weights; those of prototypes and classifiers are in v_l already.

    Raises:
        ValueError: If a weight is negative.
    """

    needs_tokens = True

    def __init__(
        self,
        linear: Search,
        vectors: Float[Tensor, "label d"],
        neighbours: Neighbours | None,
        lexical: LexicalIndex,
        weights: Weights,
    ):
        if weights.neighbours < 0 or weights.lexical < 0:
            raise ValueError(f"expected weights of neighbours and lexical of at least 0, got {weights}")
        self.linear = linear
        self.vectors = vectors
        self.neighbours = neighbours
        self.lexical = lexical
        self.weights = weights

    def _search(self, asked: Asked) -> Found:
        query_emb, k, tokens, allowed = asked
        assert tokens is not None
        is_approximate = isinstance(self.linear, FaissSearch) and self.linear.kind != "flat"
        step = query_block(len(self.vectors), self.vectors.device)
        parts = []
        for place, block in enumerate(query_emb.to(self.vectors.device).split(step)):
            lexical = self.lexical.scores(some_rows(tokens, place * step, (place + 1) * step))
            if is_approximate and allowed is None:
                parts.append(self._search_candidates(block, k, lexical))
            else:
                parts.append(self._search_all(block, k, lexical, allowed))
        scores, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        return scores, ids

    def _search_all(
        self,
        query_emb: Float32[Tensor, "query d"],
        k: int,
        lexical: Float32[Tensor, "query label"],
        allowed: Bool[Tensor, " label"] | None,
    ) -> Found:
        with full_float32(self.vectors.device):
            scores = inner_products(query_emb, self.vectors)
        scores += self.weights.lexical * lexical
        keys, votes = self._votes(query_emb)
        scores.view(-1)[keys] += self.weights.neighbours * votes
        return top_labels(only_allowed(scores, allowed), k)

    def _search_candidates(
        self, query_emb: Float32[Tensor, "query d"], k: int, lexical: Float32[Tensor, "query label"]
    ) -> Found:
        num_labels = len(self.vectors)
        first = torch.arange(len(query_emb), device=query_emb.device)[:, None] * num_labels
        voted, votes = self._votes(query_emb)
        deeper = min(_DEEPER * k, num_labels)
        found = [first + self.linear.search(query_emb, deeper)[1], first + top_labels(lexical, deeper)[1]]
        keys = torch.cat([part.flatten() for part in (*found, voted)]).unique()  # ascending
        rows, label_ids = keys // num_labels, keys % num_labels
        sums = pair_scores(query_emb, self.vectors, rows, label_ids)
        sums += self.weights.lexical * lexical.view(-1)[keys]
        sums[torch.searchsorted(keys, voted)] += self.weights.neighbours * votes
        scores, ids = ranked(
            as_rows(rows, sums, len(query_emb), -torch.inf), as_rows(rows, label_ids, len(query_emb), -1)
        )
        return scores[:, :k], ids[:, :k]

    def _votes(self, query_emb: Float32[Tensor, "query d"]) -> tuple[Int64[Tensor, " vote"], Float32[Tensor, " vote"]]:
        """Return the places, row * labels + label, that have a vote, and the votes."""
        device = query_emb.device
        if self.neighbours is None or self.weights.neighbours == 0:
            return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
        votes = self.neighbours.votes(query_emb)
        return (votes.rows * len(self.vectors) + votes.label_ids).to(device), votes.scores.to(device)


def fuse(
    linear: Search,
    vectors: Float[Tensor, "label d"],
    neighbours: Neighbours | None,
    lexical: LexicalIndex | None,
    weights: Weights,
) -> Search:
    """Return the search of the weighted sum of all scorers that have a weight.

    Args:
        linear: Search of the vectors theta * z_l + W * w_l.
        vectors: These vectors, see `mixture`.
        neighbours: Training queries that vote; None: there are none.
        lexical: Lexical vectors of the labels; None: there are none.
        weights: Weights of the scorers.
    """
    if lexical is not None and weights.lexical:
        return LexicalFusedSearch(linear, vectors, neighbours, lexical, weights)
    if neighbours is not None and weights.neighbours:
        return FusedSearch(linear, vectors, neighbours, weights.neighbours)
    return linear
