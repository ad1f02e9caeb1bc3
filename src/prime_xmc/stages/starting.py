"""What every stage does before it begins."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from prime_xmc.files import remove_leftovers
from prime_xmc.run_files import CHECKPOINT
from prime_xmc.training.interruption import SaveProgress
from prime_xmc.training.run_folder import is_first_process

logger = logging.getLogger(__name__)


def tidy_cache(config: DictConfig) -> None:
    """Remove from the cache what killed processes have left half written there, not what others are writing."""
    if is_first_process():
        for path in remove_leftovers(Path(config.cache_dir).expanduser(), idle_hours=24, everywhere=False):
            logger.info("removed %s, which a run that was killed had begun to write", path)


def check_resume(config: DictConfig, command: str) -> None:
    """Check that `resume` comes from the command line, which puts the settings of the run into the configuration.

    Args:
        config: The configuration.
        command: Entry point that it is of.

    Raises:
        ValueError: If it does not.
    """
    resume = config.get("resume")
    if resume is None:
        return
    folder = Path(str(config.run_dir)).absolute()
    starts_anew = command == "train" and config.ckpt_path is None and (folder / CHECKPOINT).is_file()
    if Path(str(resume)).absolute() != folder or starts_anew:
        raise ValueError(f"resume={resume} is for the command line: prime-xmc-{command} resume={resume}")


def make_save_progress(config: DictConfig, run_dir: Path) -> SaveProgress:
    """Return what saves a training in its run folder: at signals, and every `checkpoint.every_n_minutes`, if it has."""
    callbacks = config.get("callbacks") or {}
    has_checkpoints = (
        callbacks.get("checkpoint") is not None and config.trainer.get("enable_checkpointing") is not False
    )
    minutes = (config.get("checkpoint") or {}).get("every_n_minutes") if has_checkpoints else None
    return SaveProgress(run_dir / CHECKPOINT, minutes)
