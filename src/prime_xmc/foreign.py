"""Files that somebody else may have made: what is checked of them before a library opens them.

Nothing here knows what a model or a run is. SECURITY.md says what is trusted and what is not.
"""

import json
import os
import reprlib
import struct
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prime_xmc.carried_encoder import check_carried_encoder

DEEPEST = 100  # brackets within one another that a JSON file may have; records and configurations have a handful
LARGEST_HEADER = 2**24  # bytes of the header of a safetensors file: 100,000 tensors have 10 MB
# Ways of transformers to compute attention that are part of it or of an installed package. A name with a slash would be
# a repository of kernels on the hub, whose code it would download and run.
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_ANY_SIZE = 2**24  # numbers of a configuration up to this one are not compared with the size of the weights

_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxstring, _shown.maxother, _shown.maxdict, _shown.maxlist = 3, 80, 80, 6, 6
_shown.maxlong = 60


def shown(value: object) -> str:
    """Return what `repr` does, cut where the value is long or deep, for messages.

    Example:
        >>> shown([[[[[1]]]]])
        '[[[[...]]]]'
    """
    return _shown.repr(value)


def parse_json(content: bytes | str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: If it is no JSON, or its brackets are nested more than `DEEPEST` deep, which would end in a
            RecursionError here or wherever the value is written or shown later.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} brackets within one another") from None
    check_depth(content, value)
    return value


def check_depth(content: bytes | str, value: Any) -> None:
    """Refuse a value that is nested too deeply.

    Args:
        content: The JSON text, whose brackets are counted: few of them are not deep.
        value: What it holds.

    Raises:
        ValueError: If it is nested more than `DEEPEST` deep.
    """
    brackets: tuple[Any, Any] = (b"[", b"{") if isinstance(content, bytes) else ("[", "{")
    if sum(content.count(bracket) for bracket in brackets) <= DEEPEST:
        return
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        children = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} brackets within one another")


def check_links(folder: Path, names: Iterable[str] | None = None) -> None:
    """Refuse files that a link takes out of their folder: what is read, copied or uploaded would be the reader's own.

    The folder itself may be reached through links. In the cache of the Hugging Face hub, the files of a repository are
    links to the blobs of the same repository, which are allowed; the folder may be one within the repository. So are
    links in packages that are installed in this environment: `uv pip install --link-mode=symlink` makes them, and
    packages are trusted.

    Args:
        folder: The folder.
        names: Files to look at, which need not exist; None: all files below the folder.

    Raises:
        ValueError: If one leads out of it.
    """
    if _is_installed(folder):
        return
    roots = [folder.resolve()]
    roots += [parent.parent / "blobs" for parent in roots[0].parents if parent.name == "snapshots"][:1]
    paths = folder.rglob("*") if names is None else (folder / name for name in names)
    for path in paths:
        target = Path(os.path.realpath(path))  # resolve() raises where links lead to one another
        if not any(target.is_relative_to(root) for root in roots):
            raise ValueError(
                f"{path} is a link to {target}, outside of its folder: a folder from elsewhere could show or "
                "copy your own files in this way. Put the file itself there if you trust it"
            )


def _is_installed(folder: Path) -> bool:
    """Return whether a folder is one of a package that is installed in the environment of this Python."""
    path = Path(os.path.abspath(folder))  # by its name: a link that leads there may be anybody's
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return any(path.is_relative_to(place) for place in places)


def check_tensors_file(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: dtype, shape and place of each tensor, by its name.

    Raises:
        ValueError: If the header is larger than it can be, is no header, or places tensors outside of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise ValueError(f"{path} is damaged: it has {size} bytes and says that its header has {length}")
        try:
            header = parse_json(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
            shapes = [entry["shape"] for entry in header.values()]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: its header is not one of safetensors ({error!r})") from error
    if any(type(end) is not int or end > size - 8 - length for end in ends):
        raise ValueError(f"{path} is damaged or cut off: it says that its tensors take more than its {size} bytes")
    if any(type(number) is not int or number > size for shape in shapes for number in shape):
        raise ValueError(f"{path} is damaged: it has a tensor with a side longer than the file")
    return header


def check_encoder_files(folder: Path) -> None:
    """Refuse the folder of a transformer that names code, other files, or sizes that its weights do not have.

    transformers reads more than it was asked for: kernels of the hub that config.json names, adapters of another model,
    shards and files of the vocabulary under any path. The folder of the carried encoder has to be as it was published.

    Args:
        folder: Folder that `save_pretrained` wrote, or one that claims to be.

    Raises:
        FileNotFoundError: If the carried encoder lacks a file.
        ValueError: With the file and what it says.
    """
    check_carried_encoder(folder)
    weights = folder / "model.safetensors"
    tensors = len(check_tensors_file(weights)) if weights.is_file() else 10_000
    size = max(_ANY_SIZE, weights.stat().st_size) if weights.is_file() else None
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = parse_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error})") from error
        for key, value in _entries(content):
            problem = _problem(folder, name, key, value, size, tensors)
            if problem is not None:
                raise ValueError(f"{path}: {key} is {shown(value)}, {problem}")
    for path in folder.glob("*.index.json"):
        try:
            shards = {str(name) for name in dict(parse_json(path.read_bytes())["weight_map"]).values()}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r})") from error
        if outside := sorted(name for name in shards if Path(name).name != name):
            raise ValueError(f"{path} names {shown(outside[0])}, expected files beside it")


def _problem(folder: Path, name: str, key: str, value: Any, size: int | None, tensors: int) -> str | None:
    """Return what is wrong with an entry of a configuration, None where nothing is."""
    is_choice = key.endswith("_implementation") and isinstance(value, str)
    if is_choice and value not in ATTENTION and any(character in value for character in "/:|"):
        return f"code that would be downloaded and run; expected one of {', '.join(ATTENTION)}"
    if key in ("quantization_config", "kernel_config", "use_kernels") and value:
        return "which takes code that is not part of transformers; expected plain weights"
    # older tokenizers name files of the machine on which they were saved, which are not there
    is_file = name == "tokenizer_config.json" and key.endswith("_file") and isinstance(value, str)
    if is_file and Path(value).name != value and any(Path(base, value).exists() for base in (folder, ".")):
        return "a file in another folder; expected one beside it"
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if name == "config.json" and is_number and size is not None and abs(value) > size:
        return f"more than the weights have bytes, {size}: the two files do not belong together"
    is_depth = key.endswith(("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
    if name == "config.json" and is_number and is_depth and value > tensors:
        return f"more layers than its {tensors} tensors make"
    return None


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield keys and values of nested dictionaries and lists, those that hold others included."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(node, list):
        for value in node:
            yield from _entries(value)
