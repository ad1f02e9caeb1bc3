"""Texts of concurrent requests are answered together: a queue in front of one thread."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")


class QueueFullError(Exception):
    """There is no room for so many more texts."""


class BatchRecord(NamedTuple):
    """What a batch was.

    Attributes:
        texts: Number of texts.
        seconds: Time of the computation.
        waited: Longest time for which a text of the batch had been waiting when it began, in seconds.
    """

    texts: int
    seconds: float
    waited: float


@dataclass(eq=False)
class _Waiting(Generic[Question, Answer]):
    """A request in the queue.

    Attributes:
        texts: Its texts.
        question: What is asked about each of them.
        since: Time at which it came, by the clock of the event loop.
        result: Future of its answers.
        taken: Number of texts that have gone into a batch.
        answers: Answers to the first texts.
    """

    texts: Sequence[str]
    question: Question
    since: float
    result: asyncio.Future[list[Answer]]
    taken: int = 0
    answers: list[Answer] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Number of texts that are in no batch yet."""
        return len(self.texts) - self.taken


class _Piece(NamedTuple):
    """Texts of a request that are in one batch."""

    request: _Waiting
    texts: Sequence[str]


class Batcher(Generic[Question, Answer]):
    """Answers the texts of concurrent requests in batches, one after the other, in a thread of its own.

    A batch begins when it is full, or when both the text that came first has waited for `max_wait` and the batch before
    has ended as long ago: whoever has just had an answer and asks again is then part of it. In a batch, texts with the
    same question are answered by one call. Where several requests wait, each gets an equal share of a batch, so that
    one with many texts does not hold up those with one. A request whose task is cancelled leaves the queue.

    Args:
        answer: Function of texts and a question that returns an answer for each text; it is called in the thread.
        max_batch: Most texts of a batch.
        max_wait: Longest time for which a text waits for others to come while nothing is computed, in seconds.
        max_waiting: Most texts in the queue.
        record: Function that is told of each batch.
    """

    def __init__(
        self,
        answer: Callable[[list[str], Question], Sequence[Answer]],
        *,
        max_batch: int,
        max_wait: float | int,
        max_waiting: int,
        record: Callable[[BatchRecord], None] = lambda _: None,
    ):
        if max_batch < 1:
            raise ValueError(f"expected max_batch of at least 1 text, got {max_batch}")
        if max_wait < 0:
            raise ValueError(f"expected max_wait of at least 0, got {max_wait}")
        self._answer = answer
        self._max_batch, self._max_wait, self._max_waiting = max_batch, max_wait, max_waiting
        self._record = record
        self._queue: deque[_Waiting[Question, Answer]] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._began: float | None = None
        self._ended = -math.inf

    @property
    def waiting(self) -> int:
        """Number of texts that are in no batch yet."""
        return sum(request.left for request in self._queue)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another text."""
        return self.waiting >= self._max_waiting

    def busy_for(self) -> float:
        """Return the seconds for which the present batch has been computed, 0 where there is none."""
        return 0.0 if self._began is None else asyncio.get_running_loop().time() - self._began

    async def ask(self, texts: Sequence[str], question: Question) -> list[Answer]:
        """Return the answers to texts, in their order.

        Raises:
            QueueFullError: If there is no room for them.
            Exception: Whatever the answering function raises.
        """
        if not texts:
            return []
        if self.waiting + len(texts) > self._max_waiting:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        request = _Waiting[Question, Answer](texts, question, loop.time(), loop.create_future())
        self._queue.append(request)
        self._changed.set()
        try:
            return await request.result
        finally:
            if request in self._queue:  # the task was cancelled, or the question failed on other texts
                self._queue.remove(request)

    async def run(self) -> None:
        """Answer until the task is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wait_for_batch()
                pieces = self._take()
                if not pieces:  # whoever asked has gone
                    continue
                self._began = began = loop.time()
                results = await loop.run_in_executor(self._thread, self._work, pieces)
                self._began, self._ended = None, loop.time()
                seconds = self._ended - began
                _deliver(pieces, results)
                waited = began - min(piece.request.since for piece in pieces)
                self._record(BatchRecord(sum(len(piece.texts) for piece in pieces), seconds, waited))
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _wait_for_batch(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._queue:
            self._changed.clear()
            await self._changed.wait()
        while self._queue and self.waiting < self._max_batch:
            left = max(self._queue[0].since, self._ended) + self._max_wait - loop.time()
            if left <= 0:
                return
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Piece]:
        """Return the texts of the next batch; requests that have more go behind the others."""
        pieces: list[_Piece] = []
        room = self._max_batch
        while self._queue and room:
            share = max(1, room // len(self._queue))
            for _ in range(len(self._queue)):
                request = self._queue.popleft()
                count = min(share, request.left, room)
                pieces.append(_Piece(request, request.texts[request.taken : request.taken + count]))
                request.taken += count
                room -= count
                if request.left:
                    self._queue.append(request)
                if not room:
                    break
        return pieces

    def _work(self, pieces: list[_Piece]) -> list[Sequence[Answer] | Exception]:
        """Return the answers of each piece, or the error of its question; runs in the thread."""
        groups: dict[Question, list[int]] = {}
        for place, piece in enumerate(pieces):
            groups.setdefault(piece.request.question, []).append(place)
        results: list[Sequence[Answer] | Exception] = [[]] * len(pieces)
        for question, places in groups.items():
            try:
                answers = self._answer([text for place in places for text in pieces[place].texts], question)
            except Exception as error:  # one question must not end the thread, nor fail the others
                for place in places:
                    results[place] = error
                continue
            start = 0
            for place in places:
                results[place] = answers[start : start + len(pieces[place].texts)]
                start += len(pieces[place].texts)
            assert start == len(answers)
        return results


def _deliver(pieces: list[_Piece], results: list[Sequence[Answer] | Exception]) -> None:
    for piece, result in zip(pieces, results, strict=True):
        request = piece.request
        if request.result.done():  # cancelled, or failed in an earlier batch
            continue
        if isinstance(result, Exception):
            request.result.set_exception(result)
            continue
        request.answers.extend(result)
        if len(request.answers) == len(request.texts):
            request.result.set_result(request.answers)
