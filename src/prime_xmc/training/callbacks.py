"""What happens around the steps of training: filling the banks, new clusters, the table of epochs, the export."""

import csv
import ctypes
import hashlib
import logging
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from prime_xmc.data.batch import Texts
from prime_xmc.data.corpus import Ragged
from prime_xmc.data.sampling import cluster_size_at
from prime_xmc.evaluation.rank import search_unfiltered
from prime_xmc.files import replacing
from prime_xmc.index.clustering import balanced_clusters
from prime_xmc.model.finiteness import not_finite
from prime_xmc.model.prototypes import fill_mean_centroids
from prime_xmc.progress import track
from prime_xmc.training.embedding_cache import load_embeddings, save_embeddings
from prime_xmc.training.protocols import (
    Kind,
    LabelIndex,
    PrototypeModule,
    QueryMemory,
    TrainingData,
    data_of,
    prototype_module,
)
from prime_xmc.training.sharded import copy_from_first

logger = logging.getLogger(__name__)

_MINED_AT_ONCE = 2**14  # queries whose labels are searched at once


class InitialisePrototypes(Callback):
    """Before training: centroids, clusters of labels that share a free vector, and the memory of query embeddings.

    All come from the embeddings of the pre-trained encoder, which are kept on disk under a fingerprint of data,
    encoder and precision. A run that continues from a checkpoint has them from there.

    The module keeps the clusters of labels that it has, since its free vectors belong to them.

    Args:
        cache_dir: Folder in which embeddings are kept.
        seed: Seed of the clustering.

    Source: section 3.2.
    """

    def __init__(self, cache_dir: str, seed: int = 0):
        self.cache_dir = Path(cache_dir).expanduser()
        self.seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the banks; the module then hands those of the first process on to the others."""
        if trainer.ckpt_path is not None:
            return
        module, data = prototype_module(pl_module), data_of(trainer)
        # each process may have rounded the weights otherwise when it made them: the first one's count
        directory = (
            self.cache_dir / f"embeddings-{trainer.strategy.broadcast(self._fingerprint(trainer, module, data))}"
        )
        labels = module.label_memory
        if labels is None:
            labels = module.make_bank(data.corpus.num_labels, module.encoder.dim, dtype="float16").to(module.device)
        embedded = {"query": module.query_memory, "label": labels}
        # embedding is shared out: either all processes take part in it, or none does
        if trainer.strategy.reduce_boolean_decision(directory.is_dir()):
            load_embeddings(directory, embedded)
        else:
            loaders = {"query": data.train_text_dataloader(), "label": data.label_dataloader()}
            kinds: tuple[Kind, ...] = ("query", "label")
            for kind in kinds:
                module.embed(_with_progress(loaders[kind], kind), embedded[kind], kind)
            _require_finite((kind, bank.rows) for kind, bank in embedded.items())
            if trainer.is_global_zero:
                save_embeddings(directory, embedded)
        if not trainer.is_global_zero:
            return
        prototypes = module.prototypes
        fill_mean_centroids(prototypes.centroids, module.query_memory, labels, *_train_pairs(data, module.device))
        if prototypes.free_vectors is not None and not prototypes.cluster_of_label.any():
            frequency = torch.from_numpy(data.train_frequency()).to(module.device)
            sharing = prototypes.labels_that_share(frequency)
            rows = labels.rows  # on the host, maybe, and copied only where some are left out
            if prototypes.num_private:
                rows = rows[sharing.to(rows.device)]
            num_clusters = min(prototypes.num_shared, len(sharing))
            clusters = balanced_clusters(rows, num_clusters, seed=self.seed) if num_clusters else sharing
            prototypes.share_free_vectors(clusters, frequency, labels.take)

    def _fingerprint(self, trainer: Trainer, module: PrototypeModule, data: TrainingData) -> str:
        digest = hashlib.blake2b(data.corpus.manifest["fingerprint"].encode(), digest_size=6)
        digest.update(f"{trainer.precision} {module.encoder.packed is None} {module.encoder.pooling}".encode())
        digest.update(b"" if module.encoder.normalize else b"not normalised")
        digest.update(module.encoder.architecture.encode())
        digest.update(np.ascontiguousarray(data.sampler.query_ids).tobytes())
        for name, tensor in sorted(module.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()


class ExactCentroids(Callback):
    """When training has ended, before the export: centroids from all training queries instead of the running ones.

    Source: Appendix H, the second of the strategies that were tried for centroids.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encode the training queries and replace the centroids."""
        module, data = prototype_module(pl_module), data_of(trainer)
        module.embed(_with_progress(data.train_text_dataloader(), "query"), module.query_memory, "query")
        labels = module.make_bank(data.corpus.num_labels, module.encoder.dim, dtype="float16").to(module.device)
        module.embed(_with_progress(data.label_dataloader(), "label"), labels, "label")
        if trainer.is_global_zero:
            pairs = _train_pairs(data, module.device)
            fill_mean_centroids(module.prototypes.centroids, module.query_memory, labels, *pairs)
        module.copy_tables_from_first()
        module.discard_index()


def _require_finite(embedded: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse embeddings that are NaN or infinite, by the kind of their texts, before something is made of them.

    Raises:
        ValueError: If there are such.
    """
    if kinds := not_finite(embedded):
        raise ValueError(
            f"the encoder makes embeddings of {' and '.join(kinds)} texts that are not finite. Before the first step: "
            "its weights are damaged, or too large for the precision (trainer.precision=32-true has the widest range). "
            "Later: training has diverged, lower optimizer.lr"
        )


