"""The LightningModule of Renée and ELMO: one-vs-all classifiers that are trained together with the encoder."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prime_xmc.data.batch import Batch, send
from prime_xmc.data.corpus import Split
from prime_xmc.model.banks import RowBank
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.one_vs_all import OneVsAll
from prime_xmc.model.summed_bce import LabelPairs
from prime_xmc.training.fused_sgd import FusedSGD
from prime_xmc.training.optimizers import DenseAndSparse, with_warmup
from prime_xmc.training.protocols import EncoderModule, LabelIndex, Searcher
from prime_xmc.training.randomness import seed_step
from prime_xmc.training.ranking_module import RankingModule
from prime_xmc.training.start import check_precision


class OneVsAllModule(RankingModule, EncoderModule, LabelIndex):
    """Encoder and classifiers, trained by binary cross-entropy of all labels for every query.

    The optimiser steps the table of classifiers; where it is `FusedSGD`, block by block while the gradient is computed.

    Args:
        encoder: Text encoder f_theta, whose embeddings are not normalised.
        classifiers: Classifiers w_l.
        searcher: Search of the classifiers in validation and test.
        queries: Training queries, with the labels that are never an answer.
        inverse_propensity: Inverse propensity of every label, for the metrics.
        optimizer: Function that makes the optimiser from parameter groups; that of the classifiers is marked "sparse".
        scheduler: Function that makes the learning rate schedule from optimiser, num_warmup_steps and
            num_training_steps.
        weight_decay: Weight decay of the encoder's matrices; that of the classifiers is the optimiser's.
        warmup_fraction: Share of the steps in which the learning rate rises.
        seed: Seed of a step's random numbers, of dropout and rounding, together with the step's number.
        make_bank: Function that makes the table of frozen layers' outputs.

    Raises:
        ValueError: If the encoder normalises.

    Source: Renée, Jain et al. 2023; ELMO, Zhang et al. 2025.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        classifiers: OneVsAll,
        searcher: Searcher,
        *,
        queries: Split,
        inverse_propensity: np.ndarray,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: Callable[..., LRScheduler],
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
        seed: int = 0,
        make_bank: Callable[..., RowBank] = RowBank,
    ):
        super().__init__(encoder, searcher, inverse_propensity, make_bank)
        if encoder.normalize:
            raise ValueError(
                "one-vs-all classifiers are trained on embeddings that are not normalised: give encoder.normalize=false"
            )
        self.classifiers = classifiers
        self.queries = queries
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.seed = seed
        self.fused: FusedSGD | None = None  # what steps the classifiers in the backward pass, once it is made

    def setup(self, stage: str) -> None:
        """Refuse what would train otherwise than it should; make room for outputs of frozen layers.

        Raises:
            ValueError: If the precision is none of float32 weights, or there are several processes.
        """
        check_precision(str(self.trainer.precision))
        if self.trainer.world_size > 1:
            raise ValueError(
                f"one process trains one-vs-all classifiers, got {self.trainer.world_size}: leave trainer=ddp out"
            )
        data: Any = getattr(self.trainer, "datamodule", None)
        self.prepare_frozen_outputs(stage, None if data is None else data.corpus)

    def forward(
        self,
        token_ids: Int[Tensor, " token"],
        lengths: Int[Tensor, " text"],
        text_ids: Int64[Tensor, " text"] | None = None,
    ) -> Float[Tensor, "text d"]:
        """Encode texts; see `TextEncoder.forward`."""
        return self.encoder(token_ids, lengths.cpu(), text_ids)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start the step's random numbers."""
        seed_step(self.seed, self.global_step, self.device, batch_idx % self.trainer.accumulate_grad_batches)
        self.discard_index()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch's queries, and of its label rows, against all labels.

        Raises:
            ValueError: If the batch has texts of labels, which nothing here needs.
        """
        if len(batch.label_ids):
            raise ValueError(
                "one-vs-all classifiers see all labels in every step, and batches have texts of labels all the same: "
                "give sampling=random sampling.num_positives=0"
            )
        size = len(batch.query_ids)
        query_emb = self(batch.token_ids, batch.lengths, batch.text_ids)
        step_rows = None if self.fused is None else partial(self.fused.step_rows, self.classifiers.weight)
        loss = self.classifiers(query_emb, *self._pairs(batch), step_rows)
        self.num_trained += size
        self.step_log.note(self.global_step, size, loss.detach() / size, {})
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradient of the loss, a sum, so that batches which are accumulated are one large batch.

        Lightning has divided it by their number, as is right for the mean of a batch.
        """
        super().backward(loss * self.trainer.accumulate_grad_batches, *args, **kwargs)

    def _pairs(self, batch: Batch) -> tuple[LabelPairs, LabelPairs]:
        """Return the pairs of a batch that belong together, and those that the data exclude."""
        num_queries, size = len(batch.query_ids) - batch.num_label_rows, len(batch.query_ids)
        ids = batch.text_ids.numpy()  # on the host
        filtered = self.queries.filtered.take(ids[:num_queries])
        # a query's own label is no answer to it, whatever the data say
        positives = self.queries.positives.take(ids[:num_queries]).without(filtered)
        rows = np.concatenate([positives.row_ids(), np.arange(num_queries, size)])
        labels = np.concatenate([positives.values, ids[num_queries:] - len(self.queries)])
        return self._send(rows, labels), self._send(filtered.row_ids(), filtered.values)

    def _send(self, rows: np.ndarray, label_ids: np.ndarray) -> LabelPairs:
        return LabelPairs(*(send(torch.from_numpy(ids.astype(np.int64)), self.device) for ids in (rows, label_ids)))

    @torch.no_grad()
    def build_index(self) -> tuple[None, Float[Tensor, "label d"]]:
        """Let the searcher search the classifiers as they are now, and return them in float32; no text is encoded.

        Raises:
            ValueError: If training has diverged.
        """
        if self._index is None:
            self.require_finite()
            vectors = self.classifiers.vectors()
            self.searcher.build(vectors)
            self._index = None, vectors
        return None, self._index[1]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return matrices of the encoder, which decay; biases and norms; and the classifiers."""
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            {"params": [self.classifiers.weight], "sparse": True},
        ]

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule by step.

        Raises:
            ValueError: If the Trainer changes gradients that `FusedSGD` never has, or the classifiers are in bfloat16
                and another optimiser is to step them.
        """
        optimizer = self.optimizer(self.parameter_groups())
        parts = optimizer.parts if isinstance(optimizer, DenseAndSparse) else [optimizer]
        self.fused = next((part for part in parts if isinstance(part, FusedSGD)), None)
        if self.fused is None and self.classifiers.weight.dtype != torch.float32:
            raise ValueError(
                "model.dtype=bfloat16 would round most steps away: give optimizer=elmo, which rounds at random, or "
                "model.dtype=float32"
            )
        accumulates, clips = self.trainer.accumulate_grad_batches != 1, bool(self.trainer.gradient_clip_val)
        if self.fused is not None and (accumulates or clips):
            key = "accumulate_grad_batches" if accumulates else "gradient_clip_val"
            raise ValueError(
                f"trainer.{key}={getattr(self.trainer, key)}: optimizer=elmo steps the classifiers while it computes "
                "their gradient, which leaves none to change. Leave it out, or give optimizer=renee"
            )
        self.step_log.divergence.remedy = (
            "Lower optimizer.lr or optimizer.classifier_lr, or clip gradients with trainer.gradient_clip_val=1"
            if self.fused is None
            else "Lower optimizer.lr or optimizer.classifier_lr; gradients cannot be clipped with optimizer=elmo"
        )
        steps = int(self.trainer.estimated_stepping_batches)
        return with_warmup(optimizer, self.scheduler, num_steps=steps, warmup_fraction=self.warmup_fraction)
