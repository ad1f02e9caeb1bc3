"""The folders of training runs: finding them, and reading what a run has left in its folder."""

import csv
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from prime_xmc.foreign import check_links, parse_json
from prime_xmc.reporting.expressions import cache_folder, finite_numbers, load_yaml, resolved, without_machine
from prime_xmc.reporting.ranks import name_of_ranks
from prime_xmc.run_files import CONFIG, METADATA, METRICS, OF_TRAINING, OVERRIDES, is_below, key_of

CHOICES = METADATA / "hydra.yaml"
_EXPORT = Path("model", "prime_config.json")
_CLASSIFIERS = Path("classifiers", "classifiers.json")
_BASELINE = "baseline.json"
RECORD = "record.json"  # settings of a run in its record, which has no model
CURVES = "metrics.csv"
STAGE = "classify"  # folder of a second stage, within the run folder of the first
_AFTERWARDS = (
    "classify",
    "classify_settings",
    "neighbours",
    "lexical",
    "ensemble",
)  # settings of what follows the prototypes
# Of these, the settings that a scorer has nothing from; the ensemble has something from all of them.
_OF_OTHERS = {
    "W": ("neighbours", "lexical", "ensemble"),
    "neighbours": ("classify", "classify_settings", "lexical", "ensemble"),
    "lexical": ("classify", "classify_settings", "neighbours", "ensemble"),
}
_MEASURED = re.compile(r"(val|test)/(?:(\w+)/)?([^/]+)")  # split, scorer if there are several, metric
_ANSWERING = "predict/milliseconds_per_query"
_JOB = "job.json"  # what a sweep notes about each of its jobs
# Two runs belong to one configuration if they differ only in their seed, in where they write, and in what they show.
_APART = (
    *("seed", "run_dir", "cache_dir", "envs_dir", "threads", "ckpt_path", "bank.directory", "debug", "verify"),
    # of data that are the same wherever they lie, since others are reported apart
    "dataset.dir",
    *("export_after_validation", "export_every_n_epochs"),
    *("trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.default_root_dir", "trainer.profiler"),
)
# Those of them that others take their value from.
_PLACES = ("seed", "run_dir", "cache_dir", "envs_dir", "threads")
_APART_GROUPS = ("logger", "callbacks.progress", "hydra")
# Callbacks, by the class that _target_ names, that watch or save a run and do not change what it learns.
_WATCHERS = {
    *("DeviceStatsMonitor", "EpochProgress", "EpochTable", "LearningRateMonitor", "LogHistograms", "LogPredictions"),
    *("ModelCheckpoint", "ModelSummary", "OnExceptionCheckpoint", "ReleaseMemory", "RichModelSummary"),
    *("RichProgressBar", "ThroughputMonitor", "TQDMProgressBar", "WandbRun", "WarnOfCollapse"),
}
# What is raised for a configuration whose values are of other types than those of a training.
_UNSUITED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, OmegaConfBaseException)
_CALLBACK = re.compile(r"callbacks\.\w+")  # null: switched off, the same as if it were not there
_READ = (CONFIG, OVERRIDES, CHOICES, _EXPORT, _CLASSIFIERS, _BASELINE, RECORD, METRICS, CURVES, _JOB)
_SYSTEMS = ("method", "model")  # groups of configurations whose choice names a system
# Options with which a run sees only part of the data; "model." is before those of a model that classifiers build on.
_PARTIAL = re.compile(r"(?:model\.)?trainer\.(fast_dev_run|overfit_batches|limit_(?:train|val|test)_batches)")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run has left in its folder; a folder with one-vs-all classifiers has a record for each scorer.

    Attributes:
        path: Run folder.
        dataset: Name of the data set.
        settings: Resolved configuration by dotted key, without seed, paths, loggers and callbacks that only watch.
            Where a value depends on the machine, it is the expression that asks the machine.
        derived: Expressions of the keys whose values are computed from other keys, by key.
        overrides: Settings of the command line by key, with the same keys left out.
        seed: Seed of the run.
        metrics: Content of metrics.json; None while the run has not finished.
        epochs: Rows of metrics.csv.
        export: Description of the run in its model folder; empty if there is no model folder.
        status: State of the run: "finished", "unfinished", or what a sweep has noted about it.
        predictions: File with the predictions for the test split, or with the ranks of its positives, which a record
            has; None if there is none.
        is_debugging: Whether the run saw only part of the data on purpose, or was started with debug=.
        cache_dir: Folder of prepared data sets in its configuration; None if this machine cannot resolve it.
        system: What was trained, such as "model=ngame" or "method=bonsai"; empty where the folder does not tell.
        data_folder: Folder of the raw files as the configuration has it; empty where that does not say.
    """

    path: Path
    dataset: str
    settings: dict[str, Any]
    derived: dict[str, str]
    overrides: dict[str, str]
    seed: int
    metrics: dict[str, Any] | None
    epochs: list[dict[str, float]]
    export: dict[str, Any]
    status: str
    predictions: Path | None
    is_debugging: bool = False
    cache_dir: str | None = None
    system: str = ""
    data_folder: str = ""

    def fingerprint(self) -> str:
        """Return a text that is the same for all runs of a configuration and different for all others.

        A setting that is null is like one that is not there: null is what settings are that older versions do not have.
        """
        given = {key: comparable(key, value) for key, value in self.settings.items() if value is not None}
        return json.dumps(given, sort_keys=True)


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Return the run folders that match glob patterns, in natural order: 2 before 10.

    A folder that exists under the very name is meant where brackets could be read as a pattern too.

    Raises:
        ValueError: If no run folder matches.
    """
    matched = {
        Path(path)
        for pattern in patterns
        for path in glob.iglob(_escaped(pattern), recursive=True)
        if Path(path, CONFIG).is_file()
    }
    if not matched:
        raise ValueError(
            f"runs={','.join(patterns)}: no run folder matches. A run folder is one that holds {CONFIG}, which "
            "training writes; expected a pattern in quotes, such as 'outputs/train/**'"
        )
    return sorted(matched, key=lambda path: [_natural(part) for part in path.parts])


