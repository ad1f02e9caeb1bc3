import threading
import time

import numpy as np
import pytest
import torch

from prime_xmc.data import background
from prime_xmc.data.background import ChunkLoader, one_ahead, pinned
from prime_xmc.data.batch import TextChunks
from prime_xmc.data.corpus import Ragged

CPU = torch.device("cpu")


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("prime_xmc")}


def test_the_same_items_in_the_same_order():
    assert list(one_ahead(range(100))) == list(range(100))
    assert list(one_ahead([])) == []


def test_the_next_item_is_made_while_one_is_in_use():
    """And none beyond it."""
    made, enough = [], threading.Semaphore(0)

    def items():
        for number in range(5):
            made.append(number)
            enough.release()
            yield number

    iterator = one_ahead(items())
    assert made == []  # not before the first one is asked for
    assert next(iterator) == 0
    for _ in range(2):
        assert enough.acquire(timeout=10)
    time.sleep(0.05)
    assert made == [0, 1]
    iterator.close()


def test_what_making_raises_is_raised_where_the_item_is_asked_for():
    def items():
        yield 1
        raise ValueError("no more")

    iterator = one_ahead(items())
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="no more"):
        next(iterator)
    assert threads() == set()


def test_the_thread_ends_with_an_iterator_that_is_given_up():
    iterator = one_ahead(iter(range(100)))
    next(iterator)
    assert len(threads()) == 1
    iterator.close()
    assert threads() == set()


@pytest.mark.parametrize("ahead", [False, True])
def test_chunks_are_the_same_in_every_epoch(ahead, monkeypatch):
    monkeypatch.setattr(background, "works_ahead", lambda device: ahead)
    chunks = TextChunks(Ragged.from_rows([[1, 2], [3], [4, 5, 6]]), np.arange(3), 2)
    loader = ChunkLoader(chunks, CPU)
    for _ in range(2):
        assert [chunk.ids.tolist() for chunk in loader] == [[1, 0], [2]]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_goes_to_a_gpu_is_pinned():
    chunks = TextChunks(Ragged.from_rows([[1, 2], [3], [4, 5, 6]]), np.arange(3), 2)
    device = torch.device("cuda", 0)
    for chunk in ChunkLoader(chunks, device):
        assert chunk.token_ids.is_pinned()
        assert not chunk.lengths.is_pinned()
    assert not next(pinned([chunks[0]], CPU)).token_ids.is_pinned()
