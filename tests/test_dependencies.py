"""The dependencies that pyproject.toml declares are those that the code imports, each with a tested version."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_TORCH = {"triton"}  # PyTorch's builds for CUDA bring the version that they need, and nothing is missing elsewhere
ELSEWHERE = {"libmultilabel", "pecos"}  # in environments that `prime_xmc.baseline` makes, by conf/method
UNTESTED = {"faiss-gpu"}  # owns the same module as faiss-cpu, so that only one of them can be installed


def normal(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name)[0]).lower()


def declared(*extras: str) -> set[str]:
    """Return the packages that the package itself and some extras need."""
    requirements = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return {normal(requirement) for group in requirements for requirement in group}


def imported() -> dict[str, str]:
    """Return the top-level modules that the package imports, each with a file that does so."""
    modules = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            modules.update({name.partition(".")[0]: path.name for name in names})
    known = {*sys.stdlib_module_names, "prime_xmc", *OF_TORCH, *ELSEWHERE}
    return {name: file for name, file in modules.items() if name not in known}


def test_what_is_imported_is_declared():
    extras = [extra for extra in PROJECT["optional-dependencies"] if extra not in ("dev", "docs")]
    names = declared(*extras)
    packages = packages_distributions()
    undeclared = {
        module: file
        for module, file in imported().items()
        if not names & {normal(package) for package in packages.get(module, [module])}
    }
    assert undeclared == {}


def test_every_declared_package_has_a_tested_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constrained = {normal(line) for line in lines if "==" in line and not line.startswith("#")}
    assert declared(*PROJECT["optional-dependencies"]) - constrained == UNTESTED
