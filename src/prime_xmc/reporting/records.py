"""Records: what a report reads of a finished run, small enough to send or to commit, for later reports without it."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from prime_xmc.evaluation.predictions import load_predictions
from prime_xmc.files import publishing, write_json, write_text
from prime_xmc.reporting.ranks import are_ranks, name_of_ranks, ranks_of, save_ranks
from prime_xmc.reporting.run_folders import (
    CHOICES,
    CURVES,
    RECORD,
    STAGE,
    finished_at,
    fixed_part,
    precision_of,
    read_runs,
    settings_of_model,
)
from prime_xmc.reporting.study import Study, evaluate_run
from prime_xmc.run_files import CONFIG, METRICS, OVERRIDES

logger = logging.getLogger(__name__)

_COPIED = (CONFIG, OVERRIDES, Path(METRICS), Path(CURVES), Path(STAGE, CURVES))


def keep_records(studies: Sequence[Study], patterns: Sequence[str], folder: Path) -> list[Path]:
    """Keep a record of each run that counts in a report.

    A record is a folder that a report reads like a run folder. It has the settings, metrics and curves of the run, and
    the ranks of the test positives in the place of the predictions. Its name is that of the run below the fixed part of
    the pattern that found it. It takes the place of an earlier record of the same run; what is a record in this folder
    already stays.

    Args:
        studies: The runs, evaluated.
        patterns: Patterns for run folders that have found them.
        folder: Folder for the records, which is made if need be.

    Returns:
        The records that were written.

    Raises:
        ValueError: If the true labels of a data set are missing, or a record would take the place of that of another
            run. Nothing is written then.
    """
    sources = {
        run.path: study
        for study in studies
        for configuration in study.runs.configurations
        for run in configuration.runs
        if not ((run.path / RECORD).is_file() and run.path.resolve().is_relative_to(folder.resolve()))
    }
    for study in sources.values():
        if study.runs.corpus is None:
            raise ValueError(
                f"records={folder}: the prepared data of {study.runs.name} were not found, which have the true labels. "
                "Give their folder with cache_dir=, or prepare them again with python -m prime_xmc.prepare"
            )
    records = {path: folder / _name(path, patterns) for path in sources}
    for path, record in records.items():
        _check_place(path, record, records, folder)
    for path, study in sources.items():
        with publishing(records[path], replace=True) as temporary:
            _write(path, study, temporary)
    logger.info("%s: %d records", folder, len(records))
    return [*records.values()]


def _name(path: Path, patterns: Sequence[str]) -> Path:
    """Return the path of a run below the fixed part of the pattern that found it, or its own name if it is that."""
    parts = [part for part in map(fixed_part, patterns) if path.is_relative_to(part)]
    name = path.relative_to(max(parts, key=lambda part: len(part.parts), default=path.parent))
    if ".." in name.parts:
        raise ValueError(f"{path} goes up again behind a wildcard; expected a pattern without .. for records=")
    return name if name.parts else Path(path.resolve().name)


def _check_place(path: Path, record: Path, records: Mapping[Path, Path], folder: Path) -> None:
    """Refuse a place for a record that has something else, others below it, or is within another one."""
    others = [other for other, place in records.items() if other != path and place.is_relative_to(record)]
    others += [file.parent for file in record.rglob(RECORD) if file.parent != record]
    others += [each for each in record.parents if each.is_relative_to(folder) and (each / RECORD).is_file()]
    is_earlier = (record / RECORD).is_file() and _identity(record) == _identity(path)
    if not others and record.exists() and not is_earlier:
        others = [record]
    if others:
        raise ValueError(
            f"{record} would be the record of {path}, but is the place of {others[0]}, which is something else. Choose "
            "another folder, or a pattern with fewer folders before the first wildcard, so that names are longer"
        )


def _identity(path: Path) -> list[tuple[str, str, str, int]]:
    """Return what a run and its record have in common, and no other run."""
    return sorted(
        (run.dataset, str(run.export.get("data_fingerprint")), run.fingerprint(), run.seed) for run in read_runs(path)
    )


def _write(path: Path, study: Study, record: Path) -> None:
    """Write the record of a run into a new folder, with all its scorers, whether or not they count in this report."""
    corpus, runs = study.runs.corpus, read_runs(path)
    assert corpus is not None
    run = runs[0]
    for name in _COPIED:
        if (path / name).is_file():
            (record / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path / name, record / name)
    group, _, choice = run.system.partition("=")
    choices = {group: choice} if choice else {}  # all that is read of a file that names folders of the machine
    write_text(record / CHOICES, OmegaConf.to_yaml({"hydra": {"runtime": {"choices": choices}}}))
    about = _of_export(run.export) | {"data_source": corpus.source_hash}
    if (finished := finished_at(run)) is not None:
        about["finished"] = finished
    write_json(record / RECORD, {"settings": about})
    evaluated = {
        evaluation.run.predictions: evaluation for of_name in study.evaluations.values() for evaluation in of_name
    }
    for predictions in dict.fromkeys(run.predictions for run in runs if run.predictions is not None):
        ranks = record / name_of_ranks(predictions.name)
        if are_ranks(predictions):
            shutil.copy2(predictions, ranks)
            continue
        own = next(run for run in runs if run.predictions == predictions)
        evaluation = evaluated.get(predictions) or evaluate_run(own, corpus, corpus.label_frequency)
        save_ranks(ranks, ranks_of(load_predictions(predictions)[0], corpus.test.positives), evaluation.macro)


def _of_export(export: Mapping[str, Any]) -> dict[str, Any]:
    """Return what reports read of the description of a run in its model folder, which has much more."""
    kept = {key: export[key] for key in ("data_fingerprint", "machine") if key in export}
    if "model" in export:  # without the folders of the machine, which its settings have in the place of expressions
        kept["model"] = settings_of_model(export["model"]) | {"seed": export["model"]["seed"]}
    precision = precision_of(export)
    return kept if precision is None else kept | {"config": {"trainer": {"precision": precision}}}
