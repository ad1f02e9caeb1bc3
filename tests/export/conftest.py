"""The toy model opened, and a copy of it."""

import shutil

import pytest

from prime_xmc.export.predictor import Predictor


@pytest.fixture
def copy(toy_bundle, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(toy_bundle, tmp_path / "model")


@pytest.fixture(scope="module")
def predictor(toy_bundle):
    return Predictor.load(toy_bundle)
