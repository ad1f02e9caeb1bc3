"""The runs of a data set, evaluated again query by query and compared with a baseline."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from prime_xmc.data.corpus import Corpus, Ragged
from prime_xmc.data.propensity import inverse_propensity
from prime_xmc.data.raw import read_records
from prime_xmc.evaluation.metrics import SHOWN, hits, metric_parts
from prime_xmc.evaluation.predictions import load_predictions
from prime_xmc.reporting.configurations import Configuration, DatasetRuns, find_configuration
from prime_xmc.reporting.ranks import are_ranks, load_ranks
from prime_xmc.reporting.run_folders import RunRecord
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
from prime_xmc.run_files import CONFIG

logger = logging.getLogger(__name__)

BINNED = ("P@5", "PSP@5")
COVERAGE_K = (1, 3, 5, 10, 100)
MACRO = tuple(f"macro-{name}@{k}" for name in ("P", "R", "F1") for k in (1, 3, 5))
COVERAGE = tuple(f"coverage@{k}" for k in COVERAGE_K)
_NOTES = ("note/test", "note/labels")  # how names of recorded sentences on the test split and the labels begin
_DEPTH = 5  # labels of a query that are counted in bins and shown as examples
LARGEST = 1e30  # charts leave out what is larger, and what is no number, as after a training that has diverged
_TOLERANCE = 1e-4  # metrics.json holds single precision, so a metric computed again from predictions.npz differs a bit


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The predictions of a run, evaluated.

    Attributes:
        run: The run.
        numerators: Contribution of each query to the numerator of each metric in `SHOWN`.
        denominators: Its contribution to the denominator, which for PSP is that of the run's inverse propensities.
        by_bin: Contribution of each bin of labels to the metrics in `BINNED`.
        macro: Macro metrics and coverage by name.
        top: First five labels of each query, padded with -1; None for a record, which has the positives alone.
        hit: Whether each of the first five is a positive.
    """

    run: RunRecord
    numerators: Float32[np.ndarray, "query metric"]
    denominators: Float32[np.ndarray, "query metric"]
    by_bin: dict[str, Float64[np.ndarray, "bin"]]
    macro: dict[str, float]
    top: Int32[np.ndarray, "query rank"] | None
    hit: Bool[np.ndarray, "query rank"]


@dataclass(frozen=True, eq=False)
class ShownQuery:
    """A test query with its labels and what each configuration predicts for it.

    Attributes:
        row: Row of the query in the test split.
        text: Text of the query; None if the raw file is gone.
        positives: Texts of its labels.
        predictions: Predicted labels by configuration (its first run): the text, and whether it is a positive.
    """

    row: int
    text: str | None
    positives: list[str]
    predictions: dict[str, list[tuple[str, bool]]]


