"""What is in the folder of an exported model: names of files, the version of the format, and its configuration.

prime_config.json gains keys from version to version of the package. Readers take what they miss in a folder of an
older version from its settings, or do what that version did.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prime_xmc.foreign import ATTENTION, check_links, parse_json, shown

FORMAT_VERSION = 1
CONFIG = "prime_config.json"
METRICS = "metrics.json"
CARD = "README.md"
LABELS = "labels.jsonl"
INDEX = "index.faiss"
CALIBRATION = "calibration.json"
PROTOTYPES = "prototypes.safetensors"
CENTROIDS = "centroids.safetensors"
NETWORK = "prototype_network.safetensors"
ONE_VS_ALL = "one_vs_all"  # kind of label vectors that are trained as they are and made of nothing
REQUIRED = (CONFIG, "config.json", "model.safetensors", "tokenizer.json", PROTOTYPES, LABELS)
_KEYS = ("max_length", "pad_token_id", "encoder", "prototypes", "index", "settings")
AGAIN = "copy or export the model again"
# What prime_config.json says of the encoder. More than this would be a way to draw weights at random, or to run code.
_ENCODER = {"implementation", "attention", "pooling", "query_prompt", "label_prompt", "normalize"}
_LONGEST = 2**20  # tokens of a text
_NUMBERS = ("num_labels", "dim", "num_free_vectors", "num_private", "num_heads", "feedforward")
_INDEX = {"kind", "m", "ef_construction", "ef_search"}


def read_config(directory: Path) -> dict[str, Any]:
    """Read prime_config.json of a folder that has all that an exported model needs.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is damaged, says what no export writes, or a file is a link that leads out of the folder.
    """
    missing = [name for name in REQUIRED if not (directory / name).is_file()]
    if missing:
        inside = directory / "model"
        where = inside if (inside / CONFIG).is_file() else "the folder model/ of a run"
        reason = f"{', '.join(missing)} not found" if directory.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"{directory.absolute()} is no exported model, {reason}: expected {where}")
    check_links(directory)
    path = directory / CONFIG
    try:
        config = parse_json(path.read_bytes())
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
    if problem := _problem(config):
        raise ValueError(f"{path} is damaged ({problem}); {AGAIN}")
    return config


def _problem(config: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the values that a model is built from, None where nothing is."""
    encoder, prototypes, index = (config[name] for name in ("encoder", "prototypes", "index"))
    if not isinstance(encoder, dict) or not isinstance(prototypes, dict) or not isinstance(index, dict | None):
        return "encoder and prototypes are to be objects, and index one or null"
    if unknown := sorted(encoder.keys() - _ENCODER):
        return f"encoder has {shown(unknown)}, which no export has"
    if (attention := encoder.get("attention", "eager")) not in ATTENTION:
        return f"encoder.attention is {shown(attention)}, expected one of {', '.join(ATTENTION)}"
    # one-vs-all models have labels and dimensions alone
    given = [name for name in _NUMBERS if name in prototypes or name in ("num_labels", "dim")]
    numbers = {f"prototypes.{name}": prototypes.get(name) for name in given} | {"max_length": config["max_length"]}
    for name, number in numbers.items():
        least = 0 if name in ("prototypes.num_free_vectors", "prototypes.num_private") else 1
        if type(number) is not int or number < least:
            return f"{name} is {shown(number)}, expected a number of at least {least}"
    if config["max_length"] > _LONGEST:
        return f"max_length is {config['max_length']}, expected at most {_LONGEST}"
    if index is not None and not (index.keys() <= _INDEX and index.get("kind") in ("flat", "hnsw")):
        return f"index is {shown(index)}, expected kind flat or hnsw with {', '.join(sorted(_INDEX - {'kind'}))}"
    if index is not None and any(type(index[name]) is not int for name in index.keys() - {"kind"}):
        return f"index is {shown(index)}, expected whole numbers"
    if not all(isinstance(encoder.get(name), str | None) for name in ("query_prompt", "label_prompt")):
        return "the prompts of encoder are to be texts or null"
    query = config.get("query", {"fields": None})
    fields = query.get("fields", ()) if isinstance(query, dict) else ()
    if fields is not None and not (isinstance(fields, list) and all(isinstance(name, str) for name in fields)):
        return f"query is {shown(query)}, expected the fields of a query's text, or null, under the name fields"
    columns = query.get("columns", [])
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        return f"query is {shown(query)}, expected a list of names under the name columns"
    if not isinstance(prototypes.get("sources", []), list) or not isinstance(config["settings"], dict):
        return "prototypes.sources is to be a list, and settings an object"
    return None


def read_labels(path: Path) -> list[dict[str, Any]]:
    """Return the lines of labels.jsonl, each with a uid and a text.

    Raises:
        ValueError: If one of them has not, or they are no strings that UTF-8 can write, with its line.
    """
    records = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = parse_json(line)
                (record["uid"] + "" + record["text"]).encode("utf-8")  # half a character is written by no file
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no label with uid and text ({error!r}); {AGAIN}") from error
            records.append(record)
    return records


def is_one_vs_all(config: Mapping[str, Any]) -> bool:
    """Return whether the label vectors of a model are one-vs-all classifiers and not prototypes."""
    return config["prototypes"].get("kind") == ONE_VS_ALL


def can_be_explained(config: Mapping[str, Any]) -> bool:
    """Return whether a score can be divided among what label vectors were made of, which the folder has to hold."""
    return not is_one_vs_all(config) and not config["prototypes"].get("more_sources")


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
        metrics = parse_json(path.read_bytes()) if path.is_file() else {}
        if not isinstance(metrics, dict):
            raise ValueError(f"{shown(metrics)} is no object")
        return metrics
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error


def query_fields(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the fields of a record that make up a query's text, in order; None where the model does not say."""
    fields = config["query"]["fields"] if "query" in config else _setting(config, "dataset", "fields")
    return None if fields is None else tuple(fields)


def label_fields(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the fields of a record that make up a label's text, in order; None where the model does not say."""
    fields = _setting(config, "dataset", "label_fields")
    return query_fields(config) if fields is None else (fields,) if isinstance(fields, str) else tuple(fields)


def query_columns(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the columns of the user's tables that these fields were converted from; None: they are called as there."""
    return tuple(config.get("query", {}).get("columns", ())) or None


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
