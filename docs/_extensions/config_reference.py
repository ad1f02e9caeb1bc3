"""Write the configuration reference from the YAML files under conf/ and their comments.

A line `<!-- configuration: dataset -->` in a page stands for all options of the group `dataset`, a line
`<!-- configuration: train.yaml -->` for one file. It is replaced by Markdown when Sphinx reads the page, so that the
reference cannot differ from the files.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

from prime_xmc.conf_files import config_dir, entries, head, is_command, starts_from

CONF = config_dir()
PLACE = re.compile(r"^<!-- configuration: (?P<name>\S+) -->$", re.MULTILINE)
HYDRA_KEYS = {
    "_target_": "class or function that is built from the keys beside it",
    "_partial_": "true: it is built later, with arguments that only the run knows",
    "_convert_": "all: lists and dictionaries become plain Python objects",
    "_recursive_": "false: parts within it are not built",
}


def markdown(name: str, level: int) -> str:
    """Return the reference of a file or of all options of a group.

    Args:
        name: Path under conf/: of a file with its suffix, or of a folder.
        level: Level of the headings of a group's options.

    Raises:
        ValueError: If conf/ has no such file or folder, or the folder is empty.
    """
    place = CONF / name
    if place.is_file():
        return "\n".join(_file(place))
    paths = sorted(place.glob("**/*.yaml"))
    if not paths:
        raise ValueError(f"<!-- configuration: {name} -->: expected a file or a group under {CONF}")
    blocks = []
    for path in paths:
        option = path.relative_to(place).with_suffix("").as_posix()
        blocks += ["", f"{'#' * level} {name}={option}", "", *_file(path)]
    return "\n".join(blocks)


def _file(path: Path) -> list[str]:
    lines = [*_paragraphs(head(path)), ""]
    bases = [base.removesuffix("@_here_") for base in starts_from(path)]
    if bases:
        lines += ["Starts from " + ", ".join(f"`{base}`" for base in bases) + ".", ""]
    rows = [(entry.key, entry.default, entry.comment or _hydra_comment(entry.key)) for entry in entries(path)]
    rows = [(key, default, comment) for key, default, comment in rows if default or comment]
    if rows:
        lines += ["| key | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{key}` | {_code(default)} | {_plain(comment)} |" for key, default, comment in rows]
    return lines


def _hydra_comment(key: str) -> str:
    return HYDRA_KEYS.get(key.rpartition(".")[2], "")


def _paragraphs(lines: list[str]) -> list[str]:
    """Return the head of a file as Markdown: commands become code, and facts such as `Duration: 4 min` a list."""
    written: list[str] = []
    fact = ""
    for line in [*lines, ""]:
        named = re.match(r"(Command|Hardware|Duration|Result):\s+(.*)", line)
        if fact and (named or not line):
            written.append(fact)
            fact = ""
        if named and named[1] == "Command":
            fact = f"- {named[1]}: `{named[2]}`"
        elif named:
            fact = f"- {named[1]}: {_plain(named[2])}"
        elif fact.endswith("`"):
            fact = fact.rstrip("`\\ ") + f" {line}`"
        elif fact:
            fact += f" {_plain(line)}"
        else:
            written.append(f"- `{line}`" if is_command(line) else _plain(line))
    return written


def _code(value: str) -> str:
    value = " ".join(value.split()).replace("|", "\\|")
    return f"`{value}`" if value else ""


def _plain(text: str) -> str:
    """Return a comment as Markdown in which nothing but `code` has a meaning, fit for the cell of a table."""
    parts = re.split(r"(`[^`]*`)", text)
    escaped = [part if part.startswith("`") else re.sub(r"([\\*_\[\]<>#$])", r"\\\1", part) for part in parts]
    return "".join(escaped).replace("|", "\\|")


def _replace(app: Sphinx, docname: str, content: list[str]) -> None:
    def reference(place: re.Match[str]) -> str:
        before = re.findall(r"^(#+) ", content[0][: place.start()], re.MULTILINE)
        return markdown(place["name"], level=len(before[-1]) + 1 if before else 2)

    if PLACE.search(content[0]):
        for path in CONF.glob("**/*.yaml"):
            app.env.note_dependency(str(path), docname=docname)
        content[0] = PLACE.sub(reference, content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Replace the marked lines of each page as Sphinx reads it."""
    app.connect("source-read", _replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
