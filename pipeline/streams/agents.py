"""The agents: thin. They take batches from Faust and run them, partitions side by side, one partition's in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from functools import partial
from typing import NoReturn, Protocol

from mode import get_logger

from pipeline.core.logging import log_fields
from pipeline.stores.store import ShardChanged
from pipeline.streams.lanes import RecordBatch

logger = get_logger(__name__)

GROUP_RECORDS_MAX = 1000
COMPANY_RECORDS_MIN = 250
"""What must be waiting before a group starts beside one that runs. Fewer records are served sooner by going together
when that one is done: side by side, small groups only take each other's processor time."""

Handle = Callable[[Sequence[RecordBatch]], Awaitable[None]]


class Rewinding(Protocol):
    """What a runner needs of the transport's consumer."""

    def rewind(self, reason: str) -> None: ...


class BatchRunner:
    """Runs up to `concurrency` groups of batches at once; the transport gives out one batch per partition at a time.

    A batch that finds nothing running goes at once. Meanwhile the batches of further partitions gather, and go together
    when it is done, or beside it once they are many: many partitions with a record each cost as little as one with
    many, and while one large group waits for the stores, another one is computed.

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
        self._concurrency = concurrency
        self._waiting: deque[RecordBatch] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stream: AsyncIterable[RecordBatch]) -> None:
        """The body of an agent."""
        async for batch in stream:
            self._waiting.append(batch)
            self._start_next()

    def _start_next(self) -> None:
        while self._waiting and self._may_start():
            group: list[RecordBatch] = []
            task = asyncio.ensure_future(self._run(group))
            records = 0
            while self._waiting and (not records or records + len(self._waiting[0].records) <= GROUP_RECORDS_MAX):
                batch = self._waiting.popleft()
                if batch.begin(task.cancel):
                    group.append(batch)
                    records += len(batch.records)
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, group))

    def _may_start(self) -> bool:
        if len(self._tasks) >= self._concurrency:
            return False
        return not self._tasks or sum(len(batch.records) for batch in self._waiting) >= COMPANY_RECORDS_MIN

    async def _run(self, group: Sequence[RecordBatch]) -> None:
        if not group:
            return
        with log_fields(**_place(group)):
            try:
                await self._handle(group)
            except ShardChanged as error:
                self._rewinding().rewind(str(error))
            except Exception as error:  # noqa: BLE001 - the one place where the unknown ends the process
                self._end_process(error)
            else:
                for batch in group:
                    batch.finish()

    def _ended(self, group: Sequence[RecordBatch], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        for batch in group:
            batch.release()
        self._start_next()


def _place(group: Sequence[RecordBatch]) -> dict[str, object]:
    """For log lines: where a group begins; of several partitions, of the first of them."""
    (topic, partition), records = group[0].partition, group[0].records
    place: dict[str, object] = {"topic": topic, "partition": partition}
    return {**place, "offset": records[0].offset} if records else place
