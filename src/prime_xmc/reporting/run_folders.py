"""The folders of training runs: found, read, and put together by data set and configuration."""

import csv
import glob
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prime_xmc.data.corpus import Corpus

logger = logging.getLogger(__name__)

_CONFIG = Path(".hydra", "config.yaml")
_OVERRIDES = Path(".hydra", "overrides.yaml")
_EXPORT = Path("model", "prime_config.json")
_CLASSIFIERS = Path("classifiers", "classifiers.json")
_STAGE = "classify"  # folder of a second stage within the run of the first
_MEASURED = re.compile(r"(val|test)/(?:(\w+)/)?([^/]+)")  # split, scorer if it is one of several, metric
_JOB = "job.json"  # of a sweep
# Where a run is, what else it says, and its seed: two runs that differ in nothing else are of one configuration.
_APART = ("seed", "run_dir", "cache_dir", "ckpt_path", "export_every_n_epochs", "bank.directory")
_APART_GROUPS = ("logger", "callbacks.progress", "hydra")
# Interpolations that the machine answers, not the configuration.
_MACHINE = {"package", "native_precision", "oc.env", "hydra", "now"}
_RESOLVER = re.compile(r"\$\{([\w.]+):")
_REFERENCE = re.compile(r"\$\{[\w.]+\}")
_ABSENT = object()


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, or one of the scorers in a folder that has one-vs-all classifiers.

    Attributes:
        path: The folder.
        dataset: Name of its data set.
        settings: Its resolved configuration by dotted key, without seed, paths and loggers; a value that depends on
            the machine is the expression that asks for it.
        derived: The keys whose value repeats another key's.
        overrides: What its command line gave, by key, without seed, paths and loggers.
        seed: Its seed.
        metrics: Content of metrics.json; None: the run has not finished.
        epochs: Rows of metrics.csv.
        export: What its model folder says of its making (see `describe_run`); empty where there is none.
        status: How it stands: what a sweep has noted, or whether it is finished.
        predictions: The file of its predictions, where it has one.
    """

    path: Path
    dataset: str
    settings: dict[str, Any]
    derived: frozenset[str]
    overrides: dict[str, str]
    seed: int
    metrics: dict[str, Any] | None
    epochs: list[dict[str, float]]
    export: dict[str, Any]
    status: str
    predictions: Path | None

    def fingerprint(self) -> str:
        """Return what tells its configuration from others."""
        return json.dumps(self.settings, sort_keys=True)


@dataclass(frozen=True, eq=False)
class Configuration:
    """Finished runs that differ in their seeds alone.

    Attributes:
        name: Short, unique within the data set.
        runs: One for each seed.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What the runs have in common."""
        return self.runs[0].settings

    @property
    def has_predictions(self) -> bool:
        """Whether a run has left predictions."""
        return any(run.predictions is not None for run in self.runs)

    def final(self, metric: str) -> list[float]:
        """Return the values of a metric of metrics.json, of the runs that have it."""
        return [float(run.metrics[metric]) for run in self.runs if run.metrics and metric in run.metrics]


@dataclass(frozen=True, eq=False)
class DatasetRuns:
    """The runs of one data set.

    Attributes:
        name: Of the data set; with a fingerprint where several share the name.
        corpus: The prepared data set; None where it was not found.
        configurations: By the path of their first run.
        unfinished: Runs without metrics.json.
        repeated: Finished runs of which there is a newer one with the same configuration and seed, which counts.
    """

    name: str
    corpus: Corpus | None
    configurations: tuple[Configuration, ...]
    unfinished: tuple[Run, ...]
    repeated: tuple[Run, ...]


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Return the run folders among what glob patterns match, in natural order.

    Raises:
        ValueError: If there is none.
    """
    matched = {
        Path(path)
        for pattern in patterns
        for path in glob.iglob(str(Path(pattern).expanduser()), recursive=True)
        if Path(path, _CONFIG).is_file()
    }
    if not matched:
        raise ValueError(
            f"runs={','.join(patterns)}: no run folder matches (a folder with {_CONFIG}); "
            "expected a pattern such as 'outputs/train/**', in quotes"
        )
    return sorted(matched, key=lambda path: [_natural(part) for part in path.parts])


