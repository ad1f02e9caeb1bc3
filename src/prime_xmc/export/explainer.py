"""Why a label is an answer: the share of each scorer, of each source of the prototype, and training queries like it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from prime_xmc.index.evidence import LabelQueries
from prime_xmc.index.full_precision import full_float32
from prime_xmc.index.fused import Weights
from prime_xmc.index.lexical import LexicalIndex, query_block
from prime_xmc.index.neighbours import QUERY_BLOCK, Neighbours, pair_scores
from prime_xmc.index.search import Rows, some_rows
from prime_xmc.model.attribution import shapley_values
from prime_xmc.model.prototypes import Prototypes, Source

NUM_QUERIES = 3  # training queries that are shown for an answer


class TrainingQuery(NamedTuple):
    """A training query that carries the label.

    Attributes:
        row: Row in the raw file of training queries, from 0; None where the model does not say.
        similarity: Cosine of its embedding and that of the query.
        text: Beginning of its text; None where the model holds no training texts.
    """

    row: int | None
    similarity: float
    text: str | None


class Explanation(NamedTuple):
    """Why a label has its score.

    Attributes:
        scorers: Share of each scorer that is part of the score, weight included. They add up to the score.
        sources: Share of each source of the label's prototype in the share of theta: "text", the label's text,
            "centroid", that of its training queries, and "free_vector", which it shares with similar labels. They add
            up to the share of theta; empty where prototypes are no part of the score.
        queries: The nearest training queries that carry the label, nearest first; empty where the label has none, or
            the model does not hold the embeddings of training queries.
    """

    scorers: dict[str, float]
    sources: dict[str, float]
    queries: list[TrainingQuery]


class ScoringParts(NamedTuple):
    """What a score is made of.

    Attributes:
        weights: Weights of the scorers.
        prototypes: Prototypes z_l.
        network: The network that made them, with its banks; None where theta has no weight.
        label_emb: Text embeddings h_l of the labels.
        classifiers: Classifiers w_l; None where they have no weight.
        neighbours: Training queries; None where the model holds none.
        lexical: Lexical vectors; None where they have no weight.
        rows: Row of each training query in the raw file; None where the model does not say.
        texts: Text of each training query; None where the model holds none.
    """

    weights: Weights
    prototypes: Float[Tensor, "label d"]
    network: Prototypes | None
    label_emb: Float[Tensor, "label d"]
    classifiers: Float[Tensor, "label d"] | None = None
    neighbours: Neighbours | None = None
    lexical: LexicalIndex | None = None
    rows: Int64[np.ndarray, " neighbour"] | None = None
    texts: Sequence[str] | None = None


class Explainer:
    """Says why labels are the answers of queries.

    The share of a source is its Shapley value. A prototype is what a small transformer makes of up to three vectors, so
    the sources have no shares by themselves, and a label's text and its centroid say much the same: leaving out either
    one changes little, as if neither counted. The Shapley value is the change that a source makes when it joins the
    others, averaged over all orders in which they may join, so it divides what they have in common, and the shares add
    up to the score. A source that is left out is left out of the transformer's sequence. The network was trained with
    all of its sources, so its answer to fewer of them is a model's opinion, not a measurement.

    Args:
        parts: What the scores are made of, all on one device.
    """

    def __init__(self, parts: ScoringParts):
        self._parts = parts
        neighbours = parts.neighbours
        self._queries = None
        if neighbours is not None:
            num_labels = len(parts.prototypes)
            self._queries = LabelQueries(neighbours.query_emb, neighbours.label_ids, neighbours.offsets, num_labels)

    @torch.no_grad()
    def explain(
        self, query_emb: Float32[Tensor, "query d"], label_ids: Int64[Tensor, "query k"], tokens: Rows
    ) -> list[list[Explanation]]:
        """Return why each answer has its score, those of each query in the order of its answers.

        Args:
            query_emb: Embeddings of the queries, unit vectors.
            label_ids: Answers of each query; -1 where there are fewer, at the end of the row.
            tokens: Token ids of the queries.
        """
        device = self._parts.prototypes.device
        query_emb, ids = query_emb.to(device), label_ids.to(device)
        rows, columns = (ids >= 0).nonzero(as_tuple=True)
        pairs = _Pairs(query_emb, rows, ids[rows, columns], tokens)
        scorers = self._scorers(pairs)
        sources = {} if "theta" not in scorers else self._sources(pairs, scorers["theta"])
        found = self._training_queries(query_emb, ids)
        explanations: list[list[Explanation]] = [[] for _ in range(len(ids))]
        by_scorer = {name: share.tolist() for name, share in scorers.items()}
        by_source = {name: share.tolist() for name, share in sources.items()}
        for place, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            explanations[row].append(
                Explanation(
                    {name: shares[place] for name, shares in by_scorer.items()},
                    {name: shares[place] for name, shares in by_source.items()},
                    found[row][column] if found else [],
                )
            )
        return explanations

    def _scorers(self, pairs: "_Pairs") -> dict[str, Float32[Tensor, " pair"]]:
        """Return the share of each scorer in the score of each pair."""
        parts, weights = self._parts, self._parts.weights
        shares = {}
        if weights.theta:
            shares["theta"] = weights.theta * pairs.products(parts.prototypes)
        if weights.W:
            assert parts.classifiers is not None
            shares["W"] = weights.W * pairs.products(parts.classifiers)
        if weights.neighbours:
            assert parts.neighbours is not None
            shares["neighbours"] = weights.neighbours * pairs.votes(parts.neighbours, len(parts.prototypes))
        if weights.lexical:
            assert parts.lexical is not None
            shares["lexical"] = weights.lexical * pairs.lexical(parts.lexical)
        return shares

    def _sources(self, pairs: "_Pairs", theta: Float32[Tensor, " pair"]) -> dict[str, Float32[Tensor, " pair"]]:
        """Return the share of each source in the share of theta of each pair."""
        network, weight = self._parts.network, self._parts.weights.theta
        assert network is not None
        labels, places = pairs.label_ids.unique(return_inverse=True)
        label_emb = self._parts.label_emb[labels].float()

        def value(sources: tuple[str, ...]) -> Float32[Tensor, " pair"]:
            if len(sources) == len(network.sources):
                return theta  # by the exported prototypes, which may have been made in another precision
            made = network.from_sources(cast("Sequence[Source]", sources), labels, label_emb)
            return weight * pair_scores(pairs.query_emb, made, pairs.rows, places)

        with full_float32(theta.device):
            return shapley_values(network.sources, value)

    def _training_queries(
        self, query_emb: Float32[Tensor, "query d"], ids: Int64[Tensor, "query k"]
    ) -> list[list[list[TrainingQuery]]]:
        """Return the nearest training queries of each answer; an empty list where the model holds none."""
        if self._queries is None:
            return []
        similarity, places = self._queries.nearest(query_emb, ids, NUM_QUERIES)
        return [
            [
                [self._training_query(place, value) for place, value in zip(nearest, values, strict=True) if place >= 0]
                for nearest, values in zip(places_of_query, values_of_query, strict=True)
            ]
            for places_of_query, values_of_query in zip(places.tolist(), similarity.tolist(), strict=True)
        ]

    def _training_query(self, place: int, similarity: float) -> TrainingQuery:
        rows, texts = self._parts.rows, self._parts.texts
        row = None if rows is None or rows[place] < 0 else int(rows[place])
        return TrainingQuery(row, similarity, None if texts is None else texts[place])


class _Pairs:
    """Pairs of a query and one of its answers, in the order of the queries."""

    def __init__(
        self,
        query_emb: Float32[Tensor, "query d"],
        rows: Int64[Tensor, " pair"],
        label_ids: Int64[Tensor, " pair"],
        tokens: Rows,
    ):
        self.query_emb, self.rows, self.label_ids, self.tokens = query_emb, rows, label_ids, tokens

    def products(self, vectors: Float[Tensor, "label d"]) -> Float32[Tensor, " pair"]:
        """Return inner products with the vectors of the labels."""
        return pair_scores(self.query_emb, vectors, self.rows, self.label_ids)

    def votes(self, neighbours: Neighbours, num_labels: int) -> Float32[Tensor, " pair"]:
        """Return the votes for the labels."""
        found = self.query_emb.new_zeros(len(self.rows))
        for start, block in self._blocks(QUERY_BLOCK):
            votes = neighbours.votes(self.query_emb[start : start + QUERY_BLOCK])
            keys = votes.rows * num_labels + votes.label_ids  # ascending
            wanted = (self.rows[block] - start) * num_labels + self.label_ids[block]
            places = torch.searchsorted(keys, wanted).clamp(max=max(0, len(keys) - 1))
            if len(keys):
                found[block] = torch.where(keys[places] == wanted, votes.scores[places], 0.0)
        return found

    def lexical(self, index: LexicalIndex) -> Float32[Tensor, " pair"]:
        """Return the lexical scores of the labels."""
        found = self.query_emb.new_zeros(len(self.rows))
        step = query_block(index.num_labels, index.device)
        for start, block in self._blocks(step):
            scores = index.scores(some_rows(self.tokens, start, start + step))
            found[block] = scores[self.rows[block] - start, self.label_ids[block]]
        return found

    def _blocks(self, step: int) -> Any:
        """Yield the first query of each block of queries, and which pairs are of the block."""
        for start in range(0, len(self.query_emb), step):
            yield start, (self.rows >= start) & (self.rows < start + step)
