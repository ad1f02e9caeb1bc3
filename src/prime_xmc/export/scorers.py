"""What a second stage adds to an exported model: the folder of its classifiers, and the vectors that each scorer uses.

All three score a query's embedding h_q with a vector per label, so each is one search, the ensemble included: the mean
of h_q . z_l and h_q . w_l is h_q . (z_l + w_l) / 2.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prime_xmc.export.folder import PROTOTYPES
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.settings import portable
from prime_xmc.files import publishing, save_tensors, write_json
from prime_xmc.index.search import ExactSearch

SCORERS = ("theta", "W", "ensemble")
FORMAT_VERSION = 1
CONFIG = "classifiers.json"
VECTORS = "classifiers.safetensors"

_AGAIN = "copy it again, or train the classifiers again"


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


def read_prototypes(model: Path) -> Float[Tensor, "label d"]:
    """Return z_l of an exported model.

    Raises:
        ValueError: If the file is damaged.
    """
    return _read(model / PROTOTYPES, "prototypes")


def encoder_digest(model: Path) -> str:
    """Return a fingerprint of an exported model's encoder, whose embeddings its classifiers are for."""
    with (model / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def save_classifiers(
    directory: Path, vectors: Float[Tensor, "label d"], *, digest: str, settings: Mapping[str, Any]
) -> None:
    """Write classifiers to a folder, which appears under its name only when it is complete.

    Args:
        directory: Folder to write; an older one is replaced.
        vectors: Classifier w_l of every label, unit vectors.
        digest: Fingerprint of the model that they are for, see `encoder_digest`.
        settings: Description of the training as plain JSON; absolute paths are left out.
    """
    config = {
        "format_version": FORMAT_VERSION,
        "package_version": version("prime_xmc"),
        "num_labels": vectors.shape[0],
        "dim": vectors.shape[1],
        "encoder": digest,
        "settings": portable(settings),
    }
    with publishing(directory, replace=True) as temporary:
        write_json(temporary / CONFIG, config)
        save_tensors(temporary / VECTORS, {"classifiers": vectors})


def load_classifiers(directory: Path, model: Path) -> Float[Tensor, "label d"]:
    """Read the classifiers that `save_classifiers` wrote for a model.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If they are damaged, of another format version, or for another model.
    """
    path = directory / CONFIG
    if not path.is_file() or not (directory / VECTORS).is_file():
        raise FileNotFoundError(
            f"{directory.absolute()} holds no classifiers, {CONFIG} and {VECTORS}: expected the folder classifiers/ of "
            "a run of prime_xmc.classify"
        )
    try:
        config = json.loads(path.read_bytes())
        format_version, digest = config["format_version"], config["encoder"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {_AGAIN}") from error
    if format_version != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version is {format_version}, this version reads {FORMAT_VERSION}: {_AGAIN}")
    if digest != encoder_digest(model):
        raise ValueError(
            f"the classifiers in {directory} are not for the model {model}: its encoder is another one. Give the model "
            "that they were trained on"
        )
    return _read(directory / VECTORS, "classifiers")


def use_classifiers(predictor: Predictor, model: Path, directory: Path, scorer: str) -> None:
    """Let a predictor score by classifiers, or by the ensemble, instead of by the prototypes; searched exactly.

    Raises:
        FileNotFoundError: If the folder holds no classifiers.
        ValueError: See `load_classifiers` and `label_vectors`.
    """
    vectors = label_vectors(read_prototypes(model), load_classifiers(directory, model), scorer)
    predictor.searcher = ExactSearch()
    predictor.searcher.build(vectors.to(predictor.device))


def _read(path: Path, name: str) -> Float[Tensor, "row d"]:
    try:
        with safe_open(path, framework="pt") as tensors:
            return tensors.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); {_AGAIN}") from error
