"""Which queries share a batch, and which of their positives are drawn."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64, Integer
from torch.utils.data import DataLoader, Dataset, Sampler

from prime_xmc.data.background import one_ahead, pinned, works_ahead
from prime_xmc.data.corpus import Ragged

logger = logging.getLogger(__name__)

Drawn = tuple[np.ndarray, ...]
"""What a sampler yields: query ids [query], drawn label ids [query, n], -1 for none; and labels that were mined."""
CPU = torch.device("cpu")


def draw_positives(
    positives: Ragged,
    weight: Float64[np.ndarray, " label"],
    query_ids: Int64[np.ndarray, " batch"],
    num_positives: int,
    rng: np.random.Generator,
) -> Int64[np.ndarray, "batch num_positives"]:
    """Draw positives of each query without replacement, each draw with probability ∝ weight among those left.

    An exponential race: the labels with the smallest Exp(1) / weight are distributed as such successive draws.

    Args:
        positives: Label ids of every query.
        weight: Weight of every label, > 0. PRIME's is the inverse propensity; ones draw uniformly.
        query_ids: Rows of `positives` to draw from, repeats allowed.
        num_positives: Number of labels to draw per query.
        rng: Generator, which is advanced by one exponential variate per positive of the batch.

    Returns:
        Label ids in the order drawn; -1 fills the rows of queries with fewer than `num_positives` positives.

    Source: paper, Appendix J; Efraimidis and Spirakis 2006 for the race.
    """
    candidates = positives.take(query_ids)
    row = candidates.row_ids()
    arrival = rng.exponential(size=len(row)) / weight[candidates.values]
    order = np.lexsort((arrival, row))
    rank = np.arange(len(row)) - candidates.offsets[row]  # lexsort keeps the rows where they were
    first = rank < num_positives
    drawn = np.full((len(query_ids), num_positives), -1, dtype=np.int64)
    drawn[row[first], rank[first]] = candidates.values[order[first]]
    return drawn


def cluster_size_at(epoch: int, *, first_epoch: int, initial_size: int, double_at: Sequence[int]) -> int | None:
    """Return how many queries a cluster holds in an epoch, or None while batches are random.

    Args:
        epoch: Number of the epoch, counted from 0.
        first_epoch: First epoch with cluster batches.
        initial_size: Queries per cluster in that epoch.
        double_at: Epochs at which the size doubles, to stay so.

    Example:
        >>> [cluster_size_at(epoch, first_epoch=2, initial_size=4, double_at=[2, 5]) for epoch in (1, 2, 4, 5)]
        [None, 8, 8, 16]

    Source: NGAME, Dahiya et al. 2023a; paper, section 4.2.
    """
    if epoch < first_epoch:
        return None
    return initial_size * 2 ** sum(doubling <= epoch for doubling in double_at)


def draw_mined(
    mined: Integer[np.ndarray, "query mined"],
    query_ids: Int64[np.ndarray, " batch"],
    num_drawn: int,
    rng: np.random.Generator,
) -> Int64[np.ndarray, "batch num_drawn"]:
    """Draw labels of each query's list of mined ones, uniformly without replacement; -1 where there are fewer.

    Args:
        mined: Label ids of every query, -1 for none.
        query_ids: Rows of `mined` to draw from.
        num_drawn: Number of labels to draw per query, at most as many as a list has places.
        rng: Generator.
    """
    rows = mined[query_ids].astype(np.int64)
    order = np.where(rows < 0, 2.0, rng.random(rows.shape)).argsort(axis=1)[:, :num_drawn]
    return np.take_along_axis(rows, order, axis=1)


class ClusterBatchSampler(Sampler[Drawn]):
    """Batches of queries with their drawn positives; random batches, or unions of random clusters (NGAME).

    Every query with a positive is in exactly one batch of an epoch. The batches of an epoch are as equal as can be
    (sizes differ by at most 1), so no short last batch arises. They are a function of seed, epoch and clusters alone:
    the batches that follow in a continued epoch are those of an uninterrupted one, and processes that train together
    yield the same batches.

    It goes into a `TrainLoader`. A sampler of one's own derives from it: `epoch_order` says in which order queries are
    taken, and `draw` which labels come with those of a batch.

    Args:
        positives: Label ids of every query of the split.
        query_ids: Queries to train on. Those without positives are left out, with a warning.
        batch_size: Most queries that a batch may hold.
        num_positives: Number of labels drawn per query, see `draw_positives`; 0 where steps need no texts of labels.
        weight: Weight of every label, > 0, see `draw_positives`.
        seed: Seed of the order and of the draws.
        num_mined: Number of labels drawn for each query from those of `set_mined`, once there are some.

    Raises:
        ValueError: If no query has a positive, a weight is not positive, or a size is out of range.

    Source: NGAME, Dahiya et al. 2023a; paper, section 4.2.
    """

    query_ids: Int64[np.ndarray, " query"]
    """The queries of an epoch, without those that have no positive; clusters are given in this order."""
    positives: Ragged
    """Label ids of every query of the split."""
    epoch: int
    """The epoch that the next `__iter__` yields."""
    position: int
    """The number of batches of the epoch that have been yielded, or were before a checkpoint that was loaded."""

    def __init__(
        self,
        positives: Ragged,
        query_ids: Int64[np.ndarray, " candidate"],
        *,
        batch_size: int,
        num_positives: int,
        weight: Float64[np.ndarray, " label"],
        seed: int,
        num_mined: int = 1,
    ):
        if batch_size < 1 or num_positives < 0:
            raise ValueError(f"expected batch_size >= 1 and num_positives >= 0, got {batch_size} and {num_positives}")
        if not (np.isfinite(weight) & (weight > 0)).all():
            label = int(np.flatnonzero(~(np.isfinite(weight) & (weight > 0)))[0])
            raise ValueError(f"weights of labels must be positive and finite, but label {label} has {weight[label]}")
        has_positive = positives.lengths[query_ids] > 0
        if not has_positive.all():
            logger.warning(
                "%d of %d training queries have no positive and are left out", (~has_positive).sum(), len(query_ids)
            )
        self.query_ids = query_ids[has_positive]
        if len(self.query_ids) == 0:
            raise ValueError("no training query has a positive label")
        self._num_mined = num_mined
        self._mined: Int32[np.ndarray, "query mined"] | None = None
        self.positives = positives
        self._num_positives = num_positives
        self._weight = weight
        self._seed = seed
        self._clusters: Int64[np.ndarray, " query"] | None = None
        self.epoch = 0
        self.position = 0
        self._first_batch = 0
        self._num_batches = -(-self._rows_of_an_epoch() // batch_size)

    def _rows_of_an_epoch(self) -> int:
        return len(self.query_ids)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next `__iter__` yields; another one than before starts with its first batch."""
        if epoch != self.epoch:
            self.resume_at(0)
        self.epoch = epoch

    def resume_at(self, position: int) -> None:
        """Let the next `__iter__`, and no later one, leave out the first batches of the epoch.

        Args:
            position: Number of batches to leave out, those that were trained before a checkpoint.
        """
        self.position = self._first_batch = position

    def set_clusters(self, clusters: Int64[np.ndarray, " query"] | None) -> None:
        """Draw batches as unions of these clusters from the next `__iter__` on.

        Args:
            clusters: Cluster id (>= 0) of each of `self.query_ids`, or None for random batches.

        Raises:
            ValueError: If there is not one cluster per query.
        """
        if clusters is not None and clusters.shape != self.query_ids.shape:
            raise ValueError(f"expected a cluster for each of {len(self.query_ids)} queries, got {len(clusters)}")
        self._clusters = clusters

    def set_mined(self, mined: Int32[np.ndarray, "query mined"] | None) -> None:
        """Draw labels from these lists too, from the next `__iter__` on.

        Args:
            mined: Label ids of each query of the split, -1 for none; None: no labels are mined.
        """
        self._mined = mined

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self._num_batches

    def __iter__(self) -> Iterator[Drawn]:
        """Yield (query ids, drawn label ids) of each batch, and mined labels of the queries where there are some."""
        for position, item in self.numbered():
            self.position = position
            yield item

    def numbered(self) -> Iterator[tuple[int, Drawn]]:
        """Yield what `__iter__` does, each with the position after it, for whoever takes batches before they are used.

        `position` is then theirs to set.
        """
        first_batch, self._first_batch = self._first_batch, 0
        order = self.epoch_order(self._rng(0))
        bounds = len(order) * np.arange(1, self._num_batches) // self._num_batches
        for batch, chosen in enumerate(np.split(order, bounds)):
            if batch < first_batch:
                continue
            rng = self._rng(1 + batch)
            item: Drawn = self.draw(chosen, rng)
            if self._mined is not None:
                item = (*item, draw_mined(self._mined, item[0], self._num_mined, rng))
            yield batch + 1, item

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run needs: epoch, position, and the clusters, which stay until the next are made."""
        clusters = None if self._clusters is None else torch.tensor(self._clusters)
        # Whole, since a continued run draws from them until the next search, and the embeddings that they were searched
        # with are gone. The lists are replaced and never changed, so the state may share them.
        mined = {} if self._mined is None else {"mined": torch.from_numpy(self._mined)}
        return {"epoch": self.epoch, "position": self.position, "clusters": clusters} | mined

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the `state_dict` of a sampler that was made with the same arguments."""
        self.set_clusters(None if state["clusters"] is None else state["clusters"].numpy())
        self.set_mined(state["mined"].numpy() if "mined" in state else None)
        self.epoch = state["epoch"]
        self.resume_at(state.get("position", 0))  # version 0.1.0 had none

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(self.epoch, stream)))

    def epoch_order(self, rng: np.random.Generator) -> Int64[np.ndarray, " query"]:
        """Return the queries in the order in which batches take them, each once.

        Args:
            rng: Generator of the epoch.
        """
        if self._clusters is None:
            return rng.permutation(self.query_ids)
        place_of_cluster = rng.permutation(self._clusters.max() + 1)
        return self.query_ids[np.lexsort((rng.random(len(self.query_ids)), place_of_cluster[self._clusters]))]

    def draw(
        self, chosen: Int64[np.ndarray, " query"], rng: np.random.Generator
    ) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, "batch drawn"]]:
        """Return the queries of a batch, each once, and the labels drawn for each of them, -1 for none.

        Args:
            chosen: The batch's part of `epoch_order`.
            rng: Generator of the batch.
        """
        return chosen, draw_positives(self.positives, self._weight, chosen, self._num_positives, rng)


