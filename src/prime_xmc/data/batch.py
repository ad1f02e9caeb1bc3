"""Batches: token ids without padding, and which query-label pairs are positive, negative or neither."""

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor
from torch.utils.data import Dataset

from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.data.sampling import Drawn, draw_positives

LossPositives = Literal["drawn", "any", "all"]
BatchLabels = Literal["drawn", "all"]


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

    def pin_memory(self) -> "Texts":
        """Return the texts in memory from which a GPU copies while the host goes on."""
        return self._replace(ids=self.ids.pin_memory(), token_ids=self.token_ids.pin_memory())

    def to(self, device: torch.device) -> "Texts":
        """Return the texts with their tokens on a device; ids and lengths stay on the host, which goes by them."""
        return self._replace(token_ids=send(self.token_ids, device))


class MoreQueries(NamedTuple):
    """Further queries of a batch's labels, which move centroids and nothing else.

    Attributes:
        texts: The queries, each once; none of them is in the batch.
        pair_rows: int64 [pair], place in `texts` of the query in each pair that was drawn.
        pair_places: int64 [pair], place of the label in the batch's `moved_ids` in each such pair.
    """

    texts: Texts
    pair_rows: Tensor
    pair_places: Tensor

    def pin_memory(self) -> "MoreQueries":
        """Return the queries in memory from which a GPU copies while the host goes on."""
        return MoreQueries(self.texts.pin_memory(), self.pair_rows.pin_memory(), self.pair_places.pin_memory())

    def to(self, device: torch.device) -> "MoreQueries":
        """Return the queries on a device, as `Texts.to` does."""
        return MoreQueries(self.texts.to(device), send(self.pair_rows, device), send(self.pair_places, device))


class Relations(NamedTuple):
    """Which candidates the loss pulls to which queries, and which it pushes away: all but a few.

    A place is row * num_candidates + column in the matrix [query, candidate]. The few places travel to the device, and
    the matrices are made there.

    Attributes:
        num_queries: Rows.
        num_candidates: Columns.
        positive_places: int64 [positive], ascending, of the pairs that the loss pulls together.
        spared_places: int64 [spared], ascending, of the pairs that it does not push apart: those that belong together,
            whether pulled or not, and those that the data exclude.
    """

    num_queries: int
    num_candidates: int
    positive_places: Tensor
    spared_places: Tensor

    def positives(self) -> Bool[Tensor, "query candidate"]:
        """Return which pairs the loss pulls together."""
        return self._mask(self.positive_places, True)

    def negatives(self) -> Bool[Tensor, "query candidate"]:
        """Return which pairs the loss pushes apart."""
        return self._mask(self.spared_places, False)

    def pairs(self) -> tuple[Int64[Tensor, " positive"], Int64[Tensor, " positive"]]:
        """Return row and column of the positives, as `positives().nonzero(as_tuple=True)` does without a GPU's host."""
        columns = max(1, self.num_candidates)
        return self.positive_places.div(columns, rounding_mode="floor"), self.positive_places % columns

    def _mask(self, places: Tensor, value: bool) -> Tensor:
        mask = torch.full((self.num_queries * self.num_candidates,), not value, device=places.device)
        return mask.index_fill_(0, places, value).view(self.num_queries, self.num_candidates)

    def pin_memory(self) -> "Relations":
        """Return the places in memory from which a GPU copies while the host goes on."""
        positive_places, spared_places = self.positive_places.pin_memory(), self.spared_places.pin_memory()
        return self._replace(positive_places=positive_places, spared_places=spared_places)

    def to(self, device: torch.device) -> "Relations":
        """Return the places on a device."""
        return self._replace(
            positive_places=send(self.positive_places, device), spared_places=send(self.spared_places, device)
        )


class MemoryLabels(NamedTuple):
    """Further positives of a batch's queries, whose texts are not encoded: the module remembers an embedding of each.

    Attributes:
        ids: int64 [label], ascending, each once; none of them is among the batch's own labels.
        relations: Relations of the queries to all candidates: the batch's own labels, then these.
    """

    ids: Tensor
    relations: Relations

    def pin_memory(self) -> "MemoryLabels":
        """Return the labels in memory from which a GPU copies while the host goes on."""
        return MemoryLabels(self.ids.pin_memory(), self.relations.pin_memory())

    def to(self, device: torch.device) -> "MemoryLabels":
        """Return the labels on a device."""
        return MemoryLabels(send(self.ids, device), self.relations.to(device))


