"""The LightningModule: steps, logging and optimisers around encoder, prototypes and loss."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Int64
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prime_xmc.data.batch import Batch, Texts, send
from prime_xmc.model.banks import BANKS, RowBank
from prime_xmc.model.encoder import TextEncoder
from prime_xmc.model.losses import PrimeLoss
from prime_xmc.model.prototypes import Prototypes
from prime_xmc.training.checkpoints import ShardedCheckpointIO
from prime_xmc.training.optimizers import clip_gradients, with_warmup
from prime_xmc.training.protocols import Kind, PrototypeModule, Searcher
from prime_xmc.training.randomness import seed_step
from prime_xmc.training.ranking_module import RankingModule
from prime_xmc.training.sharded import copy_from_first, digest, encode_sharded, require_same
from prime_xmc.training.start import check_precision, check_processes, missing_callbacks

logger = logging.getLogger(__name__)

# prefixes of the tables' names
_TABLES = ("query_memory.", "label_memory.", "prototypes.", "encoder.frozen.", "inverse_propensity")
_CHECKED_ROWS = 1024  # of a bank: where these are zero, all are
_HOW_TO_LOAD = (
    "A checkpoint's state_dict does not hold the banks: load it with trainer.fit, validate or test(module, "
    "datamodule=data, ckpt_path=<run>/checkpoints/last.ckpt), whose Trainer has plugins=[ShardedCheckpointIO()] from "
    "prime_xmc.training.checkpoints"
)


class PrimeModule(RankingModule, PrototypeModule):
    """PRIME: encoder, prototypes and loss, with all that the method does around a step.

    It brings the callbacks along that fill its banks before training and make new clusters of queries, so that any
    Trainer trains it as `prime_xmc.train` does.

    Args:
        encoder: Text encoder f_theta.
        prototypes: Banks and the network g_phi.
        loss: Loss of Eq. 5.
        searcher: Search of the prototypes in validation and test.
        num_queries: Number of training queries, for the memory of their embeddings.
        inverse_propensity: Inverse propensity of every label, for the metrics and for losses that ask for it.
        optimizer: Function that makes the optimiser from parameter groups.
        scheduler: Function that makes the learning rate schedule from optimiser, num_warmup_steps and
            num_training_steps.
        weight_decay: Weight decay of matrices; biases, norms and free vectors are not decayed (Appendix H).
        warmup_fraction: Share of the steps in which the learning rate rises.
        seed: Seed of a step's random numbers (dropout), together with the step's number, so that a step is the same
            whether or not the run was interrupted before it.
        make_bank: Function that makes tables with a row per query or label.
        remember_labels: Whether to keep the embedding that training last made of each label, for batches with
            `MemoryLabels`.
        callbacks: Callbacks that belong to the method, such as `InitialisePrototypes` and `RebuildClusters`. A Trainer
            that has one of the same class keeps its own.
        zero_banks: Whether training and ranking may start from banks that were never filled, for ablations.

    Source: section 3.3 and Appendix H.
    """

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
        make_bank: Callable[..., RowBank] = RowBank,
        remember_labels: bool = False,
        callbacks: Sequence[Callback] = (),
        zero_banks: bool = False,
    ):
        super().__init__(encoder, searcher, inverse_propensity, make_bank)
        self.prototypes = prototypes
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.seed = seed
        self.inverse_propensity: Tensor
        self.register_buffer(
            "inverse_propensity", torch.from_numpy(inverse_propensity.astype(np.float32)), persistent=False
        )
        # the embedding that training itself last made of each query, for clusters without another encoding pass
        self.query_memory = make_bank(num_queries, encoder.dim, dtype="float16")
        self.label_memory = make_bank(prototypes.num_labels, encoder.dim, dtype="float16") if remember_labels else None
        self.callbacks = list(callbacks)
        self.zero_banks = zero_banks
        self._compared_epoch: int | None = None  # the last one whose batches were compared between processes
        self._leave_tables_alone()

    @property
    def banks(self) -> dict[str, RowBank]:
        """The tables that training changes by name."""
        banks = {"centroids": self.prototypes.centroids, "query_memory": self.query_memory}
        return banks if self.label_memory is None else banks | {"label_memory": self.label_memory}

    def _leave_tables_alone(self) -> None:
        """Keep DDP from sending tables: every process changes its own, those of prototypes all in the same way."""
        tables = [name for name, _ in self.named_buffers() if name.startswith(_TABLES)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, [*tables, "prototypes.free_vectors"])

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks of the method that the Trainer does not have."""
        return missing_callbacks(self.trainer, self.callbacks)

    def setup(self, stage: str) -> None:
        """Refuse what would train or rank otherwise than it should; make room for outputs of frozen layers.

        Raises:
            ValueError: If the precision is none of float32 weights, or the processes would not see the same data.
        """
        check_precision(str(self.trainer.precision))
        check_processes(self.trainer)
        data: Any = getattr(self.trainer, "datamodule", None)
        self.prepare_frozen_outputs(stage, None if data is None else data.corpus)
        self._leave_tables_alone()
        if self.trainer.world_size > 1 and data is not None:
            parts = {
                "data set": digest(data.corpus.manifest["fingerprint"]),
                "queries to train on": digest(torch.from_numpy(data.sampler.query_ids)),
                "seed": self.seed,
            }
            require_same(parts, "the data", self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        """Let all processes start from the same tables, which the callbacks, or a checkpoint, have filled by now."""
        self._compared_epoch = None
        self.copy_tables_from_first()

    def copy_tables_from_first(self) -> None:
        """Give every process that trains along the tables of the first one, which DDP leaves alone."""
        tables = [bank.rows for bank in self.banks.values()] + [self.prototypes.cluster_of_label]
        if self.prototypes.free_vectors is not None:
            tables.append(self.prototypes.free_vectors)
        for table in tables:
            copy_from_first(table, self.device)

    def unfilled(self, *, training: bool = False) -> list[str]:
        """Return the names of the tables that were never filled, of those behind the prototypes or behind a step."""
        prototypes, names = self.prototypes, []
        if "centroid" in prototypes.sources and not prototypes.centroids.rows[:_CHECKED_ROWS].any():
            names.append("centroids")
        free_vectors = prototypes.free_vectors
        if free_vectors is not None and len(free_vectors) > 1 and not prototypes.cluster_of_label.any():
            names.append("clusters of labels")
        if training and self.label_memory is not None and not self.label_memory.rows[:_CHECKED_ROWS].any():
            names.append("remembered label embeddings")
        return names

    def _require_banks(self, *, training: bool = False) -> None:
        names = self.unfilled(training=training)
        if names and not self.zero_banks:
            raise ValueError(
                f"{' and '.join(names)} are all zero: they were never filled, and prototypes made of them are wrong. "
                "Training fills them where the module has the callback InitialisePrototypes, as the one of "
                f"prime_xmc.assemble.make_module does. {_HOW_TO_LOAD}"
            )

    def on_train_start(self) -> None:
        """Refuse to train with tables that were never filled.

        Raises:
            ValueError: If there are such.
        """
        self._require_banks(training=True)
        if self.zero_banks and (names := self.unfilled(training=True)):
            logger.warning("callbacks.initialise=null: training starts from %s of zero", " and ".join(names))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hand over the banks: `ShardedCheckpointIO` streams them, Lightning's own writes their rows into the file.

        Raises:
            ValueError: If training has diverged.
        """
        super().on_save_checkpoint(checkpoint)
        streams = isinstance(self.trainer.strategy.checkpoint_io, ShardedCheckpointIO)
        checkpoint[BANKS] = self.banks if streams else {name: bank.rows for name, bank in self.banks.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the banks, which are folders or rows, see `on_save_checkpoint`.

        Raises:
            ValueError: If the checkpoint has none, or others.
        """
        for name, bank in self.banks.items():
            saved = checkpoint.get(BANKS, {}).get(name)
            if saved is None:
                raise ValueError(
                    f"the checkpoint has no bank {name}: expected one of a run of this version. {_HOW_TO_LOAD}"
                )
            if isinstance(saved, Tensor):
                if saved.shape != bank.rows.shape:
                    raise ValueError(
                        f"the checkpoint's bank {name} has {tuple(saved.shape)} rows and columns, expected "
                        f"{tuple(bank.rows.shape)}: another data set or encoder"
                    )
                bank.rows.copy_(saved)
            else:
                bank.load(Path(saved))
        self.discard_index()

    def forward(
        self,
        token_ids: Int[Tensor, " token"],
        lengths: Int[Tensor, " text"],
        text_ids: Int64[Tensor, " text"] | None = None,
    ) -> Float[Tensor, "text d"]:
        """Encode texts; the processes of a data-parallel run share the work and all get the whole.

        Args:
            token_ids: Ids of all texts behind one another.
            lengths: Tokens of each text.
            text_ids: Ids of training queries, or num_queries plus the ids of labels; None for other texts. On the CPU,
                as the lengths are.
        """
        lengths = lengths.cpu()  # by them the host orders the texts and cuts chunks
        if self._trainer is None or self.trainer.world_size == 1:
            return self.encoder(token_ids, lengths, text_ids)
        return encode_sharded(
            self.encoder,
            token_ids,
            lengths,
            text_ids,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start the step's random numbers: loaders draw from the same generator, at other times in a continued run.

        Raises:
            ValueError: If it is the first batch of an epoch here, and not the same in all processes.
        """
        self._start_random_numbers(batch_idx)
        self.discard_index()
        if self.trainer.world_size > 1 and self._compared_epoch != self.current_epoch:
            self._compared_epoch = self.current_epoch
            parts = {
                "queries": digest(batch.query_ids),
                "labels": digest(batch.label_ids),
                "texts": digest(batch.token_ids, batch.lengths),
                "pairs of query and label": digest(
                    batch.relations.positive_places, batch.relations.spared_places, batch.pair_rows, batch.pair_labels
                ),
                "clusters of labels": digest(self.prototypes.cluster_of_label),
                "step": self.global_step,
            }
            require_same(parts, f"the batches of epoch {self.current_epoch}", self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of a batch; move the centroids towards its queries and remember their embeddings.

        Returns:
            `loss`; and for callbacks, without gradient, `query_emb`, `label_emb` and `prototypes`.
        """
        embeddings = self(batch.token_ids, batch.lengths, batch.text_ids)
        if self._trainer is not None and self.trainer.world_size > 1:
            self._start_random_numbers(batch_idx)  # dropout has drawn for other texts in each process
        query_emb, label_emb = embeddings.split([len(batch.query_ids), len(batch.label_ids)])
        prototypes, positives, negatives, known = self._candidates(batch, label_emb)
        seen = self._seen(batch, query_emb.detach())
        # cosines near 1 differ by less than bf16 can tell
        with torch.autocast(self.device.type, enabled=False):
            # a loss of somebody's own, in place of `PrimeLoss`, may have no use for them
            taken = inspect.signature(self.loss.forward).parameters
            known = {name: value for name, value in known.items() if name in taken}
            loss, logs = self.loss(query_emb, label_emb, prototypes, positives, negatives, **known)
            drift = self.prototypes.update_centroids(*seen, batch.moved_ids)
        num_queries = len(query_emb) - batch.num_label_rows  # label rows, behind them, are not remembered
        self.query_memory.put(batch.query_ids[:num_queries], query_emb[:num_queries])
        if self.label_memory is not None:
            self.label_memory.put(batch.label_ids, label_emb)
        size = len(batch.query_ids)
        self.num_trained += size
        self.step_log.note(self.global_step, size, loss.detach(), logs | {"centroid_drift": drift})
        embedded = {"query_emb": query_emb, "label_emb": label_emb, "prototypes": prototypes[: len(label_emb)]}
        return {"loss": loss} | {name: emb.detach() for name, emb in embedded.items()}

    def _start_random_numbers(self, batch_idx: int) -> None:
        seed_step(self.seed, self.global_step, self.device, batch_idx % self.trainer.accumulate_grad_batches)

    def _candidates(self, batch: Batch, label_emb: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return prototypes of the batch's labels, then of those in memory, and their positive and negative pairs.

        The positive ones as a matrix; and what else `PrimeLoss` takes by name: as pairs, those with the batch's own
        labels and all of them; ids and inverse propensities; and the prototypes without a query in the centroid.
        """
        ids, text_emb, relations = batch.label_ids, label_emb, batch.relations
        if batch.memory is not None:
            assert self.label_memory is not None
            remembered = self.label_memory.take(batch.memory.ids).float()
            ids, text_emb = torch.cat([ids, batch.memory.ids]), torch.cat([label_emb, remembered])
            relations = batch.memory.relations
        known: dict[str, Any] = {
            "pairs": (batch.relations.pairs(), relations.pairs()),
            "label_ids": ids,
            "inverse_propensity": self.inverse_propensity,
        }
        if batch.left_out is not None and "centroid" in self.prototypes.sources:
            rows, columns, num_queries = batch.left_out
            query_emb = self.query_memory.take(batch.query_ids[rows])
            prototypes, own = self.prototypes.with_left_out(
                ids, text_emb, columns, query_emb, num_queries, batch.without_centroid
            )
            known["left_out"] = rows, columns, own
        else:
            prototypes = self.prototypes(ids, text_emb, batch.without_centroid)
        return prototypes, relations.positives(), relations.negatives(), known

    @torch.no_grad()
    def _seen(self, batch: Batch, query_emb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embeddings that move centroids, and row and place of the label of their pairs."""
        if batch.more is None:
            return query_emb, batch.pair_rows, batch.pair_places
        texts, rows, places = batch.more
        more_emb = self(texts.token_ids, texts.lengths, texts.ids)
        self.query_memory.put(send(texts.ids, self.device), more_emb)
        return (
            torch.cat([query_emb, more_emb]),
            torch.cat([batch.pair_rows, len(query_emb) + rows]),
            torch.cat([batch.pair_places, places]),
        )

    def on_after_backward(self) -> None:
        """Let the processes of a data-parallel run agree on the gradient of the free vectors.

        DDP averages the others; it cannot handle sparse ones with every backend. The rows are the same everywhere,
        since the batch and the clusters of labels are, which `on_train_batch_start` compares.
        """
        free_vectors = self.prototypes.free_vectors
        if self.trainer.world_size > 1 and free_vectors is not None and free_vectors.grad is not None:
            free_vectors.grad = free_vectors.grad.coalesce()
            values = free_vectors.grad._values()  # coalesced: by ascending row
            dist.all_reduce(values)
            values /= self.trainer.world_size

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as trainer.gradient_clip_val says, also the sparse gradient of the free vectors."""
        if gradient_clip_val:
            algorithm = gradient_clip_algorithm or "norm"
            clip_gradients(
                self.parameters(),
                float(gradient_clip_val),
                algorithm,
                agree=partial(copy_from_first, device=self.device),
            )

    @torch.no_grad()
    def embed(self, texts: Iterable[Texts], bank: RowBank, kind: Kind) -> None:
        """Encode all texts of a loader into the rows of their ids.

        Args:
            texts: Chunks of texts.
            bank: Where the embeddings go; rows of ids that the loader does not have stay as they are.
            kind: What the texts are: training queries ("query") or labels ("label").
        """
        for ids, emb in self._encoded(texts, kind):
            bank.put(ids, emb)

    def _encoded(
        self, texts: Iterable[Texts], kind: Kind
    ) -> Iterator[tuple[Int64[Tensor, " text"], Float[Tensor, "text d"]]]:
        was_training = self.training
        self.eval()
        first = len(self.query_memory) if kind == "label" else 0
        for chunk in texts:
            with self.trainer.precision_plugin.forward_context():
                emb = self(send(chunk.token_ids, self.device), chunk.lengths, first + chunk.ids)
            yield send(chunk.ids, self.device), emb
        self.train(was_training)

    @torch.no_grad()
    def build_index(self) -> tuple[Float[Tensor, "label d"], Float[Tensor, "label d"]]:
        """Encode all labels, let the searcher search their prototypes, and return h_l (float16) and z_l (float32).

        Where no training step came in between, that is done already: validation, export and test share it.

        Raises:
            ValueError: If the banks were never filled, or training has diverged.
        """
        self._require_banks()
        if self._index is None:
            self.require_finite()
            num_labels = self.prototypes.num_labels
            logger.info("encoding %d labels", num_labels)
            label_emb = self.make_bank(num_labels, self.encoder.dim, dtype="float16")
            prototypes = self.make_bank(num_labels, self.encoder.dim)
            for bank in (label_emb, prototypes):
                bank.to(self.device)
            loader = self.trainer.datamodule.label_dataloader()  # type: ignore[attr-defined]
            for ids, emb in self._encoded(loader, "label"):
                label_emb.put(ids, emb)
                prototypes.put(ids, self.prototypes(ids, emb))
            made = [("label embeddings", label_emb.rows), ("prototypes", prototypes.rows)]
            self.step_log.divergence.require_finite_tensors("vectors of labels", made, self.global_step)
            self.searcher.build(prototypes.rows)
            self._index = label_emb.rows, prototypes.rows
        text_emb, vectors = self._index
        assert text_emb is not None
        return text_emb, vectors

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return matrices, which decay; biases and norms; and free vectors, whose gradient is sparse."""
        parameters = [p for p in self.parameters() if p.requires_grad and p is not self.prototypes.free_vectors]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        if self.prototypes.free_vectors is not None:
            groups.append({"params": [self.prototypes.free_vectors], "sparse": True})
        return groups

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule by step."""
        optimizer = self.optimizer(self.parameter_groups())
        steps = int(self.trainer.estimated_stepping_batches)
        return with_warmup(optimizer, self.scheduler, num_steps=steps, warmup_fraction=self.warmup_fraction)
