"""Lists of different lengths, one behind the other: where each begins, and which entries belong to which."""

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import pad


def bounds(rows: Int64[Tensor, " entry"], num_rows: int) -> Int64[Tensor, " bound"]:
    """Return the places at which rows begin, and at the end the number of entries, from the row of each entry."""
    return pad(torch.bincount(rows, minlength=num_rows).cumsum(0), (1, 0))


def expand(
    offsets: Int64[Tensor, " bound"], groups: Int64[Tensor, " group"]
) -> tuple[Int64[Tensor, " member"], Int64[Tensor, " member"]]:
    """Return the members of groups: which of `groups` each belongs to, and its place among all members.

    Example:
        >>> expand(torch.tensor([0, 2, 2, 5]), torch.tensor([2, 0]))
        (tensor([0, 0, 0, 1, 1]), tensor([2, 3, 4, 0, 1]))
    """
    starts = offsets[groups]
    lengths = offsets[groups + 1] - starts
    position = torch.arange(len(groups), device=groups.device).repeat_interleave(lengths)
    shift = starts - (lengths.cumsum(0) - lengths)
    return position, torch.arange(len(position), device=groups.device) + shift[position]


def blocks(before: Int64[Tensor, " bound"], most: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of blocks of consecutive rows with at most so many entries, or of one row that has more.

    Args:
        before: Number of entries before each row, and at the end that of all.
        most: Most entries of a block.

    Example:
        >>> list(blocks(torch.tensor([0, 2, 3, 9, 10]), 4))
        [(0, 2), (2, 3), (3, 4)]
    """
    first, num_rows = 0, len(before) - 1
    while first < num_rows:
        end = int(torch.searchsorted(before, before[first] + most, right=True)) - 1
        end = min(max(end, first + 1), num_rows)
        yield first, end
        first = end
