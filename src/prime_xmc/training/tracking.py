"""What a run shows in experiment trackers beyond curves: one W&B run for it, tables of predictions, histograms."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import OmegaConf
from torch import Tensor

from prime_xmc.evaluation.metrics import METRICS
from prime_xmc.model.losses import dynamic_margin
from prime_xmc.run_files import key_of
from prime_xmc.training.checkpoints import ShardedCheckpointIO

TAGGED = ("dataset", "encoder", "model", "loss")  # the groups whose choices become tags
# keys that say where or how a run is done, or stand in its name already
UNNAMED = {
    *("cache_dir", "callbacks", "ckpt_path", "experiment", "export_after_validation"),
    "export_every_n_epochs",
    *("hydra", "logger", "run_dir", "seed", "task", "test"),
}
MAX_NAME, MAX_TAG = 128, 64  # characters that W&B takes


class RunNames(NamedTuple):
    """What a run is called and found by.

    Attributes:
        name: Name of the run; None where it is not known.
        group: Name of the runs that belong together; None where it belongs to none.
        tags: Options that it was made of.
    """

    name: str | None
    group: str | None
    tags: list[str]


def run_names(choices: Mapping[str, str | None], overrides: Sequence[str], *, seed: int, sweep: str | None) -> RunNames:
    """Name a run after what was chosen for it.

    Args:
        choices: The option chosen in each group of the configuration.
        overrides: Settings of the command line.
        seed: Seed of the run.
        sweep: Name of the sweep that the run is a job of; None: it is none.

    Example:
        >>> chosen = {"dataset": "debian18k", "model": "prime", "experiment": None}
        >>> run_names(chosen, ["loss.gamma_min=0", "seed=2"], seed=2, sweep="margins")
        RunNames(name='debian18k seed=2 loss.gamma_min=0', group='margins', tags=['dataset:debian18k', 'model:prime'])
    """
    experiment = choices.get("experiment")
    base = experiment or choices.get("dataset")
    told = []
    for override in overrides:
        key = key_of(override)
        if key.split(".")[0] not in UNNAMED and (key != "dataset" or experiment):
            told.append(override)
    name = " ".join([base, f"seed={seed}", *told])[:MAX_NAME] if base else None
    group = sweep or experiment
    tags = [f"{tagged}:{choices[tagged]}"[:MAX_TAG] for tagged in TAGGED if choices.get(tagged)]
    return RunNames(name, group[:MAX_NAME] if group else None, tags)


def _names_in(run_dir: Path, seed: int) -> RunNames:
    """Name a run after what Hydra has written to its folder, which the processes of a data-parallel job find too."""
    path = run_dir / ".hydra" / "hydra.yaml"
    if not path.is_file():
        return RunNames(None, None, [])
    job: Any = OmegaConf.to_container(OmegaConf.load(path).hydra, resolve=False)
    sweep = Path(job["runtime"]["output_dir"]).parent.name if job["mode"] == "MULTIRUN" else None
    return run_names(job["runtime"]["choices"], job["overrides"]["task"], seed=seed, sweep=sweep)


def wandb_logger(
    *,
    save_dir: str,
    project: str,
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] | None = None,
    notes: str | None = None,
    offline: bool = True,
    seed: int = 0,
    ckpt_path: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> WandbLogger:
    """Make the logger of a run; W&B is started by what is logged first.

    Args:
        save_dir: All that W&B writes goes to <save_dir>/wandb.
        project: Project that the run goes to.
        entity: Team or user whose project it is; None: the account's default.
        name: Name of the run; None: that of `run_names`.
        group: Name of the runs that belong together; None: that of `run_names`.
        tags: Tags of the run; None: those of `run_names`.
        notes: A description.
        offline: Whether nothing is sent.
        seed: Seed of the run, for its name.
        ckpt_path: Checkpoint of the W&B run to continue; None, or a checkpoint without one: a new run.
        settings: Fields of `wandb.Settings`.

    Raises:
        ValueError: If the package wandb is not installed, or the checkpoint cannot be read.
    """
    installed = importlib.util.find_spec("wandb")
    if installed is None or installed.origin is None:  # the latter is a folder of runs, which can be imported as well
        raise ValueError('logger=wandb needs the package wandb: pip install ".[wandb]" in the clone')
    # What it keeps in the home folder otherwise: its own log, and the tables until they are uploaded, in offline runs
    # for ever.
    for kind in ("data", "cache"):
        os.environ[f"WANDB_{kind.upper()}_DIR"] = str(Path(save_dir).resolve() / "wandb" / kind)
    default = _names_in(Path(save_dir), seed)
    logger = WandbLogger(
        name=name or default.name,
        save_dir=save_dir,
        id=_run_id(ckpt_path),
        project=project,
        entity=entity,
        group=group or default.group,
        tags=list(default.tags if tags is None else tags),
        notes=notes,
        # not WandbLogger's offline=True, which would hold for all that this process does later
        mode="offline" if offline else None,
        settings=dict(settings or {}),
    )
    logger._wandb_init.pop("anonymous", None)  # W&B warns of it whatever it is
    return logger


def _run_id(ckpt_path: str | None) -> str | None:
    if ckpt_path is None or not Path(ckpt_path).is_file():  # the latter is the Trainer's to report
        return None
    states = ShardedCheckpointIO().load_checkpoint(ckpt_path).get("callbacks", {})
    return states.get(WandbRun.__qualname__, {}).get("run_id")


class WandbRun(Callback):
    """Opens a W&B run with the training and finishes it with the last stage or with an error; checkpoints name it.

    W&B would finish it when the process ends, which may be many jobs of a sweep later; these would all add to it.

    Args:
        tested: Whether the Trainer tests after it has trained, if the module has a test.
    """

    def __init__(self, tested: bool):
        self.last_stage = "test" if tested else "fit"
        self.run_id: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say how W&B sums up validation metrics: by the best and by the last, that of the exported model."""
        if not is_overridden("test_step", pl_module):
            self.last_stage = "fit"
        for logger in _wandb_loggers(trainer):
            self.run_id = logger.version
            for name in METRICS:
                # by name: of several patterns that fit a metric, W&B takes any
                logger.experiment.define_metric(
                    f"val/{name}", step_metric="trainer/global_step", step_sync=True, summary="max,last"
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finish the run unless a stage is to come."""
        if stage == self.last_stage:
            self._finish(trainer, exit_code=0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish the run as failed."""
        self._finish(trainer, exit_code=1)

    def _finish(self, trainer: Trainer, exit_code: int) -> None:
        for logger in _wandb_loggers(trainer):
            logger.experiment.finish(exit_code=exit_code)

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the W&B run, which `wandb_logger` reads."""
        return {"run_id": self.run_id}


class LogPredictions(Callback):
    """After each validation: a table of the same queries with their labels and what is ranked first, to W&B.

    Texts are shown as the encoder reads them.

    Args:
        num_queries: How many validation queries, evenly spread over all of them.
        top_k: How many predictions of each.
    """

    def __init__(self, num_queries: int, top_k: int):
        if num_queries < 1 or top_k < 1:
            raise ValueError(f"expected num_queries and top_k of at least 1, got {num_queries} and {top_k}")
        self.num_queries = num_queries
        self.top_k = top_k
        self._rows: dict[int, list[str | int]] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the queries."""
        ids = trainer.datamodule.validation_ids  # type: ignore[attr-defined]
        places = np.linspace(0, len(ids) - 1, min(self.num_queries, len(ids))).round().astype(int)
        self._shown = ids[places]
        self._rows = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of those queries that are in the batch."""
        if not isinstance(outputs, Mapping):  # of a module that ranks nothing in validation
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids = batch.ids.cpu().numpy()
        for place in np.isin(ids, self._shown).nonzero()[0]:
            indices, scores = (outputs[name][place, : self.top_k] for name in ("indices", "scores"))
            self._rows[int(ids[place])] = self._row(data, int(ids[place]), indices, scores)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the table, if anything was ranked."""
        if not self._rows:
            return
        columns = ["query", "labels", "hits", *(str(rank) for rank in range(1, self.top_k + 1))]
        rows = [self._rows[query] for query in sorted(self._rows)]
        for logger in _wandb_loggers(trainer):
            logger.log_table("predictions", columns, rows, step=_last_step(trainer))

    def _row(
        self, data: Any, query: int, indices: Int64[np.ndarray, " rank"], scores: Float[np.ndarray, " rank"]
    ) -> list[str | int]:
        def text(tokens: Any) -> str:
            return data.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)

        split = data.truth("val")
        positives = split.positives[query]
        cells = [
            f"{'✓' if label in positives else '✗'} {text(data.corpus.label_tokens[label])} ({score:.3f})"
            for label, score in zip(indices.tolist(), scores.tolist(), strict=True)
            if label >= 0  # -1: there are no more labels
        ]
        labels = "; ".join(text(data.corpus.label_tokens[label]) for label in positives.tolist())
        hits = int(np.isin(indices, positives).sum())
        return [text(split.tokens[query]), labels, hits, *cells, *[""] * (self.top_k - len(cells))]


