"""Which training queries speak for an answer: the nearest of those that carry the label."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn.functional import pad

from prime_xmc.index.neighbours import as_rows, pair_scores

_QUERY_BLOCK = 64  # queries whose answers are looked at once: a frequent label has many training queries


class LabelQueries:
    """The training queries of each label.

    Args:
        query_emb: Embeddings of the training queries, unit vectors.
        label_ids: Labels of these queries, one query's after the other's, each once within a query.
        offsets: Places in `label_ids` at which the labels of a query begin, and at the end its length.
        num_labels: Number of labels.
    """

    def __init__(
        self,
        query_emb: Float32[Tensor, "neighbour d"],
        label_ids: Int64[Tensor, " pair"],
        offsets: Int64[Tensor, " bound"],
        num_labels: int,
    ):
        self._query_emb = query_emb
        owner = torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())
        self._queries = owner[label_ids.argsort(stable=True)]
        self._offsets = pad(torch.bincount(label_ids, minlength=num_labels).cumsum(0), (1, 0))

    def nearest(
        self, query_emb: Float32[Tensor, "query d"], label_ids: Int64[Tensor, "query k"], num_nearest: int
    ) -> tuple[Float32[Tensor, "query k nearest"], Int64[Tensor, "query k nearest"]]:
        """Return the similarity and the row of the nearest training queries that carry each answer.

        Args:
            query_emb: Embeddings of queries, unit vectors, on the device of those of the training queries.
            label_ids: Answers of each query; -1 where there are fewer.
            num_nearest: Training queries of each answer; where there are fewer, -inf and -1 fill up.
        """
        parts = [
            self._nearest(some_emb, some_ids, num_nearest)
            for some_emb, some_ids in zip(query_emb.split(_QUERY_BLOCK), label_ids.split(_QUERY_BLOCK), strict=True)
        ]
        similarity, rows = (torch.cat(part) for part in zip(*parts, strict=True))
        return similarity, rows

    def _nearest(
        self, query_emb: Float32[Tensor, "query d"], label_ids: Int64[Tensor, "query k"], num_nearest: int
    ) -> tuple[Float32[Tensor, "query k nearest"], Int64[Tensor, "query k nearest"]]:
        labels = label_ids.flatten()
        starts, ends = self._offsets[labels.clamp(min=0)], self._offsets[labels.clamp(min=0) + 1]
        lengths = torch.where(labels >= 0, ends - starts, 0)
        answers = torch.arange(len(labels), device=labels.device).repeat_interleave(lengths)
        # entry i of what all answers have, of answer a, is the query at place i - before[a] + starts[a]
        shift = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
        queries = self._queries[torch.arange(len(shift), device=shift.device) + shift]
        similarity = pair_scores(query_emb, self._query_emb, answers // label_ids.shape[1], queries)
        table = as_rows(answers, similarity, len(labels), -torch.inf)
        rows = as_rows(answers, queries, len(labels), -1)
        best, columns = table.sort(dim=1, descending=True, stable=True)
        best, rows = best[:, :num_nearest], rows.gather(1, columns)[:, :num_nearest]
        missing = num_nearest - best.shape[1]
        shape = (*label_ids.shape, num_nearest)
        return pad(best, (0, missing), value=-torch.inf).view(shape), pad(rows, (0, missing), value=-1).view(shape)
