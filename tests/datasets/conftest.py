import importlib.util
from importlib.resources import files
from types import ModuleType

import pytest


@pytest.fixture
def script():
    """Opens the script that lies beside a carried data set as a module: script("LF-GO-15K", "build_lf_go")."""

    def load(dataset: str, name: str) -> ModuleType:
        path = files("prime_xmc") / "datasets" / dataset / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, str(path))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
