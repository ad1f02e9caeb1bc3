"""Batches: token ids without padding, and which query-label pairs are positive, negative or neither."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.utils.data import Dataset

from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.data.sampling import draw_positives

LossPositives = Literal["drawn", "any", "all"]


class Texts(NamedTuple):
    """Texts one after the other, without padding.

    Attributes:
        ids: int64 [text], ids of the queries or labels whose texts they are.
        token_ids: int64 [token].
        lengths: int64 [text], number of tokens of each text.
    """

    ids: Tensor
    token_ids: Tensor
    lengths: Tensor


class MoreQueries(NamedTuple):
    """Further queries of a batch's labels, which move centroids and nothing else.

    Attributes:
        texts: The queries, each once; none of them is in the batch.
        pair_rows: int64 [pair], place in `texts` of the query in each pair that was drawn.
        pair_labels: int64 [pair], the label id in each such pair.
    """

    texts: Texts
    pair_rows: Tensor
    pair_labels: Tensor


class MemoryLabels(NamedTuple):
    """Further positives of a batch's queries, whose texts are not encoded: the module remembers an embedding of each.

    Attributes:
        ids: int64 [label], ascending, each once; none of them is among the batch's own labels.
        positives: bool [query, label], the pairs that the loss pulls together.
        negatives: bool [query, label], the pairs that it pushes apart.
    """

    ids: Tensor
    positives: Tensor
    negatives: Tensor


class Batch(NamedTuple):
    """Some queries and the labels drawn for them, as a training step needs them.

    Attributes:
        query_ids: int64 [query].
        label_ids: int64 [label], ascending, each once.
        token_ids: int64 [token], the texts of the queries, then of the labels.
        lengths: int64 [query + label], number of tokens of each text.
        positives: bool [query, label], the pairs that the loss pulls together.
        negatives: bool [query, label], the pairs that it pushes apart.
        pair_rows: int64 [pair], the query's row in each (query, label) pair of the training data, also with labels
            that are not in the batch: the query moves their centroids too.
        pair_labels: int64 [pair], the label id in each such pair.
        more: Further queries of the labels, where they were asked for.
        memory: Further positives of the queries, where they were asked for.
    """

    query_ids: Tensor
    label_ids: Tensor
    token_ids: Tensor
    lengths: Tensor
    positives: Tensor
    negatives: Tensor
    pair_rows: Tensor
    pair_labels: Tensor
    more: MoreQueries | None = None
    memory: MemoryLabels | None = None


def pack(tokens: Ragged, ids: Int64[np.ndarray, " text"]) -> Texts:
    """Gather texts from a token store."""
    rows = tokens.take(ids)
    return Texts(
        torch.from_numpy(ids),
        torch.from_numpy(rows.values.astype(np.int64)),
        torch.from_numpy(rows.lengths),
    )


def membership(
    rows: Ragged, label_ids: Int64[np.ndarray, " label"]
) -> tuple[Int64[np.ndarray, " hit"], Int64[np.ndarray, " hit"]]:
    """Return row and column of each entry of `rows` that is among some labels.

    Args:
        rows: Label ids of each row.
        label_ids: Ascending, each once; their places are the columns.

    Example:
        >>> membership(Ragged.from_rows([[3, 8], [5]]), np.array([5, 8]))
        (array([0, 1]), array([1, 0]))
    """
    column = np.searchsorted(label_ids, rows.values)
    hit = column < len(label_ids)
    hit[hit] = label_ids[column[hit]] == rows.values[hit]
    return rows.row_ids()[hit], column[hit].astype(np.int64)


def mask(
    shape: tuple[int, int], row: Int64[np.ndarray, " hit"], column: Int64[np.ndarray, " hit"]
) -> Bool[Tensor, "r c"]:
    """Return a matrix that is True at the given places."""
    places = np.zeros(shape, dtype=bool)
    places[row, column] = True
    return torch.from_numpy(places)


class BatchBuilder(Dataset):
    """Turns what the sampler yields, (query ids, drawn label ids), into a `Batch`.

    Args:
        queries: The training queries.
        label_tokens: Token ids of the labels.
        loss_positives: Which positives of a query among the batch's labels the loss pulls to it: "drawn" by the
            sampler for this query, "all" of them (the sum of Eq. 1), or "any" one of them, chosen uniformly (what the
            public code does). A positive that is not pulled is not pushed either.
        num_more: Further queries to draw for each label of a batch, uniformly among those of `queries_of_label`; what
            is drawn and in the batch already is not added.
        queries_of_label: Ids of the training queries of each label; may be left out where `num_more` is 0.
        memory_labels: Most labels of a batch whose embedding is remembered instead of encoded: the positives of its
            queries that were not drawn; of more of them a random part is taken. They are pulled where all positives
            are, and are not added otherwise.

    Raises:
        ValueError: If a setting is out of range.

    Source: Appendix H for further queries. Remembered labels are not in the paper; cross-batch memory, Wang et al.
        2020, keeps embeddings of earlier batches for negatives.
    """

    def __init__(
        self,
        queries: Split,
        label_tokens: Ragged,
        *,
        loss_positives: LossPositives,
        num_more: int = 0,
        queries_of_label: Ragged | None = None,
        memory_labels: int = 0,
    ):
        if loss_positives not in ("drawn", "any", "all"):
            raise ValueError(f"expected sampling.loss_positives drawn, any or all, got {loss_positives!r}")
        if memory_labels < 0:
            raise ValueError(f"expected sampling.memory_labels of at least 0, got {memory_labels}")
        self.queries = queries
        self.label_tokens = label_tokens
        self.loss_positives = loss_positives
        self.num_more = num_more
        self.queries_of_label = queries_of_label
        self.memory_labels = memory_labels if loss_positives == "all" else 0
        self._equally = np.ones(len(queries) if num_more else 0)

    def __getitem__(self, item: tuple[np.ndarray, np.ndarray]) -> Batch:
        """Build the batch of (query ids [query], drawn label ids [query, n], -1 for none)."""
        query_ids, drawn = item
        row, slot = (drawn >= 0).nonzero()
        label_ids = np.unique(drawn[row, slot])
        shape = (len(query_ids), len(label_ids))
        pairs = self.queries.positives.take(query_ids)
        related = mask(shape, *membership(pairs, label_ids))
        # a query's own label is no answer to it, whatever the data say
        excluded = mask(shape, *membership(self.queries.filtered.take(query_ids), label_ids))
        related &= ~excluded
        if self.loss_positives == "drawn":
            chosen = mask(shape, row, np.searchsorted(label_ids, drawn[row, slot]))
        elif self.loss_positives == "any":
            # a function of the batch alone, so that it can be built again: in any process, after an interruption
            rng = np.random.default_rng(query_ids)
            candidate_row, candidate_column = related.numpy().nonzero()
            first = np.lexsort((rng.random(len(candidate_row)), candidate_row))
            first = first[np.unique(candidate_row[first], return_index=True)[1]]
            chosen = mask(shape, candidate_row[first], candidate_column[first])
        else:
            chosen = related
        queries, labels = pack(self.queries.tokens, query_ids), pack(self.label_tokens, label_ids)
        return Batch(
            query_ids=queries.ids,
            label_ids=labels.ids,
            token_ids=torch.cat([queries.token_ids, labels.token_ids]),
            lengths=torch.cat([queries.lengths, labels.lengths]),
            positives=chosen & related,
            negatives=~related & ~excluded,
            pair_rows=torch.from_numpy(pairs.row_ids()),
            pair_labels=torch.from_numpy(pairs.values.astype(np.int64)),
            more=self._draw_more(query_ids, label_ids) if self.num_more else None,
            memory=self._remember(query_ids, label_ids) if self.memory_labels else None,
        )

    def _remember(self, query_ids: Int64[np.ndarray, " query"], label_ids: Int64[np.ndarray, " label"]) -> MemoryLabels:
        pairs = self.queries.positives.take(query_ids)
        ids = np.setdiff1d(pairs.values, label_ids).astype(np.int64)
        if len(ids) > self.memory_labels:
            # a function of the batch alone, as above, and no repetition of what that draws
            rng = np.random.default_rng([*query_ids, self.memory_labels, len(ids)])
            ids = np.sort(rng.choice(ids, self.memory_labels, replace=False))
        shape = (len(query_ids), len(ids))
        related = mask(shape, *membership(pairs, ids))
        excluded = mask(shape, *membership(self.queries.filtered.take(query_ids), ids))
        return MemoryLabels(torch.from_numpy(ids), related & ~excluded, ~related & ~excluded)

    def _draw_more(self, query_ids: Int64[np.ndarray, " query"], label_ids: Int64[np.ndarray, " label"]) -> MoreQueries:
        assert self.queries_of_label is not None
        # a function of the batch alone, as above, and no repetition of what that draws
        rng = np.random.default_rng([*query_ids, self.num_more])
        drawn = draw_positives(self.queries_of_label, self._equally, label_ids, self.num_more, rng)
        label, slot = ((drawn >= 0) & ~np.isin(drawn, query_ids)).nonzero()
        ids, rows = np.unique(drawn[label, slot], return_inverse=True)
        pair_labels = torch.from_numpy(label_ids[label])
        return MoreQueries(pack(self.queries.tokens, ids), torch.from_numpy(rows), pair_labels)


class SameBatches(Dataset):
    """Batches of one epoch by number, for loaders that serve the same ones in every epoch: `trainer.overfit_batches`.

    Args:
        builder: Builds a batch.
        items: What the sampler yields in the epoch.
    """

    def __init__(self, builder: BatchBuilder, items: list[tuple[np.ndarray, np.ndarray]]):
        self.builder = builder
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Batch:
        """Build the batch of a number."""
        return self.builder[self.items[number]]


class TextChunks(Dataset):
    """All texts of a token store (or some of them) in chunks of equal number, for encoding without gradient.

    The texts are ordered by length, so that the chunks' texts are alike.
    """

    def __init__(self, tokens: Ragged, ids: Int64[np.ndarray, " text"], chunk_size: int):
        self.tokens = tokens
        self.ids = ids[np.argsort(tokens.lengths[ids], kind="stable")]
        self.chunk_size = chunk_size

    def __len__(self) -> int:
        return -(-len(self.ids) // self.chunk_size)

    def __getitem__(self, chunk: int) -> Texts:
        """Return the chunk-th chunk."""
        if not 0 <= chunk < len(self):
            raise IndexError(chunk)
        return pack(self.tokens, self.ids[chunk * self.chunk_size : (chunk + 1) * self.chunk_size])