class LabelBatchSampler(ClusterBatchSampler):
    """Batches of labels, with queries that are drawn for them: every label with a query is in one batch of an epoch.

    Args:
        positives: Label ids of every query of the split.
        query_ids: Queries to train on.
        batch_size: Most labels that a batch may hold.
        num_positives: No labels are drawn for queries, so this makes no difference, as does `weight`.
        weight: See `num_positives`.
        seed: Seed of the order and of the draws.
        num_mined: As in `ClusterBatchSampler`.
        num_queries: Number of queries drawn uniformly for each label, without replacement.

    Raises:
        ValueError: If a number is below 1.

    Source: Dahiya et al. 2021 (SiameseXML), with two queries for each label.
    """

    def __init__(
        self,
        positives: Ragged,
        query_ids: Int64[np.ndarray, " candidate"],
        *,
        batch_size: int,
        num_positives: int,
        weight: Float64[np.ndarray, " label"],
        seed: int,
        num_mined: int = 1,
        num_queries: int = 2,
    ):
        super().__init__(
            positives,
            query_ids,
            batch_size=batch_size,
            num_positives=num_positives,
            weight=weight,
            seed=seed,
            num_mined=num_mined,
        )
        if num_queries < 1:
            raise ValueError(f"expected sampling.sampler.num_queries of at least 1, got {num_queries}")
        rows = positives.take(self.query_ids)
        label_ids = rows.values.astype(np.int64)
        self._queries_of_label = Ragged.grouped(label_ids, self.query_ids[rows.row_ids()], int(label_ids.max()) + 1)
        self._label_ids = np.unique(label_ids)
        self._num_queries = num_queries
        self._equally = np.ones(int(self.query_ids.max()) + 1)
        self._num_batches = -(-len(self._label_ids) // batch_size)

    def epoch_order(self, rng: np.random.Generator) -> Int64[np.ndarray, " label"]:
        """Return the labels in the order in which batches take them, each once.

        Raises:
            ValueError: If there are clusters of queries, of which batches of labels cannot be made.
        """
        if self._clusters is not None:
            raise ValueError(
                "batches of labels are random ones, and there are clusters of queries: give "
                "sampling.clusters.first_epoch=null"
            )
        return rng.permutation(self._label_ids)

    def draw(
        self, chosen: Int64[np.ndarray, " label"], rng: np.random.Generator
    ) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, "batch drawn"]]:
        """Return the queries that are drawn for some labels, and the labels for which each of them was."""
        drawn = draw_positives(self._queries_of_label, self._equally, chosen, self._num_queries, rng)
        place, slot = (drawn >= 0).nonzero()
        query_ids, rows = np.unique(drawn[place, slot], return_inverse=True)
        order = np.argsort(rows, kind="stable")
        lengths = np.bincount(rows)
        column = np.arange(len(rows)) - np.repeat(lengths.cumsum() - lengths, lengths)
        labels = np.full((len(query_ids), int(lengths.max())), -1, dtype=np.int64)
        labels[rows[order], column] = chosen[place[order]]
        return query_ids, labels


