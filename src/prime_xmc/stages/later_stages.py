"""What follows the prototypes in the same run: classifiers, further scorers and the ensemble."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from prime_xmc.assemble import listed_devices
from prime_xmc.composing import compose
from prime_xmc.evaluation.rank import Ranking
from prime_xmc.export.model_size import describe_size
from prime_xmc.run_files import key_of
from prime_xmc.scoring import Scorers, finish_scorers, lexical_settings, open_finished
from prime_xmc.stages.second_stage import fit_classifiers, remove_checkpoints
from prime_xmc.training.continuation import binding_settings
from prime_xmc.training.debugging import limits
from prime_xmc.training.kept import KeptParts, Part
from prime_xmc.training.query_embeddings import Encoded
from prime_xmc.training.record import describe_stage

_OF_THE_RUN = ("seed", "test", "cache_dir", "verify", "run_dir")


def classify_settings(config: DictConfig) -> list[str] | None:
    """Return the settings of the second stage of a run; None: it has none.

    `classify` is true or false. As in version 0.1.0, it may also be the list of the settings, or null for none.

    Raises:
        ValueError: If it is anything else, or one of the settings is that of the run.
    """
    classify = config.get("classify")
    if classify is None or classify is False:
        return None
    if classify is not True and not isinstance(classify, ListConfig):
        raise ValueError(f"classify={classify}: expected true, false, or a list of settings of the second stage")
    settings = [str(setting) for setting in (config.classify_settings if classify is True else classify)]
    for setting in settings:
        key = key_of(setting)
        if key in _OF_THE_RUN or key.partition(".")[0] in ("dataset", "model"):
            raise ValueError(
                f"classify_settings={setting}: the stages of a run share {key}, which is given to the run itself; "
                "for another value, train classifiers later by prime-xmc-classify model=<run>/model"
            )
    return settings


class FirstStage(NamedTuple):
    """What a first stage hands to later ones in the same run, besides its model.

    Attributes:
        pass_seconds: Duration of a pass; None where it was not measured.
        milliseconds_per_query: Milliseconds of one processor in which prototypes answer a query; None where it was not
            measured.
        precision: Lightning's name of the precision in which it encoded.
        encoded: Queries that the finished model has encoded: "train", with those held out, and "test".
        seconds: Time that it took to encode those of them that training had not ranked.
        cpu_seconds: The same, of all processors.
    """

    pass_seconds: float | None
    milliseconds_per_query: float | None
    precision: str
    encoded: dict[str, Encoded]
    seconds: float
    cpu_seconds: float

    def part(self, metrics: Mapping[str, Any], num_trained: int) -> Part:
        """Return all of it with the metrics of the first stage, to be kept.

        Args:
            metrics: The metrics.
            num_trained: Number of the queries of "train" that were trained on; they come first, are float16 in memory
                and are kept as such.
        """
        tensors: dict[str, Tensor] = {}
        for name, (ids, emb) in self.encoded.items():
            half, rest = emb.split([num_trained, len(emb) - num_trained] if name == "train" else [0, len(emb)])
            tensors |= {f"{name}.ids": torch.from_numpy(ids), f"{name}.half": half.half(), f"{name}.emb": rest}
        values = {name: value for name, value in self._asdict().items() if name != "encoded"}
        return Part(tensors, values | {"metrics": dict(metrics)})

    @classmethod
    def of(cls, part: Part) -> tuple[dict[str, Any], "FirstStage"]:
        """Return the metrics and what was handed over, from what `part` has made."""
        names = {name.partition(".")[0] for name in part.tensors}
        encoded = {
            name: (
                part.tensors[f"{name}.ids"].numpy(),
                torch.cat([part.tensors[f"{name}.half"].float(), part.tensors[f"{name}.emb"]]),
            )
            for name in names
        }
        values = dict(part.values)
        metrics = values.pop("metrics")
        return metrics, cls(encoded=encoded, **values)


def later_stages(
    config: DictConfig, run_dir: Path, settings: list[str] | None, first: FirstStage, kept: KeptParts
) -> tuple[dict[str, Any], str, Ranking | None]:
    """Train classifiers on the exported model of a run, and add them, further scorers and the ensemble to it.

    Args:
        config: Configuration of the run.
        run_dir: Folder of the run; the classifiers are trained in its folder classify/.
        settings: Settings of the second stage; None: there are no classifiers.
        first: What the run hands over.
        kept: What an earlier process of the run has finished of this.

    Returns:
        Metrics of the scorers that are added, how many epochs the classifiers took, and their cost; a sentence on the
        weights of the ensemble; and its best labels of the test queries, None where there was no test.
    """
    given = settings or []
    stage = compose("classify", [*_same_device(config, given), *_same_debugging(config, given), *given])
    stage.dataset = OmegaConf.to_container(config.dataset, resolve=True)
    stage.model.dir = str(run_dir / "model")
    stage.run_dir = str(run_dir / "classify")
    for key in ("seed", "test", "cache_dir"):  # see _OF_THE_RUN
        stage[key] = config[key]
    stage.verify = config.get("verify", "sampled")
    model = open_finished(stage, first.precision, first.encoded)
    metrics: dict[str, Any] = {}
    classifiers, of_classifiers = None, None
    if settings is not None:
        about = {
            "model": model.digest,
            "settings": binding_settings(stage),
            "length": [stage.trainer.get(name) for name in ("max_epochs", "max_steps")],
            "test": stage.test,
        }
        made = kept.find("classifiers", about)
        if made is None:
            trained = fit_classifiers(stage, model, continues=True)
            vectors = trained.module.classifiers.vectors()
            made = Part({"vectors": vectors}, {"metrics": trained.metrics, "settings": trained.settings})
            kept.add("classifiers", about, made)
        remove_checkpoints(run_dir / "classify")
        metrics |= describe_stage(made.values["metrics"], first.pass_seconds)
        classifiers, of_classifiers = made.tensors["vectors"], made.values["settings"]
    vote = config.get("neighbours")
    scorers = Scorers(
        classifiers,
        of_classifiers,
        k=None if vote is None else vote.k,
        temperature=None if vote is None else vote.temperature,
        lexical=lexical_settings(config),
    )
    finished = finish_scorers(config, model, scorers, run_dir, kept)
    metrics |= finished.metrics
    metrics["ensemble/seconds"] += first.seconds
    metrics["ensemble/cpu_seconds"] += first.cpu_seconds
    sizes = describe_size(run_dir / "model")
    metrics |= {name: size for name, size in sizes.items() if name != "model_bytes"}  # that is known already
    if first.milliseconds_per_query is not None:
        metrics |= {
            f"predict/{name}/milliseconds_per_query": first.milliseconds_per_query + more
            for name, more in finished.milliseconds.items()
        }
    if first.pass_seconds is not None:
        metrics["ensemble/passes"] = metrics["ensemble/seconds"] / first.pass_seconds
    return metrics, finished.ensemble.describe(), finished.test


def _same_debugging(config: DictConfig, settings: list[str]) -> list[str]:
    """Return settings with which the second stage of a run for debugging sees as little of the data as the first."""
    if "debug" in map(key_of, settings):
        return []
    option = [] if config.get("debug") is None else [f"debug={config.debug}"]
    return [*option, *(f"trainer.{key}={value}" for key, value in limits(config).items())]


def _same_device(config: DictConfig, settings: list[str]) -> list[str]:
    """Return settings with which the second stage computes where the first did, unless its own say where."""
    given = {key_of(setting) for setting in settings}
    if given & {"trainer", "trainer.accelerator"}:
        return []
    accelerator, listed = str(config.trainer.accelerator), listed_devices(config)
    same = [f"trainer.accelerator={accelerator}"]
    device = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}.get(accelerator)
    if device == "cuda" and listed and listed[0].isdecimal():  # one of these GPUs: others may be of other runs
        device = f"cuda:{listed[0]}"
        same += [] if "trainer.devices" in given else [f"trainer.devices=[{listed[0]}]"]
    return same if device is None or "device" in given else [*same, f"device={device}"]
