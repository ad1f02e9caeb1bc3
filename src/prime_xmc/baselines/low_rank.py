"""Low-rank methods: the label matrix is written in few dimensions, which a ridge regression predicts from the text.

X [query, D] are vectors of texts, Y [query, label] is 1 where a query has a label, and lambda is the ridge. What a
function returns scores a text x by x W V' + mean, where W [D, k] takes the text to k numbers and V [label, k] these to
scores. H = X (X'X + lambda I)^-1 X' is what the regression makes of its targets. V is

- PLST: the first k right singular vectors of Y less its column means. Tai and Lin 2012.
- SVD: the first k right singular vectors of Y itself.
- CPLST: the eigenvectors of Y'HY with the largest eigenvalues, Y less its means. Chen and Lin 2012.
- OCCA: those of Y'(H - I)Y with the largest eigenvalues, the directions that are predicted with the least error,
  whatever they are worth. Chen and Lin 2012 describe it as canonical correlation analysis with orthogonal codes.
- LEML: what minimises |Y - X W V'|^2 + lambda (|W|^2 + |V|^2), zeros counted. Yu et al. 2014.

In the first four W = (X'X + lambda I)^-1 X'Y V.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from jaxtyping import Float, Float32
from scipy.sparse import linalg as sparse_linalg

from prime_xmc.baselines.features import TfIdf, TfIdfVectoriser, labels_matrix, projection
from prime_xmc.baselines.method import LabelledTexts, Outcome, TextSet, rank_here
from prime_xmc.progress import track

logger = logging.getLogger(__name__)

_MOST_STEPS = 100  # of the iteration that finds the eigenvectors of OCCA
_ACCURACY = 1e-3  # of its eigenvalues, as a share of the largest in absolute value

Matrix = Float[np.ndarray, "row column"]


class LinearCodes(NamedTuple):
    """What a low-rank method has learnt.

    Attributes:
        weights: W.
        decoder: V.
        mean: Score of each label for a text of which nothing is known.
    """

    weights: Float[np.ndarray, "d k"]
    decoder: Float[np.ndarray, "label k"]
    mean: Float[np.ndarray, " label"]


Fit = Callable[[Float[np.ndarray, "query d"], sp.csr_matrix], LinearCodes]


class LowRank:
    """A low-rank method on tf-idf vectors of fewer dimensions.

    Args:
        fit: plst, cplst, occa, svd or leml of this module, with its settings.
        tfidf: Vectors of texts.
        dimension: D.
        label_texts: Whether label texts are training queries, too.
        seed: Seed of the projection.
        threads: Threads to compute with; null: as many as there are.

    Raises:
        ValueError: If the dimension is out of range.
    """

    def __init__(
        self,
        fit: Fit,
        tfidf: TfIdf,
        dimension: int = 1000,
        label_texts: bool = True,
        seed: int = 0,
        threads: int | None = None,
    ):
        if dimension < 1:
            raise ValueError(f"expected method.dimension of at least 1, got {dimension}")
        self.fit = fit
        self.tfidf = tfidf
        self.dimension = dimension
        self.label_texts = label_texts
        self.seed = seed
        self.threads = threads

    def rank(self, training: LabelledTexts, queries: Mapping[str, TextSet], k: int) -> Outcome:
        """Learn vectors, their projection and the codes, and return the k best labels of each query."""

        def train() -> "_Codes":
            vectoriser = self.tfidf.learn(training)
            texts = training.with_label_texts() if self.label_texts else training
            rows, matrix = projection(vectoriser.rows(texts.queries), self.dimension, self.seed)
            codes = self.fit(rows, labels_matrix(texts))
            # text to term weights to codes is one product
            weights = np.asarray(matrix @ codes.weights, dtype=np.float32)
            return _Codes(vectoriser, LinearCodes(weights, codes.decoder.astype(np.float32), codes.mean))

        return rank_here(train, queries, len(training.labels), k, threads=self.threads)


def plst(rows: Float[np.ndarray, "query d"], labels: sp.csr_matrix, *, rank: int, ridge: float | int) -> LinearCodes:
    """Return the codes of principal label space transformation.

    Args:
        rows: X.
        labels: Y.
        rank: k.
        ridge: lambda, above 0.

    Raises:
        ValueError: If rank or ridge is out of range.
    """
    check_settings(rows, labels, rank, ridge)
    mean = _mean(labels)
    centred = sparse_linalg.LinearOperator(
        labels.shape,
        matvec=lambda v: labels @ v.ravel() - mean @ v.ravel(),  # SciPy may pass a column
        rmatvec=lambda u: labels.T @ u.ravel() - mean * u.sum(),
        dtype=np.float64,
    )
    return _regressed(rows, labels, _singular_vectors(centred, rank), ridge, mean)


def svd(rows: Float[np.ndarray, "query d"], labels: sp.csr_matrix, *, rank: int, ridge: float | int) -> LinearCodes:
    """Return the codes of a singular value decomposition; arguments and errors are those of `plst`."""
    check_settings(rows, labels, rank, ridge)
    decoder = _singular_vectors(labels.astype(np.float64), rank)
    return _regressed(rows, labels, decoder, ridge, np.zeros(labels.shape[1]))


def cplst(rows: Float[np.ndarray, "query d"], labels: sp.csr_matrix, *, rank: int, ridge: float | int) -> LinearCodes:
    """Return the codes of conditional principal label space transformation.

    With X'X + lambda I = R'R and M = R'^-1 X'Y, Y'HY is M'M: V are the first right singular vectors of M, a matrix of
    D rows. Arguments and errors are those of `plst`; the rank is at most D.
    """
    check_settings(rows, labels, rank, ridge)
    if rank > rows.shape[1]:
        raise ValueError(
            f"method.fit.rank={rank}: expected at most the {rows.shape[1]} dimensions of the vectors, method.dimension"
        )
    mean = _mean(labels)
    predicted = _predicted(rows, labels, ridge, mean)
    _, vectors = scipy.linalg.eigh(predicted @ predicted.T, subset_by_index=(len(predicted) - rank, len(predicted) - 1))
    decoder, _ = np.linalg.qr(predicted.T @ vectors)
    return _regressed(rows, labels, decoder, ridge, mean)


def occa(
    rows: Float[np.ndarray, "query d"], labels: sp.csr_matrix, *, rank: int, ridge: float | int, seed: int = 0
) -> LinearCodes:
    """Return the codes of orthogonally constrained canonical correlation analysis.

    Labels that the same queries have differ by a direction that is predicted without error, since it is 0 for all of
    them: where there are many, these directions are what is found, and the scores are the means.

    Args:
        rows: X.
        labels: Y.
        rank: k.
        ridge: lambda, above 0.
        seed: Seed of the random start of the iteration.

    Raises:
        ValueError: If rank or ridge is out of range.
    """
    check_settings(rows, labels, rank, ridge)
    mean = _mean(labels)
    predicted = _predicted(rows, labels, ridge, mean)

    def error(v: Float[np.ndarray, "label some"]) -> Float[np.ndarray, "label some"]:
        """Return Y'(I - H)Y v."""
        targets = labels @ v - mean @ v
        return labels.T @ targets - np.outer(mean, targets.sum(axis=0)) - predicted.T @ (predicted @ v)

    num_labels = labels.shape[1]
    if num_labels <= 5 * rank:  # so few that the iteration would not work
        _, decoder = scipy.linalg.eigh(error(np.eye(num_labels)), subset_by_index=(0, rank - 1))
    else:
        operator = sparse_linalg.LinearOperator(
            (num_labels, num_labels), matvec=lambda v: error(v.reshape(-1, 1)), matmat=error, dtype=np.float64
        )
        start = np.random.default_rng(seed).standard_normal((num_labels, rank))
        largest = float(labels.multiply(labels).sum(axis=0).max())
        with warnings.catch_warnings(record=True) as caught:  # that the accuracy was not reached
            warnings.simplefilter("always")
            _, decoder = sparse_linalg.lobpcg(
                operator, start, largest=False, maxiter=_MOST_STEPS, tol=_ACCURACY * largest
            )
        for each in caught:
            logger.warning("occa: %s", " ".join(str(each.message).split()))
    return _regressed(rows, labels, decoder, ridge, mean)


