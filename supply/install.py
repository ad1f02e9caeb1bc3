"""`make setup`: installs what is locked into the environment whose Python runs this file.

PyTorch comes first, on its own. Of several files that a lock allows, pip prefers those whose hashes the index states,
which on Linux is PyPI's build for CUDA, also where a build for the CPU is set before it (a folder of wheels). Without
hashes pip takes the one that the machine's settings mean; that file is then installed with its hash required.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

FOLDER = Path(__file__).parent
LOCK, CUDA = FOLDER / "lock.txt", FOLDER / "cuda.txt"


def torch_entry(lock: str) -> tuple[str, str]:
    """Return PyTorch's version in a lock, and its lines there."""
    found = re.search(r"^torch==(\S+)(?:.*\\\n)+.*$", lock, re.MULTILINE)
    if found is None:
        raise ValueError(f"{LOCK} has no entry for torch: make it again with `make lock`")
    return found[1], found[0]


def missing(requirements: Iterable[str], installed: Collection[str]) -> list[str]:
    """Return the packages of some requirements that this machine needs and that are not installed."""
    # of the lock, and not there before
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    needed = [each for each in map(Requirement, requirements) if each.marker is None or each.marker.evaluate()]
    return [each.name for each in needed if canonicalize_name(each.name) not in installed]


def pip(*arguments: str | Path) -> None:
    """Run pip in this environment."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)], check=True)


def install_torch() -> None:
    """Install PyTorch, unless the locked version of some build is there."""
    locked, lines = torch_entry(LOCK.read_text(encoding="utf-8"))
    try:
        if version("torch").partition("+")[0] == locked:
            return
    except PackageNotFoundError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--dest", folder, f"torch=={locked}")
        (Path(folder) / "torch.txt").write_text(lines, encoding="utf-8")
        chosen = ["--no-index", "--find-links", folder, "--requirement", Path(folder) / "torch.txt"]
        pip("install", "--no-deps", "--require-hashes", *chosen)


def main() -> None:
    """Install PyTorch, all other packages, and what PyTorch's build for CUDA needs where it is that one."""
    install_torch()
    pip("install", "--no-deps", "--require-hashes", "--requirement", LOCK)
    # A build for the CPU needs none of them, and one that was installed before has brought its own along.
    if missing(requires("torch") or [], {re.sub(r"[-_.]+", "-", each.name).lower() for each in distributions()}):
        pip("install", "--no-deps", "--require-hashes", "--requirement", CUDA)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # pip has said why
        sys.exit(error.returncode)
