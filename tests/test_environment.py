import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from prime_xmc.environment import WAITING, set_defaults

COMMANDS = [command for command in entry_points(group="console_scripts") if command.value.startswith("prime_xmc.")]
STATE = "print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process whose user has set these variables alone of those about waiting."""
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-c", f"import os, sys\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=kept | environment)


def libgomp() -> Path | None:
    import torch

    return next(Path(torch.__file__).parent.glob("lib/libgomp*"), None)


needs_libgomp = pytest.mark.skipif(libgomp() is None, reason="torch comes with another library of OpenMP")


def spin_counts(printed: str) -> set[str]:
    """What each libgomp of a process says how often a waiting thread looks before it sleeps."""
    return set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", printed))


def test_defaults():
    environment = {"HOME": "/root"}
    set_defaults(environment)
    assert environment == {"HOME": "/root", "OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}


@pytest.mark.parametrize("name", [*WAITING, "THP_MEM_ALLOC_ENABLE"])
def test_what_the_user_has_set_stays(name):
    environment = {name: "0"}
    set_defaults(environment)
    assert environment[name] == "0"
    if name in WAITING:
        assert environment == {name: "0", "THP_MEM_ALLOC_ENABLE": "1"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_commands_set_it_before_torch_is_imported(command):
    code = f"from {command.module} import {command.attr}\n{STATE}"
    assert run(code).stdout == "PASSIVE None False\n"
    assert run(code, GOMP_SPINCOUNT="7").stdout == "None 7 False\n"


def test_modules_that_are_run_set_it():
    code = (
        "import runpy\nsys.argv = ['train', '--version']\ntry: runpy.run_module('prime_xmc.train', run_name='__main__')"
    )
    done = run(f"{code}\nexcept SystemExit: {STATE}")
    assert done.stdout.splitlines()[-1] == "PASSIVE None False"


@pytest.mark.parametrize("use", ["prime_xmc.load", "prime_xmc.train"])
def test_python_and_child_processes(use):
    child = "import os; print(os.environ['OMP_WAIT_POLICY'])"
    code = f"import prime_xmc, subprocess\n{use}\nsubprocess.run([sys.executable, '-c', {child!r}], check=True)"
    assert run(code).stdout == "PASSIVE\n"
    assert run(code, OMP_WAIT_POLICY="ACTIVE").stdout == "ACTIVE\n"


@needs_libgomp
@pytest.mark.parametrize(
    ("code", "environment", "expected"),
    [
        ("import prime_xmc, torch", {}, {"0"}),
        ("import prime_xmc, torch", {"GOMP_SPINCOUNT": "7"}, {"7"}),
        ("import prime_xmc, torch", {"OMP_WAIT_POLICY": "ACTIVE"}, {"30000000000"}),
        ("import torch, prime_xmc", {}, {"300000"}),  # too late: the documentation says so
    ],
)
def test_what_libgomp_makes_of_it(code, environment, expected):
    assert spin_counts(run(code, OMP_DISPLAY_ENV="VERBOSE", **environment).stderr) == expected


def test_the_tests_themselves_set_it_before_torch_is_imported():
    """Whatever the order in which tests import it, and in the processes of xdist, which inherit it."""
    tests = Path(__file__).parent
    folders = [str(tests), str(tests / "faults")]  # as pyproject.toml has it for pytest
    code = f"sys.path[:0] = {folders!r}\nimport conftest\nfrom unittest.mock import Mock\n"
    done = run(f"{code}conftest.pytest_configure(Mock())\n{STATE}")
    assert done.stdout == "PASSIVE None False\n"
