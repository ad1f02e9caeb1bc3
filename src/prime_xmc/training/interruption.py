"""Ending by a signal: training is saved first, the status says why it ended, and the user is told how to continue."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from prime_xmc.run_files import CHECKPOINT
from prime_xmc.training.continuation import from_here, resuming_command
from prime_xmc.training.run_folder import is_first_process

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """Ends the process with the status that a shell expects: 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class _Switchboard:
    """What the signal handlers of this process know; there is one set of them.

    Attributes:
        installed: Whether a block of `interruptible` is being executed.
        received: Number of the first signal, None while there was none.
        waits: Whether a signal has to wait for the end of a training step.
        pending: Whether one does.
    """

    installed = False
    received: int | None = None
    waits = False
    pending = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise `Interrupted`, unless that has been done or has to wait.

        A second Ctrl-C does not wait. A second SIGTERM changes nothing: process groups and launchers send several.
        """
        again = self.received is not None
        self.received = self.received or number
        if again and number != signal.SIGINT:
            return
        if self.waits and not again:
            self.pending = True
            return
        raise Interrupted(number)

    def wait(self, waits: bool) -> None:
        """Let signals wait from here on or not; one that has waited long enough ends the process."""
        self.waits = waits
        if self.pending and not waits:
            self.pending = False
            assert self.received is not None
            raise Interrupted(self.received)

    def install(self) -> None:
        """Handle the signals here; where Ctrl-C is ignored, as in the background of a script, it stays so."""
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.handle)


_switchboard = _Switchboard()


@contextmanager
def interruptible(explain: Callable[[], str]) -> Iterator[None]:
    """Raise `Interrupted` in the block where the process gets SIGTERM or Ctrl-C, and print what to do then.

    Within another such block it does nothing, and nothing either in another thread than the main one, which alone gets
    signals.

    Args:
        explain: Returns what to do, for people.
    """
    if _switchboard.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    _switchboard.installed, _switchboard.received = True, None
    _switchboard.waits = _switchboard.pending = False
    _switchboard.install()
    try:
        yield
    except Interrupted as interrupted:
        if is_first_process():
            cause = "Ctrl-C" if interrupted.number == signal.SIGINT else signal.Signals(interrupted.number).name
            sys.stderr.write(f"\nInterrupted by {cause}. {explain()}\n")
        raise
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: a handler of C code, which cannot be installed again from here
                signal.signal(number, handler)
        _switchboard.installed = False


def how_to_continue(run_dir: Path, *, started: float) -> str:
    """Return how to continue an interrupted run, for people.

    Args:
        run_dir: Folder of the run, in which it stays.
        started: Time at which the run began, in seconds as `time.time` counts; a checkpoint before it is another's.
    """
    checkpoint, command = run_dir / CHECKPOINT, resuming_command(from_here(run_dir))
    if not checkpoint.is_file() or checkpoint.stat().st_mtime < started:
        return f"Training has not been saved yet. To start it again in its folder:\n  {command}"
    return f"Training is saved in {from_here(checkpoint)}. To continue it:\n  {command}"


class SaveProgress(Callback):
    """Saves training within an epoch: every so many minutes, and where a signal ends it.

    It takes the signals over from the Trainer, which ends with status 0 after SIGTERM. During a step they wait for its
    end. The processes of a data-parallel run agree on the step; where they are not in a step, none of them saves, and
    the newest checkpoint is that of the end of the epoch before.

    A checkpoint within an epoch is made before the first hook of the next step: by then everything that belongs to the
    step has been done, its row of the curves included. So the callback has to come after those whose work at the end of
    an epoch belongs to the epoch, such as the table of epochs.

    Args:
        path: The checkpoint to write.
        every_n_minutes: Minutes after which an epoch that still goes on is saved; None: it is not.
    """

    def __init__(self, path: Path, every_n_minutes: float | int | None = None):
        self.path = path
        self.every_n_minutes = every_n_minutes
        self._can_save = False
        self._saved_at = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a training before."""
        self._can_save = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from the Trainer."""
        _take_over()
        self._saved_at = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from the Trainer; from here on they need not wait, unless gradients are accumulated.

        Those so far are in no checkpoint: signals then wait for the step that is made of them.
        """
        _take_over()
        fits = bool(trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking)
        within_step = fits and _accumulates(trainer)
        self._can_save = fits and not within_step
        self._wait(within_step, trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait until what is left of the epoch has been noted."""
        if trainer.state.fn == TrainerFn.FITTING:
            _switchboard.wait(True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from the Trainer."""
        _take_over()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is nothing to save: the epoch before has its checkpoint."""
        self._can_save = False
        self._wait(trainer.world_size > 1, trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End here if there was a signal, or save if it is time; then let signals wait for the end of the step.

        Gradients that are being accumulated are completed first.
        """
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._can_save = True
            self._end_if_asked(trainer)
            _switchboard.wait(True)
            if self._is_time(trainer, batch_idx):
                trainer.save_checkpoint(self.path)
        _switchboard.wait(True)
        self._can_save = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let several processes agree after the last step of an epoch, since they do not in what follows it."""
        if trainer.world_size > 1 and batch_idx + 1 == trainer.num_training_batches:
            self._can_save = True
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait no longer, those of several processes excepted."""
        self._can_save = True
        self._wait(trainer.world_size > 1, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is nothing to save: what follows changes the module, and the checkpoint has been written."""
        self._can_save = False
        self._wait(False, trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the minutes from here on, whoever saves."""
        self._saved_at = time.monotonic()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if the signal came where training can be continued."""
        _switchboard.waits = False
        if not isinstance(exception, Interrupted):
            return
        if self._can_save:
            try:
                trainer.save_checkpoint(self.path)
            except (OSError, ValueError) as error:  # a full disk; or training has diverged
                logger.error("training could not be saved: %s", error)
        if is_first_process():
            # those of a data-parallel run, which may wait for this one for ever
            for process in getattr(trainer.strategy.launcher, "procs", []):
                process.kill()

    def _end_if_asked(self, trainer: Trainer) -> None:
        if trainer.world_size == 1:
            _switchboard.wait(False)
        elif trainer.strategy.reduce_boolean_decision(_switchboard.received is not None, all=False):
            raise Interrupted(_switchboard.received or signal.SIGTERM)

    def _is_time(self, trainer: Trainer, batch_idx: int) -> bool:
        if not self.every_n_minutes or batch_idx == 0:  # the end of the epoch before is saved
            return False
        is_time = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return is_time if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(is_time, all=False)

    def _wait(self, waits: bool, trainer: Trainer) -> None:
        if not waits and trainer.world_size > 1:
            self._can_save = False  # the others are elsewhere
        _switchboard.wait(waits)


def _accumulates(trainer: Trainer) -> bool:
    """Return whether the batch before this validation is part of a step that is still to be made."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.current.ready % trainer.accumulate_grad_batches != 0 and not progress.is_last_batch


def _take_over() -> None:
    if _switchboard.installed and threading.current_thread() is threading.main_thread():
        _switchboard.install()
