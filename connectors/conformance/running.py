"""The source under test in motion: the production runtime over memory, or read by hand, batch by batch."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from connectors.conformance.harness import NAME, Folding, Harness, Rows
from connectors.conformance.limits import Limits
from connectors.conformance.memory import MemoryPositions, MemorySink, fold_rows
from connectors.conformance.topics import TopicLog
from connectors.conformance.waiting import eventually
from connectors.publisher import KafkaSettings
from connectors.registry import Configured, configure_one
from connectors.runtime import Attempt, Runtime, RuntimeSettings
from connectors.source import Batch, Position, Source, SourceRecord, UsingKafka

STREAMED_ID = 424_242
IN_FLIGHT_BYTES_MAX = 1 << 20
LAST_POSITIONS: deque[Position] = deque(maxlen=3)
"""For the report of a failure."""


class Beside:
    """What another program of the source has written to Kafka, beside the suite's sink: UsingKafka."""

    def __init__(self, bootstrap_servers: str, topics: Sequence[str]) -> None:
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap_servers, partitions=1)
        self._logs = [TopicLog(bootstrap_servers, topic) for topic in topics]

    @property
    def records(self) -> list[SourceRecord]:
        """As of the last poll."""
        return [
            SourceRecord(one.topic, one.key or b"", one.value, one.headers) for log in self._logs for one in log.records
        ]

    async def poll(self) -> None:
        for log in self._logs:
            await log.poll()

    async def close(self) -> None:
        for log in self._logs:
            await log.close()


class Target(Protocol):
    """What `Running` needs: objects of one source, and what is true."""

    def source(self) -> Source: ...

    async def rows(self) -> Rows: ...


class Subject:
    """The harness with its section parsed: makes sources, runs and reads them."""

    def __init__(self, harness: Harness, beside: Beside | None = None) -> None:
        self.harness = harness
        self.configured: Configured = configure_one(harness.plugin, NAME, harness.section())
        self.beside = beside

    def source(self, configured: Configured | None = None) -> Source:
        """`configured`: by another section than the harness's own."""
        made = (configured or self.configured).source()
        if self.beside is not None and isinstance(made, UsingKafka):
            made.use_kafka(self.beside.kafka)
        return made

    async def rows(self) -> Rows:
        return await self.harness.rows()

    async def write(self, rows: Mapping[int, str]) -> None:
        await self.harness.write(rows)

    def fold(self, records: Sequence[SourceRecord]) -> Rows:
        return self.harness.fold(records) if isinstance(self.harness, Folding) else fold_rows(records)

    def running(self, sink: MemorySink | None = None, positions: MemoryPositions | None = None) -> Running:
        return Running(self, sink, positions, self.fold, self.beside)

    @asynccontextmanager
    async def opened(self, position: Position | None) -> AsyncIterator[Source]:
        source = self.source()
        try:
            await source.open(position)
            yield source
        finally:
            await source.close()

    async def streaming_position(self) -> Position:
        """Where everything of now has been read, by a run that has ended. Writes a row, to be sure that it streams."""
        await self.write({STREAMED_ID: "before the stream"})
        async with self.running() as running:
            await running.until_equal()
            await self.write({STREAMED_ID: "in the stream"})
            await running.until_equal()
            await running.until(lambda: running.positions.saved, "a first position")
        if self.beside is not None:
            await self.beside.close()  # its tasks and connections are none of the source's
        return running.positions.saved[-1]


class Watched:
    """A source whose batches and acknowledgements are written down."""

    def __init__(self, source: Source, events: list[tuple[str, Any]], batches: list[Batch]) -> None:
        self.inner = source
        self._events = events
        self._batches = batches
        self.open, self.close = source.open, source.close

    async def read(self) -> Batch:
        batch = await self.inner.read()
        self._batches.append(batch)
        if batch.position is not None:
            LAST_POSITIONS.append(batch.position)
        return batch

    async def acknowledge(self, position: Position) -> None:
        self._events.append(("acknowledged", position))
        await self.inner.acknowledge(position)


class Running:
    """A runtime in the background, over memory sink and positions."""

    def __init__(
        self,
        target: Target,
        sink: MemorySink | None = None,
        positions: MemoryPositions | None = None,
        fold: Callable[[Sequence[SourceRecord]], Rows] = fold_rows,
        beside: Beside | None = None,
    ) -> None:
        self.sink = sink or MemorySink()
        self.positions = positions or MemoryPositions()
        self.sources: list[Source] = []
        self.batches: list[Batch] = []
        """Everything that was read, in order."""
        self._target = target
        self._fold = fold
        self._beside = beside
        settings = RuntimeSettings(
            acknowledge_interval_s=0.01, retry_delay_s=0.05, in_flight_bytes_max=IN_FLIGHT_BYTES_MAX
        )
        self.runtime = Runtime(self._attempt, settings, randomness=random.Random(1))
        self.task: asyncio.Task[None] | None = None

    async def _attempt(self) -> Attempt:
        source = self._target.source()
        self.sources.append(source)
        return Attempt(Watched(source, self.positions.events, self.batches), self.sink, self.positions)

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self.runtime.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.runtime.stop()
        self.sink.release()
        await asyncio.wait_for(self.task, timeout=30)

    async def crash(self) -> None:
        """Ends it without letting it finish anything."""
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        self.task = asyncio.create_task(asyncio.sleep(0))

    def alive(self) -> None:
        if self.task is not None and self.task.done():
            self.task.result()

    async def until(self, probe: Callable[[], Awaitable[Any] | Any], what: str) -> None:
        async def checked() -> Any:
            self.alive()
            await self._poll()
            seen = probe()
            return await seen if inspect.isawaitable(seen) else seen

        await eventually(checked, what=what, timeout_s=Limits.patience_s)

    @property
    def records(self) -> list[SourceRecord]:
        """What Kafka has: of the source, and of the program beside it as of the last look."""
        return self.sink.records + (self._beside.records if self._beside is not None else [])

    @property
    def handed_over(self) -> int:
        """How many records were read by now, delivered or not."""
        return self.sink.handed_over + (len(self._beside.records) if self._beside is not None else 0)

    def fold(self) -> Rows:
        return self._fold(self.records)

    async def _poll(self) -> None:
        if self._beside is not None:
            await self._beside.poll()

    async def until_equal(self) -> None:
        """The records, folded, are the table."""

        async def difference() -> list[str]:
            self.alive()
            await self._poll()
            found, wanted = self.fold(), await self._target.rows()
            wrong = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
            shown = [f"{key}: read {found.get(key)!r:.200}, is {wanted.get(key)!r:.200}" for key in wrong[:3]]
            return [f"{len(wrong)} rows differ", *shown] if wrong else []

        await eventually(difference, _nothing, what="records equal to the table", timeout_s=Limits.patience_s)


def _nothing(seen: list[str]) -> bool:
    return not seen


async def read_until(source: Source, marker: str, *, acknowledge: bool = False) -> list[Batch]:
    """Batches up to the one whose records hold `marker`."""
    batches: list[Batch] = []
    while True:
        batch = await asyncio.wait_for(source.read(), Limits.patience_s)
        batches.append(batch)
        if batch.position is not None:
            LAST_POSITIONS.append(batch.position)
            if acknowledge:
                await source.acknowledge(batch.position)
        if any(record.value is not None and marker.encode() in record.value for record in batch.records):
            return batches
