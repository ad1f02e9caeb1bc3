"""Rounding of float32 to bfloat16 at random, so that steps too small for bfloat16 count on average."""

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor


def round_stochastically(values: Float32[Tensor, "..."]) -> BFloat16[Tensor, "..."]:
    """Return each value rounded to one of its two neighbours in bfloat16, the nearer one more often.

    A value at the share s of the way from the lower to the upper neighbour goes up with probability s, so the mean is
    the value itself. What bfloat16 can hold stays as it is, as do infinities and NaN.

    Args:
        values: Values; random numbers come from the generator of their device.

    Example:
        >>> round_stochastically(torch.tensor([1.5, -2.0])).tolist()
        [1.5, -2.0]

    Source: ELMO, Zhang et al. 2025.
    """
    # bfloat16 is the upper half of a float32: what carries over from the lower half moves to the next number away from
    # zero
    bits = values.view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device)
    rounded = ((bits + noise) & -(1 << 16)).view(torch.float32)
    # the NaN of a GPU has all bits set, and would become 0
    return torch.where(values.isnan(), values, rounded).to(torch.bfloat16)