def leml(
    rows: Float[np.ndarray, "query d"],
    labels: sp.csr_matrix,
    *,
    rank: int,
    ridge: float | int,
    rounds: int = 10,
    seed: int = 0,
) -> LinearCodes:
    """Return the codes of low-rank empirical risk minimisation for multi-label learning, with the squared loss.

    W and V are found in turn, each exactly: V = Y'XW (W'X'XW + lambda I)^-1, and W from X'X W V'V + lambda W = X'Y V
    in the eigenvectors of X'X and V'V.

    Args:
        rows: X.
        labels: Y.
        rank: k.
        ridge: lambda, above 0.
        rounds: How often each is found.
        seed: Seed of the W to begin with.

    Raises:
        ValueError: If rank, ridge or rounds is out of range.
    """
    check_settings(rows, labels, rank, ridge)
    if rounds < 1:
        raise ValueError(f"method.fit.rounds={rounds}: expected at least 1")
    gram = (rows.T @ rows).astype(np.float64)
    together = np.asarray(labels.T @ rows, dtype=np.float64)  # Y'X
    values, basis = scipy.linalg.eigh(gram)
    weights = np.random.default_rng(seed).standard_normal((rows.shape[1], rank)) / np.sqrt(rows.shape[1])
    for _ in track(range(rounds), "rounds"):
        inner = weights.T @ gram @ weights + ridge * np.eye(rank)
        decoder = scipy.linalg.solve(inner, weights.T @ together.T, assume_a="pos").T
        inner_values, inner_basis = scipy.linalg.eigh(decoder.T @ decoder)
        rotated = basis.T @ (together.T @ decoder) @ inner_basis
        weights = basis @ (rotated / (np.outer(values.clip(min=0), inner_values.clip(min=0)) + ridge)) @ inner_basis.T
    return LinearCodes(weights, decoder, np.zeros(labels.shape[1]))


