"""The runs of one data set, evaluated again query by query, and compared with a baseline."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from prime_xmc.data.corpus import Corpus
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.data.raw import read_records
from prime_xmc.evaluation.metrics import SHOWN, hits, metric_parts
from prime_xmc.evaluation.predictions import load_predictions
from prime_xmc.reporting.run_folders import Configuration, DatasetRuns, Run
from prime_xmc.reporting.statistics import (
    BINS,
    Comparison,
    bin_of_label,
    binned_precision,
    bootstrap,
    compare,
    holm,
    macro_metrics,
)

logger = logging.getLogger(__name__)

BINNED = ("P@5", "PSP@5")
MACRO_K = (1, 3, 5)
COVERAGE_K = (1, 3, 5, 10, 100)
_DEPTH = 5  # labels of a query that are binned and shown
_TOLERANCE = 1e-4  # between a metric of metrics.json, in single precision, and the same from predictions.npz


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the predictions of a run come to.

    Attributes:
        numerators: Each query's part in the numerator of the metrics `SHOWN`.
        by_bin: What each bin of labels contributes to the metrics `BINNED`.
        macro: Macro metrics and coverage by name.
        top: The first five labels of each query, -1 where there are fewer.
        hit: Whether they are positives.
    """

    numerators: Float32[np.ndarray, "query metric"]
    by_bin: dict[str, Float64[np.ndarray, "bin"]]
    macro: dict[str, float]
    top: Int32[np.ndarray, "query rank"]
    hit: Bool[np.ndarray, "query rank"]


@dataclass(frozen=True, eq=False)
class Example:
    """A test query with its labels and what each configuration predicts for it.

    Attributes:
        row: Place of the query in the test split.
        text: Of the query; None where the raw file is not there any more.
        positives: Texts of its labels.
        predictions: By the name of the configuration (its first run): text of a label, and whether it is a positive.
    """

    row: int
    text: str | None
    positives: list[str]
    predictions: dict[str, list[tuple[str, bool]]]


@dataclass(frozen=True, eq=False)
class Study:
    """A data set's configurations, compared.

    Attributes:
        runs: The runs.
        baseline: What the others are compared with; None where the one asked for is not among them.
        evaluations: Of the runs of each configuration whose predictions and data are there, by its name.
        comparisons: With the baseline, by configuration and metric; `p` holds for all configurations together (Holm).
        labels_of_bin: Number of labels in each bin.
        positives_of_bin: Number of test positives in each bin.
        examples: Some test queries.
        notes: What is missing, and how to have it.
    """

    runs: DatasetRuns
    baseline: Configuration | None
    evaluations: dict[str, list[Evaluation]] = field(default_factory=dict)
    comparisons: dict[tuple[str, str], Comparison] = field(default_factory=dict)
    labels_of_bin: list[int] = field(default_factory=list)
    positives_of_bin: list[int] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_study(
    runs: DatasetRuns, baseline: Configuration | None, *, num_resamples: int, num_examples: int, seed: int
) -> Study:
    """Evaluate the predictions of all runs and compare configurations with the baseline.

    Args:
        runs: The runs of a data set.
        baseline: One of its configurations, or None.
        num_resamples: Of the bootstrap.
        num_examples: Test queries to show with their predictions.
        seed: Of the bootstrap and of the choice of examples.

    Raises:
        ValueError: If predictions are not readable, or do not give the metrics that their run has recorded.
    """
    study = Study(runs, baseline)
    with_predictions = [
        (configuration, [run for run in configuration.runs if run.predictions is not None])
        for configuration in runs.configurations
    ]
    lacking = [c.name for c, members in with_predictions if not members]
    if lacking:
        study.notes.append(
            f"{len(lacking)} of {len(with_predictions)} configurations have no predictions (test=false), so they are "
            "not in what is computed from them: differences from the baseline, rare and frequent labels, examples."
        )
    if runs.corpus is None:
        study.notes.append(
            "The prepared data set was not found (model/ of a run names it), so what needs the true labels is missing: "
            "give the folder that has it by cache_dir=, or prepare it again with python -m prime_xmc.prepare."
        )
        return study
    corpus = runs.corpus
    frequency = corpus.label_frequency
    bins = bin_of_label(frequency)
    study.labels_of_bin.extend(_counts(bins))
    study.positives_of_bin.extend(_counts(bins[corpus.test.positives.values]))
    denominators = None
    for configuration, members in with_predictions:
        for run in members:
            evaluation, denominators = _evaluate(run, corpus, frequency, bins)
            study.evaluations.setdefault(configuration.name, []).append(evaluation)
    if len(study.evaluations) > 1 and (baseline is None or baseline.name not in study.evaluations):
        study.notes.append("The baseline is not here, or has no predictions: nothing is compared with it.")
    if denominators is not None:
        study.comparisons.update(_compare(study, denominators, num_resamples, seed))
        study.examples.extend(_examples(study, corpus, num_examples, seed))
    return study


