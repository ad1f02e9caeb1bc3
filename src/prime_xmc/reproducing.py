"""The paper's numbers beside those of a run, which is trained with the paper's settings or finished already."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prime_xmc.assemble import raw_files, trains_one_vs_all
from prime_xmc.composing import compose
from prime_xmc.conf_files import config_dir, entries
from prime_xmc.printing import visible
from prime_xmc.reporting.published import CLASSIFIERS, PAPER, PROTOTYPES, PublishedResult, find_result, read_published
from prime_xmc.reporting.run_folders import RunRecord, comparable, read_runs, settings_of
from prime_xmc.run_files import CONFIG, METRICS, key_of
from prime_xmc.stages import train_prototypes
from prime_xmc.training.continuation import as_number
from prime_xmc.training.run_folder import chosen_options, with_run_folder
from prime_xmc.training.sweeps import in_sweep

_OF_CLASSIFIERS = ("loss", "sampling", "optimizer", "negatives", "dropout")  # the same of the second stage
_OWN = ("model=prime", "model=prime_lite")  # systems that the settings of the paper are for
_ONE_VS_ALL = "prime_xmc.model.one_vs_all.OneVsAll"
# What systems are called in the published tables.
_NAMES = {
    "prime": "PRIME",
    "prime_lite": "PRIME-lite",
    "ance": "ANCE",
    "dexa": "DEXA",
    "dexml": "DEXML",
    "dexml_mined": "DEXML",
    "dpr": "DPR",
    "ngame": "NGAME",
    "renee": f"Renée{CLASSIFIERS}",
    "siamesexml": "SiameseXML",
}
_FILTERS = ("filter_labels_train", "filter_labels_test")
# Settings on which it depends what is learnt and measured: groups, and of others some keys.
_GROUPS = ("encoder", "model", "loss", "sampling", "optimizer")
_SETTINGS = (
    *("dataset.max_length", "dataset.fields", "dataset.label_fields", "dataset.num_validation"),
    *("dataset.propensity.a", "dataset.propensity.b", "trainer.max_epochs", "trainer.max_steps"),
    "index.kind",
    *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.accumulate_grad_batches"),
)
_CALLBACKS = ("callbacks.initialise", "callbacks.clusters", "callbacks.mined")  # of the method
# Of these groups, how something is computed.
_HOW = re.compile(r"encoder\.(implementation|attention|chunk_tokens|compile|recompute)|sampling\.clusters\.seed")


class Reproduction(NamedTuple):
    """A published result and that of a run.

    Attributes:
        published: What was published.
        ours: Metrics of the run by name, fractions in [0, 1].
    """

    published: PublishedResult
    ours: dict[str, float]

    def rows(self) -> list[tuple[str, float, float]]:
        """Return name, published value and ours of each metric that was published and measured."""
        values = self.published.values
        return [(metric, value, self.ours[metric]) for metric, value in values.items() if metric in self.ours]

    def to_json(self) -> dict[str, Any]:
        """Return what `output` is to hold."""
        return {
            "dataset": self.published.dataset,
            "method": self.published.method,
            "metrics": {
                metric: {
                    "published": value,
                    "source": self.published.sources[metric],
                    "ours": ours,
                    "difference": ours - value,
                }
                for metric, value, ours in self.rows()
            },
        }


def reproduce(config: DictConfig) -> tuple[list[Reproduction], list[str]]:
    """Train, or open the finished run that `run` names, and return what to compare and what to know of it.

    Raises:
        FileNotFoundError: If there are no raw files of the data set, or no such file of published results.
        ValueError: If nothing was published of the method on the data set, the run has not finished, or the command is
            a sweep.
    """
    if in_sweep():
        raise ValueError("-m: expected a single run; sweep with prime_xmc.train, and give reproduce run=<run folder>")
    results = read_published(str(config.published))
    if config.run is None:
        choices = chosen_options()
        _check_model(choices)
        method = config.published_method or _published_name(
            f"model={choices.get('model', 'prime')}", results, config.dataset.name
        )
        asked = find_result(results, config.dataset.name, method)  # before hours of training
        if asked.method.endswith(CLASSIFIERS) and not config.classify and not trains_one_vs_all(config):
            raise ValueError(f"published_method={config.published_method} is of classifiers: give classify=true")
        check_raw_files(config.dataset)
        config = with_run_folder(config)
        if not train_prototypes(config).trainer.is_global_zero:
            return [], []
        folder = Path(config.run_dir)
    else:
        folder = Path(config.run).expanduser()
        if not (folder / METRICS).is_file():
            raise ValueError(f"run={config.run} has no {METRICS}: expected the folder of a finished run")
    runs = read_runs(folder)
    notes = notes_on(runs[0])
    if config.run is not None:
        try:
            check_raw_files(OmegaConf.load(folder / CONFIG).dataset)
        except (FileNotFoundError, ValueError, AttributeError, OmegaConfBaseException) as error:
            notes.append(f"It cannot be said whether the run had the filters: {error}")
    compared = compare(
        runs, results, config.published_method or _published_name(runs[0].system, results, runs[0].dataset)
    )
    classifiers = [run for run in runs if run.settings.get("scorer") == "W"]
    if classifiers and any(each.published.method.endswith(CLASSIFIERS) for each in compared):
        notes += notes_on_classifiers(classifiers[0])
    return compared, notes


def _published_name(system: str, results: list[PublishedResult], dataset: str) -> str:
    """Return what a system such as model=ngame is called in the published tables; what does not tell is PRIME.

    So is PRIME-lite on a data set on which it was not published.

    Raises:
        ValueError: If it is in none of them.
    """
    name = _NAMES.get(system.removeprefix("model=") or "prime")
    if name is None:
        raise ValueError(
            f"{system} is not in the paper's tables: name the row to compare with, published_method=<method>, of them "
            "or of the file that published= names"
        )
    if name == _NAMES["prime_lite"] and not any((each.dataset, each.method) == (dataset, name) for each in results):
        return _NAMES["prime"]
    return name


def _check_model(choices: Mapping[str, str | None]) -> None:
    """Refuse another system with the settings of PRIME, which would take the place of its own.

    Args:
        choices: Option of each group.

    Raises:
        ValueError: If it is one.
    """
    system = f"model={choices.get('model', 'prime')}"
    if system not in _OWN and choices.get("experiment") is not None:
        raise ValueError(
            f"{system}: experiment={choices['experiment']} replaces settings that make this system; give "
            "experiment=null, which leaves it its own"
        )


def check_raw_files(dataset: DictConfig) -> None:
    """Check that the raw files are there, with the filters, which the paper's metrics depend on.

    Raises:
        FileNotFoundError: If some are missing; the message names all of them and says where to get them.
    """
    source = raw_files(dataset)
    paths = source.paths()
    if missing := [f"{name}.txt" for name in _FILTERS if name not in paths]:
        folder = Path(source.directory).expanduser().absolute()
        raise FileNotFoundError(
            f"{source.name}: {', '.join(missing)} not found in {folder}; without the filters a query may be answered "
            f"with itself, and the metrics are not those of the paper. {source.hint}".rstrip()
        )


def compare(runs: list[RunRecord], results: list[PublishedResult], method: str) -> list[Reproduction]:
    """Return what was published of a method beside what a run has measured, and the same of its classifiers.

    Args:
        runs: Records of a run folder, one for each scorer.
        results: Published results.
        method: Name of the method, which has its classifiers too, or of these alone, with (W) behind it. A run of
            one-vs-all classifiers that were trained with the encoder has these alone, as its own scorer.

    Raises:
        ValueError: If nothing was published of the method on the data set of the run, or the run has measured none of
            the metrics.
    """
    asked = find_result(results, runs[0].dataset, method).method
    classifiers = f"{asked.removesuffix(PROTOTYPES).removesuffix(CLASSIFIERS)}{CLASSIFIERS}"
    of_scorer = {"W": classifiers} if asked == classifiers else {"theta": asked, "W": classifiers}
    is_one_vs_all = runs[0].settings.get("model._target_") == _ONE_VS_ALL
    if is_one_vs_all:
        of_scorer = {"theta": asked}
    known = {result.method for result in results if result.dataset == runs[0].dataset}
    found = []
    for run in runs:
        name = of_scorer.get(run.settings.get("scorer", "theta"))
        if name in known:
            metrics = {key.removeprefix("test/"): value for key, value in (run.metrics or {}).items()}
            found.append(Reproduction(find_result(results, run.dataset, name), metrics))
    found = [each for each in found if each.rows()]
    if not found and asked == classifiers and not is_one_vs_all:
        raise ValueError(
            f"{runs[0].path} has no test metrics of classifiers, which {asked} is: train it with classify=true"
        )
    if not found:
        raise ValueError(
            f"{runs[0].path} has no test metrics that were published of {method}: was it run with test=false?"
        )
    return found


def notes_on(run: RunRecord) -> list[str]:
    """Return sentences on what makes a run another one than the paper's."""
    notes = []
    if run.is_debugging:
        notes.append("This run was for debugging and has seen part of the data.")
    option = dataset_option(run.dataset)
    if option is not None and any(result.dataset == run.dataset for result in read_published(PAPER)):
        peer = [run.system, "experiment=null"] if run.system.startswith("model=") and run.system not in _OWN else []
        owner = f"those of {run.system}" if peer else "the paper's"
        reference = compose("reproduce", [f"dataset={option}", *peer])
        expected, derived = settings_of(OmegaConf.to_container(reference))  # type: ignore[arg-type]
        differing = [
            f"{key}={run.settings[key]} ({value})"
            for key, value in expected.items()
            if _matters(key)
            and not (key in derived and key in run.derived)
            and key in run.settings
            and comparable(key, run.settings[key]) != comparable(key, value)
        ]
        differing += [
            f"{name}=null"
            for name in _CALLBACKS
            if _has(expected, name) and _has(run.settings, "callbacks") and not _has(run.settings, name)
        ]
        targets = [key for key in run.settings if key.startswith("callbacks.") and key.endswith("._target_")]
        differing += [f"{key.removesuffix('._target_')} (null)" for key in targets if key not in expected]
        if differing:
            notes.append(f"Settings of the run that differ from {owner} (in parentheses): {', '.join(differing)}.")
    return notes


