"""`python -m prime_xmc.train`: prepare, train, test, export."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from prime_xmc import classify
from prime_xmc.bundle import save_bundle, update_metrics
from prime_xmc.callbacks import ExportModel
from prime_xmc.configs import compose, run_app
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.files import write_json
from prime_xmc.metrics import print_table
from prime_xmc.model.module import PrimeModule
from prime_xmc.predictions import save_predictions
from prime_xmc.runs import describe_run, describe_training, open_data, quiet_libraries
from prime_xmc.sweeps import in_sweep, run_job


class Run(NamedTuple):
    """What a training run made.

    Attributes:
        metrics: Content of metrics.json.
        module: The trained module.
        data: Its data module.
        trainer: Its Trainer.
    """

    metrics: dict[str, Any]
    module: PrimeModule
    data: PrimeDataModule
    trainer: Any


def make_data(config: DictConfig) -> PrimeDataModule:
    """Make the data module and open its data, prepared if need be."""
    dataset = config.dataset
    return open_data(
        config,
        config.encoder.source,
        max_length=dataset.max_length,
        num_validation=dataset.num_validation,
        seed=config.seed,
    )


def make_module(config: DictConfig, data: PrimeDataModule) -> PrimeModule:
    """Make the untrained module for a data set.

    Raises:
        ValueError: If texts may be longer than the encoder can read.
    """
    torch.manual_seed(config.seed)
    encoder, make_bank = instantiate(config.encoder), instantiate(config.bank)
    if encoder.max_length is not None and data.max_length > encoder.max_length:
        raise ValueError(
            f"dataset.max_length={data.max_length} is above the {encoder.max_length} positions of the encoder "
            f"(max_position_embeddings in the config.json of {encoder.source}): lower it, or take another encoder"
        )
    return PrimeModule(
        encoder,
        instantiate(
            config.model, num_labels=data.corpus.num_labels, dim=encoder.dim, make_bank=make_bank, _convert_="all"
        ),
        instantiate(config.loss),
        instantiate(config.index),
        num_queries=len(data.corpus.train),
        inverse_propensity=data.inverse_propensity,
        optimizer=instantiate(config.optimizer.make),
        scheduler=instantiate(config.optimizer.schedule),
        weight_decay=config.optimizer.weight_decay,
        warmup_fraction=config.optimizer.warmup_fraction,
        seed=config.seed,
        make_bank=make_bank,
    ).train()  # pre-trained encoders come in eval mode, and Lightning keeps it


def train(config: DictConfig) -> float | None:
    """Train by a configuration, or run it as a job of a sweep; return the validation P@1."""
    if not in_sweep():
        return run(config).metrics.get("val/P@1")
    data_parallel = "ddp" in str(config.trainer.get("strategy")).lower()
    return run_job(config, run_in_a_process if data_parallel else run)


def run_in_a_process(config: DictConfig) -> None:
    """Run a configuration by a process of its own, whose errors go to stderr.txt in the run folder.

    Lightning starts further processes of a data-parallel run by its command line; that of a sweep would start it whole.

    Raises:
        RuntimeError: If the process fails.
    """
    run_dir = Path(config.run_dir).absolute()
    OmegaConf.save(config, run_dir / ".hydra" / "resolved.yaml", resolve=True)
    quoted = str(run_dir).replace("'", r"\'")
    command = [sys.executable, "-m", "prime_xmc.train", "--config-path", str(run_dir / ".hydra")]
    command += ["--config-name", "resolved", f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]
    with (run_dir / "stderr.txt").open("w+", encoding="utf-8") as file:
        status = subprocess.run(command, stderr=file, check=False).returncode
        file.seek(0)
        if status != 0:
            raise RuntimeError(f"the process of the run ended with status {status}:\n{file.read()}")


def run(config: DictConfig) -> Run:
    """Train by a configuration, write the run folder and return what was made."""
    quiet_libraries()
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    data = make_data(config)
    module = make_module(config, data)
    settings = describe_run(config, data)
    export = ExportModel(
        partial(_export, run_dir / "model", data=data, settings=settings), config.export_every_n_epochs
    )
    callbacks = [c for c in instantiate(config.callbacks, _convert_="all").values() if c is not None]
    trainer = instantiate(
        config.trainer,
        callbacks=[*callbacks, export],
        logger=instantiate(config.logger) if config.logger else False,
        default_root_dir=str(run_dir),
        _convert_="all",
    )
    if config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
        raise FileNotFoundError(f"ckpt_path={config.ckpt_path}: not found; expected <run>/checkpoints/last.ckpt")
    for each in trainer.loggers:
        each.log_hyperparams(settings["config"])
    start = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    seconds = time.perf_counter() - start
    if module.num_trained == 0:  # the checkpoint is of the end of training: what follows it is still to be done
        trainer.validate(module, datamodule=data, verbose=False)
        module.to(trainer.strategy.root_device)
        for callback in (*callbacks, export):
            callback.on_train_end(trainer, module)

    metrics: dict[str, Any] = {
        name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
    }
    if config.test:
        metrics |= trainer.test(module, datamodule=data, verbose=False)[0]
    metrics |= describe_training(trainer, module, seconds, settings)
    if trainer.is_global_zero:
        update_metrics(run_dir / "model", metrics)
        if module.test_predictions is not None:
            save_predictions(run_dir / "predictions.npz", *module.test_predictions)
        show(metrics, run_dir)
        if config.classify is not None:
            metrics |= train_classifiers(config, run_dir)
        write_json(run_dir / "metrics.json", metrics)  # last: it says that the run is finished
    return Run(metrics, module, data, trainer)


def train_classifiers(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train one-vs-all classifiers on the exported model of a run, in its folder classify/.

    Returns:
        The metrics of the classifiers and of the ensemble, how many epochs they took and how long.
    """
    stage = compose("classify", list(config.classify))
    stage.dataset = OmegaConf.to_container(config.dataset, resolve=True)
    stage.model.dir = str(run_dir / "model")
    stage.run_dir = str(run_dir / "classify")
    for key in ("seed", "test", "cache_dir"):
        stage[key] = config[key]
    metrics = classify.run(stage).metrics
    scored = {name: value for name, value in metrics.items() if "/W/" in name or "/ensemble/" in name}
    return scored | {f"classify/{name}": metrics[f"train/{name}"] for name in ("epochs", "seconds")}


def show(metrics: dict[str, Any], run_dir: Path) -> None:
    """Print the results of a run."""
    rows = {}
    for stage, shown in (("val/", "validation"), ("test/", "test")):
        values = {name.removeprefix(stage): value for name, value in metrics.items() if name.startswith(stage)}
        if values:
            rows[shown] = values
    print_table(rows)
    Console().print(
        f"{metrics['train/epochs']} epochs in {metrics['train/seconds']:.0f} s, "
        f"{metrics['train/queries_per_second']:.0f} queries/s, "
        f"peak memory {metrics['peak_rss_bytes'] / 2**30:.1f} GiB. Run folder: {run_dir}"
    )


def _export(
    directory: Path,
    module: PrimeModule,
    label_emb: Tensor,
    prototypes: Tensor,
    *,
    data: PrimeDataModule,
    settings: dict[str, Any],
) -> None:
    save_bundle(
        directory,
        encoder=module.encoder,
        tokenizer=data.tokenizer,
        max_length=data.max_length,
        prototypes=module.prototypes,
        label_emb=label_emb,
        label_prototypes=prototypes,
        labels=data.corpus.labels(),
        index=module.searcher,
        settings=settings,
        metrics=None,
    )


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app(train, "train")


if __name__ == "__main__":
    main()
