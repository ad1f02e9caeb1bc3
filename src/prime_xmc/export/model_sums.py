"""Checksums of what a model is made of: in prime_config.json, and in the description of each of its parts.

README.md, metrics.json, texts of training queries and what only other libraries read have none: they may be edited.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prime_xmc.checksums import check_choice, check_file, checksum_of, describe
from prime_xmc.export.folder import AGAIN, CALIBRATION, CENTROIDS, CONFIG, INDEX, LABELS, NETWORK, PROTOTYPES
from prime_xmc.files import write_json
from prime_xmc.foreign import parse_json, shown

logger = logging.getLogger(__name__)

SUMMED = ("config.json", "model.safetensors", "tokenizer.json", PROTOTYPES, CENTROIDS, NETWORK, LABELS, INDEX)
_CLASSIFIERS = "classifiers/classifiers.json"
# Descriptions that name files beside them, with the files themselves.
_DESCRIPTIONS = (
    CONFIG,
    "ensemble.json",
    CALIBRATION,
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
    return plain | {"checksum": checksum_of(plain)}


def seal(model: Path | str) -> None:
    """Write the checksums of a model folder anew, after files in it were edited by hand.

    Nothing else is checked here: opening the model does.

    Args:
        model: Folder of the model.

    Raises:
        FileNotFoundError: If it has no description, so that it is no model.
        ValueError: If a description is no JSON.
    """
    model = Path(model)
    if not (model / CONFIG).is_file():
        raise FileNotFoundError(f"{model.absolute()} is no exported model, {CONFIG} not found")
    for path in (model / place for place in _DESCRIPTIONS):
        if not path.is_file():
            continue
        try:
            content = parse_json(path.read_bytes())
            names = SUMMED if path.name == CONFIG else [n for n in content.get("files", {}) if Path(n).name == n]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        write_json(path, sealed(content, path.parent, names))


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
        # one that names checksums of files has its own too; without it, that is damaged
        if (checksum is not None or "files" in content) and checksum != checksum_of(content):
            logger.warning(
                "%s is not what was written (checksum): it is damaged, or was edited; %s",
                path,
                _remedy(model, path.name),
            )
        for name, expected in files:
            if Path(name).name != name:
                raise ValueError(f"{path} is damaged: it names the file {shown(name)}; {AGAIN}")
            try:
                check_file(path.parent / name, expected, _remedy(model, name), verify)
            except FileNotFoundError as error:
                if not name.endswith(".faiss"):  # it may be removed: the search is exact without it
                    raise ValueError(str(error)) from error


def _remedy(model: Path, name: str) -> str:
    """Return what to do about a file that is not what was written; those that people edit may have been edited."""
    if not name.endswith((".json", ".jsonl")):
        return AGAIN
    call = f"from prime_xmc.export.model_sums import seal; seal({str(model)!r})"
    return f'{AGAIN}; if you have edited it on purpose, write the checksums anew: python -c "{call}"'
