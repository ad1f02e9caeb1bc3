"""The rows data, model and index meet in the configuration, the files above them and a batch; nothing loads pickles."""

import ast
from pathlib import Path

import pytest

import prime_xmc

PACKAGE = Path(prime_xmc.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
# What of this package a row, or a file, may import. The files above the rows that are not listed are free.
REACH = {
    "data": ("prime_xmc.data", "prime_xmc.files"),
    "model": ("prime_xmc.model",),
    "index": ("prime_xmc.index", "prime_xmc.files"),
    # Its steps take the batches that the data row builds, whose shape is defined once, and are judged by the metrics.
    "model/module.py": ("prime_xmc.model", "prime_xmc.data.batch", "prime_xmc.metrics"),
    "model/classifiers.py": (
        "prime_xmc.model",
        "prime_xmc.data.batch",
        "prime_xmc.data.corpus",
        "prime_xmc.metrics",
    ),
    "model/metrics.py": ("prime_xmc.metrics", "prime_xmc.data.corpus"),
    "metrics.py": ("prime_xmc.data.corpus",),
    # They say when the rows act on one another, so each row's part in it is called from here.
    "callbacks.py": (
        "prime_xmc.data.batch",
        "prime_xmc.data.sampling",
        "prime_xmc.files",
        "prime_xmc.index",
        "prime_xmc.model.banks",
        "prime_xmc.model.prototypes",
    ),
    "checkpoints.py": ("prime_xmc.files", "prime_xmc.model.banks"),
    # It reads what runs have left, and needs no model for it.
    "reporting": ("prime_xmc.reporting", "prime_xmc.data", "prime_xmc.metrics", "prime_xmc.predictions"),
}
ALLOWED = {
    "lightning": {
        "data/datamodule.py",
        "model/module.py",
        "model/classifiers.py",
        "callbacks.py",
        "checkpoints.py",
        "probe.py",
        "tracking.py",
    },
    "hydra": {
        "configs.py",
        "train.py",
        "sweeps.py",
        "prepare.py",
        "plan.py",
        "evaluate.py",
        "predict.py",
        "classify.py",
    },
    "wandb": {"tracking.py"},
    "plotly": {"reporting/figures.py", "reporting/page.py"},  # of an extra
    "jinja2": {"reporting/page.py"},
    "pickle": {"checkpoints.py"},  # the name of the error with which torch refuses one
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
    reach = REACH.get(file, REACH[file.split("/")[0]])
    assert not {name for name in imported(file) if name.startswith("prime_xmc.") and not name.startswith(reach)}


@pytest.mark.parametrize("file", FILES)
def test_frameworks_stay_where_they_belong(file):
    packages = {name.split(".")[0] for name in imported(file)}
    assert not {package for package in packages & ALLOWED.keys() if file not in ALLOWED[package]}


def test_wandb_is_imported_only_where_it_is_used():
    """It need not be installed, and takes seconds to import."""
    head = [node for node in parse("tracking.py").body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node.lineno for node in head if "wandb" in ast.unparse(node).split()]


@pytest.mark.parametrize("file", FILES)
def test_loading_a_file_never_runs_code_from_it(file):
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call):
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert ast.unparse(node.func) != "torch.load" or options.get("weights_only") == "True", node.lineno
            assert options.get("allow_pickle", "False") == "False", node.lineno
