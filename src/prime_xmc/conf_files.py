"""Where the configuration files are, and what they say about themselves: heads, keys, defaults and comments.

The help of the entry points and the configuration reference of the documentation are both made from this.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

HIDDEN = ("hydra",)  # what a file sets of Hydra's own: where runs go and how they log


def config_dir() -> Path:
    """Return the folder of the configuration files: in the package where a wheel put it, in the clone otherwise.

    Raises:
        FileNotFoundError: If neither has it.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "conf", package.parents[1] / "conf")
    for candidate in candidates:
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(
        f"no configuration files: expected train.yaml in {candidates[0]} (an installed wheel) or in {candidates[1]} "
        "(a clone). Install prime_xmc from its wheel, or from a complete clone with `pip install -e .`."
    )


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


def is_command(line: str) -> bool:
    """Return whether a line of a file's head is an example: a command to type."""
    return re.match(r"(echo .*\| )?(python -m prime_xmc|prime-xmc-)", line) is not None


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
    yield Entry(name, default, comment or _comment_above(lines, key.start_mark.line))
    if is_block and is_mapping:
        for child, grandchild in value.value:
            yield from _entries(child, grandchild, f"{name}.", text, lines)


def _comment_after(rest: str) -> str:
    match = re.search(r"(?:^|\s)#\s*(.*)$", rest)
    return match[1].strip() if match else ""


def _comment_above(lines: list[str], line: int) -> str:
    """Return the comment that stands above a key with the same indent, unless it is the head of the file."""
    indent = lines[line][: len(lines[line]) - len(lines[line].lstrip())]
    block: list[str] = []
    while line > 0 and re.match(rf"{indent}#", lines[line - 1]):
        line -= 1
        block.insert(0, lines[line].strip().lstrip("#").strip())
    return "" if line == 0 else " ".join(block)


def starts_from(path: Path) -> list[str]:
    """Return the entries of a file's `defaults` list, as the file means them: `dataset: debian18k`, `train`."""
    return [key if option is None else f"{key}: {option}" for key, option, _ in _defaults(path)]


@dataclass(frozen=True)
class Group:
    """A group of options that a configuration file chooses from.

    Attributes:
        name: Folder under conf/, and the key on the command line.
        default: Option that is chosen unless another one is given; "null": none.
        comment: What the file says about the choice.
    """

    name: str
    default: str
    comment: str


def groups(path: Path) -> list[Group]:
    """Return the groups that a file chooses from, those of the files that it starts from first, with its own choice."""
    chosen: list[Group] = []
    for key, option, comment in _defaults(path):
        name = key.removeprefix("override ")
        if option is None:
            chosen += groups(path.with_name(f"{key}.yaml"))
        elif name == key:
            chosen.append(Group(key, option, comment))
        else:
            chosen = [replace(group, default=option) if group.name == name else group for group in chosen]
    return chosen


def all_entries(path: Path) -> list[Entry]:
    """Return the keys of a file and of those that it starts from; a key that is set again has its last default."""
    known: dict[str, Entry] = {}
    for key, option, _ in _defaults(path):
        if option is None:
            known |= {entry.key: entry for entry in all_entries(path.with_name(f"{key}.yaml"))}
    return list((known | {entry.key: entry for entry in entries(path)}).values())


def _defaults(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Yield key, option and comment of each entry of a file's `defaults` list but `_self_`; option None: a file."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text)
    lines = text.splitlines()
    nodes = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    for each in nodes["defaults"].value if "defaults" in nodes else []:
        if isinstance(each, yaml.ScalarNode):
            if each.value != "_self_":
                yield each.value, None, ""
            continue
        for key, value in each.value:
            is_list = isinstance(value, yaml.SequenceNode)
            option = ", ".join(item.value for item in value.value) if is_list else value.value
            yield key.value, option, _comment_after(lines[value.end_mark.line][value.end_mark.column :])