def read_runs(path: Path) -> list[Run]:
    """Read a run folder; one with classifiers holds several runs, one for each scorer.

    Classifiers of a model that another run has trained are configured as both, and their seed is that of the model.

    Raises:
        ValueError: If one of its files is damaged; the message names it.
    """
    config = _load_yaml(path / _CONFIG)
    overrides = _load_yaml(path / _OVERRIDES) if (path / _OVERRIDES).is_file() else []
    metrics, export, job = (_load_json(path / name) for name in ("metrics.json", _EXPORT, _JOB))
    export = (export or _load_json(path / _CLASSIFIERS) or {}).get("settings", {})
    try:
        seed = int(config["seed"])
        settings, derived = _resolve(config)
        if "model" in export:
            own = settings | {"seed": seed}
            seed = int(export["model"]["seed"])
            settings = own | {f"model.{key}": value for key, value in _settings_of_model(export["model"]).items()}
            del settings["model.dir"]
        dataset = str(settings["dataset.name"])
    except (KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
        raise ValueError(f"{path / _CONFIG}: not the configuration of a training run ({error!r})") from error
    run = Run(
        path=path,
        dataset=dataset,
        settings=settings,
        derived=derived,
        overrides=_parse_overrides(overrides),
        seed=seed,
        metrics=metrics,
        epochs=_read_epochs(path / "metrics.csv"),
        export=export,
        status=_status(metrics, job),
        predictions=_file(path / "predictions.npz"),
    )
    found = [match for name in metrics or {} if (match := _MEASURED.fullmatch(name))]
    scorers = dict.fromkeys(match[2] for match in found)
    if None not in scorers:  # second stages, and runs that have not measured anything
        return [_of_scorer(run, path, scorer) for scorer in scorers] or [run]
    later = [_of_scorer(_with_stage(run), path / _STAGE, scorer) for scorer in scorers if scorer is not None]
    return [replace(run, metrics=_own(run.metrics or {}, None)), *later]


def group_runs(runs: Iterable[Run], cache_dirs: Sequence[Path]) -> list[DatasetRuns]:
    """Put runs together by data set, and within it by configuration.

    Two prepared data sets are the same one if they are made from the same raw files: another encoder's tokenizer makes
    no difference to the truth. A run whose data set is not found goes with the others of its name.

    Args:
        runs: The runs, in the order in which configurations are to be listed.
        cache_dirs: Where prepared data sets may be.
    """
    runs = list(runs)
    corpora = {run.path: _find_corpus(run, cache_dirs) for run in runs}
    sources = {path: _hash(corpus.manifest["source"]) for path, corpus in corpora.items() if corpus is not None}
    known: dict[str, list[str]] = {}
    for run in runs:
        if run.path in sources and sources[run.path] not in known.setdefault(run.dataset, []):
            known[run.dataset].append(sources[run.path])
    by_dataset: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        source = sources.get(run.path, known.get(run.dataset, [""])[0])
        by_dataset.setdefault((run.dataset, source), []).append(run)
    names = Counter(name for name, _ in by_dataset)
    result = []
    for (name, source), members in by_dataset.items():
        corpus = next((corpora[run.path] for run in members if corpora[run.path] is not None), None)
        shown = name if names[name] == 1 else f"{name}-{source[:6]}"
        result.append(_group(shown, corpus, members))
    return result


def differences(configurations: Sequence[Configuration]) -> dict[str, list[Any]]:
    """Return the settings in which configurations differ: their values by key, None where one has no such key.

    Keys that repeat another key's value are left out.
    """
    keys = dict.fromkeys(key for configuration in configurations for key in configuration.settings)
    return {
        key: [configuration.settings.get(key) for configuration in configurations]
        for key in keys
        if len({json.dumps(c.settings.get(key, str(_ABSENT)), sort_keys=True) for c in configurations}) > 1
        and not all(key in c.runs[0].derived for c in configurations if key in c.settings)
    }


def find_configuration(configurations: Sequence[Configuration], name: str) -> Configuration | None:
    """Return the configuration of a name, or of which a run has this folder."""
    for configuration in configurations:
        folders = {run.path.absolute() for run in configuration.runs}
        if configuration.name == name or Path(name).expanduser().absolute() in folders:
            return configuration
    return None


def negative_pool(configuration: Configuration) -> int | None:
    """Return the labels that a batch draws, among which a query finds its negatives (Table 5's pool size)."""
    settings = configuration.settings
    try:
        return int(settings["sampling.batch_size"]) * int(settings["sampling.num_positives"])
    except (KeyError, TypeError, ValueError):
        return None


def _group(name: str, corpus: Corpus | None, runs: Sequence[Run]) -> DatasetRuns:
    newest: dict[tuple[str, int], Run] = {}
    repeated = []
    for run in sorted((run for run in runs if run.metrics is not None), key=_finished_at):
        older = newest.pop((run.fingerprint(), run.seed), None)
        newest[run.fingerprint(), run.seed] = run
        repeated += [] if older is None else [older]
    counted = set(map(id, newest.values()))
    by_configuration: dict[str, list[Run]] = {}
    for run in runs:
        if id(run) in counted:
            by_configuration.setdefault(run.fingerprint(), []).append(run)
    members = list(by_configuration.values())
    configurations = [
        Configuration(shown, tuple(sorted(own, key=lambda run: run.seed)))
        for shown, own in zip(_names(members), members, strict=True)
    ]
    # the job of a sweep that was skipped left a folder, whose results are those of another job
    unfinished = tuple(run for run in runs if run.metrics is None and run.status != "skipped")
    return DatasetRuns(name, corpus, tuple(configurations), unfinished, tuple(repeated))


def _names(configurations: Sequence[Sequence[Run]]) -> list[str]:
    """Return a short name for each configuration: its experiment, and its overrides that not all of them share.

    All are of one data set, so its choice says nothing.
    """
    given = [min((run.overrides for run in runs), key=len) for runs in configurations]
    shared = set.intersection(*(set(overrides.items()) for overrides in given)) if len(given) > 1 else set()
    keys = {key for overrides in given for key in overrides}
    last = Counter(key.rpartition(".")[2] for key in keys)
    names = []
    for overrides in given:
        parts = []
        for key, value in overrides.items():
            if (key, value) in shared or key == "dataset":
                continue
            short = key.rpartition(".")[2]
            parts.append(value if key == "experiment" else f"{short if last[short] == 1 else key}={value}")
        names.append(", ".join(parts) or "default")
    counts: Counter[str] = Counter()
    for place, name in enumerate(names):
        if names.count(name) > 1 or counts[name]:
            counts[name] += 1
            names[place] = f"{name} ({counts[name]})" if counts[name] > 1 else name
    return names


def _find_corpus(run: Run, cache_dirs: Sequence[Path]) -> Corpus | None:
    fingerprint = run.export.get("data_fingerprint")
    if fingerprint is None:
        return None
    recorded = run.export.get("config", {}).get("cache_dir")
    for cache_dir in (*cache_dirs, *([Path(recorded).expanduser()] if recorded else [])):
        directory = cache_dir / f"{run.dataset}-{fingerprint[:12]}"
        if directory.is_dir():
            try:
                return Corpus.open(directory)
            except (FileNotFoundError, ValueError) as error:  # such as one that an older version has prepared
                logger.warning("%s", error)
    return None


def _resolve(config: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the settings by dotted key, and which of them repeat another."""
    plain = _without_machine({**config, **{key: f"<{key}>" for key in ("seed", "run_dir", "cache_dir")}})
    raw = dict(_leaves(plain))
    resolved = dict(_leaves(OmegaConf.to_container(OmegaConf.create(plain), resolve=True)))
    settings = {key: value for key, value in resolved.items() if not _is_apart(key)}
    derived = {key for key in settings if isinstance(raw.get(key), str) and _REFERENCE.fullmatch(raw[key])}
    return settings, frozenset(derived)


def _settings_of_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in a configuration that is resolved already: what repeats seed or paths has to be found."""
    paths = tuple(str(config[name]) for name in ("run_dir", "cache_dir") if name in config)
    return {
        key: value
        for key, value in _leaves(config)
        if not (_is_apart(key) or key.endswith(".seed") or str(value).startswith(paths))
    }


def _without_machine(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_machine(child) for key, child in node.items()}
    if isinstance(node, list):
        return [_without_machine(child) for child in node]
    # a run of another version may name a resolver that this one does not have
    if isinstance(node, str) and any(n in _MACHINE or not OmegaConf.has_resolver(n) for n in _RESOLVER.findall(node)):
        return node.replace("${", "<").replace("}", ">")
    return node


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, child in node.items():
        if isinstance(child, Mapping) and child:
            yield from _leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _is_apart(key: str) -> bool:
    return key in _APART or any(key == group or key.startswith(f"{group}.") for group in _APART_GROUPS)


def _parse_overrides(overrides: Any) -> dict[str, str]:
    pairs = (str(override).lstrip("+~").partition("=")[::2] for override in overrides or [])
    return {key: value for key, value in pairs if not _is_apart(key)}


def _load_yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # whatever the parser raises
        raise ValueError(f"{path}: not readable as YAML ({error})") from error


def _load_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_epochs(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = []
        for row in reader:
            try:
                rows.append({name: float(value) for name, value in row.items() if value != ""})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: expected numbers ({error})") from error
    return rows


def _of_scorer(run: Run, stage: Path, scorer: str) -> Run:
    """Return what a run of classifiers says of one scorer, under the names that other runs use."""
    return replace(
        run,
        settings=run.settings | {"scorer": scorer},
        overrides=run.overrides | {"scorer": scorer},
        metrics=_own(run.metrics or {}, scorer),
        epochs=[_own(row, scorer) for row in _read_epochs(stage / "metrics.csv")],
        predictions=_file(stage / f"predictions_{scorer}.npz"),
    )


def _with_stage(run: Run) -> Run:
    """Return a run with the time of its second stage added to that of the first."""
    metrics = dict(run.metrics or {})
    times = [metrics[name] for name in ("train/seconds", "classify/seconds") if name in metrics]
    return replace(run, metrics=metrics | {"train/seconds": sum(times)})


def _own(values: Mapping[str, Any], scorer: str | None) -> dict[str, Any]:
    """Return what is not measured by scorer, and what is measured of one, without its name."""
    result = {}
    for name, value in values.items():
        match = _MEASURED.fullmatch(name)
        if match is None:
            result[name] = value
        elif match[2] == scorer:
            result[f"{match[1]}/{match[3]}"] = value
    return result


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _status(metrics: dict[str, Any] | None, job: dict[str, Any] | None) -> str:
    if metrics is not None:
        return "finished"
    if job is None:
        return "unfinished"
    return ": ".join(str(job[name]) for name in ("status", "message") if name in job)


def _finished_at(run: Run) -> float:
    return (run.path / "metrics.json").stat().st_mtime


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts 10 after 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