def check_settings(rows: Float[np.ndarray, "query d"], labels: sp.csr_matrix, rank: int, ridge: float | int) -> None:
    """Check the settings of a low-rank method.

    Raises:
        ValueError: If one is out of range.
    """
    most = min(labels.shape) - 1
    if not 1 <= rank <= most:
        raise ValueError(
            f"method.fit.rank={rank}: expected 1 to {most}, fewer than the queries and the labels; give "
            f"method.fit.rank={max(1, min(rank, most))}"
        )
    if not ridge > 0:
        raise ValueError(f"method.fit.ridge={ridge}: expected a number above 0")


def _mean(labels: sp.csr_matrix) -> Float[np.ndarray, " label"]:
    return np.asarray(labels.sum(axis=0), dtype=np.float64).ravel() / labels.shape[0]


def _singular_vectors(matrix: sp.csr_matrix | sparse_linalg.LinearOperator, rank: int) -> Float[np.ndarray, "label k"]:
    """Return the first right singular vectors, from a fixed start."""
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    _, _, vectors = sparse_linalg.svds(matrix, k=rank, v0=start, return_singular_vectors="vh")
    return vectors.T


def _cross(rows: Matrix, labels: sp.csr_matrix, mean: Float[np.ndarray, " label"]) -> Float[np.ndarray, "d label"]:
    """Return X'Y, Y less its means."""
    return np.asarray(labels.T @ rows, dtype=np.float64).T - np.outer(rows.sum(axis=0, dtype=np.float64), mean)


def _predicted(
    rows: Matrix, labels: sp.csr_matrix, ridge: float | int, mean: Float[np.ndarray, " label"]
) -> Float[np.ndarray, "d label"]:
    """Return M = R'^-1 X'Y, with which Y'HY = M'M."""
    root = scipy.linalg.cholesky((rows.T @ rows).astype(np.float64) + ridge * np.eye(rows.shape[1]))
    return scipy.linalg.solve_triangular(root, _cross(rows, labels, mean), trans="T")


def _regressed(
    rows: Matrix,
    labels: sp.csr_matrix,
    decoder: Float[np.ndarray, "label k"],
    ridge: float | int,
    mean: Float[np.ndarray, " label"],
) -> LinearCodes:
    """Return the codes with W = (X'X + lambda I)^-1 X'Y V."""
    gram = (rows.T @ rows).astype(np.float64) + ridge * np.eye(rows.shape[1])
    codes = labels @ decoder - mean @ decoder  # [query, k]
    return LinearCodes(scipy.linalg.solve(gram, rows.T @ codes, assume_a="pos"), decoder, mean)


class _Codes:
    def __init__(self, vectoriser: TfIdfVectoriser, codes: LinearCodes):
        self.vectoriser = vectoriser
        self.codes = codes
        self.mean = codes.mean.astype(np.float32)

    @property
    def model_bytes(self) -> int:
        return self.vectoriser.model_bytes + sum(part.nbytes for part in (*self.codes[:2], self.mean))

    def scores(self, queries: TextSet) -> Float32[np.ndarray, "query label"]:
        return (self.vectoriser.rows(queries) @ self.codes.weights) @ self.codes.decoder.T + self.mean
