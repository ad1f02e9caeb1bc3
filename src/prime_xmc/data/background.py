"""Batches that are made while the device computes, in a thread and in memory from which a GPU copies by itself."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch.utils.data import DataLoader

T = TypeVar("T")


@runtime_checkable
class Pinnable(Protocol):
    """A batch that can be put into memory from which a GPU copies while the host goes on."""

    def pin_memory(self) -> Any:
        """Return the batch in such memory."""


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items in the same order; a thread makes the next one while the last one is in use.

    The thread is a thread and not a process: it shares the memory of the data, ends with the iterator, and for most of
    a step it has the interpreter to itself, since the backward pass does without.

    Args:
        items: Iterable, of which only the thread takes items. What it raises is raised here.
    """
    end = object()
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prime_xmc-batches") as thread:
        upcoming = thread.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # it is not `end`


def pinned(items: Iterable[Pinnable], device: torch.device) -> Iterator[Any]:
    """Yield each batch in memory from which a GPU copies while the host goes on; as they are for other devices."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of the thread that takes the first item
        items = (item.pin_memory() for item in items)
    yield from items


def works_ahead(device: torch.device) -> bool:
    """Return whether batches for a device are made in a thread.

    On the CPU the thread would take from the step what it gives to it.
    """
    return device.type == "cuda"


class ChunkLoader(DataLoader):
    """Loads chunks of texts in order, for encoding without gradient.

    Args:
        chunks: Dataset of the chunks.
        device: Device that encodes them; on a GPU they are made ahead.
    """

    def __init__(self, dataset: Any, device: torch.device):
        super().__init__(dataset, batch_size=None, shuffle=False)
        self.device = device

    def __iter__(self) -> Any:
        """Iterate over the chunks."""
        if not works_ahead(self.device):
            return super().__iter__()
        return one_ahead(pinned((self.dataset[number] for number in range(len(self))), self.device))
