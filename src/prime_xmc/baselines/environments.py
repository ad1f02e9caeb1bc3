"""Virtual environments for libraries that need other versions of packages than this one, made on first use."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prime_xmc.files import locked, write_json

logger = logging.getLogger(__name__)

_LIST = "requirements.json"  # in the folder of an environment: what has been installed
_LINES = 3  # of what pip complains about that are shown


class LibraryEnvironment:
    """A virtual environment with fixed versions of packages, in a folder that its name and these versions tell.

    Args:
        name: What it is for, such as "xr_linear".
        packages: Packages to install with their versions, `name==1.2.3`.
        folder: Folder of all environments.
        pip_options: Further options of `pip install`, such as ["--index-url", "https://..."].
        constraints: File of the versions of all that the packages depend on, which is installed, too. None: nothing is
            installed but the packages.

    Raises:
        ValueError: If a package has no fixed version.
        FileNotFoundError: If there is no such file.
    """

    def __init__(
        self,
        name: str,
        packages: Sequence[str],
        folder: str | Path,
        pip_options: Sequence[str] = (),
        constraints: str | Path | None = None,
    ):
        loose = [package for package in packages if "==" not in package]
        if loose:
            raise ValueError(f"the environment of {name} needs fixed versions, got {', '.join(loose)}")
        self.name = name
        self.packages = [*packages]
        dependencies = ["--no-deps"] if constraints is None else ["--constraint", str(constraints)]
        self.pip_options = [*pip_options, *dependencies]
        versions = None if constraints is None else Path(constraints).read_text(encoding="utf-8")
        content = json.dumps([self.packages, [*pip_options], versions, sys.version_info[:2]])
        digest = hashlib.blake2b(content.encode(), digest_size=4).hexdigest()
        self.folder = Path(folder).expanduser().absolute() / f"{name}-{digest}"

    def python(self) -> Path:
        """Return the environment's Python, after it has been made if it was not there.

        Raises:
            ValueError: If it cannot be made, with what pip said and what to do.
        """
        with locked(self.folder.with_name(f"{self.folder.name}.lock")):
            if not (self.folder / _LIST).is_file():
                logger.info("%s: making its environment, %s, once", self.name, self.folder)
                self._make(self.folder.with_name(f".{self.folder.name}"))
        return self.folder / "bin" / "python"

    def _make(self, temporary: Path) -> None:
        """Make it under another name, which nothing in it depends on but scripts that are not used, and rename it."""
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            needs = "It needs Python's modules venv and ensurepip, in Debian the package python3-venv."
            self._run("venv", [sys.executable, "-m", "venv", str(temporary)], needs)
            pip = [str(temporary / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
            needs = (
                f"It installs {', '.join(self.packages)} and needs a package index, of the network or of your own "
                "(method.environment.pip_options=[--index-url,<url>])."
            )
            self._run("pip", [*pip, *self.pip_options, *self.packages], needs)
            write_json(temporary / _LIST, {"packages": self.packages, "pip_options": self.pip_options})
            shutil.rmtree(self.folder, ignore_errors=True)  # incomplete: it has no list
            temporary.rename(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _run(self, step: str, command: Sequence[str], needs: str) -> None:
        # PYTHONPATH would let pip find a requirement where the process of the library, which ignores it, does not
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            errors = [line for line in lines if line.startswith("ERROR")] or lines
            said = "\n".join(errors[-_LINES:])
            raise ValueError(
                f"method={self.name} needs an environment of its own, and that could not be made: -m {step} ended with "
                f"status {done.returncode}.\n{said}\n{needs} The same command tries again; other methods do not need "
                "it."
            )
