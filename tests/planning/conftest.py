"""Configurations of plans for the toy data set."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig


@pytest.fixture(scope="session")
def configure(
    compose: Callable[..., DictConfig], toy_settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., DictConfig]:
    """Composes the configuration of a plan, or another one, for the toy data: configure("probe_steps=0")."""
    cache: Path = tmp_path_factory.mktemp("cache")
    settings = [
        *toy_settings,
        "index=flat",
        "dataset.max_length=24",
        "dataset.max_epochs=2",
        "sampling.batch_size=32",
        "trainer.precision=32-true",
        "trainer.log_every_n_steps=2",
        f"cache_dir={cache}",
        "run_dir=run",
    ]
    return lambda *more, name="plan": compose(*settings, *more, name=name)
