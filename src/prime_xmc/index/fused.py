"""Several scorers added up, as one search.

score(q, l) = theta * h_q . z_l + W * h_q . w_l + neighbours * vote(q, l)

The first two terms are h_q . (theta * z_l + W * w_l), an inner product with one vector per label.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from prime_xmc.index.neighbours import QUERY_BLOCK, Neighbours, as_rows, pair_scores
from prime_xmc.index.search import Found, Search, ranked


class Weights(NamedTuple):
    """Weights of the scorers in the ensemble.

    Attributes:
        theta: Weight of the prototypes.
        W: Weight of the classifiers.
        neighbours: Weight of the vote of nearest training queries, at least 0.
    """

    theta: float
    W: float
    neighbours: float


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

    def _search(self, query_emb: Float32[Tensor, "query d"], k: int) -> Found:
        parts = [self._search_block(block, k) for block in query_emb.to(self.vectors.device).split(QUERY_BLOCK)]
        scores, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        return scores, ids

    def _search_block(self, query_emb: Float32[Tensor, "query d"], k: int) -> Found:
        votes = self.neighbours.votes(query_emb)
        rows, label_ids = votes.rows.to(query_emb.device), votes.label_ids.to(query_emb.device)
        fused = pair_scores(query_emb, self.vectors, rows, label_ids) + self.weight * votes.scores.to(query_emb.device)
        scores, ids = self.linear.search(query_emb, k)
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
