"""A vote of the training queries most similar to a query, for the labels that they have."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from prime_xmc.index.search import Asked, ExactSearch, Found, Search, ranked

QUERY_BLOCK = 1024  # queries whose votes are counted at once
_GATHERED = 2**26  # bytes of vectors that are gathered at once, see `pair_scores`


class Votes(NamedTuple):
    """The votes for labels, a sparse matrix [query, label] by rows, labels ascending within a row, each once.

    Attributes:
        rows: Row of the query.
        label_ids: Label.
        scores: Sum of the weights of the query's neighbours that have the label, in (0, 1].
    """

    rows: Int64[Tensor, " vote"]
    label_ids: Int64[Tensor, " vote"]
    scores: Float32[Tensor, " vote"]


def count_votes(
    similarity: Float32[Tensor, "query k"],
    neighbour_ids: Int64[Tensor, "query k"],
    label_ids: Int64[Tensor, " pair"],
    offsets: Int64[Tensor, " bound"],
    temperature: float | int,
) -> Votes:
    """Return the votes of each query's neighbours for the labels that they have.

    vote(q, l) = sum over neighbours i that have l of softmax_i(similarity(q, i) / temperature)

    Args:
        similarity: Similarity of query and neighbour.
        neighbour_ids: Row of the neighbour among the queries that may vote.
        label_ids: Labels of these queries, one query's after the other's, each once within a query.
        offsets: Places in `label_ids` at which the labels of a query begin, and at the end its length.
        temperature: Similarity, in cosine units, by which a neighbour has to be closer to count e times as much.

    Example:
        >>> likely, ids = torch.tensor([[0.9, 0.9]]), torch.tensor([[1, 0]])
        >>> count_votes(likely, ids, torch.tensor([3, 3, 5]), torch.tensor([0, 1, 3]), 0.05).scores
        tensor([1.0000, 0.5000])
    """
    weights = (similarity / temperature).softmax(dim=1)
    starts, ends = offsets[neighbour_ids.flatten()], offsets[neighbour_ids.flatten() + 1]
    lengths = ends - starts
    # entry i of what all neighbours have, of neighbour n, is the label at place i - before[n] + starts[n]
    shift = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths)
    labels = label_ids[torch.arange(len(shift), device=shift.device) + shift]
    rows = torch.arange(len(similarity), device=shift.device).repeat_interleave(similarity.shape[1])
    rows = torch.repeat_interleave(rows, lengths)
    num_labels = int(label_ids.max()) + 1 if len(label_ids) else 1
    keys, places = (rows * num_labels + labels).unique(return_inverse=True)  # ascending
    votes = weights.new_zeros(len(keys)).index_add(0, places, torch.repeat_interleave(weights.flatten(), lengths))
    return Votes(keys // num_labels, keys % num_labels, votes)


def only_allowed_votes(votes: Votes, allowed: Bool[Tensor, " label"] | None) -> Votes:
    """Return the votes for allowed labels; None: all are."""
    if allowed is None:
        return votes
    is_allowed = allowed.to(votes.label_ids.device)[votes.label_ids]
    return Votes(*(part[is_allowed] for part in votes))


class Neighbours:
    """Training queries with their labels, of which those most similar to a query vote for its labels.

    Args:
        query_emb: Embeddings of the training queries, unit vectors, on the device to compute on.
        label_ids: Labels of these queries, one query's after the other's, each once within a query.
        offsets: Places in `label_ids` at which the labels of a query begin, and at the end its length.
        k: Number of neighbours that vote; all of them where there are fewer.
        temperature: Temperature of their weights, in cosine units, see `count_votes`.

    Raises:
        ValueError: If k or temperature is out of range.
    """

    def __init__(
        self,
        query_emb: Float32[Tensor, "neighbour d"],
        label_ids: Int64[Tensor, " pair"],
        offsets: Int64[Tensor, " bound"],
        *,
        k: int,
        temperature: float | int,
    ):
        check_vote(k, temperature)
        self.label_ids = label_ids.to(query_emb.device)
        self.offsets = offsets.to(query_emb.device)
        self.k = k
        self.temperature = temperature
        self.query_emb = query_emb
        self._search = ExactSearch()
        self._search.build(query_emb)

    def votes(self, query_emb: Float32[Tensor, "query d"]) -> Votes:
        """Return the votes for the labels of queries, on the device of the training queries' embeddings.

        Args:
            query_emb: Unit vectors on any device.
        """
        similarity, ids = self._search.search(query_emb.to(self.label_ids.device), self.k)
        return count_votes(similarity, ids, self.label_ids, self.offsets, self.temperature)


def check_vote(k: float | int, temperature: float | int) -> None:
    """Check the settings of a vote.

    Raises:
        ValueError: If one is out of range.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"expected neighbours.k of at least 1, a whole number, got {k}")
    if not temperature > 0:
        raise ValueError(f"expected neighbours.temperature above 0, got {temperature}")


class VoteSearch(Search):
    """Finds the labels with the most votes; the others have no score, and -inf and -1 stand in their place.

    Args:
        neighbours: Training queries that vote.
    """

    def __init__(self, neighbours: Neighbours):
        self.neighbours = neighbours

    def _search(self, asked: Asked) -> Found:
        query_emb, k, _, allowed = asked
        parts = []
        for block in query_emb.split(QUERY_BLOCK):
            votes = only_allowed_votes(self.neighbours.votes(block), allowed)
            scores, ids = ranked(
                as_rows(votes.rows, votes.scores, len(block), -torch.inf),
                as_rows(votes.rows, votes.label_ids, len(block), -1),
            )
            missing = max(0, k - ids.shape[1])
            parts.append((pad(scores[:, :k], (0, missing), value=-torch.inf), pad(ids[:, :k], (0, missing), value=-1)))
        scores, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        return scores, ids


def pair_scores(
    query_emb: Float32[Tensor, "query d"],
    vectors: Float[Tensor, "vector d"],
    rows: Int64[Tensor, " pair"],
    places: Int64[Tensor, " pair"],
) -> Float32[Tensor, " pair"]:
    """Return the inner product of each pair (query_emb[rows], vectors[places]), gathered in chunks.

    Args:
        query_emb: Embeddings of queries, on the device of the vectors; they are rounded as these are.
        vectors: Vectors of labels.
        rows: Row of the query.
        places: Row of the vector.
    """
    chunk = max(1, _GATHERED // (4 * vectors.shape[1]))
    query_emb = query_emb.to(vectors.dtype).float()
    with torch.autocast(vectors.device.type, enabled=False):
        parts = [
            (query_emb[some_rows] * vectors[some_places]).sum(dim=1)
            for some_rows, some_places in zip(rows.split(chunk), places.split(chunk), strict=True)
        ]
    return torch.cat([query_emb.new_empty(0), *parts])


def as_rows(
    rows: Int64[Tensor, " pair"], values: Shaped[Tensor, " pair"], num_rows: int, padding: float | int
) -> Shaped[Tensor, "row column"]:
    """Return the values of pairs, which are in order of their rows, as a row for each query; padding fills up."""
    lengths = torch.bincount(rows, minlength=num_rows)
    columns = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
    table = values.new_full((num_rows, int(lengths.max()) if num_rows else 0), padding)
    table[rows, columns] = values
    return table