def notes_on_classifiers(run: RunRecord) -> list[str]:
    """Return a sentence on what makes the classifiers of a run others than the paper's, whose stage has its defaults.

    Args:
        run: Record of the classifiers.
    """
    option = dataset_option(run.dataset)
    if option is None or not any(result.dataset == run.dataset for result in read_published(PAPER)):
        return []
    given = run.settings.get("classify_settings") or []
    if isinstance(run.settings.get("classify"), list):  # as in version 0.1.0
        given = run.settings["classify"]
    reference = compose("classify", [f"dataset={option}"])
    differing = []
    for key, setting in {key_of(str(each)): str(each) for each in given}.items():
        if key.partition(".")[0] not in _OF_CLASSIFIERS and key not in _SETTINGS:
            continue
        default, value = OmegaConf.select(reference, key), setting.partition("=")[2]
        if isinstance(default, DictConfig | ListConfig):
            differing.append(setting)
        elif as_number(value) != as_number(str(default)):
            differing.append(f"{setting} ({default})")
    if not differing:
        return []
    return [f"Settings of the run's classifiers that differ from the paper's (in parentheses): {', '.join(differing)}."]


def _matters(key: str) -> bool:
    return (key in _SETTINGS or key.partition(".")[0] in _GROUPS) and _HOW.fullmatch(key) is None


