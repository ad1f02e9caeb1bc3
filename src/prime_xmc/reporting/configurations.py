"""Run folders put together by data set and by configuration."""

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prime_xmc.data.corpus import Corpus
from prime_xmc.reporting.run_folders import RECORD, RunRecord, comparable, finished_at
from prime_xmc.run_files import METRICS

logger = logging.getLogger(__name__)

_GROUPS = {"model", "method"}  # groups of configurations that name a system


@dataclass(frozen=True, eq=False)
class Configuration:
    """Finished runs that differ in their seeds alone.

    Attributes:
        name: Short name, unique within the data set.
        runs: One run for each seed, in the order of the seeds.
    """

    name: str
    runs: tuple[RunRecord, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the runs have in common."""
        return self.runs[0].settings

    @property
    def has_predictions(self) -> bool:
        """Whether at least one run has left predictions."""
        return any(run.predictions is not None for run in self.runs)

    def final(self, metric: str) -> list[float]:
        """Return the value of a metric in metrics.json for each run that has it."""
        return [float(run.metrics[metric]) for run in self.runs if run.metrics and metric in run.metrics]


@dataclass(frozen=True, eq=False)
class DatasetRuns:
    """The runs of one data set.

    Attributes:
        name: Name of the data set, with a fingerprint where several share the name.
        dataset: Name of the data set as it is.
        corpus: The prepared data set; None where it was not found.
        configurations: The finished runs, in the order of the first run of each configuration.
        unfinished: Runs without metrics.json.
        repeated: Finished runs that do not count, because a newer one has the same configuration and seed.
        debugging: Runs that saw only part of the data on purpose. They count nowhere.
    """

    name: str
    dataset: str
    corpus: Corpus | None
    configurations: tuple[Configuration, ...]
    unfinished: tuple[RunRecord, ...]
    repeated: tuple[RunRecord, ...]
    debugging: tuple[RunRecord, ...]


def group_runs(runs: Iterable[RunRecord], cache_dirs: Sequence[Path]) -> list[DatasetRuns]:
    """Put runs together by data set, and within it by configuration.

    Two prepared data sets count as the same one if they were made from the same raw files and have the same queries to
    test on, because the tokenizer does not change which labels are true. Runs note of which raw files their data are.
    An older one, which has not done so and whose prepared data are not found, is put with those of the same
    fingerprint, or else of the same name and folder, unless it has prepared other data in the same way.

    Args:
        runs: The runs, in the order in which the configurations are to be listed.
        cache_dirs: Folders that may hold prepared data sets.

    Raises:
        ValueError: If all runs are for debugging.
    """
    runs = list(runs)
    if all(run.is_debugging for run in runs):
        raise ValueError(
            f"all {len(runs)} runs are for debugging (debug, trainer.fast_dev_run, trainer.overfit_batches or "
            "trainer.limit_..._batches is set), so there is nothing to report; expected at least one complete run"
        )
    corpora = {run.path: _find_corpus(run, cache_dirs) for run in runs}
    sources = _sources(runs, corpora)
    by_dataset: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        by_dataset.setdefault((run.dataset, sources[run.path]), []).append(run)
    names = Counter(name for name, _ in by_dataset)
    result = []
    for (name, source), members in by_dataset.items():
        corpus = next((corpora[run.path] for run in members if corpora[run.path] is not None), None)
        shown = name if names[name] == 1 else f"{name}-{source[:6]}"
        result.append(_group(shown, name, corpus, members))
    return result


def differences(configurations: Sequence[Configuration]) -> dict[str, list[Any]]:
    """Return the settings in which configurations differ: by key, one value for each, None where it has no such key.

    A key is left out if all configurations that have it compute it from other keys in the same way.
    """
    keys = dict.fromkeys(key for configuration in configurations for key in configuration.settings)
    return {
        key: [configuration.settings.get(key) for configuration in configurations]
        for key in keys
        if len({_compared(key, configuration) for configuration in configurations}) > 1
        and not _is_derived(key, configurations)
    }


def find_configuration(group: DatasetRuns, name: str) -> Configuration | None:
    """Return the configuration with this name, or the one with a run in this folder, be it one that does not count."""
    folder = Path(name).expanduser().absolute()
    for configuration in group.configurations:
        if configuration.name == name or folder in {run.path.absolute() for run in configuration.runs}:
            return configuration
    superseded = {run.fingerprint() for run in group.repeated if run.path.absolute() == folder}
    for configuration in group.configurations:
        if configuration.runs[0].fingerprint() in superseded:
            logger.warning("%s: newer runs of the same configuration count in its place", name)
            return configuration
    return None


def negative_pool(configuration: Configuration) -> int | None:
    """Return how many labels a batch draws: the pool of a query's negatives, as in Table 5 of the paper.

    Those count that are drawn for its queries, of their positives and of what a search has found for them; in batches
    of labels it is these. None where the settings do not say it, or a step sees all labels.
    """
    run = configuration.runs[0]
    settings = run.settings
    if settings.get("sampling.batch_labels") == "all":
        return None
    try:
        size = settings["sampling.batch_size"]
        # a number that follows the size of the data is with the model
        size = int(run.export["config"]["sampling"]["batch_size"] if size is None else size)
        of_labels = str(settings.get("sampling.sampler._target_")).endswith(".LabelBatchSampler")
        drawn = 1 if of_labels else int(settings["sampling.num_positives"])
        searched = settings.get("sampling.mined.first_epoch") is not None
        mined = int(settings["sampling.mined.num_drawn"]) if searched else 0
    except (KeyError, TypeError, ValueError):
        return None
    if searched and settings.get("sampling.mined.alone"):
        return mined
    return size * (drawn + mined) if drawn else None


def _compared(key: str, configuration: Configuration) -> str:
    return json.dumps(comparable(key, configuration.settings.get(key)), sort_keys=True)


def _is_derived(key: str, configurations: Sequence[Configuration]) -> bool:
    expressions = {c.runs[0].derived.get(key) for c in configurations if key in c.settings}
    return len(expressions) == 1 and None not in expressions


def _group(name: str, dataset: str, corpus: Corpus | None, runs: Sequence[RunRecord]) -> DatasetRuns:
    debugging = tuple(run for run in runs if run.is_debugging)
    runs = [run for run in runs if not run.is_debugging]
    newest: dict[tuple[str, int], RunRecord] = {}
    repeated = []
    for run in sorted((run for run in runs if run.metrics is not None), key=_preferred):
        older = newest.pop((run.fingerprint(), run.seed), None)
        newest[run.fingerprint(), run.seed] = run
        repeated += [] if older is None else [older]
    counted = set(map(id, newest.values()))
    by_configuration: dict[str, list[RunRecord]] = {}
    for run in runs:
        if id(run) in counted:
            by_configuration.setdefault(run.fingerprint(), []).append(run)
    members = list(by_configuration.values())
    configurations = [
        Configuration(shown, tuple(sorted(same, key=lambda run: run.seed)))
        for shown, same in zip(_names(members), members, strict=True)
    ]
    # A job that a sweep skipped has a folder, but its results are in the folder of another job.
    unfinished = tuple(run for run in runs if run.metrics is None and run.status != "skipped")
    return DatasetRuns(name, dataset, corpus, tuple(configurations), unfinished, tuple(repeated), debugging)


def _names(configurations: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Return a short name for each configuration.

    It has the system that was trained, where these are several, the experiment, and those overrides that not all
    configurations of the same system share. The choice of the data set is left out, because it is the same for all.
    """
    given = [min((run.overrides for run in runs), key=len) for runs in configurations]
    systems = [_system(runs, overrides) for runs, overrides in zip(configurations, given, strict=True)]
    if len({*systems} - {""}) < 2:
        return _unique(_differing(given, experiments=False))
    names = [""] * len(given)
    for system in dict.fromkeys(systems):
        places = [place for place, of_place in enumerate(systems) if of_place == system]
        own = [{key: value for key, value in given[place].items() if key not in _GROUPS} for place in places]
        for place, name in zip(places, _differing(own, experiments=True), strict=True):
            names[place] = ", ".join(filter(None, [system, name]))
    return _unique(names)


def _system(runs: Sequence[RunRecord], overrides: Mapping[str, str]) -> str:
    """Return the system of a configuration: as the command line has it, otherwise as Hydra has chosen it."""
    return next((f"{key}={overrides[key]}" for key in overrides if key in _GROUPS), runs[0].system)


def _differing(given: Sequence[Mapping[str, str]], *, experiments: bool) -> list[str]:
    """Return as a name for each configuration the overrides that not all of them share.

    Args:
        given: Overrides of each configuration.
        experiments: Whether the name has the experiment also where all share it.
    """
    shared = set.intersection(*(set(overrides.items()) for overrides in given)) if len(given) > 1 else set()
    if experiments and len(given) == 1:
        shared = {(key, value) for key, value in given[0].items()}
    keys = {key for overrides in given for key in overrides}
    last = Counter(key.rpartition(".")[2] for key in keys)
    names = []
    for overrides in given:
        parts = []
        for key, value in overrides.items():
            is_kept = experiments and key == "experiment"
            if ((key, value) in shared and not is_kept) or key == "dataset":
                continue
            short = key.rpartition(".")[2]
            parts.append(value if key == "experiment" else f"{short if last[short] == 1 else key}={value}")
        names.append(", ".join(parts))
    return names


def _unique(names: Sequence[str]) -> list[str]:
    """Return names of which none is empty and each has a number if others are the same."""
    names = [name or "default" for name in names]
    counts: Counter[str] = Counter()
    result = []
    for name in names:
        counts[name] += 1
        result.append(f"{name} ({counts[name]})" if counts[name] > 1 else name)
    return result


def _find_corpus(run: RunRecord, cache_dirs: Sequence[Path]) -> Corpus | None:
    fingerprint = run.export.get("data_fingerprint")
    # both are parts of the name of a folder, and neither may lead out of the cache
    if not isinstance(fingerprint, str) or not re.fullmatch("[0-9a-f]{12,}", fingerprint) or not _is_name(run.dataset):
        return None
    # Model folders of version 0.1.0 name the folder in their settings; those of later versions name none.
    recorded = [run.cache_dir, run.export.get("config", {}).get("cache_dir")]
    own = [Path(folder).expanduser() for folder in recorded if isinstance(folder, str) and folder]
    for cache_dir in (*cache_dirs, *own):
        directory = cache_dir / f"{run.dataset}-{fingerprint[:12]}"
        if directory.is_dir():
            try:
                return Corpus.open(directory)
            except (FileNotFoundError, ValueError) as error:  # an older version may have prepared it
                logger.warning("%s", error)
    return None


def _sources(runs: Sequence[RunRecord], corpora: Mapping[Path, Corpus | None]) -> dict[Path, str]:
    """Return for each run folder what the runs on its data have in common, and no others."""
    sources: dict[Path, str] = {}
    for run in runs:
        corpus, noted = corpora[run.path], run.export.get("data_source")
        if corpus is not None:
            sources[run.path] = corpus.source_hash
        elif isinstance(noted, str):
            sources[run.path] = noted
    by_mark: dict[str, str] = {}
    prepared: dict[tuple[str, str], Any] = {}  # fingerprint, by source and way of preparing
    for run in sorted(runs, key=lambda run: run.path not in sources):  # those that are known first
        fingerprint, way = run.export.get("data_fingerprint"), _way_of_preparing(run)
        marks = [json.dumps(["folder", run.dataset, run.data_folder, run.settings.get("dataset.num_test")])]
        if fingerprint is not None:
            marks.insert(0, json.dumps(["fingerprint", run.dataset, fingerprint]))
        if run.path not in sources:
            known = [by_mark[mark] for mark in marks if mark in by_mark]
            same = [each for each in known if fingerprint in (None, prepared.get((each, way), fingerprint))]
            sources[run.path] = same[0] if same else _hash(marks[0] if known else marks[-1])
        source = sources[run.path]
        if fingerprint is not None:
            prepared.setdefault((source, way), fingerprint)
        for mark in marks:
            by_mark.setdefault(mark, source)
    return sources


def _way_of_preparing(run: RunRecord) -> str:
    """Return the settings besides the raw files on which the fingerprint of prepared data depends."""
    keys = ("encoder.source", "encoder.query_prompt", "encoder.label_prompt", "dataset.fields", "dataset.label_fields")
    return json.dumps([run.settings.get(key) for key in (*keys, "dataset.max_length")], sort_keys=True)


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..")


def _preferred(run: RunRecord) -> tuple[float, bool, float]:
    """Return a key by which the last of several runs counts: the newest, and a run before its own record.

    A record that does not say when its run was finished, as older ones do not, counts after all runs.
    """
    finished = finished_at(run)
    is_record = (run.path / RECORD).is_file()
    return -math.inf if finished is None else finished, not is_record, (run.path / METRICS).stat().st_mtime


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
