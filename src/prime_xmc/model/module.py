"""The LightningModule: steps, logging and optimisers around encoder, prototypes and loss."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prime_xmc.data.batch import Batch, Texts
from prime_xmc.metrics import XMCMetrics, search_unfiltered
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.losses import PrimeLoss
from prime_xmc.model.prototypes import Prototypes
from prime_xmc.model.sharded import encode_sharded

logger = logging.getLogger(__name__)

TOP_K = 100  # of the metrics and of predictions.npz


@runtime_checkable
class Searcher(Protocol):
    """Finds the labels nearest to queries."""

    def build(self, vectors: Float[Tensor, "label d"]) -> None:
        """Take the vectors to search in."""

    def search(
        self, query_emb: Float[Tensor, "query d"], k: int
    ) -> tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]:
        """Return scores, descending, and label ids."""


class PrimeModule(LightningModule):
    """PRIME.

    Args:
        encoder: f_theta.
        prototypes: Banks and g_phi.
        loss: Eq. 5.
        searcher: For validation and test.
        num_queries: Training queries of the data set, for the memory of their embeddings.
        inverse_propensity: Of every label, for the metrics.
        optimizer: Makes the optimiser from parameter groups.
        scheduler: Makes the learning rate schedule from optimiser, num_warmup_steps and num_training_steps.
        weight_decay: Of matrices; biases, norms and free vectors are not decayed (Appendix H).
        warmup_fraction: Share of the steps in which the learning rate rises.
        seed: Of the random numbers (dropout) of a step, together with its number, so that a step is the same whether
            or not the run was interrupted before it.

    Source: section 3.3 and Appendix H.
    """

    query_memory: Tensor

    def __init__(
        self,
        encoder: TextEncoder,
        prototypes: Prototypes,
        loss: PrimeLoss,
        searcher: Searcher,
        *,
        num_queries: int,
        inverse_propensity: np.ndarray,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: Callable[..., LRScheduler],
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
        seed: int = 0,
    ):
        super().__init__()
        self.encoder = encoder
        self.prototypes = prototypes
        self.loss = loss
        self.searcher = searcher
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.seed = seed
        self.metrics = XMCMetrics(inverse_propensity)
        # what training itself last made of each query, for clusters without another encoding pass
        self.register_buffer("query_memory", torch.zeros(num_queries, encoder.dim, dtype=torch.float16))
        self.test_predictions: tuple[np.ndarray, np.ndarray] | None = None
        self.num_trained = 0  # queries that went through training steps of this process
        self._index: tuple[Tensor, Tensor] | None = None

    def forward(self, token_ids: Int[Tensor, " token"], lengths: Int[Tensor, " text"]) -> Float[Tensor, "text d"]:
        """Encode texts; the processes of a data-parallel run share the work and all get the whole."""
        if self._trainer is None or self.trainer.world_size == 1:
            return self.encoder(token_ids, lengths)
        return encode_sharded(
            self.encoder, token_ids, lengths, rank=self.trainer.global_rank, world_size=self.trainer.world_size
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start the step's random numbers: loaders draw from the same generator, at other times in a continued run."""
        torch.manual_seed(hash((self.seed, self.global_step)))
        self.discard_index()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch; move the centroids towards its queries and remember their embeddings."""
        embeddings = self(batch.token_ids, batch.lengths)
        query_emb, label_emb = embeddings.split([len(batch.query_ids), len(batch.label_ids)])
        prototypes = self.prototypes(batch.label_ids, label_emb)
        # cosines near 1 differ by less than bf16 can tell
        with torch.autocast(self.device.type, enabled=False):
            loss, logs = self.loss(query_emb, label_emb, prototypes, batch.positives, batch.negatives)
            drift = self.prototypes.update_centroids(query_emb.detach(), batch.pair_rows, batch.pair_labels)
        self.query_memory[batch.query_ids] = query_emb.detach().to(self.query_memory.dtype)
        size = len(batch.query_ids)
        self.num_trained += size
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=True, batch_size=size)
        logs = {f"train/{name}": value for name, value in logs.items()} | {"train/centroid_drift": drift}
        self.log_dict(logs, on_step=True, on_epoch=True, batch_size=size)
        return loss

    @torch.no_grad()
    def embed(self, texts: Iterable[Texts], num_texts: int) -> Float[Tensor, "text d"]:
        """Encode all texts of a loader; row i is the text with id i, 0 where the loader has none.

        Args:
            texts: Chunks of texts.
            num_texts: Rows of the result.
        """
        was_training = self.training
        self.eval()
        embeddings = torch.zeros(num_texts, self.encoder.dim, device=self.device)
        for chunk in texts:
            with self.trainer.precision_plugin.forward_context():
                emb = self(chunk.token_ids.to(self.device), chunk.lengths)
            embeddings[chunk.ids.to(self.device)] = emb
        self.train(was_training)
        return embeddings

    @torch.no_grad()
    def compute_prototypes(
        self, label_emb: Float[Tensor, "label d"], chunk_size: int = 8192
    ) -> Float[Tensor, "label d"]:
        """Return z_l of every label from h_l of every label."""
        was_training = self.training
        self.eval()
        ids = torch.arange(len(label_emb), device=self.device)
        chunks = zip(ids.split(chunk_size), label_emb.split(chunk_size), strict=True)
        prototypes = torch.cat([self.prototypes(rows, emb) for rows, emb in chunks])
        self.train(was_training)
        return prototypes

    def build_index(self) -> tuple[Float[Tensor, "label d"], Float[Tensor, "label d"]]:
        """Encode all labels, let the searcher search their prototypes, and return h_l and z_l.

        Where no training step came in between, that is done already: validation, export and test share it.
        """
        if self._index is None:
            logger.info("encoding %d labels", self.prototypes.num_labels)
            loader = self.trainer.datamodule.label_dataloader()  # type: ignore[attr-defined]
            label_emb = self.embed(loader, self.prototypes.num_labels)
            prototypes = self.compute_prototypes(label_emb)
            self.searcher.build(prototypes)
            self._index = label_emb, prototypes
        return self._index

    def discard_index(self) -> None:
        """Make the next `build_index` start anew, since a bank has changed or memory is needed."""
        self._index = None

    def on_validation_epoch_start(self) -> None:
        """Bring the prototypes up to date."""
        self.build_index()

    def on_test_epoch_start(self) -> None:
        """Bring the prototypes up to date."""
        self.build_index()
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def validation_step(self, batch: Texts, batch_idx: int) -> None:
        """Rank the labels for a chunk of validation queries."""
        self._rank(batch, "val")

    def test_step(self, batch: Texts, batch_idx: int) -> None:
        """Rank the labels for a chunk of test queries, and keep the top of the ranking."""
        self._found.append((batch.ids.cpu().numpy(), *self._rank(batch, "test")))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation queries."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test queries and put their predictions in order."""
        self._log_metrics("test")
        ids, indices, scores = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        order = np.argsort(ids)
        self.test_predictions = indices[order], scores[order]

    def _rank(self, batch: Texts, stage: Literal["val", "test"]) -> tuple[np.ndarray, np.ndarray]:
        queries = self.trainer.datamodule.truth(stage)  # type: ignore[attr-defined]
        ids = batch.ids.cpu().numpy()
        query_emb = self(batch.token_ids, batch.lengths)
        found, scores = search_unfiltered(self.searcher.search, query_emb, queries.filtered.take(ids), TOP_K)
        self.metrics.update(found, queries.positives.take(ids))
        return found, scores

    def _log_metrics(self, stage: str) -> None:
        values = {f"{stage}/{name}": value for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        shown = f"{stage}/P@1"
        self.log(shown, values.pop(shown), prog_bar=True)
        self.log_dict(values)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule by step."""
        parameters = {name: p for name, p in self.named_parameters() if p.requires_grad}
        plain = [p for name, p in parameters.items() if p.ndim < 2 or name.endswith("free_vectors")]
        decayed = [p for name, p in parameters.items() if not (p.ndim < 2 or name.endswith("free_vectors"))]
        optimizer = self.optimizer(
            [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        )
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.scheduler(
            optimizer, num_warmup_steps=round(self.warmup_fraction * steps), num_training_steps=steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
