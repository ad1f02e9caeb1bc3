"""Outputs of frozen encoder layers, which are the same whenever a text comes again and so are computed once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from prime_xmc.model.banks import RowBank


def token_rows(starts: Int[Tensor, " text"], lengths: Int[Tensor, " text"]) -> Int[Tensor, " token"]:
    """Return the rows of the tokens of some texts, given each text's first row and its number of tokens."""
    first = starts - (lengths.cumsum(0) - lengths)
    return torch.repeat_interleave(first, lengths) + torch.arange(int(lengths.sum()))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, for which neither waits: a GPU copies from page-locked memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def kept_dtype(precision: str) -> str:
    """Return the dtype in which outputs are kept, given Lightning's name of the precision in which layers compute."""
    return "float32" if precision.startswith("32") else "float16"


class FrozenLayers:
    """The layers of a transformer that are not trained: the first ones, and the embeddings below them.

    Args:
        embeddings: What is below the first layer.
        layers: All layers.
        number: Number of layers that are frozen; the last one is trained in any case, and where the number is 0 so are
            the embeddings.

    Raises:
        ValueError: If the number is negative.
    """

    def __init__(self, embeddings: nn.Module, layers: Sequence[nn.Module], number: int):
        if number < 0:
            raise ValueError(f"expected encoder.frozen_layers of at least 0, got {number}")
        self.number = min(number, max(0, len(layers) - 1))
        self.modules = (embeddings, *layers[: self.number]) if self.number else ()
        for module in self.modules:
            module.requires_grad_(False)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Let no layer be frozen, for the duration of the context."""
        number, self.number = self.number, 0
        for module in self.modules:
            module.requires_grad_(True)
        try:
            yield
        finally:
            self.number = number
            for module in self.modules:
                module.requires_grad_(False)


class FrozenOutputs(nn.Module):
    """The last frozen layer's output for every token of the texts that have been seen.

    Args:
        lengths: Number of tokens of every text.
        dim: Size d of a token's output.
        make_bank: Maker of the table, which has a row for every token; it decides where the table is kept.
        dtype: "float16", which has more digits than bfloat16 and range enough for what layer norms return, or
            "float32"; see `kept_dtype`.
    """

    def __init__(self, lengths: Int64[np.ndarray, " text"], dim: int, make_bank: Callable[..., RowBank], dtype: str):
        super().__init__()
        ends = torch.from_numpy(lengths.astype(np.int64)).cumsum(0)
        self.starts: Int64[Tensor, " text"] = ends - torch.from_numpy(lengths.astype(np.int64))
        self.known: Bool[Tensor, " text"] = torch.zeros(len(lengths), dtype=torch.bool)
        self.bank = make_bank(int(ends[-1]) if len(ends) else 0, dim, dtype=dtype)

    def forget(self) -> None:
        """Let all texts be computed anew."""
        self.known.fill_(False)

    def take(
        self,
        text_ids: Int64[Tensor, " text"],
        token_ids: Int[Tensor, " token"],
        lengths: Int[Tensor, " text"],
        compute: Callable[[Int[Tensor, " new"], Int[Tensor, " new_text"]], Float[Tensor, "new d"]],
    ) -> Float[Tensor, "token d"]:
        """Return the outputs for all tokens of some texts; those of new texts are computed and kept.

        Args:
            text_ids: Places of the texts in the table, on the CPU unless the host may wait for them.
            token_ids: Their tokens, concatenated.
            lengths: Tokens of each text, on the CPU.
            compute: Function that returns the outputs for tokens and lengths of texts in any order.
        """
        text_ids = text_ids.cpu()
        device, table = token_ids.device, self.bank.rows.device
        new = ~self.known[text_ids]
        if new.any():
            inside = token_rows((lengths.cumsum(0) - lengths)[new], lengths[new])
            outputs = compute(token_ids[send(inside, device)], lengths[new])
            self.bank.put(send(token_rows(self.starts[text_ids[new]], lengths[new]), table), outputs)
            self.known[text_ids[new]] = True
        rows = self.bank.take(send(token_rows(self.starts[text_ids], lengths), table))
        return rows if rows.device == device else send(rows, device)