class LogHistograms(Callback):
    """Every few steps: how similar the batch's queries are to positives and hardest negatives, and their margins.

    To W&B and TensorBoard. Of query and prototype, and of query and label text; it takes what the step has computed.

    Args:
        every_n_steps: Training steps between histograms.
        gamma_min: Lower bound of the margin, in cosine units; None: the loss has no margin.
        gamma_max: Upper bound of the margin.
    """

    def __init__(self, every_n_steps: int, gamma_min: float | None = None, gamma_max: float | None = None):
        if every_n_steps < 1:
            raise ValueError(f"expected every_n_steps of at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.margin = None if gamma_min is None or gamma_max is None else (gamma_min, gamma_max)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log them if it is time."""
        if trainer.global_step % self.every_n_steps or not trainer.is_global_zero:
            return
        if "query_emb" not in outputs:  # of a module that trains classifiers, which has no prototypes
            return
        query_emb = outputs["query_emb"].float()
        histograms: dict[str, Tensor] = {}
        for name, emb in (("prototype", outputs["prototypes"]), ("text", outputs["label_emb"])):
            similarity = query_emb @ emb.float().T
            positive_sim, negative_sim = hardest_triplets(similarity, batch.positives, batch.negatives)
            histograms[f"similarity/{name}_positive"] = positive_sim
            histograms[f"similarity/{name}_hardest_negative"] = negative_sim
            if self.margin is not None:
                histograms[f"margin/{name}"] = dynamic_margin(positive_sim, negative_sim, *self.margin)
        _log_histograms(trainer, {name: values for name, values in histograms.items() if len(values)})


def hardest_triplets(
    similarity: Float[Tensor, "query label"],
    positives: Bool[Tensor, "query label"],
    negatives: Bool[Tensor, "query label"],
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Return s_qp of every positive pair and the largest s_qn of its query; queries without a negative are left out."""
    hardest = similarity.masked_fill(~negatives, -float("inf")).amax(dim=1)
    query, label = (positives & negatives.any(dim=1, keepdim=True)).nonzero(as_tuple=True)
    return similarity[query, label], hardest[query]


def _log_histograms(trainer: Trainer, histograms: dict[str, Tensor]) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            shown = {name: wandb.Histogram(values.cpu().numpy()) for name, values in histograms.items()}
            logger.log_metrics(shown, _last_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            for name, values in histograms.items():
                logger.experiment.add_histogram(name, values, _last_step(trainer))


def _last_step(trainer: Trainer) -> int:
    """Return the number, from 0, of the last training step, which is what the Trainer logs metrics under."""
    return max(trainer.global_step - 1, 0)


def _wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Return the W&B loggers of the process that logs."""
    return [x for x in trainer.loggers if isinstance(x, WandbLogger)] if trainer.is_global_zero else []
