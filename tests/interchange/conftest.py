"""The toy model, exported once."""

import pytest

from prime_xmc.export.predictor import Predictor
from prime_xmc.interchange.folder_writer import export_folder


@pytest.fixture(scope="session")
def predictor(toy_bundle):
    return Predictor.load(toy_bundle, scorer="theta", precision="32-true")


@pytest.fixture(scope="session")
def exported(predictor, toy_bundle, tmp_path_factory):
    """What `export_folder` returned, and what it said."""
    said = []
    folder = tmp_path_factory.mktemp("exported") / "folder"
    return export_folder(predictor, toy_bundle, folder, int8=True, say=said.append), said
