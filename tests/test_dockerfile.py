"""The Dockerfile against the repository; no image is built here."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

from prime_xmc.serving.server import check_token

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def copied():
    """The names that it takes from the clone."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_what_it_copies_is_there_and_nothing_else_is_sent():
    names = copied()
    assert {"src", "conf", "pyproject.toml", "constraints.txt"} <= set(names)
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(names)
    for name in names:
        assert (ROOT / name).exists()
    assert any(fnmatch("a/__pycache__", rule) for rule in rules[1:])


def test_the_wheel_has_all_that_its_build_reads():
    """A license or a readme that pyproject.toml names and the image lacks ends the build."""
    content = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'readme = "README.md"' in content
    assert 'license-files = ["LICENSE"]' in content
    assert {"README.md", "LICENSE"} <= set(copied())


def test_the_versions_that_it_looks_up_are_constrained():
    names = re.findall(r"grep '\^([a-z]+)=='", DOCKERFILE)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert names == ["torch", "hatchling"]
    for name in names:
        assert len([line for line in lines if line.startswith(f"{name}==")]) == 1


def test_its_command_is_one_of_the_server_and_asks_for_a_token(compose):
    (command,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    given = [argument.replace("model=", "model.dir=") for argument in json.loads(command)]
    config = compose(*given, name="serve")
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert (config.model.dir, str(config.port)) == ("/model", port)
    assert f"127.0.0.1:{port}/health" in DOCKERFILE
    assert check_token("none", config.host) is None
    assert config.host == "0.0.0.0"


def test_it_does_not_run_as_root():
    last_stage = DOCKERFILE.rpartition("FROM ")[2]
    assert last_stage.index("USER 10001") < last_stage.index("ENTRYPOINT")
