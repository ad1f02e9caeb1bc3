"""Builds the long descriptions of LF-Debian-18K-Full: those of the packages that LF-Debian-18K has.

    python build_lf_debian_full.py Packages Translation-en OUT

reads an APT `Packages` index and the English descriptions that belong to it, and writes `contents.json.gz` to the
folder OUT: the description of each query and label of the LF-Debian-18K that prime_xmc carries. It needs an
installation of prime_xmc, which joins these with the raw files of LF-Debian-18K.
"""

import gzip
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import prime_xmc.datasets
from prime_xmc.datasets.building import write_records

CARRIED = Path(prime_xmc.datasets.__file__).parent / "LF-Debian-18K"
_INDEXED = re.compile(r"^Package: (?P<name>\S+)$.*?^Description-md5: (?P<digest>\S+)$", re.MULTILINE | re.DOTALL)
_DESCRIBED = re.compile(
    r"Package: (?P<name>\S+)\nDescription-md5: (?P<digest>\S+)\nDescription-en: (?P<synopsis>[^\n]*)(?P<lines>.*)",
    re.DOTALL,
)


def read_digests(index: str) -> dict[str, str]:
    """Return which description each package of an APT index has: the MD5 sum of it, by the package's name."""
    matches = map(_INDEXED.search, index.split("\n\n"))
    return {match["name"]: match["digest"] for match in matches if match is not None}


def read_descriptions(translation: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Return synopsis and long description by name and MD5 sum: architectures may have descriptions of their own."""
    matches = map(_DESCRIBED.match, translation.split("\n\n"))
    return {
        (match["name"], match["digest"]): (match["synopsis"].strip(), as_text(match["lines"]))
        for match in matches
        if match is not None
    }


def as_text(lines: str) -> str:
    """Return the lines below a synopsis as text: a paragraph is one line, and a line of a dot alone ends it."""
    paragraphs: list[list[str]] = [[]]
    for line in lines.split("\n"):
        if line.strip() == ".":
            paragraphs.append([])
        else:
            paragraphs[-1] += line.split()
    return "\n".join(" ".join(paragraph) for paragraph in paragraphs if paragraph)


def read_titles(folder: Path) -> dict[str, str]:
    """Return the title of each query and label of a folder of raw files, by its uid."""
    titles: dict[str, str] = {}
    for name in ("trn", "tst", "lbl"):
        with gzip.open(folder / f"{name}.json.gz", "rt", encoding="utf-8") as lines:
            titles |= {record["uid"]: record["title"] for record in map(json.loads, lines)}
    return titles


def contents_of(titles: dict[str, str], index: str, translation: str) -> Iterable[dict[str, str]]:
    """Yield the content of each thing, in the order of the uids.

    Raises:
        ValueError: If a package has no description, or another synopsis than its title says: the index is a later one.
    """
    digests, descriptions = read_digests(index), read_descriptions(translation)
    for uid, title in sorted(titles.items()):
        synopsis, content = descriptions.get((uid, digests.get(uid, "")), (None, ""))
        if title != f"{uid}: {synopsis}":
            raise ValueError(
                f"{uid}: the title is {title!r} and the synopsis {synopsis!r}; is the index that of the point release "
                "which the README names?"
            )
        yield {"uid": uid, "content": content}


def main(index: Path, translation: Path, out: Path, raw: Path = CARRIED) -> None:
    """Write the contents to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    contents = list(contents_of(read_titles(raw), index.read_text("utf-8"), translation.read_text("utf-8")))
    write_records(out / "contents.json.gz", contents, name_in_header=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
