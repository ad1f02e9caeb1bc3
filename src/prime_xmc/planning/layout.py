"""What a configuration says of tables, parameters, devices and steps."""

from typing import NamedTuple

import torch
from omegaconf import DictConfig

from prime_xmc.assemble import listed_devices
from prime_xmc.data.sampling import cluster_size_at
from prime_xmc.index.search import FaissSearch
from prime_xmc.model.banks import DTYPES
from prime_xmc.model.frozen import kept_dtype
from prime_xmc.training.module import PrimeModule


class Layout(NamedTuple):
    """What the size of tables and parameters depends on, besides the data."""

    dim: int  # d
    num_trained: int  # parameters with dense gradients
    num_frozen: int  # parameters without gradient
    num_free_vectors: int  # F; 0 where prototypes have none
    centroid_bytes: int  # bytes per centroid entry
    remembers_labels: bool  # whether training remembers an embedding of each label
    frozen_bytes: int  # bytes per entry of the kept outputs of frozen layers; 0 where there are no frozen layers
    placement: str  # of the banks
    on_gpu: bool
    searcher: str  # "exact", "flat" or "hnsw"
    num_links: int  # neighbours of a label in the graph of hnsw
    num_validation: int  # queries held out
    test: bool  # whether the run ends with the test split
    num_mined: int = 0  # labels that are searched for each query, for negatives; 0 where none are

    @property
    def index_bytes(self) -> int:
        """Bytes per label in the Faiss index; 0 for exact search, which searches the prototypes themselves.

        The graph of hnsw holds 2 m neighbours of each label, m more of one label in m on each level above, and for
        each label its highest level and the place of its neighbours.
        """
        if self.searcher == "exact":
            return 0
        m = self.num_links
        return 4 * self.dim + (round(4 * (2 * m + m / (m - 1))) + 4 + 8 if self.searcher == "hnsw" else 0)

    @property
    def exported_index_bytes(self) -> int:
        """Bytes per label in the Faiss index of the exported model, which is a flat one where the run has none."""
        return self.index_bytes or 4 * self.dim


def layout_of(config: DictConfig, module: PrimeModule) -> Layout:
    """Return the layout of a configuration's tables, given its module with tables of any size."""
    free_vectors, searcher = module.prototypes.free_vectors, module.searcher
    num_frozen = 0 if module.encoder.packed is None else module.encoder.packed.num_frozen
    dense = [p for p in module.parameters() if p is not free_vectors]
    return Layout(
        dim=module.encoder.dim,
        num_trained=sum(p.numel() for p in dense if p.requires_grad),
        num_frozen=sum(p.numel() for p in dense if not p.requires_grad),
        num_free_vectors=0
        if free_vectors is None
        else config.model.num_free_vectors + config.model.get("num_private", 0),
        centroid_bytes=module.prototypes.centroids.rows.element_size(),
        remembers_labels=module.label_memory is not None,
        frozen_bytes=DTYPES[kept_dtype(str(config.trainer.precision))].itemsize if num_frozen else 0,
        placement=module.query_memory.placement,
        on_gpu=device_of(config).type == "cuda",
        searcher=searcher.kind if isinstance(searcher, FaissSearch) else "exact",
        num_links=searcher.m if isinstance(searcher, FaissSearch) else 0,
        num_validation=config.dataset.num_validation,
        test=config.test,
        num_mined=0 if config.sampling.mined.first_epoch is None else config.sampling.mined.top_k,
    )


class Schedule(NamedTuple):
    """When things happen in a run."""

    steps_per_epoch: int  # a step is a batch, also where several make an update of the weights
    num_steps: int  # of the whole run
    cluster_sizes: tuple[int, ...]  # queries per cluster at each rebuild of the clusters
    num_validations: int
    num_indexes: int  # how often all labels are encoded and indexed, for validation or at the end
    encodes_queries: bool = False  # whether training queries are encoded at the end, for other scorers
    num_minings: int = 0  # how often all labels are encoded and indexed, and searched for all training queries


