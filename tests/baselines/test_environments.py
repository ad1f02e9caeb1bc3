import json

import pytest

from prime_xmc.baselines.environments import LibraryEnvironment

PACKAGES = ["some-package==1.2.3"]


def test_a_package_index_that_fails_is_a_clear_message_and_leaves_nothing(tmp_path):
    environment = LibraryEnvironment(
        "xr_linear", PACKAGES, tmp_path, ["--no-index", f"--find-links={tmp_path / 'nothing'}"]
    )
    with pytest.raises(ValueError, match="method=xr_linear needs an environment of its own") as error:
        environment.python()
    said = str(error.value)
    assert "No matching distribution found for some-package==1.2.3" in said
    assert "method.environment.pip_options=[--index-url,<url>]" in said
    assert "other methods do not need it" in said
    assert [path.name for path in tmp_path.iterdir()] == [f"{environment.folder.name}.lock"]


def test_python_without_venv_is_told_apart_from_an_index_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("prime_xmc.baselines.environments.sys.executable", "/bin/false")
    with pytest.raises(ValueError, match=r"could not be made: -m venv ended with status 1\.\n.*\n.*needs .*ensurepip"):
        LibraryEnvironment("xr_linear", PACKAGES, tmp_path).python()


def test_an_environment_is_made_once(tmp_path):
    environment = LibraryEnvironment("none", [], tmp_path, ["--no-index", "--dry-run", "--requirement=/dev/null"])
    python = environment.python()
    assert python.is_file()
    content = json.loads((environment.folder / "requirements.json").read_text())
    assert content == {"packages": [], "pip_options": [*environment.pip_options]}
    made = environment.folder.stat().st_ino
    assert environment.python() == python
    assert environment.folder.stat().st_ino == made


def test_folder_tells_what_is_in_it(tmp_path):
    first = LibraryEnvironment("a", PACKAGES, tmp_path).folder
    assert first.parent == tmp_path
    assert first == LibraryEnvironment("a", PACKAGES, tmp_path).folder
    assert first != LibraryEnvironment("a", ["some-package==1.2.4"], tmp_path).folder
    (tmp_path / "versions.txt").write_text("other==1\n")
    constrained = LibraryEnvironment("a", PACKAGES, tmp_path, constraints=tmp_path / "versions.txt")
    assert first != constrained.folder
    assert constrained.pip_options == ["--constraint", str(tmp_path / "versions.txt")]
    (tmp_path / "versions.txt").write_text("other==2\n")
    again = LibraryEnvironment("a", PACKAGES, tmp_path, constraints=tmp_path / "versions.txt")
    assert constrained.folder != again.folder


def test_versions_have_to_be_fixed(tmp_path):
    with pytest.raises(ValueError, match="environment of a needs fixed versions, got numpy<2"):
        LibraryEnvironment("a", ["numpy<2", *PACKAGES], tmp_path)
