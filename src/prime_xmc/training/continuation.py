"""Continuing a run from a checkpoint: only the run itself, with the command that does it."""

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import LambdaLR

from prime_xmc.data.datamodule import HELD_OUT, PrimeDataModule
from prime_xmc.run_files import CONFIG, TRUST_OPTION, TRUST_VARIABLE
from prime_xmc.training.checkpoints import ShardedCheckpointIO
from prime_xmc.training.curves import place_in_curves
from prime_xmc.training.equal_bits import COMPUTED_ON, computed_on, warn_of_other_bits
from prime_xmc.training.step_log import StepLog

logger = logging.getLogger(__name__)

_TARGET = re.compile(r"_target_['\"]?\s*[=:]\s*['\"]?([\w.]+)")
_PACKAGES = ("prime_xmc", "torch", "lightning", "transformers")  # of whose classes the package's own runs are made

# keys of a checkpoint
ORIGIN = "origin"  # which run it is of
CURVES = "curves"  # which rows of the curves by step come before it, see `prime_xmc.training.curves`
_STEP_LOG = "step_log"  # what the steps of the epoch so far add to its means
_STOPPED = "stopped"  # whether a callback, such as EarlyStopping, has ended training before its last epoch
# What changes no result: where files are, and what people watch a run by. Sweeps take jobs that differ in nothing else
# for the same job.
WATCHING = (
    *("run_dir", "cache_dir", "logger"),
    *(f"callbacks.{name}" for name in ("progress", "learning_rate", "wandb", "predictions", "histograms")),
)
# What else may be another when a run is continued: a key stands for all below it.
MAY_CHANGE = (
    *("resume", "checkpoint", "ckpt_path", "task", "debug", "verify"),
    # paths; what they hold is told apart by the data's fingerprint, and the weights come from the checkpoint
    *("dataset.dir", "dataset.hint", "encoder.source", "model.dir"),
    # how long: the learning rate then follows the schedule of the new length, see `ContinuedRun`
    *("dataset.max_epochs", "trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
    # when something is measured, kept or shown
    *("dataset.validate_every", "trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
    *("trainer.num_sanity_val_steps", "trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.profiler"),
    *("trainer.enable_checkpointing", "trainer.enable_model_summary", "trainer.default_root_dir", "trainer.plugins"),
    *("callbacks.checkpoint", "callbacks.table", "callbacks.memory", "callbacks.initialise.cache_dir"),
    # where it is computed
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "bank", "device"),
    # what is done with the trained model
    *("test", "classify", "classify_settings", "neighbours", "lexical", "ensemble", "export", "index"),
    *("export_every_n_epochs", "export_after_validation"),
)
# What settings of older checkpoints are called now, and those that they had none of. Both mean what they did.
_RENAMED = {"torch.optim.SparseAdam": "prime_xmc.training.optimizers.RowAdam"}
_ABSENT = {"sampling.leave_one_out": 0, "sampling.without_centroid": 0}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.ASCII)
# Callbacks of Lightning that look on, by their `_target_`: whatever the name of their key is, they change no result.
_LOOKING_ON = tuple(
    f"lightning.pytorch.callbacks.{name}"
    for name in (
        *("DeviceStatsMonitor", "LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "OnExceptionCheckpoint"),
        *("RichModelSummary", "RichProgressBar", "ThroughputMonitor", "TQDMProgressBar"),
    )
)


def without_watching(config: DictConfig) -> DictConfig:
    """Return a configuration in which what changes no result is null; it stands for what others refer to."""
    left_out = ("hydra", "resume", "checkpoint", "verify")
    content = OmegaConf.create({str(key): value for key, value in _plain(config).items() if key not in left_out})
    for key in WATCHING:
        OmegaConf.update(content, key, None, force_add=True)
    content.callbacks.pop("collapse", None)  # not null as the others: fingerprints of version 0.1.0 know nothing of it
    return content


def binding_settings(config: DictConfig) -> dict[str, Any]:
    """Return the resolved settings that a continued run has to have in common with the checkpoint, by dotted key."""
    content: Any = OmegaConf.to_container(without_watching(config), resolve=True)
    callbacks = (content.get("callbacks") or {}).items()
    content["callbacks"] = {
        name: settings for name, settings in callbacks if (settings or {}).get("_target_") not in _LOOKING_ON
    }
    settings = _dotted(content, "")
    return {key: value for key, value in settings.items() if not _may_change(key)}


def origin(config: DictConfig, data: PrimeDataModule) -> dict[str, Any]:
    """Return what a checkpoint says of the run that it is of, as plain values.

    Args:
        config: Configuration of the run, with numbers in place of what follows the size of the data.
        data: Data module, whose data are open.
    """
    return {
        "prime_xmc_version": version("prime_xmc"),
        "settings": binding_settings(config),
        "length": {name: config.trainer.get(name) for name in ("max_epochs", "max_steps")},
        "data_fingerprint": data.corpus.manifest["fingerprint"],
        "tokenizer": data.corpus.manifest["tokenizer_hash"],
        HELD_OUT: data.held_out,
        "command": continuing_command(without=("ckpt_path",)),
    }


def read_origin(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return what a checkpoint says of its run, None for one of version 0.1.0, and its place in the curves by step.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or no checkpoint of a training.
    """
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path={path}: not found; expected <run>/checkpoints/last.ckpt")
    content = ShardedCheckpointIO().load_checkpoint(path)
    if "loops" not in content:
        raise ValueError(f"ckpt_path={path} holds no training: expected <run>/checkpoints/last.ckpt")
    place = {"step": content.get("global_step", 0), "validates": False, "pending": None}
    return content.get(ORIGIN), content.get(CURVES, place)


def load_weights(module: Any, path: Path) -> None:
    """Put what a checkpoint has of a module into it, tables included, without a Trainer."""
    content = ShardedCheckpointIO().load_checkpoint(path)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])


def check_origin(path: Path, recorded: Mapping[str, Any] | None, given: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of the run that is about to be continued.

    Args:
        path: The checkpoint.
        recorded: What it says of its run; None: nothing, because version 0.1.0 has written it.
        given: What `origin` returned for the run that is about to be continued.

    Raises:
        ValueError: If data, held-out queries, tokenizer or settings are not those of the checkpoint.
    """
    if recorded is None:
        logger.warning(
            "%s was written by version 0.1.0, which recorded neither data nor settings in a checkpoint: that this is "
            "the same run could not be checked",
            path,
        )
        return
    settings = {key: value for key, value in _ABSENT.items() if key in given["settings"]} | recorded["settings"]
    settings = {key: _RENAMED.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}
    differences = _different_settings(settings, given["settings"])
    if recorded["tokenizer"] != given["tokenizer"]:
        differences.append("encoder.source: the tokenizer of the checkpoint is another one")
    elif recorded["data_fingerprint"] != given["data_fingerprint"]:
        differences.append(
            f"dataset: the data set of the checkpoint is another one (fingerprint {recorded['data_fingerprint'][:12]} "
            f"in the checkpoint, {given['data_fingerprint'][:12]} now): its queries, labels, their order or the fields "
            "that are read have changed"
        )
    elif recorded[HELD_OUT] != given[HELD_OUT]:
        differences.append("seed, dataset.num_validation: other queries were held out for validation")
    if differences:
        command = recorded["command"] and f"{recorded['command']} {shlex.quote(f'ckpt_path={quoted(str(path))}')}"
        raise ValueError(
            "\n".join(
                [
                    f"ckpt_path={path} cannot be continued with these settings, which are those of another run:",
                    *(f"  {difference}" for difference in differences),
                    "Give the values of the checkpoint to continue its run, or leave ckpt_path out to start a new one.",
                    *([f"The command that continues its run:\n  {command}"] if command else []),
                ]
            )
        )


class ContinuedRun(Callback):
    """Writes into checkpoints which run they are of, and mends what the Trainer leaves open when it continues one.

    - Where all steps of an epoch are done, but not yet its validation, the Trainer would continue with the next epoch.
      Checkpoints of that moment are written such that it validates first.
    - A checkpoint between two steps of an epoch, see `SaveProgress`, says that the step before is complete and that the
      next one has not begun, though its batch has been taken from the loader.
    - The means of the epoch so far, and where the curves by step are, go along.
    - Training that a callback has ended early stays ended, where the Trainer would make an epoch more; `max_time` and a
      new length are for going on.
    - Where the run has become longer or shorter (`trainer.max_epochs`, `trainer.max_steps`), the learning rate follows
      the schedule of the new length from the next step on, as if the run had had this length from the start. The steps
      before it were made with the old schedule, so that the result is not that of an uninterrupted run of this length.

    Args:
        given: What `origin` returned for this run.
        recorded: The same of the checkpoint that it continues; None: none, or one that does not say.
    """

    def __init__(self, given: Mapping[str, Any], recorded: Mapping[str, Any] | None):
        self.given = given
        self.recorded = recorded

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the origin, the means of the epoch and the place in the curves; say what is complete."""
        checkpoint[ORIGIN] = dict(self.given)
        checkpoint[COMPUTED_ON] = computed_on(trainer.strategy.root_device, trainer.world_size)
        checkpoint[_STEP_LOG] = _step_log(pl_module).state_dict()
        loops = checkpoint["loops"]["fit_loop"]
        epoch, batch = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        epoch_goes_on = epoch["started"] > epoch["processed"]
        timed = any(isinstance(each, Timer) for each in trainer.callbacks)  # type: ignore[attr-defined]
        checkpoint[_STOPPED] = trainer.should_stop and not epoch_goes_on and not timed
        all_steps = batch["current"]["processed"] == trainer.num_training_batches
        validates = epoch_goes_on and (all_steps or trainer.validating)
        if validates:
            for progress in (batch["total"], batch["current"]):
                progress["completed"] = progress["processed"]
            batch["is_last_batch"] = all_steps
            # of a validation that has begun: it is made again, from its first batch
            loops["epoch_loop.val_loop.batch_progress"] |= {
                "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
                "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
                "is_last_batch": False,
            }
        elif epoch_goes_on and batch["current"]["ready"] > batch["current"]["started"]:
            for progress in (batch["total"], batch["current"]):
                progress["ready"] = progress["completed"]
            batch["is_last_batch"] = False
            position = {"position": batch["current"]["completed"]}
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            checkpoint[type(data).__qualname__]["sampler"] |= position
            if "combined_loader" in loops["state_dict"]:
                loops["state_dict"]["combined_loader"] = [position]
        checkpoint[CURVES] = place_in_curves(trainer, validates=validates, ends_epoch=not epoch_goes_on)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the means of the epoch, and say where the results may have other last bits.

        A checkpoint of version 0.1.0 does not say itself where in the epoch it was made: tell the sampler.
        """
        here = computed_on(trainer.strategy.root_device, trainer.world_size)
        kept = getattr(getattr(pl_module, "encoder", None), "frozen", None)
        in_float32 = kept is not None and kept.bank.rows.dtype == torch.float32
        warn_of_other_bits(checkpoint.get(COMPUTED_ON), here, keeps_float32=in_float32)
        if checkpoint.get(_STOPPED) and self.recorded is not None and self.recorded["length"] == self.given["length"]:
            trainer.should_stop = True
        if _STEP_LOG in checkpoint:
            _step_log(pl_module).load_state_dict(checkpoint[_STEP_LOG], trainer.strategy.root_device)
        data: PrimeDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if "position" not in checkpoint[type(data).__qualname__]["sampler"]:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            data.sampler.resume_at(progress["current"]["processed"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means of an epoch whose last step was in another process."""
        _step_log(pl_module).log_means(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the learning rate to that of the new schedule, and say so."""
        if self.recorded is None or self.recorded["length"] == self.given["length"]:
            return
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            if isinstance(scheduler, LambdaLR):
                factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
                rates = [rate * factor for rate, factor in zip(scheduler.base_lrs, factors, strict=True)]
                before = scheduler.optimizer.param_groups[0]["lr"]
                for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
                scheduler._last_lr = rates
                logger.warning(
                    "the run was begun with %s and goes on with %s: the learning rate goes from %.1e to %.1e, that of "
                    "the new length at this step. The result is not that of an uninterrupted run of this length",
                    _shown_length(self.recorded["length"]),
                    _shown_length(self.given["length"]),
                    before,
                    rates[0],
                )


def _step_log(module: LightningModule) -> StepLog:
    log = module.step_log
    assert isinstance(log, StepLog)
    return log


def resuming_command(run_dir: Path) -> str:
    """Return the command, to be pasted into a shell, that continues a run in its folder with its own settings.

    Where the run has parts of the user's own code, which its configuration names, the command says that it is trusted.
    """
    command = _own_command()
    if command is None or not any(part.endswith(("train", "classify")) for part in command):
        command = [Path(sys.executable).name, "-m", "prime_xmc.train"]
    named = _TARGET.findall((run_dir / CONFIG).read_text(encoding="utf-8")) if (run_dir / CONFIG).is_file() else []
    if TRUST_OPTION not in command and any(name.partition(".")[0] not in _PACKAGES for name in named):
        command = [*command, TRUST_OPTION]
    return shlex.join([*command, f"resume={run_dir}"])


def continuing_command(*, without: Sequence[str] = (), **settings: Path | str) -> str | None:
    """Return the command of this process, to be pasted into a shell, with other values of some keys.

    Args:
        without: Keys that it is to set no more.
        settings: Keys to set, `__` for a dot; they replace those that the command has.

    Returns:
        None if this process was not started by an entry point of this package.
    """
    start = _own_command()
    if start is None:
        return None
    chosen: dict[str, Path | str] = {key.replace("__", "."): value for key, value in settings.items()}
    replaced = {*without, *chosen}
    kept = [argument for argument in sys.argv[1:] if argument.split("=")[0].lstrip("+") not in replaced]
    return shlex.join([*start, *kept, *(f"{key}={quoted(str(value))}" for key, value in chosen.items())])


def _own_command() -> list[str] | None:
    """Return how this process was started, without settings; None if by no entry point of this package."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("prime_xmc."):
        start = [sys.orig_argv[0], "-m", spec.name]
    elif Path(sys.argv[0]).name.startswith("prime-xmc-"):
        start = [sys.argv[0]]
    else:
        return None
    return [*start, TRUST_OPTION] if os.environ.get(TRUST_VARIABLE) == "1" else start


def from_here(path: Path) -> Path:
    """Return a path relative to the current folder if it lies in it."""
    path = Path(os.path.abspath(path))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def quoted(value: str) -> str:
    """Return a value as Hydra reads it on a command line, quoted if need be.

    Example:
        >>> quoted("runs/1"), quoted("my runs")
        ('runs/1', "'my runs'")
    """
    if re.fullmatch(r"[A-Za-z0-9_./-]+", value):
        return value
    # to Hydra, backslashes are themselves except before a quotation mark, where two stand for one
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + (r"\'" if match[2] else ""), value)
    return f"'{escaped}'"


def _different_settings(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference; keys with the same two values share one."""
    keys_of: dict[str, list[str]] = {}
    # those first that a user sets, of which others are made
    keys = sorted(recorded.keys() | given.keys(), key=lambda key: (not key.startswith("dataset."), key.count("."), key))
    for key in keys:
        before, now = (None if _may_change(key) else settings.get(key) for settings in (recorded, given))
        if as_number(before) != as_number(now):
            keys_of.setdefault(f"{json.dumps(before)} in the checkpoint, {json.dumps(now)} given", []).append(key)
    return [f"{', '.join(keys)}: {values}" for values, keys in keys_of.items()]


def as_number(value: Any) -> Any:
    """Return the number that a text spells, other values as they are, and so for values in lists and dictionaries.

    A number that stands for a text, such as `trainer.precision=32`, is kept as either of them: as a text only once the
    configuration has been checked.
    """
    if isinstance(value, dict):
        return {key: as_number(child) for key, child in value.items()}
    if isinstance(value, list):
        return [as_number(child) for child in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return int(value) if value.lstrip("-").isdecimal() else float(value)
    return value


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in (*MAY_CHANGE, *WATCHING))


def _dotted(node: Any, prefix: str) -> dict[str, Any]:
    """Return the values of a nested dictionary by dotted key; lists, and dictionaries without keys, are values."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    values: dict[str, Any] = {}
    for key, child in node.items():
        values |= _dotted(child, f"{prefix}.{key}" if prefix else str(key))
    return values


def _plain(config: DictConfig) -> dict[Any, Any]:
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return content


def _shown_length(length: Mapping[str, Any]) -> str:
    return " and ".join(f"trainer.{name}={value}" for name, value in length.items() if value not in (None, -1))
