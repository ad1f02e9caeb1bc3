"""What a second stage adds to an exported model: the folder of its classifiers, and the vectors that each scorer uses.

All three score a query's embedding h_q with a vector per label, so each is one search, the ensemble included: the mean
of h_q . z_l and h_q . w_l is h_q . (z_l + w_l) / 2.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prime_xmc.export.folder import AGAIN as EXPORT_AGAIN
from prime_xmc.export.folder import LABELS, PROTOTYPES, model_version, read_config, read_labels
from prime_xmc.export.model_sums import sealed
from prime_xmc.export.settings import portable
from prime_xmc.files import publishing, save_tensors, write_json
from prime_xmc.foreign import check_tensors_file, parse_json

SCORERS = ("theta", "W", "ensemble")
FORMAT_VERSION = 1
CONFIG = "classifiers.json"
VECTORS = "classifiers.safetensors"
FOLDER = "classifiers"  # in a model folder, and in the run folder of a second stage

AGAIN = "copy it again, or train the model's scorers again"


def label_vectors(
    prototypes: Float[Tensor, "label d"], classifiers: Float[Tensor, "label d"], scorer: str
) -> Float[Tensor, "label d"]:
    """Return what a scorer searches in: prototypes (theta), classifiers (W), or their mean (ensemble).

    Args:
        prototypes: Prototypes z_l, unit vectors.
        classifiers: Classifiers w_l, unit vectors.
        scorer: Name of the scorer, one of `SCORERS`.

    Raises:
        ValueError: If scorer is another.

    Source: Table 8 lists methods that ensemble both, (theta, W), and does not say how; NGAME's code trains a decision
        tree on both scores. This is the plain mean.
    """
    if scorer not in SCORERS:
        raise ValueError(f"expected scorer theta, W or ensemble, got {scorer!r}")
    if scorer == "theta":
        return prototypes
    return classifiers if scorer == "W" else (prototypes + classifiers) / 2


def read_prototypes(model: Path, device: str = "cpu") -> Float[Tensor, "label d"]:
    """Return z_l of an exported model, on a device.

    Raises:
        ValueError: If the file is damaged.
    """
    return _read(model / PROTOTYPES, "prototypes", device, EXPORT_AGAIN, _shape(model))


def encoder_digest(model: Path) -> str:
    """Return a fingerprint of an exported model's encoder, whose embeddings its classifiers are for."""
    with (model / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def labels_digest(model: Path) -> str:
    """Return a fingerprint of an exported model's labels, their uids in order, each of which has a classifier.

    Their texts do not count: a label that is renamed keeps its classifier.

    Raises:
        ValueError: If the file of labels is damaged.
    """
    uids = [label["uid"] for label in read_labels(model / LABELS)]
    return hashlib.blake2b(json.dumps(uids).encode()).hexdigest()[:32]


def save_classifiers(
    directory: Path, vectors: Float[Tensor, "label d"], *, digest: str, labels: str, settings: Mapping[str, Any]
) -> None:
    """Write classifiers to a folder, which appears under its name only when it is complete.

    Args:
        directory: Folder to write; an older one is replaced.
        vectors: Classifier w_l of every label, unit vectors.
        digest: Fingerprint of the model that they are for, see `encoder_digest`.
        labels: Fingerprint of its labels, see `labels_digest`.
        settings: Description of the training as plain JSON; absolute paths are left out.
    """
    config = {
        "format_version": FORMAT_VERSION,
        "package_version": version("prime_xmc"),
        "num_labels": vectors.shape[0],
        "dim": vectors.shape[1],
        "encoder": digest,
        "labels": labels,
        "settings": portable(settings),
    }
    with publishing(directory, replace=True) as temporary:
        save_tensors(temporary / VECTORS, {"classifiers": vectors})
        write_json(temporary / CONFIG, sealed(config, temporary, [VECTORS]))


def load_classifiers(directory: Path, model: Path, digest: str | None = None) -> Float[Tensor, "label d"]:
    """Read the classifiers that `save_classifiers` wrote for a model.

    Args:
        directory: Folder of the classifiers.
        model: Folder of the model.
        digest: Fingerprint of its encoder, None: it is computed.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If they are damaged, of another format version, for another model, or for other labels than it has
            now.
    """
    config = read_part(
        directory,
        (CONFIG, VECTORS),
        FORMAT_VERSION,
        "classifiers",
        "the folder classifiers/ of a run of prime_xmc.classify",
    )
    what = f"the classifiers in {directory}"
    check_encoder(config, encoder_digest(model) if digest is None else digest, what, model)
    if directory != model / FOLDER:  # the model's own change with its labels
        _check_labels(config, what, model)
    return _read(directory / VECTORS, "classifiers", "cpu", AGAIN, _shape(model))


def read_part(
    directory: Path, names: Sequence[str], format_version: int, what: str, expected: str = "a complete model folder"
) -> dict[str, Any]:
    """Return the description of a part of a model, its folder's first file, after checking that all files are there.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the description is damaged, or of another format version.
    """
    if not all((directory / name).is_file() for name in names):
        raise FileNotFoundError(f"{directory.absolute()} holds no {what}, {' and '.join(names)}: expected {expected}")
    return read_json(directory / names[0], format_version)


def read_json(path: Path, format_version: int) -> dict[str, Any]:
    """Return the content of a JSON file with a format version and the fingerprint of an encoder.

    Raises:
        ValueError: If it is damaged, or of another format version.
    """
    try:
        content = parse_json(path.read_bytes())
        written, _ = content["format_version"], content["encoder"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {AGAIN}") from error
    if written != format_version:
        raise ValueError(f"{path}: format_version is {written}, this version reads {format_version}: {AGAIN}")
    return content


def check_encoder(content: Mapping[str, Any], digest: str, what: str, model: Path) -> None:
    """Check that a part of a model is for its encoder.

    Raises:
        ValueError: If it is for another one.
    """
    if content["encoder"] != digest:
        raise ValueError(
            f"{what} are not for the model {model}: its encoder is another one. Give the model that they were trained "
            "on"
        )


def _check_labels(content: Mapping[str, Any], what: str, model: Path) -> None:
    """Check that the rows of classifiers are those of a model's labels, whose number alone does not say so."""
    written = content.get("labels")
    again = "Train them again on the model as it is now, or give the model that they were trained on"
    if written is None:  # of a version of this package that did not write it
        if (number := model_version(read_config(model))) > 1:
            raise ValueError(
                f"{what} do not say which labels they are for, and the model {model} is version {number}: its labels "
                f"were changed after its training. {again}"
            )
    elif written != labels_digest(model):
        raise ValueError(f"{what} are not for the model {model}: its labels, or their order, are others. {again}")


def _shape(model: Path) -> list[int]:
    """Return the shape of what a model has for each label."""
    prototypes = read_config(model)["prototypes"]
    return [prototypes["num_labels"], prototypes["dim"]]


def _read(path: Path, name: str, device: str, again: str, shape: list[int]) -> Float[Tensor, "row d"]:
    entry = check_tensors_file(path).get(name)
    if entry is None or entry.get("dtype") not in ("F32", "F16", "BF16"):
        found = "no tensor" if entry is None else f"numbers of the type {entry.get('dtype')}"
        raise ValueError(f"{path} is damaged: expected floating-point numbers as {name}, got {found}; {again}")
    if entry["shape"] != shape:
        found, wanted = (" x ".join(map(str, sizes)) for sizes in (entry["shape"], shape))
        raise ValueError(f"{path} holds {found} numbers, expected {wanted}, labels x dimensions; {again}")
    try:
        with safe_open(path, framework="pt", device=device) as tensors:
            rows = tensors.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); {again}") from error
    if not rows.sum(dtype=torch.float32).isfinite():  # any NaN or infinity makes the sum one
        raise ValueError(f"{path} is damaged: {name} has numbers that are not finite; {again}")
    return rows
