"""The LightningModule of the second stage, PRIME (W): one-vs-all classifiers on a frozen encoder."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from lightning.pytorch import Callback, LightningModule
from torch import Tensor
from torch.nn.functional import dropout, normalize
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prime_xmc.data.batch import Batch, Texts, send
from prime_xmc.data.corpus import Split
from prime_xmc.evaluation.meter import XMCMetrics, log_metrics
from prime_xmc.evaluation.metrics import TOP_K
from prime_xmc.evaluation.rank import search_unfiltered
from prime_xmc.model.banks import RowBank
from prime_xmc.model.classifiers import Classifiers, hardest_of_all, pair_similarity
from prime_xmc.model.losses import Contrast, Pairs, asked_by, contrast_of
from prime_xmc.training.optimizers import clip_gradients, with_warmup
from prime_xmc.training.protocols import QueryMemory, Searcher
from prime_xmc.training.randomness import seed_step
from prime_xmc.training.start import check_precision, missing_callbacks
from prime_xmc.training.step_log import StepLog


class ClassifierModule(LightningModule, QueryMemory):
    """Trains the classifiers on frozen embeddings of the training queries.

    A query is pulled to its positives and pushed from its negatives:

    - "sampled": the labels of the batch, drawn for its queries, as in the first stage. A step costs the same whatever
      the number of labels: it reads and changes the rows of the batch's labels alone.
    - "all": all positives, and of all other labels the `loss.num_negatives` most similar ones, which are those that
      count in the loss. A step scores every label, in blocks: 2 * batch * labels * d operations, in memory that does
      not grow with the labels; it changes the rows of positives and hardest negatives alone. Sensible up to some
      100,000 labels on a CPU, a million on a GPU; the negatives are those that a batch seldom has.

    Args:
        classifiers: Classifiers w_l.
        query_memory: Embedding of every training query.
        queries: Training queries, with their positives and the labels that are never an answer.
        loss: Loss of cosines; the paper's is the triplet loss with a fixed margin, gamma_min = gamma_max.
        searcher: Search of the classifiers in validation.
        negatives: "sampled" or "all".
        dropout: Share of the entries of a query embedding that a step leaves out.
        inverse_propensity: Inverse propensity of every label, for the metrics.
        optimizer: Function that makes the optimiser, which takes sparse gradients, from the parameters.
        scheduler: Function that makes the learning rate schedule from optimiser, num_warmup_steps and
            num_training_steps.
        warmup_fraction: Share of the steps in which the learning rate rises.
        seed: Seed of the dropout of a step, together with the step's number.
        callbacks: Callbacks that belong to the method, such as `RebuildClusters`. A Trainer that has one of the same
            class keeps its own.

    Raises:
        ValueError: If negatives is neither, "all" comes without a number of negatives, or dropout is not in [0, 1).

    Source: Section 4.3, Appendix C; NGAME, Dahiya et al. 2023a; values from the public code.
    """

    def __init__(
        self,
        classifiers: Classifiers,
        query_memory: RowBank,
        queries: Split,
        loss: Contrast,
        searcher: Searcher,
        *,
        negatives: str,
        dropout: float,
        inverse_propensity: np.ndarray,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        warmup_fraction: float,
        seed: int,
        callbacks: Sequence[Callback] = (),
    ):
        super().__init__()
        if negatives not in ("sampled", "all"):
            raise ValueError(f"expected negatives sampled or all, got {negatives!r}")
        if negatives == "all" and loss.num_negatives is None:
            raise ValueError("negatives=all looks for the hardest of all labels: expected a number loss.num_negatives")
        if not 0 <= dropout < 1:
            raise ValueError(f"expected a dropout of at least 0 and below 1, got {dropout}")
        self.classifiers = classifiers
        self.query_memory = query_memory
        self.queries = queries
        self.loss = loss
        self.searcher = searcher
        self.negatives = negatives
        self.dropout = dropout
        self.metrics = XMCMetrics(inverse_propensity)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.warmup_fraction = warmup_fraction
        weights = torch.from_numpy(inverse_propensity.astype(np.float32))
        self.inverse_propensity: Tensor
        self.register_buffer("inverse_propensity", weights, persistent=False)
        self.seed = seed
        self.callbacks = list(callbacks)
        self.step_log = StepLog()
        self.step_log.divergence.remedy = (
            "Lower optimizer.lr of the second stage (in a training of both, classify_settings=[optimizer.lr=3e-4]), or "
            "clip its gradients with trainer.gradient_clip_val=1"
        )
        self.num_trained = 0  # queries that went through training steps

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks of the method that the Trainer does not have."""
        return missing_callbacks(self.trainer, self.callbacks)

    def setup(self, stage: str) -> None:
        """Refuse what would train otherwise than it should.

        Raises:
            ValueError: If the precision is none of float32 weights, or there are several processes.
        """
        check_precision(str(self.trainer.precision))
        if self.trainer.world_size > 1:
            raise ValueError(
                f"classifiers are trained by one process, got {self.trainer.world_size}: leave trainer=ddp out"
            )

    def forward(self, query_ids: Int64[Tensor, " query"]) -> Float[Tensor, "query d"]:
        """Return the embeddings of training queries, unit vectors."""
        return normalize(self.query_memory.take(query_ids).float(), dim=-1)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start the step's random numbers."""
        seed_step(self.seed, self.global_step, self.device, batch_idx % self.trainer.accumulate_grad_batches)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss, logs = self.batch_loss(batch)
        size = len(batch.query_ids)
        self.num_trained += size
        self.step_log.note(self.global_step, size, loss.detach(), logs)
        return loss

    def on_train_epoch_start(self) -> None:
        """Forget what the steps of the epoch before have logged."""
        self.step_log.start_epoch()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log what is due, and stop where training has diverged.

        Raises:
            ValueError: If it has.
        """
        self.step_log.log(self)

    def batch_loss(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of a batch's queries against their labels, and what else to log."""
        query_emb = normalize(dropout(self(batch.query_ids), self.dropout), dim=-1)
        if self.negatives == "all":
            similarity, positives, negatives, pairs, label_ids = self._against_all(batch, query_emb)
        else:
            similarity, label_ids = query_emb @ self.classifiers(batch.label_ids).T, batch.label_ids[None]
            positives, negatives, pairs = batch.positives, batch.negatives, batch.relations.pairs()
        known: dict[str, Any] = {"label_ids": label_ids}
        if "inverse_propensity" in asked_by(self.loss):
            known["inverse_propensity"] = self.inverse_propensity[label_ids]
        return contrast_of(self.loss, similarity, positives, negatives, pairs, **known)

    def _against_all(
        self, batch: Batch, query_emb: Float[Tensor, "query d"]
    ) -> tuple[
        Float[Tensor, "query c"], Bool[Tensor, "query c"], Bool[Tensor, "query c"], Pairs, Int64[Tensor, "query c"]
    ]:
        """Return similarity, positives, negatives, positive pairs and label ids of each query and its own candidates.

        The candidates are its positives, then its hardest negatives.
        """
        query_ids = batch.text_ids[: len(query_emb)].numpy()  # on the host
        filtered = self.queries.filtered.take(query_ids)
        filtered_rows, filtered_labels = (
            send(torch.from_numpy(ids.astype(np.int64)), self.device) for ids in (filtered.row_ids(), filtered.values)
        )
        assert self.loss.num_negatives is not None
        hard, exists = hardest_of_all(
            query_emb,
            self.classifiers.weight,
            torch.cat([batch.pair_rows, filtered_rows]),
            torch.cat([batch.pair_labels, filtered_labels]),
            self.loss.num_negatives,
        )
        of_queries = self.queries.positives.take(query_ids)
        num_positives = of_queries.lengths
        places = np.arange(len(of_queries.values)) - np.repeat(of_queries.offsets[:-1], num_positives)
        columns = torch.arange(int(num_positives.max(initial=0)), device=self.device)
        positives = columns < send(torch.from_numpy(num_positives), self.device)[:, None]
        pairs = batch.pair_rows, send(torch.from_numpy(places), self.device)
        label_ids, of_pairs = torch.cat([batch.pair_labels, hard.flatten()]).unique(return_inverse=True)
        rows = torch.arange(len(query_emb), device=self.device).repeat_interleave(hard.shape[1])
        found = pair_similarity(query_emb, self.classifiers(label_ids), torch.cat([batch.pair_rows, rows]), of_pairs)
        of_positives, of_negatives = found.split([len(batch.pair_rows), hard.numel()])
        # pairs are in order of their rows, so they fill the places of the mask in its own order
        table = query_emb.new_zeros(positives.shape).masked_scatter(positives, of_positives)
        ids = torch.zeros_like(positives, dtype=torch.int64).masked_scatter(positives, batch.pair_labels)
        return (
            torch.cat([table, of_negatives.view(hard.shape)], dim=1),
            torch.cat([positives, torch.zeros_like(exists)], dim=1),
            torch.cat([torch.zeros_like(positives), exists], dim=1),
            pairs,
            torch.cat([ids, hard], dim=1),
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the sparse gradient of the classifiers as trainer.gradient_clip_val says."""
        if gradient_clip_val:
            clip_gradients(self.parameters(), float(gradient_clip_val), gradient_clip_algorithm or "norm")

    def require_finite(self) -> None:
        """Require that training has not diverged: that all losses so far were finite, and the classifiers are.

        Raises:
            ValueError: If it has.
        """
        divergence = self.step_log.divergence
        divergence.require_finite()
        divergence.require_finite_tensors("weights", self.named_parameters(), self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint of a training that has diverged over one of before.

        Raises:
            ValueError: If it has.
        """
        self.require_finite()

    def on_train_end(self) -> None:
        """Refuse to go on with classifiers that are not finite.

        Raises:
            ValueError: If training has diverged.
        """
        self.require_finite()

    def on_validation_epoch_start(self) -> None:
        """Search in the classifiers as they are now.

        Raises:
            ValueError: If training has diverged.
        """
        self.require_finite()
        self.searcher.build(self.classifiers.vectors())

    def validation_step(self, batch: Texts, batch_idx: int) -> None:
        """Rank the labels for a chunk of validation queries by the classifiers alone."""
        ids, query_emb = batch.ids.numpy(), self(send(batch.ids, self.device))
        found, _ = search_unfiltered(self.searcher.search, query_emb, self.queries.filtered.take(ids), TOP_K)
        self.metrics.update(found, self.queries.positives.take(ids))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation queries."""
        log_metrics(self, self.metrics, "val/W")

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule by step."""
        optimizer = self.optimizer(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        return with_warmup(optimizer, self.scheduler, num_steps=steps, warmup_fraction=self.warmup_fraction)
