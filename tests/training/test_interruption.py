import os
import signal
import threading
import time

import pytest

from prime_xmc.training.interruption import Interrupted, _switchboard, how_to_continue, interruptible


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_status_is_that_of_the_signal_and_it_is_said_what_to_do(number, status, capsys):
    with pytest.raises(SystemExit) as ended, interruptible(lambda: "Start again."):
        send(number)
    assert ended.value.code == status
    assert capsys.readouterr().err.endswith("Start again.\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_signal_within_a_step_waits_for_its_end():
    steps = []
    with interruptible(str):
        _switchboard.wait(True)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        steps.append("complete")
        with pytest.raises(Interrupted):
            _switchboard.wait(False)
    assert steps == ["complete"]


def test_a_second_ctrl_c_does_not_wait():
    with interruptible(str):
        _switchboard.wait(True)
        send(signal.SIGINT)
        with pytest.raises(Interrupted):
            send(signal.SIGINT)


def test_a_second_sigterm_does_not_disturb_the_saving():
    with interruptible(str):
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
        send(signal.SIGTERM)


def test_only_the_outermost_block_explains(capsys):
    with pytest.raises(Interrupted), interruptible(lambda: "outer"), interruptible(lambda: "inner"):
        send(signal.SIGTERM)
    assert "outer" in (printed := capsys.readouterr().err)
    assert "inner" not in printed


def test_ctrl_c_stays_ignored_where_it_was():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(str):
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone():
    def work():
        with interruptible(str):
            handlers.append(signal.getsignal(signal.SIGTERM))

    handlers = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


def test_a_checkpoint_of_an_earlier_run_in_the_folder_is_not_offered(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    saved, not_saved = (how_to_continue(tmp_path, started=time.time() + seconds) for seconds in (-10, 10))
    assert saved.startswith("Training is saved in ")
    assert not_saved.startswith("Training has not been saved yet.")
    assert all(text.endswith(f"-m prime_xmc.train resume={tmp_path}") for text in (saved, not_saved))
