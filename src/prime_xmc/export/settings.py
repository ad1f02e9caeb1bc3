"""The settings of a training as they go into an exported model: without what tells of the machine that trained."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_ROOTS = ("run_dir", "cache_dir")
_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = re.compile(r".*[/\\](?:site|dist)-packages[/\\](.+)")
_WINDOWS = re.compile(r"[A-Za-z]:[/\\]|\\\\")


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without absolute paths.

    A path below `run_dir` or `cache_dir` begins with `<run_dir>` or `<cache_dir>`; of one in an installed package, what
    follows site-packages is left; of any other, its last part. Relative paths stay as they are.

    Args:
        settings: Plain JSON.

    Example:
        >>> portable({"source": "/home/ada/encoders/tiny", "run_dir": "/runs/3", "path": "/runs/3/metrics.csv"})
        {'source': 'tiny', 'run_dir': '<run_dir>', 'path': '<run_dir>/metrics.csv'}
    """
    return _portable(settings, {})


def _portable(node: Any, roots: Mapping[str, str]) -> Any:
    if isinstance(node, Mapping):
        named = {name: node[name] for name in _ROOTS if isinstance(node.get(name), str) and _is_absolute(node[name])}
        roots = {**roots, **named}
        return {key: _portable(child, roots) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [_portable(child, roots) for child in node]
    if isinstance(node, str) and _is_absolute(node):
        return _shorten(node, roots)
    return node


def _is_absolute(text: str) -> bool:
    return text.startswith(("/", "~")) or _WINDOWS.match(text) is not None


def _shorten(path: str, roots: Mapping[str, str]) -> str:
    for name, root in roots.items():
        root = root.rstrip("/\\")
        if path == root or path.startswith((f"{root}/", f"{root}\\")):
            return f"<{name}>{path[len(root) :]}".rstrip("/\\")
    if Path(path).is_relative_to(_PACKAGE):
        return Path(path).relative_to(_PACKAGE.parent).as_posix()
    if match := _INSTALLED.fullmatch(path):
        return match[1]
    parts = PureWindowsPath(path) if _WINDOWS.match(path) else PurePosixPath(path)
    return parts.name or path
