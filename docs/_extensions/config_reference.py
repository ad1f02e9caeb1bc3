"""Write the configuration reference from the YAML files under conf/ and their comments.

A line `<!-- configuration: dataset -->` in a page stands for all options of the group `dataset`, a line
`<!-- configuration: train.yaml -->` for one file. It is replaced by Markdown when Sphinx reads the page, so that the
reference cannot differ from the files.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from sphinx.application import Sphinx

CONF = Path(__file__).resolve().parents[2] / "conf"
PLACE = re.compile(r"^<!-- configuration: (?P<name>\S+) -->$", re.MULTILINE)
HIDDEN = ("hydra",)  # what a file sets of Hydra's own: where runs go and how they log
HYDRA_KEYS = {
    "_target_": "class or function that is built from the keys beside it",
    "_partial_": "true: it is built later, with arguments that only the run knows",
    "_convert_": "all: lists and dictionaries become plain Python objects",
    "_recursive_": "false: parts within it are not built",
}


@dataclass(frozen=True)
class Entry:
    """One key of a configuration file.

    Attributes:
        key: Dotted name within the file.
        default: Value as the file spells it; empty for a key that holds other keys.
        comment: What the file says about the key; empty where it says nothing.
    """

    key: str
    default: str
    comment: str


def head(path: Path) -> list[str]:
    """Return the lines of the comment at the top of a file, without a package directive."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if not text.startswith("@package"):
            lines.append(text)
    return lines


def entries(path: Path) -> list[Entry]:
    """Return the keys of a file in its order; `defaults` and what is in `HIDDEN` are left out."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        return []
    lines = text.splitlines()
    shown = [(key, value) for key, value in root.value if key.value not in ("defaults", *HIDDEN)]
    return [entry for key, value in shown for entry in _entries(key, value, "", text, lines)]


def _entries(key: yaml.ScalarNode, value: yaml.Node, prefix: str, text: str, lines: list[str]) -> Iterator[Entry]:
    name = f"{prefix}{key.value}"
    is_mapping = isinstance(value, yaml.MappingNode)
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    folded = isinstance(value, yaml.ScalarNode) and value.style in (">", "|")
    end = key.end_mark if is_block or folded or value.start_mark.index == value.end_mark.index else value.end_mark
    if is_block and is_mapping:
        default = ""
    elif is_block:
        default = yaml.dump(yaml.safe_load(yaml.serialize(value)), default_flow_style=True, width=10_000).strip()
    else:
        default = value.value.strip() if folded else text[value.start_mark.index : value.end_mark.index]
    comment = "" if folded else _comment_after(lines[end.line][end.column :])
    comment = comment or _comment_above(lines, key.start_mark.line) or HYDRA_KEYS.get(key.value, "")
    yield Entry(name, default, comment)
    if is_block and is_mapping:
        for child, grandchild in value.value:
            yield from _entries(child, grandchild, f"{name}.", text, lines)


def _comment_after(rest: str) -> str:
    found = re.search(r"(?:^|\s)#\s*(.*)$", rest)
    return found[1].strip() if found else ""


def _comment_above(lines: list[str], line: int) -> str:
    """Return the comment that stands above a key with the same indent, unless it is the head of the file."""
    indent = lines[line][: len(lines[line]) - len(lines[line].lstrip())]
    block: list[str] = []
    while line > 0 and re.match(rf"{indent}#", lines[line - 1]):
        line -= 1
        block.insert(0, lines[line].strip().lstrip("#").strip())
    return "" if line == 0 else " ".join(block)


def starts_from(path: Path) -> list[str]:
    """Return the entries of a file's `defaults` list, as the file means them."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    named = []
    for each in content.get("defaults", []):
        if isinstance(each, str):
            named.append(each)
        else:
            named += [f"{key}: {'null' if option is None else option}" for key, option in each.items()]
    return [each.removesuffix("@_here_") for each in named if each != "_self_"]


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
    bases = starts_from(path)
    if bases:
        lines += ["Starts from " + ", ".join(f"`{base}`" for base in bases) + ".", ""]
    rows = [entry for entry in entries(path) if entry.default or entry.comment]
    if rows:
        lines += ["| key | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{row.key}` | {_code(row.default)} | {_plain(row.comment)} |" for row in rows]
    return lines


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
            written.append(f"`{line}`" if re.match(r"(python -m prime_xmc|prime-xmc-)", line) else _plain(line))
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
