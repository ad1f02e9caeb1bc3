"""Which tensors hold numbers that are NaN or infinite."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinite number, in their order.

    It reads each tensor once and makes no copy, and the host waits once for each device.

    Args:
        tensors: Names and tensors; those that are empty or not of floating point hold none.
    """
    names: list[str] = []
    extremes: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            # a NaN is the least and the greatest number of any tensor that has one
            least, greatest = tensor.detach().aminmax()
            extremes.setdefault(tensor.device, []).append((len(names), torch.stack([least, greatest]).float()))
            names.append(name)
    failed: list[int] = []
    for found in extremes.values():
        is_finite = torch.stack([pair for _, pair in found]).isfinite().all(dim=1).tolist()
        failed += [place for (place, _), fine in zip(found, is_finite, strict=True) if not fine]
    return [names[place] for place in sorted(failed)]
