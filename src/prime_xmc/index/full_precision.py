"""Products of float32 matrices in float32, whatever the caller allows them to be rounded to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices on a device without autocast and without TF32, whose rounding changes rankings.

    What is allowed holds for all threads of the process: the last one that leaves such a context restores it.

    Args:
        device: Device that multiplies.
    """
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        _users.enter()
        try:
            yield
        finally:
            _users.leave()


class _Users:
    """Those who need full precision now, in whatever thread."""

    def __init__(self) -> None:
        self.number = 0
        self.allowed = "highest"  # before the first of them
        self.lock = threading.Lock()

    def enter(self) -> None:
        with self.lock:
            if self.number == 0:
                self.allowed = torch.get_float32_matmul_precision()
                if self.allowed != "highest":
                    torch.set_float32_matmul_precision("highest")
            self.number += 1

    def leave(self) -> None:
        with self.lock:
            self.number -= 1
            if self.number == 0 and self.allowed != "highest":
                torch.set_float32_matmul_precision(self.allowed)


_users = _Users()
