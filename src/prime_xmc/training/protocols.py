"""What callbacks need of the module and of the data module.

Modules inherit from their protocol: since Python 3.12, `isinstance` does not see what `nn.Module` holds as submodules.
"""

from collections.abc import Callable, Iterable
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from prime_xmc.data.batch import Texts
from prime_xmc.data.corpus import Corpus
from prime_xmc.data.sampling import ClusterBatchSampler
from prime_xmc.model.banks import RowBank
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.prototypes import Prototypes

Kind = Literal["query", "label"]  # what texts are


@runtime_checkable
class Searcher(Protocol):
    """Finds the labels nearest to queries."""

    def build(self, vectors: Float[Tensor, "label d"]) -> None:
        """Take the vectors to search in."""

    def search(
        self, query_emb: Float[Tensor, "query d"], k: int
    ) -> tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]:
        """Return scores, descending, and label ids."""


@runtime_checkable
class TrainingData(Protocol):
    """Queries to train on, and their clusters."""

    corpus: Corpus
    sampler: ClusterBatchSampler

    def set_clusters(self, clusters: Int64[np.ndarray, " query"] | None) -> None:
        """Make the next batches from clusters of `sampler.query_ids`."""

    def set_mined(self, mined: Int32[np.ndarray, "query mined"] | None) -> None:
        """Draw labels for the queries of the next batches from these lists too."""

    def train_text_dataloader(self) -> DataLoader:
        """Return a loader of the texts of the queries that are trained on."""

    def label_dataloader(self) -> DataLoader:
        """Return a loader of the texts of all labels."""

    def train_pairs(self) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"]]:
        """Return query id and label id of every pair that is trained on."""

    def train_frequency(self) -> Int64[np.ndarray, " label"]:
        """Return how many queries of each label are trained on."""


@runtime_checkable
class QueryMemory(Protocol):
    """A module that remembers an embedding of every training query."""

    query_memory: RowBank

    @property
    def device(self) -> torch.device:
        """Device of the module."""


@runtime_checkable
class EncoderModule(Protocol):
    """A module that trains an encoder."""

    encoder: TextEncoder

    @property
    def device(self) -> torch.device:
        """Device of the module."""


@runtime_checkable
class LabelIndex(Protocol):
    """A module that indexes a vector of every label."""

    @property
    def has_index(self) -> bool:
        """Whether the index is of the labels as the module is now."""

    def build_index(self) -> tuple[Float[Tensor, "label d"] | None, Float[Tensor, "label d"]]:
        """Return h_l, None where none is made, and the vector of every label, which the searcher now searches."""

    def discard_index(self) -> None:
        """Make the next `build_index` start anew."""


@runtime_checkable
class PrototypeModule(QueryMemory, LabelIndex, EncoderModule, Protocol):
    """A module whose banks are filled from embeddings of its encoder."""

    prototypes: Prototypes
    searcher: Searcher
    make_bank: Callable[..., RowBank]
    label_memory: RowBank | None

    def embed(self, texts: Iterable[Texts], bank: RowBank, kind: Kind) -> None:
        """Encode all texts of a loader, queries or labels, into the rows of their ids."""

    def copy_tables_from_first(self) -> None:
        """Give every process that trains along the tables of the first one."""


def data_of(trainer: Trainer) -> TrainingData:
    """Return the data module that the Trainer was given.

    Raises:
        ValueError: If it was given none, or another one.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, TrainingData):
        raise ValueError(
            f"expected a PrimeDataModule, trainer.fit(module, datamodule=data), got {data!r}: batches are made from "
            "clusters of its queries, and centroids from their embeddings"
        )
    return data


def encoder_module(module: LightningModule) -> EncoderModule:
    """Return the module that is trained as one with an encoder.

    Raises:
        ValueError: If it has none.
    """
    if not isinstance(module, EncoderModule):
        raise ValueError(f"expected a module that trains an encoder, got a {type(module).__name__}")
    return module


def prototype_module(module: LightningModule) -> PrototypeModule:
    """Return the module that is trained as what the callbacks of the first stage need.

    Raises:
        ValueError: If it is another one.
    """
    if not isinstance(module, PrototypeModule):
        raise ValueError(f"expected a PrimeModule, got a {type(module).__name__}")
    return module