class LeftOut(NamedTuple):
    """Positives whose query is left out of its label's centroid, see `Prototypes.leave_one_out`.

    Attributes:
        rows: int64 [pair], the query's row in each pair.
        columns: int64 [pair], the label's column among all candidates: the batch's own labels, then those in memory.
        num_queries: int64 [pair], number of training queries of the label, at least 2.
    """

    rows: Tensor
    columns: Tensor
    num_queries: Tensor

    def pin_memory(self) -> "LeftOut":
        """Return the pairs in memory from which a GPU copies while the host goes on."""
        return LeftOut(*(part.pin_memory() for part in self))

    def to(self, device: torch.device) -> "LeftOut":
        """Return the pairs on a device."""
        return LeftOut(*(send(part, device) for part in self))


class Batch(NamedTuple):
    """Some queries and the labels drawn for them, as a training step needs them.

    Attributes:
        query_ids: int64 [query]; ids from the number of training queries on are those of label rows: that number plus
            the label id.
        label_ids: int64 [label], ascending, each once.
        text_ids: int64 [query + label], places of the texts among all training texts: query ids, then the number of
            training queries plus the label ids. On the host.
        token_ids: int64 [token], the texts of the queries, then of the labels.
        lengths: int64 [query + label], number of tokens of each text. On the host.
        relations: Relations of the queries to the labels.
        moved_ids: int64 [moved], ascending, each once: the labels of the pairs below, whose centroids move.
        pair_rows: int64 [pair], the query's row in each (query, label) pair of the training data, also with labels
            that are not in the batch: the query moves their centroids too.
        pair_places: int64 [pair], place of the label in `moved_ids` in each such pair.
        more: Further queries of the labels, where they were asked for.
        memory: Further positives of the queries, where they were asked for.
        left_out: Positives whose query is left out of the centroid, where they were asked for.
        without_centroid: int64 [some], ascending, columns of the candidates that are shown without a centroid, where
            they were asked for.
        num_label_rows: Number of label rows, texts of labels that are trained as queries are, each with its own label.
            They are the last ones of the queries, and in none of the pairs that move centroids.
    """

    query_ids: Tensor
    label_ids: Tensor
    text_ids: Tensor
    token_ids: Tensor
    lengths: Tensor
    relations: Relations
    moved_ids: Tensor
    pair_rows: Tensor
    pair_places: Tensor
    more: MoreQueries | None = None
    memory: MemoryLabels | None = None
    left_out: LeftOut | None = None
    without_centroid: Tensor | None = None
    num_label_rows: int = 0

    @property
    def positives(self) -> Bool[Tensor, "query label"]:
        """Pairs that the loss pulls together."""
        return self.relations.positives()

    @property
    def negatives(self) -> Bool[Tensor, "query label"]:
        """Pairs that the loss pushes apart."""
        return self.relations.negatives()

    @property
    def pair_labels(self) -> Int64[Tensor, " pair"]:
        """Label id in each pair of `pair_rows`."""
        return self.moved_ids[self.pair_places]

    def pin_memory(self) -> "Batch":
        """Return the batch in memory from which a GPU copies while the host goes on."""
        moved: dict[str, Any] = {name: getattr(self, name).pin_memory() for name in _MOVED}
        optional = {name: part.pin_memory() for name, part in self._optional().items()}
        return self._replace(relations=self.relations.pin_memory(), **moved, **optional)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; what the host goes by stays there: text ids and lengths."""
        moved: dict[str, Any] = {name: send(getattr(self, name), device) for name in _MOVED}
        optional: dict[str, Any] = {
            name: send(part, device) if isinstance(part, Tensor) else part.to(device)
            for name, part in self._optional().items()
        }
        return self._replace(relations=self.relations.to(device), **moved, **optional)

    def _optional(self) -> dict[str, Any]:
        return {name: part for name in _OPTIONAL if (part := getattr(self, name)) is not None}


_OPTIONAL = ("more", "memory", "left_out", "without_centroid")
_MOVED = ("query_ids", "label_ids", "token_ids", "moved_ids", "pair_rows", "pair_places")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; the host does not wait for the copy to a GPU."""
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


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


