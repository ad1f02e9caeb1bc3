"""Ending by a signal: training is saved first, the status says why it ended, and the user is told how to continue."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from prime_xmc.training.continuation import continuing_command
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


def how_to_continue(run_dir: Path, checkpoint: Path | None, *, started: float) -> str:
    """Return how to continue an interrupted run, or to start it again where nothing has been saved.

    Args:
        run_dir: Folder of the run, in which it stays.
        checkpoint: Its checkpoint, if one was written; None: there is never one.
        started: Time at which the run began, in seconds as `time.time` counts; a checkpoint before it is another's.
    """
    folder = {"hydra__run__dir": _from_here(run_dir)}
    if checkpoint is None or not checkpoint.is_file() or checkpoint.stat().st_mtime < started:
        command = continuing_command(None, **folder)
        return "Nothing was saved that could be continued. Start again" + (f" by\n  {command}" if command else ".")
    command = continuing_command(_from_here(checkpoint), **folder)
    if command is None:
        return f"Training is saved: ckpt_path={checkpoint} with the same settings continues it."
    return f"Training is saved in {_from_here(checkpoint)}. To continue it:\n  {command}"


class SaveWhenInterrupted(Callback):
    """Saves training where a signal ends it, at the end of a step or in what follows the last step of an epoch.

    It takes the signals over from the Trainer, which ends with status 0 after SIGTERM. During a step they wait for its
    end. The processes of a data-parallel run agree on the step; where they are not in a step, none of them saves, and
    the newest checkpoint is that of the end of the epoch before.

    Args:
        path: The checkpoint to write.
    """

    def __init__(self, path: Path):
        self.path = path
        self._can_save = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a training before."""
        self._can_save = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from the Trainer."""
        _take_over()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from the Trainer; from here on they need not wait."""
        _take_over()
        self._wait(False, trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from the Trainer."""
        _take_over()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is nothing to save: the epoch before has its checkpoint."""
        self._can_save = False
        self._wait(trainer.world_size > 1, trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let signals wait for the end of the step."""
        self._can_save = False
        self._wait(True, trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End here if there was a signal; gradients that are still being accumulated are completed first."""
        is_last = batch_idx + 1 == trainer.num_training_batches
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not is_last:
            return
        self._can_save = True
        if trainer.world_size > 1:
            if trainer.strategy.reduce_boolean_decision(_switchboard.received is not None, all=False):
                raise Interrupted(_switchboard.received or signal.SIGTERM)
        else:
            self._wait(False, trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the processes of a data-parallel run wait for each other."""
        self._wait(trainer.world_size > 1, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is nothing to save: what follows changes the module, and the checkpoint has been written."""
        self._can_save = False
        self._wait(False, trainer)

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

    def _wait(self, waits: bool, trainer: Trainer) -> None:
        if not waits and trainer.world_size > 1:
            self._can_save = False  # the others are elsewhere
        _switchboard.wait(waits)


def _take_over() -> None:
    if _switchboard.installed and threading.current_thread() is threading.main_thread():
        _switchboard.install()


def _from_here(path: Path) -> Path:
    """Return a path relative to the current folder if it lies in it."""
    path = Path(os.path.abspath(path))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