def _evaluate(
    run: Run, corpus: Corpus, frequency: Int64[np.ndarray, "label"], bins: Int64[np.ndarray, "label"]
) -> tuple[Evaluation, Float32[np.ndarray, "query metric"]]:
    assert run.predictions is not None
    constants = (float(run.settings[f"dataset.propensity.{name}"]) for name in "ab")
    weights = inverse_propensity(frequency, len(corpus.train), *constants)
    indices, _ = load_predictions(run.predictions)
    positives = corpus.test.positives
    try:
        parts = {name: values for name, values in metric_parts(indices, positives, weights) if name in SHOWN}
        hit = hits(indices, positives)
    except ValueError as error:
        raise ValueError(f"{run.predictions}: {error}") from error
    for name in SHOWN:
        recorded = (run.metrics or {}).get(f"test/{name}")
        found = float(parts[name][:, 0].sum() / max(parts[name][:, 1].sum(), 1e-300))
        if recorded is not None and abs(found - recorded) > _TOLERANCE:
            raise ValueError(
                f"{run.predictions}: {name} is {found:.5f} on {corpus.directory}, but metrics.json of the run says "
                f"{recorded:.5f}: the predictions are not those of this run, or the data set has changed since"
            )
    top, hit_top = indices[:, :_DEPTH], hit[:, :_DEPTH]
    counted = {"P@5": np.ones_like(weights), "PSP@5": weights}
    macro: dict[str, float] = {}
    for k in COVERAGE_K:
        values = macro_metrics(hit, indices, positives, corpus.num_labels, k)
        macro |= {name: value for name, value in values.items() if k in MACRO_K or name.startswith("coverage")}
    evaluation = Evaluation(
        numerators=np.stack([parts[name][:, 0] for name in SHOWN], axis=1).astype(np.float32),
        by_bin={
            name: binned_precision(hit_top, top, bins, counted[name], float(parts[name][:, 1].sum())) for name in BINNED
        },
        macro=macro,
        top=top.copy(),
        hit=hit_top.copy(),
    )
    return evaluation, np.stack([parts[name][:, 1] for name in SHOWN], axis=1).astype(np.float32)


def _compare(
    study: Study, denominators: Float32[np.ndarray, "query metric"], num_resamples: int, seed: int
) -> dict[tuple[str, str], Comparison]:
    names = list(study.evaluations)
    if study.baseline is None or study.baseline.name not in names or len(names) < 2:
        return {}
    numerators = np.stack([run.numerators for name in names for run in study.evaluations[name]], axis=1)
    configuration_of_run = np.array([place for place, name in enumerate(names) for _ in study.evaluations[name]])
    logger.info("bootstrap of %d runs: %d resamples", len(configuration_of_run), num_resamples)
    resampled = bootstrap(numerators, denominators, configuration_of_run, num_resamples, seed)
    total = np.maximum(denominators.sum(axis=0, dtype=np.float64), 1e-300)
    of_run = numerators.sum(axis=0, dtype=np.float64) / total  # [run, metric]
    observed = np.stack([of_run[configuration_of_run == place].mean(axis=0) for place in range(len(names))])
    base = names.index(study.baseline.name)
    others = [place for place in range(len(names)) if place != base]
    result = {}
    for column, metric in enumerate(SHOWN):
        found = [
            compare(
                resampled[:, place, column],
                resampled[:, base, column],
                float(observed[place, column] - observed[base, column]),
            )
            for place in others
        ]
        adjusted = holm(np.array([comparison.p for comparison in found]))
        for place, comparison, p in zip(others, found, adjusted, strict=True):
            result[names[place], metric] = comparison._replace(p=float(p))
    return result


def _examples(study: Study, corpus: Corpus, num_examples: int, seed: int) -> list[Example]:
    candidates = np.flatnonzero(corpus.test.positives.lengths)
    chosen = np.random.default_rng(seed).permutation(candidates)[:num_examples]
    rows = sorted(chosen.tolist())
    texts = _query_texts(corpus, rows)
    first = {name: evaluations[0] for name, evaluations in study.evaluations.items()}
    wanted = {int(label) for row in rows for label in corpus.test.positives[row]}
    wanted |= {int(label) for evaluation in first.values() for label in evaluation.top[rows].ravel() if label >= 0}
    label_texts = {place: text for place, (_, text) in enumerate(corpus.labels()) if place in wanted}
    return [
        Example(
            row=row,
            text=texts.get(row),
            positives=[label_texts[int(label)] for label in corpus.test.positives[row]],
            predictions={
                name: [
                    (label_texts[int(label)], bool(hit))
                    for label, hit in zip(evaluation.top[row], evaluation.hit[row], strict=True)
                    if label >= 0
                ]
                for name, evaluation in first.items()
            },
        )
        for row in rows
    ]


def _query_texts(corpus: Corpus, rows: Sequence[int]) -> dict[int, str]:
    """Return the texts of some test queries, from the raw file if it is still the one that was prepared."""
    manifest = corpus.manifest
    name = next(name for name in manifest["source"] if name.startswith("tst"))
    path = Path(manifest["raw_directory"], name)
    if not rows or not path.is_file() or path.stat().st_size != manifest["source"][name]["bytes"]:
        return {}
    records = islice(read_records(path, manifest["fields"], None), max(rows) + 1)
    wanted = set(rows)
    return {row: record.title for row, record in enumerate(records) if row in wanted}


def _counts(bins: Int64[np.ndarray, "item"]) -> list[int]:
    return np.bincount(bins, minlength=len(BINS)).tolist()
