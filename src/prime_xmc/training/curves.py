"""Curves by step in a file: a run that is continued goes on where its checkpoint was made, without rows twice."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from prime_xmc.files import replacing

Row = dict[str, Any]
_FILE = ExperimentWriter.NAME_METRICS_FILE


def place_in_curves(trainer: Trainer, *, validates: bool, ends_epoch: bool) -> dict[str, Any]:
    """Return which rows of the curves come before a checkpoint that is being made, for `rows_before`.

    Args:
        trainer: The Trainer.
        validates: Whether a run that is continued from it validates first.
        ends_epoch: Whether the steps and the validation of the epoch are done. The Trainer logs the means of the epoch
            only after the checkpoint, and does not do so when it continues.
    """
    pending = None
    loop: Any = trainer.fit_loop
    if ends_epoch and loop.epoch_progress.current.processed > loop.epoch_progress.current.completed:
        means = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
        pending = means | {"epoch": trainer.current_epoch, "step": loop.epoch_loop._batches_that_stepped - 1}
    return {"step": trainer.global_step, "validates": validates, "pending": pending}


def rows_before(rows: Sequence[Mapping[str, str]], place: Mapping[str, Any]) -> list[Row]:
    """Return those rows of a file of curves that come before a checkpoint.

    Args:
        rows: Rows of the file, by column; "" is no value.
        place: What `place_in_curves` returned.
    """
    kept: list[Row] = []
    for row in rows:
        values = {name: value for name, value in row.items() if value not in ("", None)}
        step = values.get("step", "")
        if not step.isdecimal() or int(step) >= place["step"]:
            continue
        is_validation = any(name.startswith("val/") for name in values)
        if place["validates"] and is_validation and int(step) == place["step"] - 1:
            continue  # it is made again
        kept.append(values)
    pending = place["pending"]
    if pending is not None:
        last = [row for row in kept if int(row["step"]) == pending["step"]]
        if len(pending) > 2 and not any(pending.keys() <= row.keys() for row in last):
            kept.append(dict(pending))
    return kept


class CSVCurves(CSVLogger):
    """Lightning's logger to a CSV file, whose file is never half written and can be continued."""

    @rank_zero_only
    def continue_from(self, file: Path, place: Mapping[str, Any]) -> None:
        """Start with the rows that a file of curves has before a checkpoint.

        Args:
            file: The file, if there is one; it may be this logger's own.
            place: What `place_in_curves` returned.
        """
        kept = rows_before(read_rows(file), place)
        self._experiment = _CurveWriter(self.log_dir, kept)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file; a file of an earlier run is removed."""
        if self._experiment is None:
            self._experiment = _CurveWriter(self.log_dir, [])
        return self._experiment


class _CurveWriter(ExperimentWriter):
    def __init__(self, log_dir: str, rows: list[Row]):
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if rows:
            self.metrics_keys = sorted(set().union(*rows))
            self._write(path, rows)
        else:
            path.unlink(missing_ok=True)

    def _check_log_dir_exists(self) -> None:
        """Leave the rows that are there to `__init__`, where Lightning would remove them before others are written."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self._write(path, rows)

    def _write(self, path: Path, rows: Sequence[Row]) -> None:
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.metrics_keys, restval="")
            writer.writeheader()
            writer.writerows(rows)


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a file of curves, without a last one that is incomplete; none where there is no file."""
    if not file.is_file():
        return []
    text = file.read_bytes().decode("utf-8", errors="replace")
    complete = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(complete, newline="")) if None not in row.values()]


def continue_curves(loggers: Sequence[Any], before: Path, run_dir: Path, place: Mapping[str, Any]) -> None:
    """Let the curves of a run go on where its checkpoint was made.

    Args:
        loggers: Loggers of the Trainer, which have written nothing yet.
        before: Folder of the run that the checkpoint is of.
        run_dir: Folder of the run that continues it; it may be the same.
        place: What `place_in_curves` returned.
    """
    for each in loggers:
        if isinstance(each, CSVCurves):
            folder, own = Path(each.log_dir).absolute(), run_dir.absolute()
            inside = folder.relative_to(own) if folder.is_relative_to(own) else Path("csv")
            each.continue_from(before / inside / _FILE, place)
        elif isinstance(each, TensorBoardLogger):
            # points of the steps that are made again are not shown twice
            each._kwargs.setdefault("purge_step", place["step"])
