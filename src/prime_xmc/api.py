"""Training from Python as from the command line."""

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict

from prime_xmc.command_line.arguments import prepare_settings
from prime_xmc.command_line.messages import composition_message
from prime_xmc.composing import check_config, known_keys, own_configs
from prime_xmc.conf_files import config_dir
from prime_xmc.data.datamodule import PrimeDataModule
from prime_xmc.export.predictor import checked_texts
from prime_xmc.files import write_text
from prime_xmc.run_files import METADATA, key_of
from prime_xmc.stages import train_prototypes
from prime_xmc.trained_model import LabelLike, Model, Positives, as_labels, is_numbered, rows_of
from prime_xmc.training.module import PrimeModule
from prime_xmc.training.one_vs_all_module import OneVsAllModule
from prime_xmc.training.run_folder import LOCK, claim_early, folder_of_now, give_back

_FOLDERS = ("run_dir", "hydra.run.dir")  # settings that name the run folder
_BEFORE_A_RUN = ("data", METADATA.name, LOCK)  # what is in a run folder before a run from Python begins


@dataclass(frozen=True)
class TrainedRun:
    """What a training run made.

    Attributes:
        metrics: Content of metrics.json: `val/<metric>` and `test/<metric>` are fractions in [0, 1].
        run_dir: Run folder; `prime_xmc.load(run_dir / "model")` opens the model.
        module: Trained module.
        data: Its data module.
    """

    metrics: dict[str, Any]
    run_dir: Path
    module: PrimeModule | OneVsAllModule
    data: PrimeDataModule


def train(overrides: Sequence[str] = (), **settings: Any) -> TrainedRun:
    """Train as `python -m prime_xmc.train` does, and return what was made.

    Args:
        overrides: Settings as on the command line, `["dataset=custom", "dataset.lr=1e-4"]`.
        **settings: Settings as arguments, nested keys as `**{"dataset.lr": 1e-4}`. `run_dir`, or `hydra.run.dir` as on
            the command line, is outputs/train/<time> unless it is given.

    Raises:
        ValueError: If a setting is unknown or does not fit, with what is expected, the run folder has two names, or
            another process works there.
        FileNotFoundError: If a file of the data is missing.
    """
    before = HydraConfig.instance().cfg
    with own_configs():
        config, whole, chosen = _composed(overrides, settings)
        folder = chosen or Path(folder_of_now(config.task))  # the folder that the entry point would make
        config.run_dir = str(folder)
        with open_dict(whole):
            whole.run_dir = config.run_dir
            whole.hydra.runtime.output_dir = str(folder.absolute())
        HydraConfig.instance().set_config(whole)
        try:
            claim_early(folder)
            _describe(folder / ".hydra", config, whole)
            made = train_prototypes(config)
        finally:
            give_back()
            HydraConfig.instance().cfg = before
    return TrainedRun(made.metrics, folder, made.module, made.data)


