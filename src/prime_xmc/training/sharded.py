"""Encoding shared out over the processes of a data-parallel run, with the whole result on each of them."""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from prime_xmc.model.encoder import TextEncoder, gather_rows


def encode_sharded(
    encoder: TextEncoder,
    token_ids: Int[Tensor, " token"],
    lengths: Int[Tensor, " text"],
    *,
    rank: int,
    world_size: int,
) -> Float[Tensor, "text d"]:
    """Encode every world_size-th text here, by length so that the work is even, and gather the others' embeddings.

    Every process must be given the same texts. If each then computes the same loss from all embeddings, gradients
    averaged over the processes (as DDP does) are those of one process with the whole batch: the embeddings made here
    carry world_size times their gradient, the others' none.

    Returns:
        The embeddings of all texts.
    """
    mine = lengths.argsort(stable=True)[rank::world_size]
    local = encoder(token_ids[gather_rows(lengths, mine).to(token_ids.device)], lengths[mine])
    per_rank = -(-len(lengths) // world_size)
    padded = local.new_zeros(per_rank, local.shape[1])
    padded[: len(mine)] = local.detach()
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(gathered, padded)
    result = local.new_empty(len(lengths), local.shape[1])
    order = lengths.argsort(stable=True)
    for other in range(world_size):
        rows = order[other::world_size]
        result[rows.to(result.device)] = gathered[other][: len(rows)]
    # adds nothing but the gradient, so that all processes go on with the same numbers
    return result.index_add(0, mine.to(result.device), world_size * (local - local.detach()))
