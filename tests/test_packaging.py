"""The wheel alone, in an environment without the clone: what a user of `pip install prime_xmc` gets."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

ROOT = Path(__file__).parents[1]
EPOCH = "1700000000"
pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path, **more: str) -> str:
    """Run a command without the clone on Python's path; return its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(sources: Path, folder: Path) -> dict[str, Path]:
    """Build the wheel and the sources as `make dist` does; return them by the end of their names."""
    call(sys.executable, "-m", "hatchling", "build", "--directory", folder, cwd=sources, SOURCE_DATE_EPOCH=EPOCH)
    return {path.suffix: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(ROOT, tmp_path_factory.mktemp("wheels"))


def test_two_builds_have_the_same_bytes(built, tmp_path):
    """The second one in another folder, of files with other times and permissions."""
    listed = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / "clone" / name)
            (tmp_path / "clone" / name).chmod(0o600 | (ROOT / name).stat().st_mode & 0o100)
    again = build(tmp_path / "clone", tmp_path / "built")
    assert sorted(built) == sorted(again) == [".gz", ".whl"]
    for end, path in built.items():
        assert again[end].name == path.name
        assert again[end].read_bytes() == path.read_bytes(), path.name


@pytest.fixture(scope="module")
def environment(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds only the wheel, and borrows the dependencies of this one instead of downloading them.

    Python adds the folder that a .pth file names but does not read the .pth files in there, so the editable
    installation of the clone, which is one, stays out.
    """
    environment = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python, wheel = environment / "bin" / "python", built[".whl"]
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=environment)
    own = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment).strip())
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "dependencies.pth").write_text("\n".join(sorted(borrowed)))
    return environment


def files(folder: Path) -> dict[str, int]:
    """The sizes of a folder's files, less what Python itself writes there."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def test_wheel_carries_the_configuration_and_the_data(environment, tmp_path):
    code = "import prime_xmc.app; print(prime_xmc.__file__); print(prime_xmc.app.config_dir())"
    module, conf = map(Path, call(environment / "bin" / "python", "-c", code, cwd=tmp_path).splitlines())
    assert module.is_relative_to(environment)
    assert conf == module.parent / "conf"
    assert files(conf) == files(ROOT / "conf")
    for folder in ("datasets", "reporting", "serving"):
        assert files(module.parent / folder) == files(ROOT / "src" / "prime_xmc" / folder)


def write_raw_files(folder: Path, num_queries: int = 200, num_labels: int = 40) -> None:
    """Write a data set in the repository's format: a query repeats the words of its one label."""
    labels = [{"uid": f"l{i}", "title": f"label {i}"} for i in range(num_labels)]
    queries = [
        {"uid": f"q{i}", "title": f"a query about label {i % num_labels}", "target_ind": [i % num_labels]}
        for i in range(num_queries)
    ]
    folder.mkdir()
    for name, rows in {"lbl": labels, "trn": queries, "tst": queries}.items():
        with gzip.open(folder / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def trained(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that the wheel has trained for a step."""
    folder = tmp_path_factory.mktemp("trained")
    write_raw_files(folder / "raw")
    data = ("dataset=custom", "dataset.dir=raw", "dataset.num_validation=20", "dataset.num_free_vectors=8")
    call(environment / "bin" / "prime-xmc-train", *data, "trainer.max_steps=1", "hydra.run.dir=run", cwd=folder)
    return folder / "run"


def test_wheel_trains_a_step_and_exports(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert 0 <= metrics["test/P@1"] <= 1
    assert (trained / "model" / "config.json").is_file()


def test_wheel_serves_what_it_has_trained(environment, trained):
    """What the image of the Dockerfile does: the wheel alone, a server, its health and an answer."""
    command = [environment / "bin" / "prime-xmc-serve", "model=model", "port=0", "device=cpu"]
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PRIME_XMC_TOKEN")}
    with subprocess.Popen(command, cwd=trained, env=variables, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(line.split()[0] for line in server.stderr if " serves " in line)
            with urlopen(f"{address}/health", timeout=30) as answer:
                assert json.load(answer)["ready"] is True
            body = json.dumps({"texts": ["a query about label 7"], "top_k": 3}).encode()
            asked = Request(f"{address}/predict", body, {"Content-Type": "application/json"})
            with urlopen(asked, timeout=30) as answer:
                (found,) = json.load(answer)["predictions"]
        finally:
            server.terminate()
            server.stderr.read()
    assert found["query"] == "a query about label 7"
    assert len({label["uid"] for label in found["labels"]}) == 3