def fixed_part(pattern: str) -> Path:
    """Return the folders at the beginning of a pattern that exist, such as `run [1]`, and stand for themselves."""
    path = Path(pattern).expanduser()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _escaped(pattern: str) -> str:
    folder = fixed_part(pattern)
    return str(Path(glob.escape(str(folder))) / Path(pattern).expanduser().relative_to(folder))


def read_runs(path: Path) -> list[RunRecord]:
    """Read a run folder; one with classifiers gives several records, one for each scorer.

    Classifiers that were trained on the model of another run have the settings of both and the seed of the model.

    Raises:
        ValueError: If a file of the run is damaged; the message names the file.
    """
    check_links(path, map(str, _READ))
    config = load_yaml(path / CONFIG)
    overrides = load_yaml(path / OVERRIDES) if (path / OVERRIDES).is_file() else []
    metrics, export, job = (_load_json(path / name) for name in (METRICS, _EXPORT, _JOB))
    if not isinstance(overrides, list):
        raise ValueError(f"{path / OVERRIDES}: expected a list of settings, got {type(overrides).__name__}")
    metrics = None if metrics is None else finite_numbers(path / METRICS, metrics)
    others = (_CLASSIFIERS, _BASELINE, RECORD)
    export = export or next(filter(None, (_load_json(path / name) for name in others)), {})
    export = export.get("settings") or {}
    try:
        kinds = [isinstance(each, dict) for each in (config, export, export.get("config", {}))]
        if not all(kinds) or not all(isinstance(key, str) for key in config):
            raise ValueError("expected settings by name")
        seed = int(config["seed"])
        settings, derived = settings_of(config)
        if "model" in export:
            of_classifiers = settings | {"seed": seed}
            seed = int(export["model"]["seed"])
            of_model = {f"model.{key}": value for key, value in settings_of_model(export["model"]).items()}
            settings = of_classifiers | of_model
            del settings["model.dir"]
        dataset = str(settings["dataset.name"])
    except _UNSUITED as error:
        raise ValueError(f"{path / CONFIG}: not the configuration of a training run ({error!r})") from error
    run = RunRecord(
        path=path,
        dataset=dataset,
        settings=settings,
        derived=derived,
        overrides=_parse_overrides(overrides, _watchers(config)),
        seed=seed,
        metrics=metrics,
        epochs=_read_epochs(path / CURVES),
        export=export,
        status=_status(metrics, job),
        predictions=_predictions("predictions.npz", path),
        is_debugging=_is_debugging(config, settings),
        cache_dir=_cache_dir(config),
        system=_system(path / CHOICES, overrides),
        data_folder=_data_folder(config),
    )
    if "method" in config:  # which trains no encoder
        run = _without(run, OF_TRAINING)
    scorers = dict.fromkeys(match[2] for name in metrics or {} if (match := _MEASURED.fullmatch(name)))
    if None not in scorers:  # classifiers alone, or a run that has not measured anything
        return [_of_scorer(run, path, scorer) for scorer in scorers if scorer is not None] or [run]
    later = [_of_scorer(_with_stages(run, scorer), path / STAGE, scorer) for scorer in scorers if scorer is not None]
    return [_of_prototypes(run), *later]