def fit(
    queries: Iterable[str],
    positives: Positives,
    labels: Iterable[LabelLike],
    *,
    test: tuple[Iterable[str], Positives] | None = None,
    **overrides: Any,
) -> Model:
    """Train a model on texts and their labels, as `train` does with `dataset=custom`, and return it.

    The texts are written to the run folder, in the format of `dataset=custom`, and trained on from there.

    Args:
        queries: Texts to train on.
        positives: Labels of each of them, by place in `labels` or by uid, or as a sparse matrix with a row for each
            query and a column for each label.
        labels: All labels: texts, (uid, text) or dictionaries with uid and text. The uid of a mere text is the text.
            Where one of them has a number for a uid, numbers in `positives` are uids and not places.
        test: Queries and their labels to test on; None: some of `queries` are split off, see `dataset.num_test`.
        **overrides: Settings as in `train`, nested keys as `**{"dataset.max_epochs": 20}`. `run_dir`, or
            `hydra.run.dir`, is outputs/train/<time> unless it is given.

    Raises:
        ValueError: If queries and labels do not fit, two labels have one uid, a number is the place of one label and
            the uid of another, or a setting is unknown or out of range.
        FileExistsError: If the run folder has files in it. Where a run ends before it has begun, what was written there
            goes again.
    """
    if isinstance(labels, Iterator):
        labels = list(labels)
    known = as_labels(labels)
    uids = [label.uid for label in known]
    if repeated := [uid for uid, count in Counter(uids).items() if count > 1]:
        raise ValueError(f"{repeated[0]!r}: the uid of several labels; give each one of its own")
    if taken := [key for key in ("dataset", "dataset.dir", "dataset.fields") if key in overrides]:
        raise ValueError(f"{taken[0]}: the data are those that are given; train(...) takes a data set")
    splits = {"trn": (queries, positives)} | ({} if test is None else {"tst": test})
    rows = partial(rows_of, uids=uids, numbers_are_uids=any(map(is_numbered, labels)))
    files = {name: _records(checked_texts(texts), rows(of_texts), name) for name, (texts, of_texts) in splits.items()}
    files["lbl"] = [{"uid": label.uid, "title": label.text} for label in known]
    if overrides.get("run_dir", "") is None:
        del overrides["run_dir"]
    with own_configs():  # what does not fit is refused before anything is written
        config, _, chosen = _composed(["dataset=custom"], {"dataset.dir": "data", **overrides})
    is_new = chosen is None or not chosen.exists()
    folder = chosen or Path(folder_of_now(config.task))
    if not is_new and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is there already: give another run_dir, or remove the folder")
    settings = {key: value for key, value in overrides.items() if key not in _FOLDERS}
    data = folder / "data"
    try:
        for name, records in files.items():
            write_text(data / f"{name}.json", "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records))
        train(["dataset=custom"], **settings, **{"dataset.dir": data, "run_dir": folder})
    except Exception:
        if {path.name for path in folder.iterdir()} <= {*_BEFORE_A_RUN}:  # nothing to look at or to continue
            _remove_what_is_in(folder)
            if is_new:
                folder.rmdir()
        raise
    return Model.load(folder / "model")


def _composed(overrides: Sequence[str], settings: Mapping[str, Any]) -> tuple[DictConfig, DictConfig, Path | None]:
    """Return the checked configuration of a training, within `own_configs`; nothing is written.

    Args:
        overrides: Settings as on the command line.
        settings: Settings by key.

    Returns:
        The configuration; the same with Hydra's part, unchecked; and the run folder that the settings name, None if
        they name none.

    Raises:
        ValueError: If a setting is unknown or does not fit, or there are two names for the run folder.
    """
    if isinstance(overrides, str):
        raise ValueError(f"expected a list of settings, got the text {overrides!r}")
    written = [*overrides, *(f"{key}={_spelt(value)}" for key, value in settings.items())]
    given = prepare_settings(written, "train", config_dir())
    setup_globals()  # the resolvers of Hydra, such as ${now:...}
    try:
        whole = hydra.compose("train", given, return_hydra_config=True)
    except (ConfigCompositionException, OverrideParseException) as error:
        raise ValueError(composition_message(error, known_keys("train"))) from error
    config = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    OmegaConf.set_struct(config, True)
    check_config(config, whole.hydra, "train")
    return config, whole, _chosen_folder(config, whole.hydra, {key_of(setting) for setting in given})


def _chosen_folder(config: DictConfig, hydra_config: DictConfig, given: Collection[str]) -> Path | None:
    """Return the run folder that settings name; None if they name none.

    Args:
        config: Configuration of the run.
        hydra_config: Hydra's part of it.
        given: Keys that were set.

    Raises:
        ValueError: If they name two, or the folder of a sweep.
    """
    if sweeps := sorted(key for key in given if key.startswith("hydra.sweep.")):
        raise ValueError(f"{sweeps[0]}: from Python, there are no sweeps; run_dir names the folder of a run")
    values = (("run_dir", lambda: config.run_dir), ("hydra.run.dir", lambda: hydra_config.run.dir))
    named = {key: Path(str(value())) for key, value in values if key in given}  # neither resolves unless it was set
    if len({path.absolute() for path in named.values()}) > 1:
        both = " and ".join(f"{key}={path}" for key, path in named.items())
        raise ValueError(f"{both} are two folders for one run: give one of them")
    return next(iter(named.values()), None)


def _remove_what_is_in(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _records(texts: list[str], rows: list[list[int]], name: str) -> list[dict[str, Any]]:
    if len(texts) != len(rows):
        what = "test queries" if name == "tst" else "queries"
        raise ValueError(f"expected labels for each of {len(texts)} {what}, got {len(rows)} lists")
    return [
        {"uid": str(number), "title": text, "target_ind": row}
        for number, (text, row) in enumerate(zip(texts, rows, strict=True))
    ]


def _describe(folder: Path, config: DictConfig, whole: DictConfig) -> None:
    """Write what Hydra writes to a run folder, by which reports and trackers know a run."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    OmegaConf.save(OmegaConf.masked_copy(whole, ["hydra"]), folder / "hydra.yaml")
    OmegaConf.save(whole.hydra.overrides.task, folder / "overrides.yaml")


def _spelt(value: Any) -> str:
    """Return a value in the grammar of Hydra's command line."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return QuotedString(str(value), Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spelt(child)}" for key, child in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_spelt, value)) + "]"
    raise ValueError(f"expected a setting of text, number, true or false, None, a list or a dictionary, got {value!r}")
