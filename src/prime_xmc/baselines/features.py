"""Vectors of texts: tf-idf by scikit-learn, its projection on few dimensions, or the embeddings of an encoder."""

import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd
from torch.nn.functional import normalize

from prime_xmc.baselines.method import LabelledTexts, TextSet
from prime_xmc.data.batch import TextChunks
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.precision import native_precision
from prime_xmc.progress import track

_CHUNK = 4096  # texts that an encoder gets at once

Rows = Any  # a unit vector for each text: a CSR matrix or an array


@runtime_checkable
class Vectoriser(Protocol):
    """Makes vectors of texts."""

    @property
    def model_bytes(self) -> int:
        """Size of what it has learnt, in bytes."""

    def rows(self, texts: TextSet) -> Rows:
        """Return a unit vector for each text; one without known terms is zero."""


@runtime_checkable
class Features(Protocol):
    """A kind of vectors."""

    @property
    def device(self) -> torch.device | None:
        """Where an encoder makes them; None: there is none."""

    def learn(self, training: LabelledTexts) -> Vectoriser:
        """Learn from the texts of queries and labels together what it takes to make vectors."""


def check_pattern(key: str, pattern: str) -> None:
    """Refuse what is no regular expression of a word.

    Args:
        key: Key of the configuration that has it.
        pattern: The regular expression.

    Raises:
        ValueError: If it is no regular expression, has several groups, or matches the empty text.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{key}={pattern}: not a regular expression ({error}); a data set may have chosen it, by "
            "dataset.token_pattern"
        ) from error
    if expression.groups > 1:
        raise ValueError(f"{key}={pattern}: it has {expression.groups} groups, and a word is one: (?:…) makes none")
    if expression.fullmatch(""):
        raise ValueError(f"{key}={pattern}: it matches the empty text, which is no word")


class TfIdf:
    """Tf-idf vectors of length 1 by scikit-learn.

    Args:
        ngrams: Least and most words of a term.
        min_df: Texts in which a term has to occur.
        sublinear_tf: Whether a term that occurs n times counts 1 + log n rather than n.
        token_pattern: Regular expression of a word.
        lowercase: Whether upper and lower case are the same.

    Raises:
        ValueError: If a setting is out of range, or the pattern is no regular expression.
    """

    device = None

    def __init__(
        self,
        ngrams: Sequence[int] = (1, 2),
        min_df: int = 1,
        sublinear_tf: bool = True,
        token_pattern: str = r"(?u)\b\w+\b",
        lowercase: bool = True,
    ):
        if len(ngrams) != 2 or not 1 <= ngrams[0] <= ngrams[1]:
            raise ValueError(f"expected tfidf.ngrams of two numbers, the least and the most words, got {list(ngrams)}")
        check_pattern("tfidf.token_pattern", token_pattern)
        self._settings: dict[str, Any] = {
            "ngram_range": tuple(ngrams),
            "min_df": min_df,
            "sublinear_tf": sublinear_tf,
            "token_pattern": token_pattern,
            "lowercase": lowercase,
        }

    def learn(self, training: LabelledTexts) -> "TfIdfVectoriser":
        """Learn terms and their weights from the texts of queries and labels together.

        Raises:
            ValueError: If the texts have no terms.
        """
        vectoriser = TfidfVectorizer(dtype=np.float32, **self._settings)
        try:
            vectoriser.fit([*training.queries.strings, *training.labels.strings])
        except ValueError as error:
            raise ValueError(f"tf-idf finds no terms in these texts: {error}. See tfidf.token_pattern") from error
        return TfIdfVectoriser(vectoriser)


class TfIdfVectoriser:
    """Makes tf-idf vectors.

    Args:
        vectoriser: scikit-learn's, which knows terms and weights.
    """

    def __init__(self, vectoriser: TfidfVectorizer):
        self._vectoriser = vectoriser

    @property
    def num_terms(self) -> int:
        """Dimension of the vectors."""
        return len(self._vectoriser.vocabulary_)

    @property
    def model_bytes(self) -> int:
        """Size of the terms, in UTF-8, and of their weights."""
        return sum(len(term.encode()) for term in self._vectoriser.vocabulary_) + 4 * self.num_terms

    def rows(self, texts: TextSet) -> sp.csr_matrix:
        """Return a CSR matrix of float32, columns ascending within a row."""
        matrix = sp.csr_matrix(self._vectoriser.transform(texts.strings))
        matrix.sort_indices()
        return matrix


class Embeddings:
    """Embeddings of an encoder as it is, without training.

    Args:
        encoder: The encoder.
        device: Where it computes; None: on a GPU where there is one.

    Raises:
        ValueError: If there is no such device here.
    """

    def __init__(self, encoder: TextEncoder, device: str | None = None):
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.encoder = encoder.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
            raise ValueError(f"method.features.device={device}: {error}; take cpu, cuda or cuda:<n>") from error
        precision = native_precision("cpu" if self.device.type == "cpu" else "gpu")
        self._dtype = torch.bfloat16 if precision == "bf16-mixed" else None

    @property
    def model_bytes(self) -> int:
        """Nothing: the encoder is there anyway."""
        return 0

    def learn(self, training: LabelledTexts) -> "Embeddings":
        """Return the encoder itself, which learns nothing."""
        return self

    @torch.no_grad()
    def rows(self, texts: TextSet) -> Float32[np.ndarray, "text d"]:
        """Return the embeddings of texts, unit vectors also where the encoder does not make them such."""
        chunks = TextChunks(texts.tokens, np.arange(len(texts)), _CHUNK)
        embeddings = np.empty((len(texts), self.encoder.dim), dtype=np.float32)
        indices = range(len(chunks))
        for number in track(indices, "embed") if len(indices) > 1 else indices:
            chunk = chunks[number]
            with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
                emb = self.encoder(chunk.token_ids.to(self.device), chunk.lengths)
            embeddings[chunk.ids.numpy()] = normalize(emb.float(), dim=1).cpu().numpy()
        return embeddings


def similarities(queries: Rows, others: Rows) -> Float[np.ndarray, "query other"]:
    """Return the inner products of vectors, all of them, whether they are sparse or not."""
    product = queries @ others.T
    return product.toarray() if sp.issparse(product) else product


def projection(
    rows: sp.csr_matrix, dimension: int, seed: int
) -> tuple[Float32[np.ndarray, "text d"], Float32[np.ndarray, "term d"]]:
    """Return sparse rows in the dimensions of their largest singular values, and the matrix that takes them there.

    Args:
        rows: The vectors.
        dimension: Dimensions to keep; fewer where the rows have fewer.
        seed: Seed of the random start.

    Source: Halko, Martinsson and Tropp 2011, by scikit-learn.
    """
    dimension = min(dimension, *rows.shape)
    _, _, components = randomized_svd(rows, dimension, n_iter=2, random_state=seed)
    matrix = np.ascontiguousarray(components.T, dtype=np.float32)
    return np.asarray(rows @ matrix, dtype=np.float32), matrix


def labels_matrix(training: LabelledTexts) -> sp.csr_matrix:
    """Return the matrix [query, label] that is 1 where the query has the label."""
    positives = training.positives
    shape = (len(positives), len(training.labels))
    ones = np.ones(len(positives.values), dtype=np.float32)
    return sp.csr_matrix((ones, positives.values.astype(np.int64), positives.offsets), shape=shape)
