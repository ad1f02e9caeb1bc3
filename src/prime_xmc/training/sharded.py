"""Processes that train together: encoding shared out over them, and what they compute apart kept the same."""

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Int64
from torch import Tensor

from prime_xmc.model.encoder import TextEncoder, gather_rows

_BLOCK_BYTES = 2**28  # of a table that is sent at once


def encode_sharded(
    encoder: TextEncoder,
    token_ids: Int[Tensor, " token"],
    lengths: Int[Tensor, " text"],
    text_ids: Int64[Tensor, " text"] | None = None,
    *,
    rank: int,
    world_size: int,
) -> Float[Tensor, "text d"]:
    """Encode every world_size-th text here, by length so that the work is even, and gather the others' embeddings.

    Every process must be given the same texts. On the CPU each call compares them. On a GPU this would make the host
    wait for the step before, so there only the batches are compared, once an epoch; see `require_same`.

    If each process then computes the same loss from all embeddings, gradients averaged over the processes (as DDP does)
    are those of one process with the whole batch: the embeddings made here carry world_size times their gradient, the
    others' none.

    Returns:
        The embeddings of all texts.

    Raises:
        ValueError: If the texts were compared and are not the same in all processes.
    """
    if token_ids.device.type == "cpu":
        texts = {"number of texts": len(lengths), "texts": digest(token_ids, lengths)}
        require_same(texts, "the texts to encode", token_ids.device)
    mine = lengths.argsort(stable=True)[rank::world_size]
    my_ids = None if text_ids is None else text_ids[mine.to(text_ids.device)]  # not on the host, which would wait
    local = encoder(token_ids[gather_rows(lengths, mine).to(token_ids.device)], lengths[mine], my_ids)
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


def digest(*contents: Tensor | str) -> int:
    """Return a number of 64 bits that is the same for the same contents, and almost surely another one for others."""
    result = hashlib.blake2b(digest_size=8)
    for content in contents:
        if isinstance(content, str):
            result.update(content.encode())
        else:
            result.update(repr((content.dtype, tuple(content.shape))).encode())
            result.update(content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return int.from_bytes(result.digest(), "big", signed=True)


def require_same(parts: Mapping[str, int], whole: str, device: torch.device) -> None:
    """Stop in all processes unless these numbers are the same everywhere; without other processes, do nothing.

    Args:
        parts: Numbers to compare by the names of what they stand for, such as `digest`s.
        whole: Name of what is made of the parts, for the message.
        device: Device of the process, for the backend to send from.

    Raises:
        ValueError: If a number differs, with the processes and the parts.
    """
    if not _together():
        return
    numbers = torch.tensor(list(parts.values()), dtype=torch.int64, device=device)
    gathered = [torch.empty_like(numbers) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, numbers)
    first, *others = (each.tolist() for each in gathered)
    differing = [
        f"process {rank} in {', '.join(name for name, a, b in zip(parts, first, other, strict=True) if a != b)}"
        for rank, other in enumerate(others, start=1)
        if other != first
    ]
    if differing:
        raise ValueError(
            f"the processes that train together disagree on {whole}; from process 0 differ: {'; '.join(differing)}. "
            "Training would mix them up. Start all of them from the same configuration, seed, data and version, give "
            "the Trainer use_distributed_sampler=False, and change the sampler or its clusters in all or in none"
        )


@torch.no_grad()
def copy_from_first(table: Tensor, device: torch.device, block_bytes: int = _BLOCK_BYTES) -> None:
    """Replace a tensor's content by that of the first process; without other processes, do nothing.

    What each process computes for itself may differ in a last bit, by its number of threads or its device.

    Args:
        table: Tensor of the same shape and dtype in all processes, on any device.
        device: Device of the process, for the backend to send from.
        block_bytes: Size of the blocks that are sent, which take this much memory besides the table.
    """
    if not _together() or table.numel() == 0:
        return
    row_bytes = table[0].numel() * table.element_size()
    for rows in table.detach().split(max(1, block_bytes // row_bytes)):
        sent = rows.to(device).contiguous()
        dist.broadcast(sent, src=0)
        rows.copy_(sent)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def leave_group() -> None:
    """End the group of the processes that trained together, if there is one.

    What follows is the work of the first process alone, and metrics would wait in it for the others for ever.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
