"""Who may import whom, which frameworks stay where, and that nothing is loaded that could run code."""

import ast
import graphlib
from collections import Counter
from pathlib import Path

import pytest

import prime_xmc
from prime_xmc.command_line.usage import COMMANDS

PACKAGE = Path(prime_xmc.__file__).parent
PATHS = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
FILES = sorted(path.as_posix() for path in PATHS if path.parts[0] != "datasets")
# What of this package a room may import besides itself: the arrows all point upwards in this list, so that there is no
# circle. A room is a folder or a file at the top.
ROOMS: dict[str, set[str]] = {
    "environment": set(),
    "files": set(),
    "carried_encoder": set(),
    "foreign": {"carried_encoder"},
    "checksums": {"foreign"},
    "printing": set(),
    "progress": set(),
    "conf_files": set(),
    "run_files": set(),
    "command_line": {"conf_files", "foreign", "run_files"},
    "tables": {"files", "foreign"},
    "data": {"files", "foreign", "checksums", "progress"},
    "conversion": {"files", "foreign", "progress", "tables", "data"},
    "index": {"files"},
    "model": {"files", "foreign", "checksums"},
    "resolvers": {"data", "model"},
    "composing": {"conf_files", "run_files", "command_line", "resolvers"},
    "app": {"files", "conf_files", "command_line", "printing", "composing"},
    "evaluation": {"files", "foreign", "printing", "progress", "data", "index"},
    "export": {"files", "foreign", "checksums", "printing", "progress", "tables", "data", "index", "model"},
    "training": {
        *("files", "checksums", "run_files", "printing", "progress", "data", "index", "model", "evaluation", "export"),
    },
    "assemble": {"run_files", "data", "index", "model", "evaluation", "export", "training"},
    "calibrating": {"data", "index", "evaluation", "export"},
    "scoring": {"composing", "data", "index", "evaluation", "export", "training", "assemble", "calibrating"},
    "stages": {
        *("files", "run_files", "printing", "data", "index", "model", "evaluation", "export", "training"),
        *("assemble", "composing"),
        "calibrating",
        "scoring",
    },
    "trained_model": {"data", "evaluation", "export"},
    "api": {
        *("command_line", "composing", "conf_files", "files", "run_files", "data", "export", "stages", "training"),
        "trained_model",
    },
    "baselines": {
        *("files", "run_files", "printing", "progress", "data", "model", "evaluation", "training", "assemble"),
    },
    "planning": {"printing", "data", "index", "model", "evaluation", "training", "assemble"},
    "reporting": {"files", "foreign", "run_files", "data", "evaluation"},
    "reproducing": {
        *("composing", "conf_files", "run_files", "printing", "data", "training", "assemble", "stages", "reporting"),
    },
    "auditing": {"files", "progress", "data", "reporting"},
    "serving": {"export"},
    "interchange": {"files", "data", "index", "model", "evaluation", "export"},
    "bundle": {"export"},  # an old name
    "configs": {"command_line"},  # an old name
    "__main__": {"conf_files", "command_line"},
}
ENTRY_POINTS = set(COMMANDS)
# Where the folder of a room has the name of a command, the command is what `python -m` runs of it.
ENTRY_FILES = {f"{name}.py" for name in ENTRY_POINTS - {"export"}} | {"export/__main__.py"}
ALLOWED = {
    "lightning": {
        "baselines/worker.py",  # that of LibMultiLabel's environment
        "data/datamodule.py",
        "training/module.py",
        "training/classifier_module.py",
        "training/callbacks.py",
        "training/divergence.py",
        "training/host_threads.py",
        "training/protocols.py",
        "training/ranking_module.py",
        "training/passes.py",
        "training/start.py",
        "training/checkpoints.py",
        "training/continuation.py",
        "training/curves.py",
        "training/interruption.py",
        "training/record.py",
        "training/tracking.py",
        "training/progress_bar.py",
        "training/debugging.py",
        "assemble/agreement.py",
        "assemble/opened.py",
        "assemble/untrained.py",
        "planning/probe.py",
    },
    "hydra": {
        "app.py",
        "composing.py",
        "api.py",
        "baselines/running.py",
        "command_line/arguments.py",
        "command_line/checks.py",
        "command_line/messages.py",
        "command_line/resuming.py",
        "assemble/agreement.py",
        "assemble/opened.py",
        "assemble/untrained.py",
        "stages/second_stage.py",
        "planning/probe.py",
        "training/run_folder.py",
        "training/sweeps.py",
    },
    "wandb": {"training/tracking.py"},
    "jinja2": {"reporting/page.py", "auditing/audit_page.py"},  # of an extra
    "fastapi": {"serving/application.py", "serving/server.py"},  # of an extra, as the next three
    "starlette": {"serving/application.py", "serving/middleware.py", "serving/problems.py"},
    "uvicorn": {"serving/server.py"},
    "prometheus_client": {"serving/telemetry.py"},
    "onnxruntime": {"interchange/onnx_encoder.py"},
    "pyarrow": {
        "interchange/label_table.py",
        "tables/columnar_rows.py",
        "tables/parquet_writer.py",
        "tables/reader.py",
        "tables/writer.py",
        "conversion/store.py",
    },
    "duckdb": {"conversion/store.py"},
    "sklearn": {"baselines/features.py"},  # of an extra, as the next ones
    "omikuji": {"baselines/worker.py"},
    "napkinxc": {"baselines/worker.py"},
    "libmultilabel": {"baselines/worker.py"},  # in environments of their own, as the next one
    "pecos": {"baselines/worker.py"},
    "pickle": {"training/checkpoints.py"},  # the name of the error with which torch refuses one
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


def room(name: str) -> str:
    """The room of a dotted name of this package, or of a file."""
    return name.removeprefix("prime_xmc.").replace("/", ".").removesuffix(".py").split(".")[0]


def modules(file: str) -> set[str]:
    """The files of this package that a file imports."""
    names = {
        name.removeprefix("prime_xmc.").replace(".", "/") for name in imported(file) if name.startswith("prime_xmc.")
    }
    return {f"{name}.py" for name in names} & set(FILES)


def test_every_room_stands_below_those_that_it_imports():
    above: set[str] = set()
    for name, reach in ROOMS.items():
        assert reach <= above
        above.add(name)


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_rooms_import_what_is_above_them_alone(file):
    reach = set(ROOMS) if file in ENTRY_FILES else ROOMS[room(file)] | {room(file)}
    assert {room(module) for module in modules(file)} <= reach


def test_there_is_no_circle_among_files():
    imports = {file: modules(file) for file in FILES}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError


@pytest.mark.parametrize("file", sorted(ENTRY_FILES))
def test_entry_points_are_thin(file):
    assert len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) <= 80


def test_no_two_files_or_classes_have_one_name():
    names = Counter(Path(file).name for file in FILES if not file.endswith(("__init__.py", "__main__.py")))
    classes = Counter(node.name for file in FILES for node in parse(file).body if isinstance(node, ast.ClassDef))
    shared = [name for name, count in (names + classes).items() if count > 1]
    assert shared == ["bundle.py"]  # an old name, kept for the model cards of version 0.1.0


@pytest.mark.parametrize("file", FILES)
def test_frameworks_stay_where_they_belong(file):
    packages = {name.split(".")[0] for name in imported(file)}
    assert not {package for package in packages & ALLOWED.keys() if file not in ALLOWED[package]}


def test_wandb_is_imported_only_where_it_is_used():
    """It need not be installed, and takes seconds to import."""
    head = [node for node in parse("training/tracking.py").body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node.lineno for node in head if "wandb" in ast.unparse(node).split()]


@pytest.mark.parametrize("file", FILES)
def test_loading_a_file_never_runs_code_from_it(file):
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call):
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert ast.unparse(node.func) != "torch.load" or options.get("weights_only") == "True", node.lineno
            assert options.get("allow_pickle", "False") == "False", node.lineno
