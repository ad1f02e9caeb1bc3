"""The queue: what is computed together, in which order, and what becomes of those who leave or ask too much."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager, suppress

import pytest

from prime_xmc.serving.batching import Batcher, QueueFullError


class Answering:
    """Answers "text question" for each text; a test can hold it up and look at what it was asked."""

    def __init__(self):
        self.calls = []
        self.threads = set()
        self.open = threading.Event()
        self.open.set()

    def __call__(self, texts, question):
        self.calls.append((list(texts), question))
        self.threads.add(threading.current_thread().name)
        assert self.open.wait(10)
        if question == "fail":
            raise ValueError("no answer")
        return [f"{text} {question}" for text in texts]


@asynccontextmanager
async def running(batcher):
    task = asyncio.create_task(batcher.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def make(answering, *, max_batch=4, max_wait=0.05, max_waiting=100, **more):
    return Batcher(answering, max_batch=max_batch, max_wait=max_wait, max_waiting=max_waiting, **more)


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


def test_concurrent_requests_are_one_batch():
    async def go():
        answering, records = Answering(), []
        batcher = make(answering, record=records.append)
        async with running(batcher):
            answers = await asyncio.gather(*(batcher.ask([text], "q") for text in "abcd"))
        assert answers == [["a q"], ["b q"], ["c q"], ["d q"]]
        assert answering.calls == [(["a", "b", "c", "d"], "q")]
        assert [record.texts for record in records] == [4]
        assert {name.rpartition("_")[0] for name in answering.threads} == {"model"}

    asyncio.run(go())


def test_a_full_batch_does_not_wait_and_a_single_text_waits_as_long_as_it_is_told():
    async def go(count, max_wait):
        batcher = make(Answering(), max_wait=max_wait)
        async with running(batcher):
            began = time.perf_counter()
            await asyncio.gather(*(batcher.ask(["a"], "q") for _ in range(count)))
            return time.perf_counter() - began

    assert asyncio.run(go(4, 5.0)) < 2
    assert 0.1 <= asyncio.run(go(1, 0.1)) < 2
    assert asyncio.run(go(1, 0.0)) < 0.1


def test_what_comes_meanwhile_is_the_next_batch():
    async def go():
        answering = Answering()
        answering.open.clear()
        batcher = make(answering, max_wait=0.0)
        async with running(batcher):
            first = asyncio.create_task(batcher.ask(["a"], "q"))
            await until(lambda: answering.calls)
            others = [asyncio.create_task(batcher.ask([text], "q")) for text in "bcd"]
            await until(lambda: batcher.waiting == 3)
            assert batcher.busy_for() > 0
            answering.open.set()
            await asyncio.gather(first, *others)
            assert batcher.busy_for() == 0
        assert answering.calls == [(["a"], "q"), (["b", "c", "d"], "q")]

    asyncio.run(go())


def test_who_asks_again_at_once_is_in_the_next_batch():
    async def go():
        answering = Answering()
        answering.open.clear()
        batcher = make(answering, max_batch=3, max_wait=0.2)

        async def ask_twice():
            await batcher.ask(["a"], "q")
            await batcher.ask(["b"], "q")

        async with running(batcher):
            first = asyncio.create_task(ask_twice())
            await until(lambda: answering.calls)
            others = [asyncio.create_task(batcher.ask([text], "q")) for text in "cd"]
            await until(lambda: batcher.waiting == 2)
            await asyncio.sleep(0.3)  # they have waited long enough
            answering.open.set()
            await asyncio.gather(first, *others)
        assert answering.calls == [(["a"], "q"), (["c", "d", "b"], "q")]

    asyncio.run(go())


def test_questions_are_asked_apart_and_one_that_fails_fails_alone():
    async def go():
        answering = Answering()
        batcher = make(answering, max_batch=5)
        asked = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "fail"), ("e", "y")]
        async with running(batcher):
            answers = await asyncio.gather(
                *(batcher.ask([text], question) for text, question in asked), return_exceptions=True
            )
            assert await batcher.ask(["f"], "x") == ["f x"]
        assert answering.calls[:3] == [(["a", "c"], "x"), (["b", "e"], "y"), (["d"], "fail")]
        assert answers[:3] == [["a x"], ["b y"], ["c x"]]
        assert isinstance(answers[3], ValueError)
        assert answers[4] == ["e y"]

    asyncio.run(go())


def test_a_long_request_is_answered_in_order_and_does_not_hold_up_a_short_one():
    async def go():
        answering = Answering()
        answering.open.clear()
        batcher = make(answering, max_wait=0.0)
        async with running(batcher):
            first = asyncio.create_task(batcher.ask(["a"], "q"))
            await until(lambda: answering.calls)
            long = asyncio.create_task(batcher.ask([str(i) for i in range(10)], "q"))
            await until(lambda: batcher.waiting == 10)
            short = asyncio.create_task(batcher.ask(["z"], "q"))
            await until(lambda: batcher.waiting == 11)
            answering.open.set()
            assert await short == ["z q"]
            assert not long.done()
            assert await long == [f"{i} q" for i in range(10)]
            await first
        assert [len(texts) for texts, _ in answering.calls] == [1, 4, 4, 3]
        assert "z" in answering.calls[1][0]

    asyncio.run(go())


def test_a_long_request_that_fails_leaves_the_queue():
    async def go():
        answering = Answering()
        batcher = make(answering, max_wait=0.0)
        async with running(batcher):
            with pytest.raises(ValueError, match="no answer"):
                await batcher.ask(["a"] * 12, "fail")
            await until(lambda: batcher.waiting == 0)
            assert await batcher.ask(["b"], "q") == ["b q"]
        assert sum(len(texts) for texts, question in answering.calls if question == "fail") <= 8

    asyncio.run(go())


def test_who_has_gone_is_not_answered():
    async def go():
        answering = Answering()
        answering.open.clear()
        batcher = make(answering, max_wait=0.0)
        async with running(batcher):
            first = asyncio.create_task(batcher.ask(["a"], "q"))
            await until(lambda: answering.calls)
            gone = asyncio.create_task(batcher.ask(["b"], "q"))
            stays = asyncio.create_task(batcher.ask(["c"], "q"))
            await until(lambda: batcher.waiting == 2)
            gone.cancel()
            first.cancel()  # while its batch is computed
            await until(lambda: batcher.waiting == 1)
            answering.open.set()
            assert await stays == ["c q"]
        assert answering.calls == [(["a"], "q"), (["c"], "q")]

    asyncio.run(go())


def test_a_full_queue_takes_nothing_more():
    async def go():
        answering = Answering()
        answering.open.clear()
        batcher = make(answering, max_wait=0.0, max_waiting=3)
        async with running(batcher):
            first = asyncio.create_task(batcher.ask(["a"], "q"))
            await until(lambda: answering.calls)
            second = asyncio.create_task(batcher.ask(["b", "c"], "q"))
            await until(lambda: batcher.waiting == 2)
            with pytest.raises(QueueFullError):
                await batcher.ask(["d", "e"], "q")
            assert not batcher.is_full
            third = asyncio.create_task(batcher.ask(["d"], "q"))
            await until(lambda: batcher.is_full)
            answering.open.set()
            assert [await first, await second, await third] == [["a q"], ["b q", "c q"], ["d q"]]
            assert await batcher.ask([], "q") == []

    asyncio.run(go())


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_batch of at least 1 text, got 0"):
        make(Answering(), max_batch=0)
    with pytest.raises(ValueError, match=r"max_wait of at least 0, got -1\.0"):
        make(Answering(), max_wait=-1.0)
