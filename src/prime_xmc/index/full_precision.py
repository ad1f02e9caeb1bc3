"""Products of float32 matrices in float32, whatever the caller allows them to be rounded to."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices on a device without autocast and without TF32, whose rounding changes rankings.

    Args:
        device: Device that multiplies.
    """
    allowed = torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda" or allowed == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
