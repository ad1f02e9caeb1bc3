"""What makes several scorers of an exported model an ensemble: ensemble.json, and the parts that it needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from prime_xmc.export.folder import CALIBRATION
from prime_xmc.export.lexical_folder import FOLDER as LEXICAL
from prime_xmc.export.lexical_folder import LexicalTables, save_lexical
from prime_xmc.export.model_sums import sealed
from prime_xmc.export.neighbours_folder import FOLDER as NEIGHBOURS
from prime_xmc.export.neighbours_folder import VotingQueries, save_neighbours
from prime_xmc.export.scorers import AGAIN, check_encoder, labels_digest, read_json, save_classifiers
from prime_xmc.export.scorers import FOLDER as CLASSIFIERS
from prime_xmc.files import write_json
from prime_xmc.index.fused import Weights
from prime_xmc.index.search import FaissSearch

FORMAT_VERSION = 1
CONFIG = "ensemble.json"
INDEX = "ensemble.faiss"


@dataclass(frozen=True)
class Ensemble:
    """How the scorers of a model are added up.

    Attributes:
        weights: Weight of each scorer.
        k: Number of training queries that vote; None where none do.
        temperature: Temperature of the vote, in cosine units; None where there is none.
        num_validation: Number of queries on which the weights were chosen; 0: they are those of the configuration.
        criterion: Metrics by which they were chosen.
        validation: Metrics of each scorer for these queries, by name of the scorer and of the metric.
        lexical: Whether lexical scores are one of them.
    """

    weights: Weights
    k: int | None = None
    temperature: float | int | None = None
    num_validation: int = 0
    criterion: Sequence[str] = ()
    validation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lexical: bool = False

    def describe(self) -> str:
        """Return the weights as a sentence for people."""
        parts = " + ".join(f"{weight:g} {name}" for name, weight in self.weights._asdict().items() if weight)
        if not self.num_validation:
            return f"ensemble: {parts}, weights of the configuration, as there are no validation queries with labels"
        return f"ensemble: {parts}, weights chosen on {self.num_validation:,} validation queries"


def add_scorers(
    model: Path,
    ensemble: Ensemble,
    *,
    digest: str,
    classifiers: Float[Tensor, "label d"] | None,
    classifier_settings: Mapping[str, Any] | None,
    voters: VotingQueries | None,
    lexical: LexicalTables | None,
    index: FaissSearch | None,
) -> None:
    """Add scorers and their ensemble to an exported model.

    The file that makes them an ensemble goes first, if there is an older one, and comes last: without it the model is
    one of prototypes, whatever part has been written when the process ends. A calibration is of the scores before, and
    goes before all else.

    Args:
        model: Folder of the model.
        ensemble: How the scorers are added up.
        digest: Fingerprint of the model's encoder.
        classifiers: Classifiers w_l, unit vectors; None: there are none.
        classifier_settings: Description of their training.
        voters: Training queries that vote; None: there are none.
        lexical: Lexical vectors of the labels; None: there are none.
        index: Approximate index of the linear part; None: it is searched exactly.
    """
    (model / CALIBRATION).unlink(missing_ok=True)
    (model / CONFIG).unlink(missing_ok=True)
    if classifiers is not None:
        about = classifier_settings or {}
        save_classifiers(model / CLASSIFIERS, classifiers, digest=digest, labels=labels_digest(model), settings=about)
    if voters is not None:
        save_neighbours(model / NEIGHBOURS, voters, digest=digest)
    if lexical is not None:
        save_lexical(model / LEXICAL, lexical, digest=digest)
    if index is not None:
        index.save(model / INDEX)
    content = {
        "format_version": FORMAT_VERSION,
        "package_version": version("prime_xmc"),
        "encoder": digest,
        "weights": ensemble.weights._asdict(),
        "k": ensemble.k,
        "temperature": ensemble.temperature,
        "num_validation": ensemble.num_validation,
        "criterion": list(ensemble.criterion),
        "validation": ensemble.validation,
        "lexical": ensemble.lexical,
    }
    write_json(model / CONFIG, sealed(content, model, [INDEX]))


def has_ensemble(model: Path) -> bool:
    """Return whether a model has several scorers and how to add them up."""
    return (model / CONFIG).is_file()


def read_ensemble(model: Path, digest: str) -> Ensemble:
    """Read how the scorers of a model are added up.

    Args:
        model: Folder of the model.
        digest: Fingerprint of its encoder.

    Raises:
        FileNotFoundError: If the model has no ensemble.
        ValueError: If the file is damaged, of another format version, or of another encoder.
    """
    path = model / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{model.absolute()} has no {CONFIG}, so its one scorer is theta, the prototypes: take scorer=theta, or "
            "train with classify=true, neighbours or lexical, which adds scorers to the model"
        )
    content = read_json(path, FORMAT_VERSION)
    check_encoder(content, digest, f"the weights in {path}", model)
    try:
        weights = Weights(**{name: float(value) for name, value in content["weights"].items()})
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError("weights: expected finite numbers of at least 0")
        if weights.neighbours and None in (content["k"], content["temperature"]):
            raise ValueError("k and temperature: expected numbers, since neighbours have a weight")
        return Ensemble(
            weights,
            content["k"],
            content["temperature"],
            content["num_validation"],
            tuple(content["criterion"]),
            content["validation"],
            bool(content.get("lexical", False)),  # of the first ensembles, there was none
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {AGAIN}") from error