def schedule_of(config: DictConfig, num_queries: int, num_labelled: int | None = None) -> Schedule:
    """Return the schedule of a run.

    Args:
        config: The configuration.
        num_queries: Training queries, including those held out for validation.
        num_labelled: Those of them that have a label, which alone are trained on; None: all.

    Raises:
        ValueError: If the run has no end, or sees only part of the data to be debugged.
    """
    for key in ("fast_dev_run", "overfit_batches"):
        if config.trainer.get(key):
            raise ValueError(
                f"trainer.{key}={config.trainer[key]} is for debugging, and plans are of whole runs; leave it out"
            )
    trainer, clusters, num_validation = config.trainer, config.sampling.clusters, config.dataset.num_validation
    num_trained = num_queries - num_validation
    if num_labelled is not None:  # queries are held out at random, of those without a label as many as of the others
        num_trained = max(1, round(num_labelled * num_trained / num_queries))
    steps_per_epoch = _limited(-(-num_trained // config.sampling.batch_size), trainer)
    limits = [trainer.max_epochs * steps_per_epoch] if trainer.max_epochs >= 0 else []
    if trainer.max_steps >= 0:
        limits.append(_batches_of(trainer.max_steps, steps_per_epoch, trainer.get("accumulate_grad_batches") or 1))
    if not limits:
        raise ValueError("the run has no end: give trainer.max_epochs or trainer.max_steps")
    num_epochs, rest = divmod(min(limits), steps_per_epoch)  # complete epochs, and steps of one more
    num_validations, ends_validated = (
        _validations(trainer, steps_per_epoch, min(limits)) if num_validation else (0, False)
    )
    first = clusters.first_epoch
    rebuilds = [] if first is None else range(first, num_epochs + (rest > 0))
    sizes = [
        cluster_size_at(epoch, first_epoch=first, initial_size=clusters.initial_size, double_at=clusters.double_at)
        for epoch in rebuilds
        if (epoch - first) % clusters.every_n_epochs == 0 or epoch in clusters.double_at
    ]
    num_indexes = num_validations + (not ends_validated)
    mined, begun = config.sampling.mined, range(num_epochs + (rest > 0))
    minings = [] if mined.first_epoch is None else begun[mined.first_epoch :: mined.every_n_epochs]
    return Schedule(
        steps_per_epoch,
        min(limits),
        tuple(size for size in sizes if size),
        num_validations,
        num_indexes,
        has_later_stages(config),
        len(minings),
    )


def _validations(trainer: DictConfig, steps_per_epoch: int, num_steps: int) -> tuple[int, bool]:
    """Return how often a run is validated, and whether it is after its last step.

    The Trainer counts `val_check_interval` in batches, or as a share of an epoch, within each epoch that
    `check_val_every_n_epoch` has its turn; where the latter is None, in batches of the whole run.
    """
    every, interval = trainer.check_val_every_n_epoch, trainer.get("val_check_interval")
    if every is None:
        if not isinstance(interval, int):  # by steps, of which there are none
            return 0, False
        return num_steps // interval, num_steps % interval == 0
    if interval is None or isinstance(interval, float):
        interval = max(1, int(steps_per_epoch * (1.0 if interval is None else interval)))
    num_epochs, rest = divmod(num_steps, steps_per_epoch)
    is_begun = rest > 0 and (num_epochs + 1) % every == 0
    count = num_epochs // every * (steps_per_epoch // interval) + (rest // interval if is_begun else 0)
    last = rest if rest else steps_per_epoch
    has_turn = is_begun if rest else num_epochs % every == 0
    return count, count > 0 and has_turn and last % interval == 0


def _limited(num_batches: int, trainer: DictConfig) -> int:
    """Return how many batches of an epoch are trained on."""
    limit = trainer.get("limit_train_batches")
    if limit is None:
        return num_batches
    return max(1, min(num_batches, limit if isinstance(limit, int) else int(num_batches * limit)))


def _batches_of(num_updates: int, batches_per_epoch: int, accumulated: int) -> int:
    """Return how many batches the Trainer's steps take, which are updates of the weights; each epoch ends with one."""
    epochs, rest = divmod(num_updates, -(-batches_per_epoch // accumulated))
    return epochs * batches_per_epoch + min(rest * accumulated, batches_per_epoch)


def has_later_stages(config: DictConfig) -> bool:
    """Return whether other scorers follow the training of prototypes."""
    others = [config.get(name) for name in ("neighbours", "lexical")]
    return config.get("classify") not in (None, False) or any(settings is not None for settings in others)


def device_of(config: DictConfig) -> torch.device:
    """Return the device of the configured Trainer.

    Raises:
        ValueError: If it is neither a CPU nor a CUDA device.
    """
    accelerator = config.trainer.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if accelerator not in ("cpu", "gpu", "cuda"):
        raise ValueError(f"expected trainer.accelerator cpu, gpu, cuda or auto, got {accelerator!r}")
    return torch.device("cpu" if accelerator == "cpu" else "cuda")


def count_processes(config: DictConfig) -> int:
    """Return how many processes share a batch on a machine: one for each device."""
    devices = config.trainer.devices
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if device_of(config).type == "cuda" else 1
    listed = listed_devices(config)
    return int(devices) if listed is None else len(listed)