def places_of(
    rows: Ragged, label_ids: Int64[np.ndarray, " label"], num_columns: int, first_column: int = 0
) -> Int64[np.ndarray, " hit"]:
    """Return the places, ascending, of the entries of `rows` that are among some labels.

    Args:
        rows: Label ids of each row, each once.
        label_ids: Ascending, each once; they stand behind one another in the matrix.
        num_columns: Columns of the matrix.
        first_column: Column of the first of the labels.

    Example:
        >>> places_of(Ragged.from_rows([[3, 8], [5]]), np.array([5, 8]), num_columns=2)
        array([1, 2])
    """
    row, column = membership(rows, label_ids)
    return np.sort(row * num_columns + first_column + column)


class BatchBuilder(Dataset):
    """Turns what the sampler yields, (query ids, drawn label ids), into a `Batch`.

    Ids beyond the queries are those of label rows, see `LabelRowSampler`: texts of labels whose only positive is the
    label itself. No centroid moves for them, and none leaves them out.

    Args:
        queries: The training queries.
        label_tokens: Token ids of the labels.
        loss_positives: Which positives of a query among the batch's labels the loss pulls to it: "drawn" by the
            sampler for this query, "all" of them (the sum of Eq. 1), or "any" one of them, chosen uniformly (what the
            public code does).
        num_more: Further queries to draw for each label of a batch, uniformly among those of `queries_of_label`; what
            is drawn and in the batch already is not added.
        queries_of_label: Ids of the training queries of each label; may be left out where `num_more` is 0.
        memory_labels: Most labels of a batch whose embedding is remembered instead of encoded: the positives of its
            queries that were not drawn; of more of them a random part is taken. They are pulled where all positives
            are, and are not added otherwise.
        leave_one_out: Probability, for each positive of a query whose label has other training queries too, that the
            query is left out of the label's centroid.
        label_frequency: Number of training queries of each label; may be left out where `leave_one_out` is 0.
        without_centroid: Probability of each candidate to be shown without a centroid.
        mask_positives: Whether a positive of a query that is not pulled is not pushed either.
        mined_alone: Whether the labels that were mined for a query are its only negatives.
        batch_labels: Labels of a batch: those drawn for its queries, and mined for them ("drawn"), or "all" there are.

    Raises:
        ValueError: If a setting is out of range.

    Source: Appendix H for further queries. Remembered labels are not in the paper; cross-batch memory, Wang et al.
        2020, keeps embeddings of earlier batches for negatives. Nor are centroids that leave a query out.
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
        leave_one_out: float | int = 0.0,
        label_frequency: Int64[np.ndarray, " label"] | None = None,
        without_centroid: float | int = 0.0,
        mask_positives: bool = True,
        mined_alone: bool = False,
        batch_labels: BatchLabels = "drawn",
    ):
        if batch_labels not in get_args(BatchLabels):
            raise ValueError(f"expected sampling.batch_labels drawn or all, got {batch_labels!r}")
        if loss_positives not in ("drawn", "any", "all"):
            raise ValueError(f"expected sampling.loss_positives drawn, any or all, got {loss_positives!r}")
        if memory_labels < 0:
            raise ValueError(f"expected sampling.memory_labels of at least 0, got {memory_labels}")
        if not 0 <= leave_one_out <= 1:
            raise ValueError(f"expected sampling.leave_one_out between 0 and 1, got {leave_one_out}")
        if not 0 <= without_centroid <= 1:
            raise ValueError(f"expected sampling.without_centroid between 0 and 1, got {without_centroid}")
        self.queries = queries
        self.label_tokens = label_tokens
        self.loss_positives = loss_positives
        self.leave_one_out = leave_one_out
        self.without_centroid = without_centroid
        self.label_frequency = label_frequency
        self.mask_positives = mask_positives
        self.mined_alone = mined_alone
        self.batch_labels = batch_labels
        self.num_more = num_more
        self.queries_of_label = queries_of_label
        self.memory_labels = memory_labels if loss_positives == "all" else 0
        self._equally = np.ones(len(queries) if num_more else 0)

    def __getitem__(self, item: Drawn) -> Batch:
        """Build the batch of (query ids [query], drawn label ids [query, n], -1 for none; and mined ones likewise)."""
        query_ids, drawn = item[:2]
        mined = item[2] if len(item) > 2 else None
        row, slot = (drawn >= 0).nonzero()
        label_ids = self._labels(drawn[row, slot], mined)
        width = len(label_ids)
        num_queries = int((query_ids < len(self.queries)).sum())  # label rows are behind them
        real_ids, row_labels = query_ids[:num_queries], query_ids[num_queries:] - len(self.queries)
        of_queries = self.queries.positives.take(real_ids)
        pairs, filtered = of_queries, self.queries.filtered.take(real_ids)
        if len(row_labels):
            own = Ragged(row_labels, np.arange(len(row_labels) + 1))
            none = Ragged(row_labels[:0], np.zeros(len(row_labels) + 1, dtype=np.int64))
            pairs, filtered = Ragged.joined([pairs, own]), Ragged.joined([filtered, none])
        moved_ids, pair_places = np.unique(of_queries.values, return_inverse=True)
        related = places_of(pairs, label_ids, width)
        # a query's own label is no answer to it, whatever the data say
        excluded = places_of(filtered, label_ids, width)
        answers = _without(related, excluded)
        if self.loss_positives == "drawn":
            chosen = np.intersect1d(answers, row * width + np.searchsorted(label_ids, drawn[row, slot]))
        elif self.loss_positives == "any":
            # a function of the batch alone, so that it can be built again: in any process, after an interruption
            rng = np.random.default_rng(query_ids)
            candidate_row = answers // max(1, width)
            first = np.lexsort((rng.random(len(candidate_row)), candidate_row))
            chosen = answers[first[np.unique(candidate_row[first], return_index=True)[1]]]
        else:
            chosen = answers
        if self.mined_alone and mined is not None:
            mined_row, mined_slot = (mined >= 0).nonzero()
            is_spared = np.ones(len(query_ids) * width, dtype=bool)
            is_spared[mined_row * width + np.searchsorted(label_ids, mined[mined_row, mined_slot])] = False
            is_spared[related] = True
            spared = np.flatnonzero(is_spared)
        else:
            spared = related if self.mask_positives else chosen
        relations = _relations(len(query_ids), width, chosen, spared, excluded)
        queries, labels = pack(self.queries.tokens, real_ids), pack(self.label_tokens, label_ids)
        if len(row_labels):
            rows = pack(self.label_tokens, row_labels)._replace(ids=torch.from_numpy(query_ids[num_queries:]))
            queries = Texts(*(torch.cat(parts) for parts in zip(queries, rows, strict=True)))
        memory = self._remember(query_ids, label_ids, moved_ids, pairs, filtered) if self.memory_labels else None
        without = self._draw_without(query_ids, width if memory is None else memory.relations.num_candidates)
        return Batch(
            query_ids=queries.ids,
            label_ids=labels.ids,
            text_ids=torch.cat([queries.ids, len(self.queries) + labels.ids]),
            token_ids=torch.cat([queries.token_ids, labels.token_ids]),
            lengths=torch.cat([queries.lengths, labels.lengths]),
            relations=relations,
            moved_ids=torch.from_numpy(moved_ids.astype(np.int64)),
            pair_rows=torch.from_numpy(of_queries.row_ids()),
            pair_places=torch.from_numpy(pair_places),
            more=self._draw_more(query_ids, label_ids, moved_ids) if self.num_more else None,
            memory=memory,
            left_out=self._leave_out(query_ids, label_ids, relations, memory, without) if self.leave_one_out else None,
            without_centroid=None if without is None else torch.from_numpy(without),
            num_label_rows=len(row_labels),
        )

    def _labels(
        self, drawn: Int64[np.ndarray, " drawn"], mined: Int64[np.ndarray, "query mined"] | None
    ) -> Int64[np.ndarray, " label"]:
        """Return the labels of a batch, ascending, each once."""
        if self.batch_labels == "all":
            return np.arange(len(self.label_tokens))
        label_ids = np.unique(drawn)
        return label_ids if mined is None else np.union1d(label_ids, mined[mined >= 0])

    def _draw_without(
        self, query_ids: Int64[np.ndarray, " query"], num_candidates: int
    ) -> Int64[np.ndarray, " some"] | None:
        if not self.without_centroid:
            return None
        # a function of the batch alone, as above, and no repetition of what that draws
        rng = np.random.default_rng([*query_ids, num_candidates, 2])
        return np.flatnonzero(rng.random(num_candidates) < self.without_centroid)

    def _leave_out(
        self,
        query_ids: Int64[np.ndarray, " query"],
        label_ids: Int64[np.ndarray, " label"],
        relations: Relations,
        memory: MemoryLabels | None,
        without: Int64[np.ndarray, " some"] | None,
    ) -> LeftOut:
        assert self.label_frequency is not None
        if memory is not None:
            label_ids, relations = np.concatenate([label_ids, memory.ids.numpy()]), memory.relations
        rows, columns = (part.numpy() for part in relations.pairs())
        num_queries = self.label_frequency[label_ids[columns]]
        # a function of the batch alone, as above, and no repetition of what that draws
        rng = np.random.default_rng([*query_ids, len(columns), 1])
        is_left_out = (rng.random(len(columns)) < self.leave_one_out) & (num_queries > 1)
        is_left_out &= query_ids[rows] < len(self.queries)  # label rows are in no centroid
        if without is not None:
            is_left_out &= ~np.isin(columns, without)
        return LeftOut(*(torch.from_numpy(part[is_left_out]) for part in (rows, columns, num_queries)))

    def _remember(
        self,
        query_ids: Int64[np.ndarray, " query"],
        label_ids: Int64[np.ndarray, " label"],
        moved_ids: Int[np.ndarray, " moved"],
        pairs: Ragged,
        filtered: Ragged,
    ) -> MemoryLabels:
        ids = np.setdiff1d(moved_ids, label_ids, assume_unique=True).astype(np.int64)
        if len(ids) > self.memory_labels:
            # a function of the batch alone, as above, and no repetition of what that draws
            rng = np.random.default_rng([*query_ids, self.memory_labels, len(ids)])
            ids = np.sort(rng.choice(ids, self.memory_labels, replace=False))
        width = len(label_ids) + len(ids)
        columns = ((label_ids, 0), (ids, len(label_ids)))
        related, excluded = (
            np.sort(np.concatenate([places_of(rows, some, width, first) for some, first in columns]))
            for rows in (pairs, filtered)
        )
        answers = _without(related, excluded)
        return MemoryLabels(torch.from_numpy(ids), _relations(len(query_ids), width, answers, related, excluded))

    def _draw_more(
        self,
        query_ids: Int64[np.ndarray, " query"],
        label_ids: Int64[np.ndarray, " label"],
        moved_ids: Int[np.ndarray, " moved"],
    ) -> MoreQueries:
        assert self.queries_of_label is not None
        label_ids = label_ids[np.isin(label_ids, moved_ids)]  # a label row's own label may have no query here
        # a function of the batch alone, as above, and no repetition of what that draws
        rng = np.random.default_rng([*query_ids, self.num_more])
        drawn = draw_positives(self.queries_of_label, self._equally, label_ids, self.num_more, rng)
        label, slot = ((drawn >= 0) & ~np.isin(drawn, query_ids)).nonzero()
        ids, rows = np.unique(drawn[label, slot], return_inverse=True)
        places = np.searchsorted(moved_ids, label_ids[label])
        return MoreQueries(pack(self.queries.tokens, ids), torch.from_numpy(rows), torch.from_numpy(places))


def _without(places: Int64[np.ndarray, " some"], excluded: Int64[np.ndarray, " other"]) -> Int64[np.ndarray, " left"]:
    return np.setdiff1d(places, excluded, assume_unique=True) if len(excluded) else places


def _relations(
    num_queries: int,
    num_candidates: int,
    positives: Int64[np.ndarray, " positive"],
    related: Int64[np.ndarray, " related"],
    excluded: Int64[np.ndarray, " excluded"],
) -> Relations:
    spared = np.sort(np.concatenate([related, _without(excluded, related)])) if len(excluded) else related
    return Relations(num_queries, num_candidates, torch.from_numpy(positives), torch.from_numpy(spared))


class SameBatches(Dataset):
    """Batches of one epoch by number, for loaders that serve the same ones in every epoch: `trainer.overfit_batches`.

    Args:
        builder: Builds a batch.
        items: What the sampler yields in the epoch.
    """

    def __init__(self, builder: BatchBuilder, items: list[Drawn]):
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