def _has(settings: Mapping[str, Any], group: str) -> bool:
    return any(key.startswith(f"{group}.") for key in settings)


def dataset_option(name: str) -> str | None:
    """Return the option of the group `dataset` that is of the data set of this name; None if there is none."""
    for path in sorted((config_dir() / "dataset").glob("*.yaml")):
        if any((entry.key, entry.default) == ("name", name) for entry in entries(path)):
            return path.stem
    return None


def show(reproductions: list[Reproduction], notes: list[str]) -> None:
    """Print a table for each scorer, in percent, and the notes."""
    console = Console()
    for each in reproductions:
        title = f"{each.published.method} on {each.published.dataset}, test split, percent"
        console.print(visible(title), markup=False)
        table = Table()
        for name in ("metric", "paper", "ours", "difference", "from"):
            table.add_column(name, justify="left" if name in ("metric", "from") else "right")
        for metric, value, ours in each.rows():
            difference = f"{round(100 * (ours - value), 2) + 0.0:+.2f}"  # + 0.0: without it, −0 would be shown
            table.add_row(
                metric,
                f"{100 * value:.2f}",
                f"{100 * ours:.2f}",
                difference,
                Text(visible(each.published.sources[metric])),
            )
        console.print(table)
    if reproductions:
        notes = [*notes, "The paper gives no intervals, and ours is a single run."]
    for note in notes:
        console.print(visible(note), highlight=False, markup=False)