@dataclass(frozen=True, eq=False)
class Study:
    """A data set's configurations, compared.

    Attributes:
        runs: Runs of the data set.
        baseline: Configuration that the others are compared with; None if this data set does not have it.
        evaluations: Evaluated runs by the name of their configuration, where predictions and data are available.
        comparisons: Comparisons with the baseline, by configuration and metric; the p-values are corrected for the
            number of configurations (Holm).
        labels_of_bin: Number of labels in each bin.
        positives_of_bin: Number of test positives in each bin.
        examples: Test queries with their predictions.
        notes: Sentences on what is missing and how to get it.
    """

    runs: DatasetRuns
    baseline: Configuration | None
    evaluations: dict[str, list[Evaluation]] = field(default_factory=dict)
    comparisons: dict[tuple[str, str], Comparison] = field(default_factory=dict)
    labels_of_bin: list[int] = field(default_factory=list)
    positives_of_bin: list[int] = field(default_factory=list)
    examples: list[ShownQuery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_studies(
    groups: Sequence[DatasetRuns], baseline: str | None, *, num_resamples: int, num_examples: int, seed: int
) -> list[Study]:
    """Evaluate and compare the runs of several data sets.

    Args:
        groups: Runs by data set.
        baseline: Name of the configuration to compare with, or the folder of one of its runs; None: in each data set
            the first configuration that has predictions.
        num_resamples: Number of resamples of the bootstrap.
        num_examples: Number of test queries of each data set to show with their predictions.
        seed: Seed of the bootstrap and of the choice of examples.

    Raises:
        ValueError: If no data set has the baseline, or predictions are not readable or not those of their run.
    """
    if baseline is not None and not any(find_configuration(group, baseline) for group in groups):
        names = "\n".join(f"  {configuration.name}" for group in groups for configuration in group.configurations)
        raise ValueError(
            f"baseline={baseline} is no configuration of these runs, expected one of\n{names}\n"
            "or the folder of a run. A name with = or a comma takes two pairs of quotes: "
            "baseline='\"lr=1e-4, seed=1\"'"
        )
    studies = []
    for group in groups:
        if baseline is None:
            chosen = next((c for c in group.configurations if c.has_predictions), None)
        else:
            chosen = find_configuration(group, baseline)
        studies.append(make_study(group, chosen, num_resamples=num_resamples, num_examples=num_examples, seed=seed))
    return studies


def make_study(
    runs: DatasetRuns, baseline: Configuration | None, *, num_resamples: int, num_examples: int, seed: int
) -> Study:
    """Evaluate the predictions of all runs and compare configurations with the baseline.

    Args:
        runs: Runs of the data set.
        baseline: One of its configurations, or None to compare nothing.
        num_resamples: Number of resamples of the bootstrap.
        num_examples: Number of test queries to show with their predictions.
        seed: Seed of the bootstrap and of the choice of examples.

    Raises:
        ValueError: If predictions are not readable, or do not give the metrics that their run has recorded.
    """
    study = Study(runs, baseline)
    if runs.debugging:
        number = len(runs.debugging)
        study.notes.append(
            f"{number} debugging {'run is' if number == 1 else 'runs are'} left out of everything here, because debug, "
            "trainer.fast_dev_run, trainer.overfit_batches or trainer.limit_..._batches is set."
        )
    counted = [run for configuration in runs.configurations for run in configuration.runs]
    noted = [item for run in counted for item in (run.metrics or {}).items()]
    sentences = {note for name, note in noted if name.startswith(_NOTES) and note}
    study.notes.extend(f"{note[0].upper()}{note[1:]}." for note in sorted(sentences))
    with_predictions = [
        (configuration, [run for run in configuration.runs if run.predictions is not None])
        for configuration in runs.configurations
    ]
    lacking = [c.name for c, members in with_predictions if not members]
    if lacking:
        study.notes.append(
            f"{len(lacking)} of {len(with_predictions)} configurations have no predictions, as with test=false, so "
            "they are missing wherever predictions are needed: in the differences from the baseline, in the tables of "
            "rare and frequent labels, and in the examples."
        )
    if diverged := sorted({str(run.path) for run in counted if _has_diverged(run)}):
        study.notes.append(
            f"The curves of {', '.join(diverged)} have values that are huge or no numbers, as after a training that "
            "has diverged; the charts leave them out."
        )
    constants = {
        " ".join(f"{name}={run.settings.get(f'dataset.propensity.{name}')}" for name in "ab") for run in counted
    }
    if len(constants) > 1:
        named = ", ".join(sorted(constants))
        study.notes.append(
            f"The runs have different constants of the propensity ({named}): their PSP measures different things."
        )
    if runs.corpus is None:
        study.notes.append(
            "The prepared data set was not found, so everything that needs the true labels is missing. Give the folder "
            "that holds it with cache_dir=, or prepare it again with python -m prime_xmc.prepare."
        )
        return study
    corpus = runs.corpus
    if not corpus.test.positives.lengths.any():
        study.notes.append(
            "No test query has a label, so that there is nothing to measure: see the metrics on held-out queries."
        )
        return study
    frequency = corpus.label_frequency
    bins = bin_of_label(frequency)
    study.labels_of_bin.extend(_counts(bins))
    study.positives_of_bin.extend(_counts(bins[corpus.test.positives.values]))
    for configuration, members in with_predictions:
        for run in members:
            evaluation = evaluate_run(run, corpus, frequency)
            study.evaluations.setdefault(configuration.name, []).append(evaluation)
    partial = [c.name for c, members in with_predictions if 0 < len(members) < len(c.runs)]
    if partial:
        study.notes.append(
            f"Predictions of some seeds are missing ({', '.join(partial)}): where predictions are needed, as for the "
            "differences from the baseline and their marks, only the other seeds count."
        )
    of_records = [
        configuration.name
        for configuration, members in with_predictions
        if members and members[0].predictions is not None and are_ranks(members[0].predictions)
    ]
    if of_records:
        study.notes.append(
            f"{len(of_records)} of {len(with_predictions)} configurations are read from records, which have what every "
            "table needs and no predictions to show as examples."
        )
    if len(study.evaluations) > 1 and (baseline is None or baseline.name not in study.evaluations):
        study.notes.append("Nothing is compared, because the baseline has no runs on this data set or no predictions.")
    if study.evaluations:
        study.comparisons.update(_compare(study, num_resamples, seed))
        study.examples.extend(_examples(study, corpus, num_examples, seed))
    return study


def _propensity(run: RunRecord) -> tuple[float, float]:
    try:
        return float(run.settings["dataset.propensity.a"]), float(run.settings["dataset.propensity.b"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{run.path / CONFIG}: expected numbers for dataset.propensity.a and .b ({error!r})"
        ) from error


def _has_diverged(run: RunRecord) -> bool:
    return any(not abs(value) <= LARGEST for row in run.epochs for value in row.values())


def evaluate_run(run: RunRecord, corpus: Corpus, frequency: Int64[np.ndarray, " label"]) -> Evaluation:
    """Evaluate the predictions of a run on the test split.

    Args:
        run: The run.
        corpus: Its data.
        frequency: Number of training queries of each label, which all runs share.

    Raises:
        ValueError: If they are not readable, or do not give the metrics that the run has recorded.
    """
    assert run.predictions is not None
    positives = corpus.test.positives
    bins = bin_of_label(frequency)
    try:
        weights = inverse_propensity(frequency, len(corpus.train), *_propensity(run))
    except ValueError as error:
        raise ValueError(f"{run.path / CONFIG}: {error}") from error
    macro = None
    if are_ranks(run.predictions):
        indices, macro = load_ranks(run.predictions, positives, (*MACRO, *COVERAGE))
    else:
        indices, _ = load_predictions(run.predictions)
    try:
        parts = {name: values for name, values in metric_parts(indices, positives, weights) if name in SHOWN}
        hit = hits(indices, positives)
    except ValueError as error:
        raise ValueError(f"{run.predictions}: {error}") from error
    for name in SHOWN:
        recorded = (run.metrics or {}).get(f"test/{name}")
        computed = float(parts[name][:, 0].sum() / max(parts[name][:, 1].sum(), 1e-300))
        if recorded is not None and abs(computed - recorded) > _TOLERANCE:
            raise ValueError(
                f"{run.predictions}: {name} is {computed:.5f} on {corpus.directory}, but metrics.json of the run says "
                f"{recorded:.5f}. Either the predictions are not those of this run, or the data set has changed since."
            )
    top, hit_top = indices[:, :_DEPTH], hit[:, :_DEPTH]
    weight_of_hit = {"P@5": np.ones_like(weights), "PSP@5": weights}
    return Evaluation(
        run=run,
        numerators=np.stack([parts[name][:, 0] for name in SHOWN], axis=1).astype(np.float32),
        denominators=np.stack([parts[name][:, 1] for name in SHOWN], axis=1).astype(np.float32),
        by_bin={
            name: binned_precision(hit_top, top, bins, weight_of_hit[name], float(parts[name][:, 1].sum()))
            for name in BINNED
        },
        macro=_macro(hit, indices, positives, corpus.num_labels) if macro is None else macro,
        top=top.copy() if macro is None else None,
        hit=hit_top.copy(),
    )


def _macro(
    hit: Bool[np.ndarray, "query k"], indices: Int32[np.ndarray, "query k"], positives: Ragged, num_labels: int
) -> dict[str, float]:
    values: dict[str, float] = {}
    for k in COVERAGE_K:
        values |= macro_metrics(hit, indices, positives, num_labels, k)
    return {name: values[name] for name in (*MACRO, *COVERAGE)}


def _compare(study: Study, num_resamples: int, seed: int) -> dict[tuple[str, str], Comparison]:
    names = list(study.evaluations)
    if study.baseline is None or study.baseline.name not in names or len(names) < 2:
        return {}
    evaluations = [run for name in names for run in study.evaluations[name]]
    numerators = np.stack([run.numerators for run in evaluations], axis=1)
    denominators = np.stack([run.denominators for run in evaluations], axis=1)
    if (denominators == denominators[:, :1]).all():  # as always but where propensities differ
        denominators = denominators[:, :1]
    configuration_of_run = np.array([place for place, name in enumerate(names) for _ in study.evaluations[name]])
    logger.info("bootstrap of %d runs: %d resamples", len(configuration_of_run), num_resamples)
    resampled = bootstrap(numerators, denominators, configuration_of_run, num_resamples, seed)
    total = np.maximum(denominators.sum(axis=0, dtype=np.float64), 1e-300)  # [run or 1, metric]
    of_run = numerators.sum(axis=0, dtype=np.float64) / total  # [run, metric]
    observed = np.stack([of_run[configuration_of_run == place].mean(axis=0) for place in range(len(names))])
    base = names.index(study.baseline.name)
    others = [place for place in range(len(names)) if place != base]
    result = {}
    for column, metric in enumerate(SHOWN):
        comparisons = [
            compare(
                resampled[:, place, column],
                resampled[:, base, column],
                float(observed[place, column] - observed[base, column]),
            )
            for place in others
        ]
        adjusted = holm(np.array([comparison.p for comparison in comparisons]))
        for place, comparison, p in zip(others, comparisons, adjusted, strict=True):
            result[names[place], metric] = comparison._replace(p=float(p))
    return result


def _examples(study: Study, corpus: Corpus, num_examples: int, seed: int) -> list[ShownQuery]:
    shown = {name: (each.top, each.hit) for name, (each, *_) in study.evaluations.items() if each.top is not None}
    if not shown:
        return []
    candidates = np.flatnonzero(corpus.test.positives.lengths)
    chosen = np.random.default_rng(seed).permutation(candidates)[:num_examples]
    rows = sorted(chosen.tolist())
    texts = query_texts(corpus, rows)
    wanted = {int(label) for row in rows for label in corpus.test.positives[row]}
    wanted |= {int(label) for top, _ in shown.values() for label in top[rows].ravel() if label >= 0}
    label_texts = {place: text for place, (_, text) in enumerate(corpus.labels()) if place in wanted}
    return [
        ShownQuery(
            row=row,
            text=texts.get(row),
            positives=[label_texts[int(label)] for label in corpus.test.positives[row]],
            predictions={
                name: [
                    (label_texts[int(label)], bool(is_hit))
                    for label, is_hit in zip(top[row], hit[row], strict=True)
                    if label >= 0
                ]
                for name, (top, hit) in shown.items()
            },
        )
        for row in rows
    ]


def query_texts(corpus: Corpus, rows: Sequence[int]) -> dict[int, str]:
    """Return the texts of some test queries; nothing if the raw file is no longer the one that was prepared."""
    manifest = corpus.manifest
    in_training_file = corpus.test_rows  # where the test split has been split off
    prefix = "tst" if in_training_file is None else "trn"
    name = next(name for name in manifest["source"] if name.startswith(prefix))
    path = Path(manifest["raw_directory"], name)
    if not rows or not path.is_file() or path.stat().st_size != manifest["source"][name]["bytes"]:
        return {}
    row_of_line = {row if in_training_file is None else int(in_training_file[row]): row for row in rows}
    records = islice(read_records(path, manifest["fields"], None), max(row_of_line) + 1)
    return {row_of_line[line]: record.title for line, record in enumerate(records) if line in row_of_line}


def _counts(bins: Int64[np.ndarray, " item"]) -> list[int]:
    return np.bincount(bins, minlength=len(BINS)).tolist()
