"""What is in the folder of an exported model: names of files, the version of the format, and its configuration."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
CONFIG = "prime_config.json"
METRICS = "metrics.json"
LABELS = "labels.jsonl"
INDEX = "index.faiss"
PROTOTYPES = "prototypes.safetensors"
REQUIRED = (CONFIG, "config.json", "model.safetensors", "tokenizer.json", PROTOTYPES, LABELS)
AGAIN = "copy or export the model again"


def read_config(directory: Path) -> dict[str, Any]:
    """Read prime_config.json of a folder that has all that an exported model needs."""
    missing = [name for name in REQUIRED if not (directory / name).is_file()]
    if missing:
        inside = directory / "model"
        where = inside if (inside / CONFIG).is_file() else "the folder model/ of a run"
        raise FileNotFoundError(
            f"{directory.absolute()} is no exported model, {', '.join(missing)} not found: expected {where}"
        )
    path = directory / CONFIG
    try:
        config = json.loads(path.read_bytes())
        found = config["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {AGAIN}") from error
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {found}, prime_xmc {version('prime_xmc')} reads {FORMAT_VERSION}: install "
            f"prime_xmc {config.get('package_version')}, which wrote it, or export the model again"
        )
    return config
