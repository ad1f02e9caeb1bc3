"""What a configuration says of tables, parameters, devices and steps, with the help of a small module."""

import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from prime_xmc.assemble import make_module
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.tokenizer import load_tokenizer
from prime_xmc.index.search import FaissSearch
from prime_xmc.planning.budget import Layout, Measured, Schedule, Sizes, make_schedule
from prime_xmc.planning.probe import batches, make_up_corpus, measure
from prime_xmc.training.module import PrimeModule

_LABELS_PER_DRAW = 16  # of the probe: so many that, as in large data sets, few are drawn twice


def schedule_of(config: DictConfig, sizes: Sizes) -> Schedule:
    """Return what happens when in a run."""
    num_validation, clusters = config.dataset.num_validation, config.sampling.clusters
    return make_schedule(
        sizes.num_queries - num_validation,
        batch_size=config.sampling.batch_size,
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        validate_every=config.trainer.check_val_every_n_epoch if num_validation else 0,
        first_cluster_epoch=clusters.first_epoch,
        every_n_epochs=clusters.every_n_epochs,
        initial_size=clusters.initial_size,
        double_at=list(clusters.double_at),
    )


def make_layout(config: DictConfig, module: PrimeModule) -> Layout:
    """Return what the configuration says of tables and parameters, with the help of its module of any size."""
    free_vectors, searcher = module.prototypes.free_vectors, module.searcher
    dense = [p for p in module.parameters() if p is not free_vectors]
    return Layout(
        dim=module.encoder.dim,
        num_trained=sum(p.numel() for p in dense if p.requires_grad),
        num_frozen=sum(p.numel() for p in dense if not p.requires_grad),
        num_free_vectors=0 if free_vectors is None else config.model.num_free_vectors,
        centroid_bytes=module.prototypes.centroids.rows.element_size(),
        placement=module.query_memory.placement,
        on_gpu=device_of(config).type == "cuda",
        searcher=searcher.kind if isinstance(searcher, FaissSearch) else "exact",
        num_links=searcher.m if isinstance(searcher, FaissSearch) else 0,
        num_validation=config.dataset.num_validation,
        test=config.test,
    )


def device_of(config: DictConfig) -> torch.device:
    """Return the device of the configured Trainer.

    Raises:
        ValueError: If it is neither CPU nor CUDA.
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
    return int(devices) if isinstance(devices, int | str) else len(devices)


def probe(config: DictConfig, sizes: Sizes, batch_size: int) -> tuple[PrimeModule, Measured]:
    """Make the configured module with small tables, train it for the steps to probe, and return what that took.

    Args:
        config: The configuration.
        sizes: Of the data.
        batch_size: Queries of a batch.
    """
    num_steps = config.probe_steps + 1 if config.probe_steps else 0  # the first one is not counted
    num_labels = min(sizes.num_labels, _LABELS_PER_DRAW * batch_size * config.sampling.num_positives)
    tokenizer = load_tokenizer(config.encoder.source)
    corpus = make_up_corpus(
        sizes,
        num_queries=min(sizes.num_queries, max(1, num_steps) * batch_size),
        num_labels=num_labels,
        max_length=config.dataset.max_length,
        vocabulary=len(tokenizer),
    )
    data = PrimeDataModule(
        RawFiles("", "made up"),
        tokenizer,
        max_length=config.dataset.max_length,
        cache_dir="",
        propensity_a=config.dataset.propensity.a,
        propensity_b=config.dataset.propensity.b,
        batch_size=batch_size,
        num_positives=config.sampling.num_positives,
    )
    data.corpus, data.inverse_propensity = corpus, np.ones(num_labels)
    small = config.copy()
    small.dataset.num_validation = 0
    small.model.num_free_vectors = min(config.model.num_free_vectors, num_labels)
    module = make_module(small, data)
    if not num_steps:
        return module, Measured()
    loader = batches(
        corpus,
        batch_size=batch_size,
        num_batches=num_steps,
        num_positives=config.sampling.num_positives,
        loss_positives=config.sampling.loss_positives,
        more_queries_per_label=config.sampling.more_queries_per_label,
    )
    with tempfile.TemporaryDirectory() as folder:
        make_trainer = partial(_make_trainer, config, folder)
        return module, measure(module, corpus, loader, make_trainer, device_of(config))


def _make_trainer(config: DictConfig, folder: str, callbacks: list[Any]) -> Any:
    """Make the configured Trainer, of which one process makes an epoch and leaves nothing behind."""
    release = config.callbacks.get("memory")
    return instantiate(
        config.trainer,
        devices=1,
        num_nodes=1,
        strategy="auto",
        max_epochs=1,
        max_steps=-1,
        callbacks=[*callbacks, *([instantiate(release)] if release else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        _convert_="all",
    )
