"""Probabilities for a model's scores, fitted on queries whose labels are known and that the model has not seen."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.evaluation.rank import Ranking, rank_split
from prime_xmc.evaluation.reliability import Reliability, Threshold, calibrate, measure
from prime_xmc.export.calibration import Calibration, Held, ScorerCalibration, save_calibration
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.index.fused import Weights

VALIDATION = "validation"
TEST = "test"


class Tested(NamedTuple):
    """The best labels of queries on which a calibration is measured.

    Attributes:
        rankings: Ids and scores of each query's best labels, by scorer.
        positives: True labels of each query.
    """

    rankings: Mapping[str, Ranking]
    positives: Ragged


def calibrate_rankings(
    rankings: Mapping[str, Ranking],
    positives: Ragged,
    *,
    queries: str,
    weights: Weights | None,
    test: Tested | None = None,
) -> Calibration | None:
    """Return the calibration of scorers from their best labels for some queries, and measure it.

    Args:
        rankings: Ids and scores of each query's best labels, by scorer.
        positives: True labels of each query.
        queries: What the queries are called: "validation".
        weights: Weights of the model's ensemble; None: it has none.
        test: Other queries, ranked by the same scorers; None: there are none.

    Returns:
        None where it cannot be done: fewer than two queries have a label, or no answer of any scorer is right.
    """
    scorers = {}
    for name, (indices, scores) in rankings.items():
        fitted = calibrate(indices, scores, positives)
        if fitted is None:
            continue
        held = {queries: _held(len(positives), fitted.reliability, fitted.threshold)}
        if test is not None and name in test.rankings:
            of_test = measure(fitted.regression, fitted.threshold.score, *test.rankings[name], test.positives)
            held[TEST] = _held(len(test.positives), *of_test)
        scorers[name] = ScorerCalibration(**fitted.regression._asdict(), threshold=fitted.threshold.score, held=held)
    if not scorers:
        return None
    return Calibration(f"{len(positives):,} {queries} queries", scorers, None if weights is None else weights._asdict())


def _held(num_queries: int, reliability: Reliability, threshold: Threshold) -> Held:
    bins = zip(reliability.predicted.tolist(), reliability.observed.tolist(), reliability.counts.tolist(), strict=True)
    return Held(
        num_queries,
        reliability.num_answers,
        round(reliability.ece, 6),
        [{"predicted": round(p, 6), "observed": round(o, 6), "answers": count} for p, o, count in bins],
        round(threshold.precision, 6),
        round(threshold.recall, 6),
        round(threshold.f1, 6),
    )


def calibrate_prototypes(
    model: Path, data: PrimeDataModule, device: torch.device, test: Ranking | None
) -> Calibration | None:
    """Calibrate the prototypes of a model that has no other scorer, on the queries held out of its training.

    Args:
        model: Folder of the model, to which the calibration is written.
        data: The data that it was trained on.
        device: Device to compute on.
        test: Its best labels for the test split; None: it was not tested.

    Returns:
        None where there are too few queries, see `calibrate_rankings`.
    """
    ids, train = data.validation_ids, data.corpus.train
    if len(ids) == 0:
        return None
    predictor = Predictor.load(model, device=str(device), index="exact", scorer="theta")
    held_out = Split(train.tokens.take(ids), train.positives.take(ids), train.filtered.take(ids))
    calibration = calibrate_rankings(
        {"theta": rank_split(predictor, held_out)},
        held_out.positives,
        queries=VALIDATION,
        weights=None,
        test=None if test is None else Tested({"theta": test}, data.corpus.test.positives),
    )
    if calibration is not None:
        save_calibration(model, calibration, digest=encoder_digest(model))
    return calibration
