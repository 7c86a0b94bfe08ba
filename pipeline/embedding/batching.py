"""Embeds outside the event loop: a few threads, a bounded queue, texts of several callers in one batch.

A batch goes when it is full or when the oldest text in it has waited long enough; while the engine is busy, texts
gather, so that a burst costs few calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.errors import Fatal, Poison, Retryable
from pipeline.embedding.engine import Embedded, Engine

if TYPE_CHECKING:
    import numpy

    Vector = numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`batch_texts_max` is cut to what the engine takes; callers wait while `queue_texts_max` texts are queued.
    `wait_ms` of 0: an engine that has nothing to do begins at once, and what comes meanwhile goes together."""

    batch_texts_max: int = 32
    wait_ms: float = 0.0
    queue_texts_max: int = 2000
    threads: int = 1


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """One text's vector, of length 1; see Embedded."""

    vector: Vector
    tokens: int
    tokens_cut: int


@dataclass(slots=True)
class _Waiting:
    text: str
    result: asyncio.Future[EmbeddedText]


class EmbeddingPool:
    """Made in the event loop that uses it. `close` refuses what still waits; the engine stays open."""

    def __init__(self, engine: Engine, limits: BatchLimits | None = None) -> None:
        self._engine, self._limits = engine, limits or BatchLimits()
        self._texts_max = max(1, min(self._limits.batch_texts_max, engine.texts_max))
        self._queue: deque[_Waiting] = deque()
        self._busy: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Condition()
        self._threads = ThreadPoolExecutor(self._limits.threads, thread_name_prefix="embedding")
        self._closed = False
        self.cost: float | None = 0.0
        """So far; None as soon as the price of a call was unknown."""

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def embed(self, texts: Sequence[str]) -> list[EmbeddedText | Poison]:
        """One answer per non-empty text; a text that never works is its own Poison. Raises Retryable and Fatal."""
        futures: list[asyncio.Future[EmbeddedText]] = []
        try:
            for text in texts:
                await self._wait_for_room()
                futures.append(asyncio.get_running_loop().create_future())
                self._queue.append(_Waiting(text, futures[-1]))
                if len(self._queue) >= self._texts_max:
                    self._start()
            self._start_later()
            answers = await asyncio.gather(*futures, return_exceptions=True)
        except (asyncio.CancelledError, Retryable):
            for future in futures:
                future.cancel()
            raise
        found: list[EmbeddedText | Poison] = []
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Poison):
                raise answer
            found.append(answer)
        return found

    async def close(self) -> None:
        """Waits for what runs in a thread."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        _refuse(self._queue, _closing())
        self._queue.clear()
        async with self._room:
            self._room.notify_all()
        await asyncio.gather(*self._busy, return_exceptions=True)
        self._threads.shutdown(wait=False)

    async def _wait_for_room(self) -> None:
        if not self._closed and len(self._queue) >= self._limits.queue_texts_max:
            # The queue may be shorter than a batch: nobody would start it.
            self._start()
            async with self._room:
                await self._room.wait_for(lambda: self._closed or len(self._queue) < self._limits.queue_texts_max)
        if self._closed:
            raise _closing()

    def _start_later(self) -> None:
        if self._queue and self._timer is None and len(self._busy) < self._limits.threads:
            self._timer = asyncio.get_running_loop().call_later(self._limits.wait_ms / 1000, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._start()

    def _start(self) -> None:
        while self._queue and len(self._busy) < self._limits.threads:
            batch = [self._queue.popleft() for _ in range(min(self._texts_max, len(self._queue)))]
            batch = [waiting for waiting in batch if not waiting.result.done()]
            task = asyncio.ensure_future(self._run(batch))
            self._busy.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        self._start()
        task.result()

    async def _run(self, batch: list[_Waiting]) -> None:
        async with self._room:
            self._room.notify_all()
        if not batch:
            return
        try:
            embedded = await self._call([waiting.text for waiting in batch])
        except Poison as error:
            if len(batch) == 1:
                _refuse(batch, error)
                return
            # One of them is the bad one: each for itself.
            for waiting in batch:
                if not waiting.result.done():
                    await self._run([waiting])
        except Exception as error:  # noqa: BLE001 - whoever waits must learn of it, whatever it is
            _refuse(batch, error)
        else:
            for number, waiting in enumerate(batch):
                if not waiting.result.done():
                    found = EmbeddedText(embedded.vectors[number], embedded.tokens[number], embedded.tokens_cut[number])
                    waiting.result.set_result(found)

    async def _call(self, texts: list[str]) -> Embedded:
        loop = asyncio.get_running_loop()
        embedded = await loop.run_in_executor(self._threads, self._engine.embed, texts)
        if embedded.vectors.shape != (len(texts), self._engine.identity.dimension):
            raise Fatal(f"the engine gave vectors of shape {embedded.vectors.shape} for {len(texts)} texts")
        self.cost = None if self.cost is None or embedded.cost is None else self.cost + embedded.cost
        return embedded


def _closing() -> Retryable:
    return Retryable("the embedding engine is being closed")


def _refuse(batch: Iterable[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.result.done():
            waiting.result.set_exception(error)
