"""What is in the folder of an exported model: names of files, the version of the format, and its configuration.

prime_config.json gains keys from version to version of the package. Readers take what they miss in a folder of an
older version from its settings, or do what that version did.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
CONFIG = "prime_config.json"
METRICS = "metrics.json"
CARD = "README.md"
LABELS = "labels.jsonl"
INDEX = "index.faiss"
PROTOTYPES = "prototypes.safetensors"
CENTROIDS = "centroids.safetensors"
NETWORK = "prototype_network.safetensors"
ONE_VS_ALL = "one_vs_all"  # kind of label vectors that are trained as they are and made of nothing
REQUIRED = (CONFIG, "config.json", "model.safetensors", "tokenizer.json", PROTOTYPES, LABELS)
_KEYS = ("max_length", "pad_token_id", "encoder", "prototypes", "index", "settings")
AGAIN = "copy or export the model again"


def read_config(directory: Path) -> dict[str, Any]:
    """Read prime_config.json of a folder that has all that an exported model needs."""
    missing = [name for name in REQUIRED if not (directory / name).is_file()]
    if missing:
        inside = directory / "model"
        where = inside if (inside / CONFIG).is_file() else "the folder model/ of a run"
        reason = f"{', '.join(missing)} not found" if directory.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"{directory.absolute()} is no exported model, {reason}: expected {where}")
    path = directory / CONFIG
    try:
        config = json.loads(path.read_bytes())
        format_version = config["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {AGAIN}") from error
    if format_version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {format_version}, prime_xmc {version('prime_xmc')} reads {FORMAT_VERSION}: "
            f"install prime_xmc {config.get('package_version')}, which wrote it, or export the model again"
        )
    if absent := [key for key in _KEYS if key not in config]:
        raise ValueError(f"{path} is damaged (no {', '.join(absent)}); {AGAIN}")
    return config


def read_labels(path: Path) -> list[dict[str, Any]]:
    """Return the lines of labels.jsonl, each with a uid and a text.

    Raises:
        ValueError: If one of them has not, with its line.
    """
    records = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                _ = record["uid"], record["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no label with uid and text ({error!r}); {AGAIN}") from error
            records.append(record)
    return records


def is_one_vs_all(config: Mapping[str, Any]) -> bool:
    """Return whether the label vectors of a model are one-vs-all classifiers and not prototypes."""
    return config["prototypes"].get("kind") == ONE_VS_ALL


def model_version(config: Mapping[str, Any]) -> int:
    """Return the number of a model's version: 1 as it was trained, one more after each change of its labels."""
    return config.get("version", 1)


def read_metrics(directory: Path) -> dict[str, Any]:
    """Return the results of a model, empty where it has none.

    Raises:
        ValueError: If the file is damaged.
    """
    path = directory / METRICS
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error


def query_fields(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the fields of a record that make up a query's text, in order; None where the model does not say."""
    fields = config["query"]["fields"] if "query" in config else _setting(config, "dataset", "fields")
    return None if fields is None else tuple(fields)


def query_separator(config: Mapping[str, Any]) -> str:
    """Return what stands between the fields of a query's text."""
    return config.get("query", {}).get("separator", " ")


def training_precision(config: Mapping[str, Any]) -> str:
    """Return Lightning's name of the precision that the model was trained in; 32-true where the model does not say."""
    return config.get("precision") or _setting(config, "trainer", "precision") or "32-true"


def _setting(config: Mapping[str, Any], group: str, key: str) -> Any:
    """Return a setting of the training, None where the model does not say: one that a script has exported."""
    try:
        return config["settings"]["config"][group][key]
    except (KeyError, TypeError):
        return None
