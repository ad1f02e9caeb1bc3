"""The rows data, model and index meet only in the configuration and in the files above them; nothing loads pickles."""

import ast
from pathlib import Path

import pytest

import prime_xmc

PACKAGE = Path(prime_xmc.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
ROWS = {"data", "model", "index"}
# What of the rows a row, or a file above them, may import. All other files above them are free.
REACH = {
    "data": ("prime_xmc.data",),
    "model": ("prime_xmc.model",),
    "index": ("prime_xmc.index",),
    "metrics.py": ("prime_xmc.data.corpus",),
    "callbacks.py": ("prime_xmc.data.corpus", "prime_xmc.index"),
}
ALLOWED = {
    "lightning": {"data/datamodule.py", "model/module.py", "callbacks.py"},
    "hydra": {"configs.py", "train.py", "prepare.py", "evaluate.py", "predict.py"},
    "pickle": set(),
}


def parse(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def imported(file: str) -> set[str]:
    """The dotted names that a file imports, `prime_xmc.data` and `prime_xmc.data.corpus` alike; none is relative."""
    names = set()
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("file", [file for file in FILES if file.split("/")[0] in REACH])
def test_rows_do_not_import_each_other(file):
    rows_used = {name for name in imported(file) if name.startswith("prime_xmc.") and name.split(".")[1] in ROWS}
    assert not {name for name in rows_used if not name.startswith(REACH[file.split("/")[0]])}


@pytest.mark.parametrize("file", FILES)
def test_frameworks_stay_where_they_belong(file):
    packages = {name.split(".")[0] for name in imported(file)}
    assert not {package for package in packages & ALLOWED.keys() if file not in ALLOWED[package]}


@pytest.mark.parametrize("file", FILES)
def test_loading_a_file_never_runs_code_from_it(file):
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call):
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert ast.unparse(node.func) != "torch.load" or options.get("weights_only") == "True", node.lineno
            assert options.get("allow_pickle", "False") == "False", node.lineno