def _train_pairs(data: TrainingData, device: torch.device) -> list[Tensor]:
    return [torch.from_numpy(ids).to(device) for ids in data.train_pairs()]


def _with_progress(loader: DataLoader, name: str) -> Iterable[Texts]:
    return track(loader, f"embedding {name} texts", total=len(loader))


class RebuildClusters(Callback):
    """Every few epochs: clusters the queries by the embeddings that training itself produced, for harder batches.

    Args:
        first_epoch: First epoch (from 0) with cluster batches; before it batches are random. None: never.
        every_n_epochs: Number of epochs between rebuilds.
        initial_size: Queries per cluster at first.
        double_at: Epochs at which the cluster size doubles, with a rebuild.
        seed: Seed of the clustering.

    Source: section 4.2; NGAME, Dahiya et al. 2023a.
    """

    def __init__(
        self,
        first_epoch: int | None,
        every_n_epochs: int,
        initial_size: int,
        double_at: Sequence[int] = (),
        seed: int = 0,
    ):
        if every_n_epochs < 1 or initial_size < 1:
            raise ValueError(
                "expected sampling.clusters.every_n_epochs and initial_size of at least 1, "
                f"got {every_n_epochs} and {initial_size}"
            )
        self.first_epoch = first_epoch
        self.every_n_epochs = every_n_epochs
        self.initial_size = initial_size
        self.double_at = double_at
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rebuild if it is time; the new clusters make the batches of this very epoch, the same in all processes.

        Raises:
            ValueError: If there is no embedding of any query yet.
        """
        epoch = trainer.current_epoch
        if self.first_epoch is None or epoch < self.first_epoch:
            return
        if (epoch - self.first_epoch) % self.every_n_epochs and epoch not in self.double_at:
            return
        size = cluster_size_at(
            epoch, first_epoch=self.first_epoch, initial_size=self.initial_size, double_at=self.double_at
        )
        assert size is not None
        assert isinstance(pl_module, QueryMemory)
        data, device = data_of(trainer), pl_module.device
        num_queries = len(data.sampler.query_ids)
        num_clusters = max(1, num_queries // size)
        clusters = torch.empty(num_queries, dtype=torch.int64)
        embeddings = pl_module.query_memory.take(torch.from_numpy(data.sampler.query_ids).to(device))
        if not embeddings.any():
            raise ValueError(
                f"there are clusters of queries to make in epoch {epoch}, and no query has an embedding yet: keep "
                "callbacks.initialise, which embeds them before training, or make clusters later, "
                "sampling.clusters.first_epoch=1"
            )
        _require_finite([("query", embeddings)])
        if trainer.is_global_zero:
            clusters = balanced_clusters(embeddings, num_clusters, seed=self.seed + epoch).cpu()
        copy_from_first(clusters, device)
        data.set_clusters(clusters.numpy())
        logger.info("epoch %d: %d clusters of queries, about %d in each", epoch, num_clusters, size)


class MineNegatives(Callback):
    """Every few epochs: searches the labels that are now most similar to each training query, for negatives.

    Labels are encoded and indexed for this; the queries have the embeddings that training itself has produced. What a
    query has as a positive, or its filter excludes, is not in its list.

    Args:
        first_epoch: First epoch (from 0) with mined labels. None: never.
        every_n_epochs: Number of epochs between searches.
        top_k: Number of labels searched for each query.

    Raises:
        ValueError: If a number is below 1.

    Source: Xiong et al. 2021 (ANCE), whose index is rebuilt by a process of its own while training goes on.
    """

    def __init__(self, first_epoch: int | None, every_n_epochs: int, top_k: int):
        if every_n_epochs < 1 or top_k < 1:
            raise ValueError(
                f"expected sampling.mined.every_n_epochs and top_k of at least 1, got {every_n_epochs} and {top_k}"
            )
        self.first_epoch = first_epoch
        self.every_n_epochs = every_n_epochs
        self.top_k = top_k

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search if it is time; the lists count for the batches of this very epoch, the same in all processes.

        Raises:
            ValueError: If there is no embedding of any query yet.
        """
        epoch = trainer.current_epoch
        if self.first_epoch is None or epoch < self.first_epoch or (epoch - self.first_epoch) % self.every_n_epochs:
            return
        module, data = prototype_module(pl_module), data_of(trainer)
        module.build_index()
        train = data.corpus.train
        mined = torch.full((len(train), self.top_k), -1, dtype=torch.int32)
        blocks = np.split(data.sampler.query_ids, range(_MINED_AT_ONCE, len(data.sampler.query_ids), _MINED_AT_ONCE))
        for ids in track(blocks, "mining negatives", total=len(blocks)):
            query_emb = module.query_memory.take(torch.from_numpy(ids).to(pl_module.device)).float()
            if not query_emb.any():
                raise ValueError(
                    f"there are labels to search in epoch {epoch}, and no query has an embedding yet: keep "
                    "callbacks.initialise, which embeds them before training, or search later, "
                    "sampling.mined.first_epoch=1"
                )
            _require_finite([("query", query_emb)])
            of_queries = zip(iter(train.positives.take(ids)), iter(train.filtered.take(ids)), strict=True)
            known = Ragged.from_rows([np.union1d(*rows) for rows in of_queries])
            found, _ = search_unfiltered(module.searcher.search, query_emb, known, self.top_k)
            mined[torch.from_numpy(ids), : found.shape[1]] = torch.from_numpy(found.astype(np.int32))
        copy_from_first(mined, pl_module.device)
        data.set_mined(mined.numpy())
        logger.info("epoch %d: the %d labels most similar to each query were searched", epoch, self.top_k)


