"""Methods without training: the commonest labels, the nearest label texts, a vote of the nearest training queries."""

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32

from prime_xmc.baselines.features import Features, Rows, Vectoriser, labels_matrix, similarities
from prime_xmc.baselines.method import BLOCK_SCORES, LabelledTexts, Outcome, TextSet, rank_here


class Popularity:
    """The same answer to every query: the labels by the number of their training queries."""

    def rank(self, training: LabelledTexts, queries: Mapping[str, TextSet], k: int) -> Outcome:
        """Count, and return the k commonest labels for every query."""
        num_labels = len(training.labels)
        return rank_here(lambda: _count(training), queries, num_labels, k, threads=1)


class ZeroShot:
    """The labels whose texts are most similar to the query, by cosine.

    Args:
        features: Vectors of texts.
        threads: Threads to compute with; null: as many as there are.
    """

    def __init__(self, features: Features, threads: int | None = None):
        self.features = features
        self.threads = threads

    def rank(self, training: LabelledTexts, queries: Mapping[str, TextSet], k: int) -> Outcome:
        """Make the vectors of the label texts, and return the k most similar labels of each query."""

        def train() -> "_LabelTexts":
            vectoriser = self.features.learn(training)
            return _LabelTexts(vectoriser, vectoriser.rows(training.labels))

        return rank_here(train, queries, len(training.labels), k, threads=self.threads, device=self.features.device)


class NearestNeighbours:
    """A vote of the nearest training queries, to which each label's own text may add its voice.

    score(q, l) = sum over the k queries i nearest to q that have l of cos(q, i)^power, and cos(q, text of l)^power if
    label texts have a voice; negative cosines count 0.

    Args:
        features: Vectors of texts.
        k: Training queries that vote.
        power: Power of the cosine with which a vote counts.
        label_texts: Whether the label's own text has a voice.
        threads: Threads to compute with; null: as many as there are.

    Raises:
        ValueError: If k or power is out of range.
    """

    def __init__(
        self,
        features: Features,
        k: int = 50,
        power: float | int = 8,
        label_texts: bool = True,
        threads: int | None = None,
    ):
        if k < 1:
            raise ValueError(f"expected method.k of at least 1, got {k}")
        if not power > 0:
            raise ValueError(f"expected method.power above 0, got {power}")
        self.features = features
        self.k = k
        self.power = power
        self.label_texts = label_texts
        self.threads = threads

    def rank(self, training: LabelledTexts, queries: Mapping[str, TextSet], k: int) -> Outcome:
        """Make the vectors of the training queries, and return the k labels with the most votes."""

        def train() -> "_Voters":
            vectoriser = self.features.learn(training)
            labels = vectoriser.rows(training.labels) if self.label_texts else None
            return _Voters(self, vectoriser, vectoriser.rows(training.queries), labels_matrix(training), labels)

        return rank_here(train, queries, len(training.labels), k, threads=self.threads, device=self.features.device)


def votes(
    similarity: Float[np.ndarray, "query neighbour"], labels: sp.csr_matrix, k: int, power: float | int
) -> Float32[np.ndarray, "query label"]:
    """Return the votes of the k most similar of some labelled queries, see `NearestNeighbours`.

    Args:
        similarity: Cosines of queries and labelled ones.
        labels: 1 where a labelled query has a label, [neighbour, label].
        k: Labelled queries that vote; all of them where there are fewer.
        power: Power of the cosine.

    Example:
        >>> labels = sp.csr_matrix([[1, 0], [1, 1], [0, 1]])
        >>> votes(np.array([[0.5, 0.4, 0.3]]), labels, k=2, power=2).round(2)
        array([[0.41, 0.16]], dtype=float32)
    """
    num_queries, num_neighbours = similarity.shape
    k = min(k, num_neighbours)
    nearest = np.argpartition(similarity, num_neighbours - k, axis=1)[:, num_neighbours - k :]
    weights = np.maximum(np.take_along_axis(similarity, nearest, axis=1), 0) ** power
    rows = np.arange(num_queries).repeat(k)
    chosen = sp.csr_matrix(
        (weights.ravel().astype(np.float32), (rows, nearest.ravel())), shape=(num_queries, num_neighbours)
    )
    return (chosen @ labels).toarray().astype(np.float32)


class _Commonest:
    def __init__(self, frequency: Float32[np.ndarray, " label"]):
        self.frequency = frequency

    @property
    def model_bytes(self) -> int:
        return self.frequency.nbytes

    def scores(self, queries: TextSet) -> Float32[np.ndarray, "query label"]:
        return np.tile(self.frequency, (len(queries), 1))


def _count(training: LabelledTexts) -> _Commonest:
    frequency = np.bincount(training.positives.values, minlength=len(training.labels))
    return _Commonest(frequency.astype(np.float32))


class _LabelTexts:
    def __init__(self, vectoriser: Vectoriser, labels: Rows):
        self.vectoriser = vectoriser
        self.labels = labels

    @property
    def model_bytes(self) -> int:
        return self.vectoriser.model_bytes + size_of(self.labels)

    def scores(self, queries: TextSet) -> Float[np.ndarray, "query label"]:
        return similarities(self.vectoriser.rows(queries), self.labels)


class _Voters:
    def __init__(
        self,
        settings: NearestNeighbours,
        vectoriser: Vectoriser,
        neighbours: Rows,
        labels_of: sp.csr_matrix,
        labels: Rows | None,
    ):
        self.settings = settings
        self.vectoriser = vectoriser
        self.neighbours = neighbours
        self.labels_of = labels_of
        self.labels = labels

    @property
    def model_bytes(self) -> int:
        known = [self.neighbours, self.labels_of, *([] if self.labels is None else [self.labels])]
        return self.vectoriser.model_bytes + sum(map(size_of, known))

    def scores(self, queries: TextSet) -> Float32[np.ndarray, "query label"]:
        rows = self.vectoriser.rows(queries)
        k, power = self.settings.k, self.settings.power
        step = max(1, BLOCK_SCORES // self.neighbours.shape[0])  # where labels are few, the block of queries is large
        parts = [
            votes(similarities(rows[start : start + step], self.neighbours), self.labels_of, k, power)
            for start in range(0, rows.shape[0], step)
        ]
        scores = np.concatenate(parts)
        if self.labels is not None:
            scores += np.maximum(similarities(rows, self.labels), 0) ** power
        return scores


def size_of(rows: Rows) -> int:
    """Return the bytes of an array or a CSR matrix."""
    return rows.data.nbytes + rows.indices.nbytes + rows.indptr.nbytes if sp.issparse(rows) else rows.nbytes
