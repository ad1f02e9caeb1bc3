"""The untrained module, and the Trainer that trains it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from omegaconf import DictConfig, ListConfig

from prime_xmc.assemble.agreement import trains_one_vs_all
from prime_xmc.assemble.fitted import fit_to_data
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.training.debugging import make_profiler
from prime_xmc.training.host_threads import OneHostThread
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.one_vs_all_module import OneVsAllModule

_METHOD = ("initialise", "clusters", "mined")  # names of the callbacks without which training is not PRIME's


def make_module(config: DictConfig, data: PrimeDataModule) -> PrimeModule | OneVsAllModule:
    """Make the untrained module for a data set.

    Raises:
        ValueError: If texts may be longer than the encoder can read, if the data may hold tokens that it does not
            embed, or if settings do not fit the data or each other.
    """
    config = fit_to_data(config, data.corpus)
    torch.manual_seed(config.seed)
    encoder, make_bank = instantiate(config.encoder), instantiate(config.bank)
    if encoder.max_length is not None and data.max_length > encoder.max_length:
        raise ValueError(
            f"dataset.max_length={data.max_length} is above the {encoder.max_length} positions of the encoder "
            f"(max_position_embeddings in the config.json of {encoder.source}): lower it, or take another encoder"
        )
    num_tokens = data.corpus.manifest.get("vocab_size", 0)
    if num_tokens > encoder.num_tokens:
        raise ValueError(
            f"the data are prepared with a tokenizer of {num_tokens} tokens, and the encoder {encoder.source} embeds "
            f"{encoder.num_tokens}: prepare them with the encoder's own tokenizer"
        )
    if trains_one_vs_all(config):
        return OneVsAllModule(
            encoder,
            instantiate(config.model, num_labels=data.corpus.num_labels, dim=encoder.dim, _convert_="all"),
            instantiate(config.index),
            queries=data.corpus.train,
            make_bank=make_bank,
            **_how_to_train(config, data),
        ).train()
    return PrimeModule(
        encoder,
        instantiate(
            config.model, num_labels=data.corpus.num_labels, dim=encoder.dim, make_bank=make_bank, _convert_="all"
        ),
        instantiate(config.loss),
        instantiate(config.index),
        num_queries=len(data.corpus.train),
        make_bank=make_bank,
        callbacks=method_callbacks(config),
        remember_labels=data.remembers_labels,
        zero_banks=(config.get("callbacks") or {}).get("initialise") is None,
        **_how_to_train(config, data),
    ).train()  # pre-trained encoders come in eval mode, and Lightning keeps it


def _how_to_train(config: DictConfig, data: PrimeDataModule) -> dict[str, Any]:
    """Return the arguments that all modules with an encoder have in common."""
    return {
        "inverse_propensity": data.inverse_propensity,
        "optimizer": instantiate(config.optimizer.make),
        "scheduler": instantiate(config.optimizer.schedule),
        "weight_decay": config.optimizer.weight_decay,
        "warmup_fraction": config.optimizer.warmup_fraction,
        "seed": config.seed,
    }


def method_callbacks(config: DictConfig) -> list[Any]:
    """Make the callbacks that belong to the method, which modules bring along: any Trainer needs them."""
    chosen = ((config.get("callbacks") or {}).get(name) for name in _METHOD)
    return [instantiate(callback, _convert_="all") for callback in chosen if callback is not None]


def make_trainer(config: DictConfig, first: Sequence[Any] = (), last: Sequence[Any] = ()) -> Any:
    """Make the Trainer with the configured loggers and callbacks, and those given before and after them.

    The callbacks that belong to the method are left out, since the module brings them.
    """
    others = {name: callback for name, callback in (config.get("callbacks") or {}).items() if name not in _METHOD}
    configured = [instantiate(callback, _convert_="all") for callback in others.values() if callback is not None]
    loggers = make_loggers(config.get("logger"))
    needless: list[type] = []
    if config.trainer.get("enable_progress_bar") is False:
        needless.append(ProgressBar)
    if config.trainer.get("enable_checkpointing") is False:
        needless.append(ModelCheckpoint)
    if not loggers:
        needless.append(LearningRateMonitor)
    configured = [callback for callback in configured if not isinstance(callback, tuple(needless))]
    return instantiate(
        config.trainer,
        callbacks=[*first, OneHostThread(), *configured, *last],
        logger=loggers or False,
        # otherwise Lightning adds a bar and a checkpoint of its own where callbacks.progress or checkpoint is null
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in configured),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in configured),
        profiler=make_profiler(config.trainer.get("profiler"), Path(config.run_dir)),
        default_root_dir=str(config.run_dir),
        _convert_="all",
    )


def make_loggers(config: DictConfig | None) -> list[Any]:
    """Make the loggers of a configuration: those of its keys that say by `_target_` what they are."""
    children = [] if config is None else [child for child in config.values() if isinstance(child, DictConfig)]
    return [instantiate(child, _convert_="all") for child in children if "_target_" in child]


def listed_devices(config: DictConfig) -> list[str] | None:
    """Return the devices that `trainer.devices` names one by one, as [0,1] and "0,1" do; None: it has their number."""
    devices = config.trainer.get("devices")
    listed = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    if not isinstance(listed, list | ListConfig):
        return None
    return [name for each in listed if (name := str(each).strip())]