class ReleaseMemory(Callback):
    """Gives memory that malloc holds but nobody uses back to the system, on Linux with glibc; elsewhere does nothing.

    Every batch has tensors of its own sizes, which leave the heap in pieces. It would grow to twice what is in use over
    the first hundred steps. Where a GPU trains, what a step makes is not on the heap, and steps release nothing.

    Args:
        every_n_steps: Training steps between releases. Pages that are given back cost time when they are needed again.
    """

    def __init__(self, every_n_steps: int):
        self.every_n_steps = every_n_steps
        self._malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Release if it is time."""
        if pl_module.device.type == "cpu" and (batch_idx + 1) % self.every_n_steps == 0:
            self.release()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Release what validation needed."""
        self.release()

    def release(self) -> None:
        """Release now."""
        if self._malloc_trim is not None:
            self._malloc_trim(0)


class WarnOfCollapse(Callback):
    """Says where the embeddings have probably collapsed: they are so alike that nearly no triplet has its margin.

    The loss is then about the least margin, a number that looks like any other. What is watched is `train/violators`,
    which triplet losses log of the first term that has a weight; where nothing logs it, nothing is said.

    Args:
        violators: Mean share of triplets with a loss, over an epoch, from which on it is said.
    """

    def __init__(self, violators: float):
        self.violators = violators
        self._said = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so the first time, and after the last epoch."""
        share = trainer.callback_metrics.get("train/violators")
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        if share is None or share < self.violators or (self._said and not is_last) or not trainer.is_global_zero:
            return
        self._said = True
        logger.warning(
            "epoch %d: in %.1f %% of the triplets the negative is closer than the margin allows: the embeddings have "
            "probably collapsed to nearly the same. If later epochs do not mend it, try sampling.memory_labels=0, "
            "loss.num_negatives=null, loss=decoupled_softmax or a smaller dataset.lr",
            trainer.current_epoch + 1,
            100 * float(share),
        )


class EpochTable(Callback):
    """Writes metrics.csv: one row an epoch, with what was logged, averaged over the epoch.

    Args:
        path: File to write; a continued run keeps the rows of the epochs before.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch has validation metrics of its own; the Trainer keeps those of an earlier one."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row."""
        values = {name: float(v) for name, v in trainer.callback_metrics.items() if not name.startswith("lr-")}
        values = {name.removesuffix("_epoch"): v for name, v in values.items() if not name.endswith("_step")}
        if not self._validated:
            values = {name: value for name, value in values.items() if not name.startswith("val/")}
        self._validated = False
        # training first, whether or not a step was logged before the validation
        values = dict(sorted(values.items(), key=lambda item: not item[0].startswith("train/")))
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": rate} | values)
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of the epochs before also where a run that had ended is continued in another folder."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.rows:
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names, restval="")
                writer.writeheader()
                writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after those rows."""
        self.rows = list(state_dict["rows"])


class ExportModel(Callback):
    """Writes the model folder when training has ended, and before that where asked or where it costs little.

    Args:
        save: Function that writes it, given the module, its label embeddings, None where it makes none, and the vectors
            that it searches.
        every_n_epochs: Number of epochs between further exports; None: no further ones.
        after_validation: Whether to export at the end of every epoch that has validated, when the labels are encoded
            anyway.
    """

    def __init__(
        self,
        save: Callable[[LightningModule, Tensor | None, Tensor], None],
        every_n_epochs: int | None = None,
        after_validation: bool = True,
    ):
        self.save = save
        self.every_n_epochs = every_n_epochs
        self.after_validation = after_validation
        self._exported: weakref.ref[Tensor] | None = None  # gone when the module has changed

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export if it is time."""
        assert isinstance(pl_module, LabelIndex)
        is_time = self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if is_time or (self.after_validation and pl_module.has_index):
            self._export(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the final model, unless the last epoch has."""
        self._export(trainer, pl_module)

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LabelIndex)
        label_emb, prototypes = pl_module.build_index()
        if trainer.is_global_zero and (self._exported is None or self._exported() is not prototypes):
            self.save(pl_module, label_emb, prototypes)
            self._exported = weakref.ref(prototypes)
