"""What the user is told where the system refuses."""

import errno
import logging.config
import os

import pytest
import torch

from prime_xmc.command_line.messages import user_message
from prime_xmc.command_line.system_messages import system_message, with_place


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space there, or give a folder on another disk (run_dir=, cache_dir=, output=)"),
        (errno.EDQUOT, "free some space there, or give a folder on another disk (run_dir=, cache_dir=, output=)"),
        (errno.EROFS, "give a folder that can be written (run_dir=, cache_dir=, output=)"),
        (errno.EMFILE, "allow more open files (`ulimit -n`)"),
        (errno.EACCES, "give one that you may use, or change its rights"),
    ],
)
def test_a_file_is_named_with_the_way_out(number, remedy):
    error = OSError(number, os.strerror(number), "x")
    assert system_message(error) == f"x: {os.strerror(number)}; {remedy}"
    assert user_message(error) == system_message(error)


def test_a_file_of_which_only_the_place_is_known():
    error = OSError(errno.ENOSPC, "No space left on device")
    assert system_message(error) == "the output cannot be written: No space left on device"
    told = system_message(with_place(error, "a file in run"))
    assert told is not None
    assert told.startswith("a file in run: No space left on device; free some space")
    named = OSError(errno.ENOSPC, "No space left on device", "x")
    assert with_place(named, "a file in run") is named
    assert with_place(error, None) is error


def test_a_library_that_hides_the_reason_in_its_cause():
    with pytest.raises(ValueError, match="Unable to configure") as error:
        logging.config.dictConfig(
            {
                "version": 1,
                "handlers": {"file": {"class": "logging.FileHandler", "filename": "/proc/run/train.log"}},
                "root": {"handlers": ["file"]},
            }
        )
    assert user_message(error.value) == "/proc/run/train.log: No such file or directory"
    error.value.__cause__ = OSError(errno.EROFS, "Read-only file system", "run/train.log")
    assert str(user_message(error.value)).startswith(
        "run/train.log: Read-only file system; give a folder that can be written"
    )


def no_memory():
    try:
        torch.empty(2**60)
    except RuntimeError as error:
        return error
    return None


@pytest.mark.parametrize(
    "error",
    [
        no_memory(),
        MemoryError("Unable to allocate 8.00 EiB for an array"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB\nwith much more"),
        ImportError("libx.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory(error):
    told = user_message(error)
    assert told is not None
    assert told.startswith("there is not enough memory (")
    assert "bank.placement=mmap" in told
    assert "\n" not in told


def test_what_the_system_has_not_refused():
    assert system_message(RuntimeError("a defect")) is None
    assert system_message(ValueError("not enough memory")) is None
