"""Builds LF-Debian: which packages does a Debian package depend on, recommend, suggest or enhance?

    python build_lf_debian.py OUT < Packages

reads an APT `Packages` index and writes the Extreme Classification Repository's raw files to the folder OUT:
`{trn,tst,lbl}.json.gz` and `filter_labels_{train,test}.txt`. It needs an installation of prime_xmc.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

from prime_xmc.datasets.building import write_raw_files

FIELDS = ("Depends", "Recommends", "Suggests", "Enhances")
DROPPED_SECTIONS = {"libs", "oldlibs"}  # shared libraries say how a package was linked, not what it is about

Package = dict[str, str]


def read_packages(index: str) -> dict[str, Package]:
    """Return the fields of each package of an APT index, by its name."""
    return {package["Package"]: package for package in map(_fields, index.split("\n\n")) if "Package" in package}


def _fields(stanza: str) -> Package:
    fields: Package = {}
    key = None
    for line in stanza.split("\n"):
        if line.startswith((" ", "\t")):
            if key is not None:
                fields[key] += " " + line.strip()
        elif ":" in line:
            key, value = line.split(":", 1)
            fields[key] = value.strip()
    return fields


def related_packages(packages: dict[str, Package]) -> dict[str, set[str]]:
    """Return the packages that each package names, shared libraries and itself left out."""
    related = defaultdict(set)
    for name, package in packages.items():
        for field in FIELDS:
            for alternative in re.split(r"[,|]", package.get(field, "")):
                other = re.split(r"[\s(:\[]", alternative.strip(), maxsplit=1)[0]
                if other in packages and other != name and packages[other].get("Section") not in DROPPED_SECTIONS:
                    related[name].add(other)
    return dict(related)


def main(index: str, out: Path) -> None:
    """Write the raw files of an APT index to a folder."""
    packages = read_packages(index)
    texts = {name: {"title": f"{name}: {_synopsis(package)}"} for name, package in packages.items()}
    write_raw_files(out, texts, related_packages(packages), names_in_headers=True)


def _synopsis(package: Package) -> str:
    return package.get("Description", "").split("\n")[0]


if __name__ == "__main__":
    main(sys.stdin.read(), Path(sys.argv[1]))
