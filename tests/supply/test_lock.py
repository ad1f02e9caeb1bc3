"""What `make setup` installs: every package with a version and the hashes of its files, and nothing from elsewhere."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = re.compile(r"^([a-z0-9][a-z0-9.-]*)==([^ ;]+)( ; [^\\]+)? \\$")
NEEDS_CUDA = ("cuda-", "nvidia-", "triton")


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "supply" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement)[0]).lower()


def locked(name: str) -> dict[str, tuple[set[str], set[str]]]:
    """Return the versions and the hashes of each package of a lock; fail at a line that is anything else."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for line in (ROOT / "supply" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        if entry := PINNED.match(line):
            versions, hashes = found.setdefault(entry[1], (set(), set()))
            versions.add(entry[2])
        else:
            (hash_,) = re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line).groups()
            hashes.add(hash_)
    return found


def test_every_package_has_a_version_and_hashes():
    for name in ("lock.txt", "cuda.txt"):
        packages = locked(name)
        assert len(packages) > 20
        assert all(versions and hashes for versions, hashes in packages.values())


def test_all_that_is_declared_is_locked_at_the_versions_of_the_constraints():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    declared = {normal(requirement) for group in groups for requirement in group} - {"faiss-gpu"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    chosen = {normal(line): line.partition("==")[2] for line in lines if "==" in line and not line.startswith("#")}
    packages = locked("lock.txt")
    assert {name for name in declared if name not in packages} == set()
    assert {name: version for name, version in chosen.items() if packages[name][0] != {version}} == {}, "`make lock`"


def test_packages_of_cuda_are_apart():
    lock, cuda = locked("lock.txt"), locked("cuda.txt")
    assert [name for name in lock if name.startswith(NEEDS_CUDA)] == []
    assert {"triton", "cuda-toolkit", "nvidia-nccl-cu13"} <= cuda.keys()
    assert {name for name in cuda if not name.startswith(NEEDS_CUDA)} <= lock.keys()
    for name in cuda.keys() & lock.keys():
        assert cuda[name][0] <= lock[name][0], name


def test_the_build_of_torch_for_the_cpu_is_allowed():
    (cpu,) = re.findall(r"^TORCH_CPU := sha256:([0-9a-f]{64})$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert cpu in locked("lock.txt")["torch"][1]
    assert cpu not in locked("cuda.txt")["torch"][1]


def test_torch_is_installed_from_its_own_lines():
    version, lines = load("install").torch_entry((ROOT / "supply" / "lock.txt").read_text(encoding="utf-8"))
    assert {version} == locked("lock.txt")["torch"][0]
    first, *others = lines.splitlines()
    assert PINNED.match(first)
    assert {line.strip(" \\") for line in others} == {
        f"--hash=sha256:{each}" for each in locked("lock.txt")["torch"][1]
    }
    assert not lines.endswith("\\")


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        (["filelock", "sympy>=1.13"], []),
        (['cuda-toolkit[cublas]==13.0; sys_platform != "nowhere"', "SymPy"], ["cuda-toolkit"]),
        (['triton==3.7.1; sys_platform == "nowhere"', 'optree; extra == "optree"'], []),
        (["nvidia-nccl-cu12==2.29"], []),  # of a build for another CUDA, which was there before
    ],
)
def test_packages_of_cuda_are_installed_where_torch_lacks_them(requirements, expected):
    assert load("install").missing(requirements, {"filelock", "sympy", "nvidia-nccl-cu12"}) == expected