class TrainLoader(DataLoader):
    """Loads the batches of a sampler.

    Those for a GPU are made one ahead, by a thread. In any case the position of the sampler is that of the batches
    which were handed out, which have been trained at the end of a step.

    The Trainer takes a loader with a state for one that can be continued within an epoch, and warns of others. It does
    not load that state where the number of training steps has been asked for before, as schedules do: the state of the
    data module is what a continued run rests on.

    Args:
        dataset: Dataset that makes a batch of what the sampler yields.
        sampler: Sampler of the batches.
        device: Device that trains.
    """

    sampler: ClusterBatchSampler

    def __init__(self, dataset: Dataset, sampler: ClusterBatchSampler, device: torch.device = CPU):
        super().__init__(dataset, sampler=sampler, batch_size=None)
        self.device = device

    def __iter__(self) -> Any:
        """Iterate over the batches of the sampler's next epoch."""
        return self._ahead() if works_ahead(self.device) else super().__iter__()

    def _ahead(self) -> Iterator[Any]:
        # lazily: clusters of an epoch are made after the Trainer has asked for its iterator
        positions: list[int] = []

        def make() -> Iterator[Any]:
            for position, item in self.sampler.numbered():
                positions.append(position)
                yield self.dataset[item]

        for batch in one_ahead(pinned(make(), self.device)):
            self.sampler.position = positions.pop(0)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch."""
        return {"position": self.sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue the epoch at the position of `state_dict`."""
        self.sampler.resume_at(state["position"])
