"""Checksums of what a model is made of: in prime_config.json, and in the description of each of its parts.

README.md, metrics.json, texts of training queries and what only other libraries read have none: they may be edited.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from prime_xmc.checksums import check_choice, check_file, describe
from prime_xmc.export.folder import AGAIN, CENTROIDS, CONFIG, INDEX, LABELS, NETWORK, PROTOTYPES
from prime_xmc.foreign import parse_json, shown

logger = logging.getLogger(__name__)

SUMMED = ("config.json", "model.safetensors", "tokenizer.json", PROTOTYPES, CENTROIDS, NETWORK, LABELS, INDEX)
_CLASSIFIERS = "classifiers/classifiers.json"
# Descriptions that name files beside them, with the files themselves.
_DESCRIPTIONS = (
    CONFIG,
    "ensemble.json",
    _CLASSIFIERS,
    "neighbours/neighbours.json",
    "lexical/lexical.json",
)


def sealed(content: Mapping[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return a description with the checksums of the files beside it, those that are there, and its own.

    Args:
        content: The description, as plain JSON; older checksums are replaced.
        folder: Folder of the files.
        names: Names of the files.
    """
    plain = {key: value for key, value in content.items() if key not in ("files", "checksum")}
    plain["files"] = {name: describe(folder / name) for name in names if (folder / name).is_file()}
    return plain | {"checksum": _checksum(plain)}


def check_model(model: Path, verify: str = "sampled", classifiers: Path | None = None) -> None:
    """Check a model folder against its checksums; folders of version 0.1.0 have none, and nothing is checked.

    Args:
        model: Folder of the model.
        verify: "full" reads all files; "sampled" some of those that are huge, see `check_file`.
        classifiers: Folder of classifiers outside of the model, which is checked too; None: there is none.

    Raises:
        ValueError: If a file is damaged or missing.
    """
    check_choice(verify)
    others = [] if classifiers is None else [classifiers / Path(_CLASSIFIERS).name]
    for path in [*(model / place for place in _DESCRIPTIONS), *others]:
        if not path.is_file():
            continue
        try:
            content = parse_json(path.read_bytes())
            files = content.get("files", {}).items()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error
        checksum = content.pop("checksum", None)
        if checksum is not None and checksum != _checksum(content):
            logger.warning(
                "%s is not what was written (checksum): it is damaged, or was edited. %s; if you have edited it, "
                "remove its key checksum",
                path,
                AGAIN.capitalize(),
            )
        for name, expected in files:
            if Path(name).name != name:
                raise ValueError(f"{path} is damaged: it names the file {shown(name)}; {AGAIN}")
            try:
                check_file(path.parent / name, expected, AGAIN, verify)
            except FileNotFoundError as error:
                if not name.endswith(".faiss"):  # it may be removed: the search is exact without it
                    raise ValueError(str(error)) from error


def _checksum(content: Mapping[str, Any]) -> str:
    read_again = json.loads(json.dumps(content))  # keys that are no texts have another order, or none, before that
    return xxhash.xxh3_64_hexdigest(json.dumps(read_again, sort_keys=True).encode())
