"""The agents: thin. They take batches from Faust and run them, partitions side by side, one partition's in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from functools import partial
from typing import NoReturn, Protocol

from mode import get_logger

from pipeline.stores.store import ShardChanged
from pipeline.streams.lanes import RecordBatch

logger = get_logger(__name__)

Handle = Callable[[RecordBatch], Awaitable[None]]


class Rewinding(Protocol):
    """What a runner needs of the transport's consumer."""

    def rewind(self, reason: str) -> None: ...


class BatchRunner:
    """Runs up to `concurrency` batches at once; the transport gives out one per partition at a time.

    ShardChanged rewinds the transport. Anything else that a handler raises is not understood, so nothing may follow:
    `end_process` must not return, and nothing is committed.
    """

    def __init__(
        self,
        handle: Handle,
        *,
        concurrency: int,
        rewinding: Callable[[], Rewinding],
        end_process: Callable[[Exception], NoReturn],
    ) -> None:
        self._handle, self._rewinding, self._end_process = handle, rewinding, end_process
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stream: AsyncIterable[RecordBatch]) -> None:
        """The body of an agent."""
        async for batch in stream:
            await self._slots.acquire()
            task = asyncio.ensure_future(self._run(batch))
            if not batch.begin(task.cancel):
                task.cancel()
                self._slots.release()
                continue
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, batch))

    async def _run(self, batch: RecordBatch) -> None:
        try:
            await self._handle(batch)
        except ShardChanged as error:
            self._rewinding().rewind(str(error))
        except Exception as error:  # noqa: BLE001 - the one place where the unknown ends the process
            self._end_process(error)
        else:
            batch.finish()

    def _ended(self, batch: RecordBatch, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        batch.release()
