"""Texts of labels as training rows besides the queries, each with its own label."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from prime_xmc.data.sampling import ClusterBatchSampler, Drawn, draw_mined


class LabelRowSampler(ClusterBatchSampler):
    """Batches of queries and of label rows, the texts of all labels, each of which is in one batch of an epoch.

    Label rows stand behind the queries of their batch. Their ids follow those of the split: the number of its queries
    plus the label id. Every batch has about the same share of them, in a random order whatever the clusters. Nothing
    else knows of them: they are in neither `query_ids` nor clusters, and so in no frequency, centroid or metric.

    Args:
        positives: Label ids of every query of the split.
        query_ids: Queries to train on, as in `ClusterBatchSampler`.
        batch_size: Most rows that a batch may hold, label rows included.
        num_positives: Number of labels drawn per query; a label row draws its own label alone.
        weight: Weight of every label, as in `ClusterBatchSampler`.
        seed: Seed of the order and of the draws.
        num_mined: Number of mined labels drawn for each query, as in `ClusterBatchSampler`; label rows draw none.

    Raises:
        ValueError: As `ClusterBatchSampler`.

    Source: Renée, Jain et al. 2023.
    """

    def _rows_of_an_epoch(self) -> int:
        return len(self.query_ids) + len(self._weight)

    def numbered(self) -> Iterator[tuple[int, Drawn]]:
        """Yield what `ClusterBatchSampler.numbered` does, with label rows behind the queries of each batch."""
        first_batch, self._first_batch = self._first_batch, 0
        order, first_row = self._with_label_rows(self.epoch_order(self._rng(0))), len(self.positives)
        bounds = len(order) * np.arange(1, self._num_batches) // self._num_batches
        for batch, row_ids in enumerate(np.split(order, bounds)):
            if batch < first_batch:
                continue
            query_ids, label_rows = row_ids[row_ids < first_row], row_ids[row_ids >= first_row]
            rng = self._rng(1 + batch)
            query_ids, drawn = self.draw(query_ids, rng)
            own = np.full((len(label_rows), drawn.shape[1]), -1, dtype=np.int64)
            own[:, :1] = label_rows[:, None] - first_row  # no column, where nothing is drawn
            item: Drawn = (np.concatenate([query_ids, label_rows]), np.concatenate([drawn, own]))
            if self._mined is not None:
                mined = draw_mined(self._mined, query_ids, self._num_mined, rng)
                none = np.full((len(label_rows), mined.shape[1]), -1, dtype=np.int64)
                item = (*item, np.concatenate([mined, none]))
            yield batch + 1, item

    def _with_label_rows(self, order: Int64[np.ndarray, " query"]) -> Int64[np.ndarray, " row"]:
        """Return the order of an epoch with all label rows, in a random order, spread evenly among the queries."""
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(self.epoch, 0, 0)))
        label_rows = len(self.positives) + rng.permutation(len(self._weight))
        places = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in (order, label_rows)])
        return np.concatenate([order, label_rows])[np.argsort(places, kind="stable")]
