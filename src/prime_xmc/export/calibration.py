"""calibration.json of an exported model: how probable an answer with a score is, for each of its scorers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from prime_xmc.export import ensemble as ensembles
from prime_xmc.export.folder import CALIBRATION as CONFIG
from prime_xmc.export.model_sums import sealed
from prime_xmc.files import write_json
from prime_xmc.foreign import parse_json
from prime_xmc.index.crowd import crowd, probabilities

FORMAT_VERSION = 1
REFIT = (
    "probabilities (calibrate=true) stay as they were fitted for the labels before; prime-xmc-calibrate model=%s "
    "input=<queries with their labels> fits them to these"
)
AGAIN = "remove it and fit it again with prime-xmc-calibrate, or copy the model again"


@dataclass(frozen=True)
class Held:
    """How far probabilities and threshold of a scorer hold for some queries that did not fit them.

    Attributes:
        num_queries: Number of queries.
        num_answers: Number of answers that were looked at: the five best labels of each query.
        ece: Expected calibration error, in [0, 1].
        bins: Mean probability ("predicted"), share of right answers ("observed") and number of answers ("answers") of
            each tenth of the probabilities that has answers.
        precision: Share of right ones among the answers above the threshold.
        recall: Share of the true labels that are among them.
        f1: Harmonic mean of both.
    """

    num_queries: int
    num_answers: int
    ece: float
    bins: list[dict[str, float | int]]
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ScorerCalibration:
    """Probabilities of a scorer's answers: p = 1 / (1 + exp(-(score * s + crowd * c + bias))).

    s is the score of the label and c, see `prime_xmc.index.crowd`, the competition of the query's 100 best labels.

    Attributes:
        score: Coefficient of the score, above 0.
        crowd: Coefficient of the competition.
        bias: Constant.
        temperature: Temperature of the competition, above 0.
        threshold: Score from which on answers are best, by F1 over all of them: a good `min_score`.
        held: How far both hold, by the name of the queries: "validation" or "labelled", by folds, and "test".
    """

    score: float
    crowd: float
    bias: float
    temperature: float
    threshold: float
    held: dict[str, Held]

    def at(
        self, scores: Float[np.ndarray, "query k"], best: Float[np.ndarray, "query depth"]
    ) -> Float64[np.ndarray, "query k"]:
        """Return the probabilities of labels.

        Args:
            scores: Scores of labels of each query.
            best: Scores of its best labels of all.
        """
        return probabilities(scores, crowd(best, self.temperature), (self.score, self.crowd, self.bias))


@dataclass(frozen=True)
class Calibration:
    """Content of calibration.json.

    Attributes:
        fitted_on: Queries that it was fitted on, in words: "1,000 validation queries".
        scorers: Calibration of each scorer, by its name.
        weights: Weights of the ensemble that was calibrated; None: the model had none.
        model_version: Version of the model that it was fitted for; labels that were changed later are in a higher one.
    """

    fitted_on: str
    scorers: Mapping[str, ScorerCalibration]
    weights: Mapping[str, float] | None
    model_version: int = 1

    @property
    def default(self) -> str:
        """Scorer that the model takes unless another is named, or else the first that is calibrated."""
        return self.answering if self.answering in self.scorers else next(iter(self.scorers))

    @property
    def answering(self) -> str:
        """Scorer that the model takes unless another is named."""
        return "theta" if self.weights is None else "ensemble"

    def describe(self, scorer: str) -> list[str]:
        """Return sentences for people: how far probabilities of a scorer hold, and the threshold that is best."""
        of_scorer = self.scorers[scorer]
        errors = ", ".join(f"{100 * held.ece:.1f} on {queries} queries" for queries, held in of_scorer.held.items())
        queries, held = list(of_scorer.held.items())[-1]
        named, none = "", ""
        if scorer != self.answering:
            named = f"scorer={scorer} "
            none = f"the {self.answering}, by which the model answers unless it is told another, has none; "
        return [
            f"{none}probabilities of {scorer} are fitted on {self.fitted_on} ({named}calibrate=true); in percent, they "
            f"are off by {errors}, the expected calibration error, each on queries that did not fit them",
            f"{named}min_score={of_scorer.threshold:g} gives labels with the best F1 on those queries; on "
            f"{held.num_queries:,} {queries} queries that did not choose it, F1 is {100 * held.f1:.1f}: "
            f"{100 * held.precision:.1f} of the labels given are right, and {100 * held.recall:.1f} of the true labels "
            f"are given",
        ]


def save_calibration(model: Path, calibration: Calibration, *, digest: str) -> None:
    """Write it to the folder of a model, in place of an older one.

    Args:
        model: Folder of the model.
        calibration: What to write.
        digest: Fingerprint of the model's encoder, see `encoder_digest`.
    """
    content = {"format_version": FORMAT_VERSION, "package_version": version("prime_xmc"), "encoder": digest}
    write_json(model / CONFIG, sealed(content | asdict(calibration), model, ()))


def has_calibration(model: Path) -> bool:
    """Return whether a model has probabilities for scores."""
    return (model / CONFIG).is_file()


def read_calibration(model: Path, digest: str) -> Calibration:
    """Read what `save_calibration` wrote.

    Args:
        model: Folder of the model.
        digest: Fingerprint of its encoder.

    Raises:
        FileNotFoundError: If the model has none.
        ValueError: If it is damaged, of another format version, or of another encoder or other weights of the ensemble
            than the model has.
    """
    path = model / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{model.absolute()} has no {CONFIG}, by which scores become probabilities. Training fits it on validation "
            f"queries; prime-xmc-calibrate model={model} input=<queries with their labels> fits it afterwards"
        )
    try:
        content = parse_json(path.read_bytes())
        format_version, encoder = content["format_version"], content["encoder"]
        if format_version != FORMAT_VERSION:
            raise ValueError(f"format_version is {format_version}, this version reads {FORMAT_VERSION}")
        calibration = Calibration(
            str(content["fitted_on"]),
            {name: _scorer(of_scorer) for name, of_scorer in content["scorers"].items()},
            content["weights"],
            int(content.get("model_version", 1)),  # older files do not say
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): {AGAIN}") from error
    if encoder != digest:
        raise ValueError(f"{path} is of another model, with another encoder: {AGAIN}")
    own = ensembles.read_ensemble(model, digest).weights._asdict() if ensembles.has_ensemble(model) else None
    if calibration.weights != own:
        raise ValueError(
            f"{path} is of an ensemble with the weights {calibration.weights}, the model's are {own}: {AGAIN}"
        )
    return calibration


def _scorer(content: Mapping[str, Any]) -> ScorerCalibration:
    names = ("score", "crowd", "bias", "temperature", "threshold")
    numbers = {name: float(content[name]) for name in names}
    if not all(map(math.isfinite, numbers.values())) or numbers["score"] <= 0 or numbers["temperature"] <= 0:
        raise ValueError(f"expected finite numbers, score and temperature above 0, got {numbers}")
    return ScorerCalibration(**numbers, held={name: Held(**held) for name, held in content["held"].items()})
