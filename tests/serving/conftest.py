"""The toy model behind a server, and a copy of it that a test may change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_xmc.export.predictor import Predictor
from prime_xmc.serving.application import Serving
from prime_xmc.serving.limits import Limits
from prime_xmc.serving.served_model import ModelSlot

LIMITS = Limits(body_bytes=20_000, body_seconds=1, texts=8, characters=500, top_k=20, explained=50, waiting=16)


@pytest.fixture
def model_folder(toy_bundle, tmp_path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(toy_bundle, tmp_path / "model")


@pytest.fixture
def make_slot() -> Callable[..., ModelSlot]:
    """Opens a folder: make_slot(folder, "theta")."""

    def make(folder: Path, *scorers: str, explain: bool | None = None) -> ModelSlot:
        def load(copy: Path, scorer: str) -> Predictor:
            return Predictor.load(copy, scorer=scorer)

        return ModelSlot(folder, load, scorers or ("auto",), explain=explain)

    return make


@pytest.fixture
def make_serving(toy_bundle, make_slot) -> Callable[..., Serving]:
    """Makes what serves a folder: make_serving(folder, max_batch=4)."""

    def make(folder: Path = toy_bundle, limits: Limits = LIMITS, **settings) -> Serving:
        return Serving(make_slot(folder), limits, **settings)

    return make
