"""One-vs-all classifiers on the embeddings of a frozen encoder: a vector per label, PRIME (W)."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize

_GATHERED = 2**26  # bytes of label vectors that are gathered at once, see `pair_similarity`


class Classifiers(nn.Module):
    """A vector w_l per label, of which a training step reads and changes those of some labels.

    Args:
        initial: Initial vectors, the label prototypes.

    Source: section 4.3 and Appendix C; initialisation, cosine and sparse gradient as in the public code.
    """

    def __init__(self, initial: Float[Tensor, "label d"]):
        super().__init__()
        self.weight = nn.Parameter(initial.detach().clone())

    def forward(self, label_ids: Int64[Tensor, " label"]) -> Float[Tensor, "label d"]:
        """Return the unit vectors of some labels; the gradient of the table is sparse and has only their rows."""
        return normalize(embedding(label_ids, self.weight, sparse=True), dim=-1)

    @torch.no_grad()
    def vectors(self) -> Float[Tensor, "label d"]:
        """Return the unit vectors of all labels."""
        return normalize(self.weight, dim=-1)


@torch.no_grad()
def hardest_of_all(
    query_emb: Float[Tensor, "query d"],
    weight: Float[Tensor, "label d"],
    excluded_rows: Int64[Tensor, " pair"],
    excluded_labels: Int64[Tensor, " pair"],
    k: int,
    *,
    label_block: int = 8192,
) -> tuple[Int64[Tensor, "query k"], Bool[Tensor, "query k"]]:
    """Return the labels with the highest cosine similarity for each query, among those that are not excluded.

    Args:
        query_emb: Unit vectors of the queries.
        weight: Label vectors of any norm.
        excluded_rows: Row of the query in each excluded (query, label) pair.
        excluded_labels: Label id in each excluded pair.
        k: Labels per query, or fewer where there are fewer labels.
        label_block: Labels scored at once; their scores take 4 bytes per query and label.

    Returns:
        Label ids, best first, and which of them count: a query with fewer than k labels left has excluded ones at the
        end.
    """
    best = query_emb.new_empty(len(query_emb), 0)
    ids = torch.empty_like(best, dtype=torch.int64)
    for start in range(0, len(weight), label_block):
        block = normalize(weight[start : start + label_block], dim=-1)
        scores = query_emb @ block.T
        inside = (excluded_labels >= start) & (excluded_labels < start + len(block))
        # what is not inside adds 0 somewhere: to select what is, the host would wait for a GPU
        columns = (excluded_labels - start).clamp(0, len(block) - 1)
        least = torch.where(inside, -torch.inf, 0.0).to(scores.dtype)
        scores.index_put_((excluded_rows, columns), least, accumulate=True)
        top, columns = scores.topk(min(k, len(block)), dim=1)
        best, order = torch.cat([best, top], dim=1).topk(min(k, best.shape[1] + top.shape[1]), dim=1)
        ids = torch.cat([ids, columns + start], dim=1).gather(1, order)
    return ids, best > -torch.inf


def pair_similarity(
    query_emb: Float[Tensor, "query d"],
    vectors: Float[Tensor, "vector d"],
    rows: Int64[Tensor, " pair"],
    places: Int64[Tensor, " pair"],
) -> Float[Tensor, " pair"]:
    """Return the inner product of each pair (query_emb[rows], vectors[places]).

    This suits a few pairs per query, for which the whole matrix of products would be wasteful. Pairs are gathered in
    chunks, so that memory does not grow with them, apart from the gradient of `vectors`.
    """
    chunk = max(1, _GATHERED // (4 * vectors.shape[1]))
    parts = [
        (query_emb[some_rows] * embedding(some_places, vectors)).sum(dim=1)
        for some_rows, some_places in zip(rows.split(chunk), places.split(chunk), strict=True)
    ]
    return torch.cat([query_emb.new_empty(0), *parts])
