"""One lane per partition: at most one batch is on its way, the next one fills meanwhile.

While Kafka is quick, batches are small and leave at once; when it is slow, they grow by themselves, so that throughput
does not depend on its latency. Order within a partition is the order of `append`, also over retries.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pipeline.core.errors import CtxpipeError, Fatal


class BatchProducer(Protocol):
    """What a lane needs of aiokafka's producer."""

    def create_batch(self) -> Any: ...

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]: ...


class PendingBatch:
    """Records of one partition that travel together; `done` ends when Kafka has them, or with a mapped error."""

    __slots__ = ("_append", "builder", "done")

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self._append = builder.append
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(_seen)

    def add(self, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> bool:
        """False when it is full: nothing was added."""
        return self._append(timestamp=None, key=key, value=value, headers=list(headers)) is not None


def _seen(future: asyncio.Future[None]) -> None:
    """An error that nobody waits for any more is no news: the run ends by another one."""
    if not future.cancelled():
        future.exception()


class Lane:
    """The way of one partition. After a failure nothing more is sent: a later batch must not overtake a lost one."""

    __slots__ = ("_errors", "_failure", "_partition", "_producer", "_task", "_topic", "_waiting", "open")

    def __init__(
        self, producer: BatchProducer, topic: str, partition: int, errors: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._partition = partition
        self._errors = errors
        self._waiting: deque[PendingBatch] = deque()
        self._task: asyncio.Task[None] | None = None
        self._failure: CtxpipeError | None = None
        self.open: PendingBatch | None = None

    def append(self, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> PendingBatch:
        """Into the open batch, or into a new one when there is none or it is full. Raises what failed before."""
        if self.open is not None:
            if self.open.add(key, value, headers):
                return self.open
            self._waiting.append(self.open)
        if self._failure is not None:
            raise self._failure
        self.open = PendingBatch(self._producer.create_batch())
        self.open.add(key, value, headers)
        return self.open

    def go(self) -> None:
        """Sends what there is, now or as soon as the batch before it has arrived."""
        if self._task is None and (self.open is not None or self._waiting):
            self._task = asyncio.create_task(self._send(), name=f"lane-{self._topic}-{self._partition}")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _send(self) -> None:
        try:
            while self._failure is None and (batch := self._next()) is not None:
                await self._deliver(batch)
        finally:
            self._task = None

    def _next(self) -> PendingBatch | None:
        if self._waiting:
            return self._waiting.popleft()
        batch, self.open = self.open, None
        return batch

    async def _deliver(self, batch: PendingBatch) -> None:
        batch.builder.close()
        try:
            with self._errors():
                await (await self._producer.send_batch(batch.builder, self._topic, partition=self._partition))
        except CtxpipeError as error:
            self._fail(error, batch)
        except Exception as error:  # noqa: BLE001 - whoever waits for the delivery would wait for ever
            self._fail(Fatal(f"A batch for {self._topic} could not be sent, and why is not known: {error!r}"), batch)
        else:
            if not batch.done.done():
                batch.done.set_result(None)

    def _fail(self, error: CtxpipeError, batch: PendingBatch) -> None:
        self._failure = error
        for lost in (batch, *self._waiting, *([self.open] if self.open is not None else [])):
            if not lost.done.done():
                lost.done.set_exception(error)
        self._waiting.clear()
        self.open = None