def comparable(key: str, value: Any) -> Any:
    """Return a setting as it is compared with that of another run.

    Objects of this package have moved between versions and keep their class, so only the class is compared.
    """
    if key.endswith("_target_") and isinstance(value, str) and value.startswith("prime_xmc."):
        return value.rpartition(".")[2]
    return value


def _system(path: Path, overrides: Any) -> str:
    """Return what a run has chosen of the groups that name a system, as Hydra or the command line says."""
    given = _by_key(overrides)
    content = load_yaml(path) if path.is_file() else {}
    for key in ("hydra", "runtime", "choices"):
        content = content.get(key) if isinstance(content, Mapping) else None
    choices = given | (dict(content) if isinstance(content, Mapping) else {})
    return next((f"{group}={choices[group]}" for group in _SYSTEMS if choices.get(group)), "")


def _data_folder(config: Mapping[str, Any]) -> str:
    dataset = config.get("dataset")
    folder = dataset.get("dir") if isinstance(dataset, Mapping) else None
    return folder if isinstance(folder, str) else ""


def _cache_dir(config: dict[str, Any]) -> str | None:
    return cache_folder(config.get("cache_dir"), os.environ)


def settings_of(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings of a configuration by dotted key, and the expressions of those computed from other keys.

    Seed, paths, loggers and callbacks that only watch are left out. Where a value depends on the machine, it is the
    expression that asks the machine.
    """
    plain = without_machine({**config, **{key: f"<{key}>" for key in _PLACES}})
    raw = dict(_leaves(plain))
    values = dict(_leaves(resolved(plain)))
    watchers = _watchers(config)
    settings = {
        key: value
        for key, value in values.items()
        if not (_is_apart(key, watchers) or (value is None and _CALLBACK.fullmatch(key)))
    }
    derived = {key: raw[key] for key in settings if isinstance(raw.get(key), str) and "${" in raw[key]}
    return settings, derived


def _watchers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of the callbacks that only watch."""
    callbacks = config.get("callbacks") or {}
    return tuple(
        f"callbacks.{name}"
        for name, callback in callbacks.items()
        if isinstance(callback, Mapping) and str(callback.get("_target_")).rpartition(".")[2] in _WATCHERS
    )


def _is_debugging(config: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    if config.get("debug") is not None:
        return True
    partial = [(match[1], value) for key, value in settings.items() if (match := _PARTIAL.fullmatch(key))]
    # A limit of 1.0 is all of the data, whereas 1 is a single batch; a validation limit of 0 only skips validation.
    return any(
        value and not (name.startswith("limit_") and isinstance(value, float) and value == 1) for name, value in partial
    )


def settings_of_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that is resolved already.

    The expressions are gone, so values that repeat the seed or a path are recognised by their key or by how they begin.
    """
    paths = tuple(str(config[name]) for name in ("run_dir", "cache_dir") if name in config)
    watchers = _watchers(config)
    return {
        key: value
        for key, value in _leaves(config)
        if not (_is_apart(key, watchers) or key.endswith(".seed") or str(value).startswith(paths))
    }


def finished_at(run: RunRecord) -> float | None:
    """Return when a finished run was finished, in seconds since 1970; None for a record that does not say it.

    The files of a record have the time of the checkout where Git has brought them, so that it notes the time itself.
    """
    if not (run.path / RECORD).is_file():
        return (run.path / METRICS).stat().st_mtime
    noted = run.export.get("finished")
    return noted if isinstance(noted, float) else None


def precision_of(export: Mapping[str, Any]) -> Any:
    """Return the precision of a training by the description of its model; None where that does not say it."""
    for key in ("config", "trainer", "precision"):
        export = export.get(key) if isinstance(export, Mapping) else None  # type: ignore[assignment]
    return export


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, child in node.items():
        if isinstance(child, Mapping) and child:
            yield from _leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _is_apart(key: str, watchers: Sequence[str]) -> bool:
    return key in _APART or is_below(key, (*_APART_GROUPS, *watchers))


def _parse_overrides(overrides: Any, watchers: Sequence[str]) -> dict[str, str]:
    return {key: value for key, value in _by_key(overrides).items() if not _is_apart(key, watchers)}


def _by_key(overrides: Any) -> dict[str, str]:
    return {key_of(str(override)): str(override).partition("=")[2] for override in overrides or []}


def _load_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_epochs(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    rows, line = [], 1
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None:  # an empty file, as a full disk leaves it
                return []
            if "epoch" not in reader.fieldnames:
                raise ValueError("there is no column epoch")
            for row in reader:
                line = reader.line_num
                rows.append({name: float(value) for name, value in row.items() if value != ""})
    except (TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {line}: expected numbers below the names of columns ({error})") from error
    return rows


def _of_prototypes(run: RunRecord) -> RunRecord:
    """Return the record of the prototypes of a run, which do not depend on what follows them."""
    return replace(_without(run, _AFTERWARDS), metrics=_values_of(run.metrics or {}, None))


def _without(run: RunRecord, names: Sequence[str]) -> RunRecord:
    """Return the record of a run without settings that change nothing of it, given by the keys that they begin with."""

    def kept(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if not is_below(key, names)}

    return replace(run, settings=kept(run.settings), derived=kept(run.derived), overrides=kept(run.overrides))


def _of_scorer(run: RunRecord, stage: Path, scorer: str) -> RunRecord:
    """Return the record of one scorer of a run with several, under the names of metrics that other runs use.

    Args:
        run: The run.
        stage: Folder of the classifiers' training; predictions are there where the run's own folder has none.
        scorer: Name of the scorer.
    """
    rows = [] if scorer in ("neighbours", "lexical") else _read_epochs(stage / CURVES)
    name = f"predictions_{scorer}.npz"
    run = _without(run, _OF_OTHERS.get(scorer, ()))
    return replace(
        run,
        settings=run.settings | {"scorer": scorer},
        overrides=run.overrides | {"scorer": scorer},
        metrics=_values_of(run.metrics or {}, scorer),
        epochs=[_values_of(row, scorer) for row in rows],
        predictions=_predictions(name, run.path, stage),
    )


def _with_stages(run: RunRecord, scorer: str) -> RunRecord:
    """Return a run whose cost includes that of the stages that a scorer needs."""
    metrics = dict(run.metrics or {})
    needed = ["train"]
    if scorer not in ("neighbours", "lexical"):
        needed.append("classify")
    if scorer != "W":
        needed.append("ensemble")
    for unit in ("seconds", "cpu_seconds", "passes"):
        if f"train/{unit}" in metrics:
            metrics[f"train/{unit}"] = sum(metrics.get(f"{stage}/{unit}", 0.0) for stage in needed)
    if "model_bytes" in metrics:
        parts = {"W": ("classify",), "ensemble": ("classify", "neighbours", "lexical")}.get(scorer, (scorer,))
        metrics["model_bytes"] += sum(metrics.get(f"{part}/model_bytes", 0) for part in parts)
    if _ANSWERING in metrics:  # what the prototypes take
        own = metrics.get(f"predict/{scorer}/milliseconds_per_query")
        metrics = {key: value for key, value in metrics.items() if key != _ANSWERING}
        metrics |= {} if own is None else {_ANSWERING: own}
    return replace(run, metrics=metrics)


def _values_of(values: Mapping[str, Any], scorer: str | None) -> dict[str, Any]:
    """Return the values of one scorer without its name, and all values that belong to no scorer."""
    result = {}
    for name, value in values.items():
        match = _MEASURED.fullmatch(name)
        if match is None:
            result[name] = value
        elif match[2] == scorer:
            result[f"{match[1]}/{match[3]}"] = value
    return result


def _predictions(name: str, *folders: Path) -> Path | None:
    """Return the first file of predictions of a name, or of the ranks that a record has in their place."""
    paths = [folder / each for folder in folders for each in (name, name_of_ranks(name))]
    return next((path for path in paths if path.is_file()), None)


def _status(metrics: dict[str, Any] | None, job: dict[str, Any] | None) -> str:
    if metrics is not None:
        return "finished"
    if job is None:
        return "unfinished"
    return ": ".join(str(job[name]) for name in ("status", "message") if name in job)


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts 10 after 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
