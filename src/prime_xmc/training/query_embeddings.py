"""Embeddings of a data set's queries by a trained model, computed once and kept in the cache for the second stage."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from prime_xmc.data.corpus import Ragged
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.export.predictor import Predictor
from prime_xmc.model.banks import RowBank
from prime_xmc.progress import track
from prime_xmc.training.embedding_cache import load_embeddings, save_embeddings

_CHUNK = 4096  # queries encoded at once


Encoded = tuple[np.ndarray, Tensor]  # ids of texts, and their embeddings on the CPU


def embed(predictor: Predictor, tokens: Ragged, what: str, known: Encoded | None = None) -> Float[Tensor, "text d"]:
    """Return the embeddings of a token store's texts, on the CPU.

    Args:
        predictor: The model.
        tokens: The texts.
        what: Name of the texts for the progress bar.
        known: Embeddings of some of them that the same model has made already.
    """
    embeddings = torch.empty(len(tokens), predictor.encoder.dim)
    missing = np.arange(len(tokens))
    if known is not None:
        ids, embedded = known
        embeddings[torch.from_numpy(ids)] = embedded
        missing = np.setdiff1d(missing, ids)
    for start in track(range(0, len(missing), _CHUNK), f"embed {what}"):
        rows = missing[start : start + _CHUNK]
        embeddings[torch.from_numpy(rows)] = predictor.encode_tokens(tokens.take(rows))
    return embeddings


def embed_training_queries(
    predictor: Predictor, data: PrimeDataModule, cache_dir: Path, digest: str, known: Encoded | None = None
) -> RowBank:
    """Return the embeddings of the training queries, made once and kept under a fingerprint of all they depend on.

    Args:
        predictor: The model.
        data: The data set.
        cache_dir: Folder for them.
        digest: Fingerprint of the encoder.
        known: Embeddings of some of the queries that the same model has made already.

    Raises:
        ValueError: If those in the cache are damaged; it names the folder to delete.
    """
    of_data, computed = data.corpus.manifest["fingerprint"], predictor.encoder.architecture
    parts = (of_data, digest, predictor.precision, predictor.config["encoder"], computed)
    fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()
    directory = cache_dir.expanduser() / f"queries-{fingerprint}"
    tokens = data.corpus.train.tokens
    # here in the CPU's memory; they follow the module that trains with them to a GPU, where a step would wait for them
    bank = RowBank(len(tokens), predictor.encoder.dim, dtype="float16")
    if directory.is_dir():
        load_embeddings(directory, {".": bank})
    else:
        bank.put(torch.arange(len(tokens)), embed(predictor, tokens, "training queries", known))
        save_embeddings(directory, {".": bank})
    return bank


class EncodedQueries:
    """The embeddings of a data set's queries by a trained model, each split made once, when it is asked for.

    Args:
        predictor: The model.
        data: The data set.
        cache_dir: Folder in which those of the training queries are kept.
        digest: Fingerprint of the encoder.
        known: Queries that the same model has encoded already, "train" and "test".
    """

    def __init__(
        self,
        predictor: Predictor,
        data: PrimeDataModule,
        cache_dir: Path,
        digest: str,
        known: Mapping[str, Encoded] | None = None,
    ):
        self._predictor = predictor
        self._data = data
        self._cache_dir = cache_dir
        self._digest = digest
        self._known = known or {}

    @cached_property
    def train(self) -> RowBank:
        """Embeddings of all training queries, those that were held out included, rounded to float16."""
        known = self._known.get("train")
        return embed_training_queries(self._predictor, self._data, self._cache_dir, self._digest, known)

    @cached_property
    def test(self) -> Float[Tensor, "query d"]:
        """Embeddings of the test queries."""
        return embed(self._predictor, self._data.corpus.test.tokens, "test queries", self._known.get("test"))

    def of_training(self, ids: Int64[np.ndarray, " query"]) -> Float[Tensor, "query d"]:
        """Return the embeddings of some training queries, unit vectors on the CPU."""
        return normalize(self.train.take(torch.from_numpy(ids)).float(), dim=-1)
