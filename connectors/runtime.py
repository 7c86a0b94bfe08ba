"""The loop that brings a source to Kafka: read, publish, wait for Kafka, store the position, acknowledge; and retries.

Promise 1 lives here: `_acknowledge` is the only place that lets a source forget, and it runs after Kafka has every
record up to the position and the position itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from connectors.observing import Observed, Observer
from connectors.source import Batch, Position, Source, SourceRecord
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import EnvironmentProblem, PositionLost, Retryable

log = logging.getLogger(__name__)

_TAIL = slice(-31, -24)
"""Where `"op":"c` stands before `","ts_ms":<13 digits>}`."""
_CODES = {"snapshot": b"r", "create": b"c", "update": b"u", "delete": b"d", "truncate": b"t"}
_OPERATIONS = {operation: b'"op":"%b' % code for operation, code in _CODES.items()}
_MUTATION = re.compile(rb'"op":"([iudr])","mutation":')
_MUTATIONS = {b"i": "create", b"u": "update", b"d": "delete", b"r": "delete"}
"""What one of a wide-column database does: r deletes a range."""


LAST_SAVE_S_MIN = 1.0
"""For the position of what was delivered last, when nothing of the time to stop is left."""


class Sink(Protocol):
    """Where records go; connectors/publisher.py is the real one."""

    async def start(self) -> None: ...

    async def publish(self, records: list[SourceRecord]) -> asyncio.Future[Any]:
        """In order; what it returns is awaited for their delivery."""

    async def stop(self) -> None: ...


class PositionStore(Protocol):
    """Where the position lies; connectors/positions.py keeps it in Kafka."""

    async def load(self) -> Position | None: ...

    async def save(self, position: Position) -> None:
        """Returns when it is durable."""


class Attempt(msgspec.Struct, frozen=True):
    """What one attempt works with: fresh objects each time."""

    source: Source
    sink: Sink
    positions: PositionStore


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`in_flight_bytes_max`: published and not yet in Kafka; reading waits beyond it."""

    in_flight_bytes_max: int = 32 << 20
    acknowledge_interval_s: float = 0.2
    retry_delay_s: float = 0.5
    retry_delay_s_max: float = 30.0
    stop_timeout_s: float = 20.0
    patient_start: bool = True
    """False: a server that is away at the very first start ends the run, with exit code 3."""


class Statistics(msgspec.Struct):
    """What the metrics show."""

    records_read: int = 0
    records_delivered: int = 0
    bytes_delivered: int = 0
    bytes_in_flight: int = 0
    retries: int = 0
    opened: int = 0
    """Attempts that came as far as reading."""
    acknowledged: int = 0
    newest_commit_time_us: int = 0
    operations: Counter[str] = msgspec.field(default_factory=Counter)
    """Changes read, by operation."""
    snapshot_rows: Counter[str] = msgspec.field(default_factory=Counter)
    """Rows read by snapshots, by topic."""

    def count(self, records: Sequence[SourceRecord]) -> None:
        """Notes what was read. Every envelope of ours says its operation at the same distance from its end, where it
        is found in a small part of the time that a parser would take."""
        values = [value for record in records if (value := record.value) is not None]
        tails = b" ".join([value[_TAIL] for value in values])
        counted = 0
        for operation, written in _OPERATIONS.items():
            if count := tails.count(written):
                self.operations[operation] += count
                counted += count
        if counted < len(values):  # of other envelopes: mutations and messages
            self._count_mutations(records)
        if _OPERATIONS["snapshot"] in tails:
            self.snapshot_rows.update([record.topic for record in records])

    def _count_mutations(self, records: Sequence[SourceRecord]) -> None:
        for record in records:
            found = None if record.value is None else _MUTATION.search(record.value)
            if found is None:
                continue
            if b'"snapshot":"true"' in found.string[: found.start()]:
                self.operations["snapshot"] += 1
                self.snapshot_rows[record.topic] += 1
            else:
                self.operations[_MUTATIONS[found[1]]] += 1


class _PositionMoved(Retryable):
    """Load it again, at once."""


class _InFlight(msgspec.Struct):
    batch: Batch
    delivery: asyncio.Future[Any]
    observed: Observed | None = None


class Runtime:
    """Runs one source until `stop` is called or something ends it for good. `run` raises what is not Retryable."""

    def __init__(
        self,
        make: Callable[[], Awaitable[Attempt]],
        settings: RuntimeSettings | None = None,
        clock: Clock | None = None,
        randomness: random.Random | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._make = make
        self._observer = observer
        self._settings = settings or RuntimeSettings()
        self._clock = clock or SystemClock()
        self._random = randomness or random.Random()
        self._stopping = asyncio.Event()
        self.statistics = Statistics()
        self.source: Source | None = None
        """The source of the present attempt, for those who ask it for its lag; None between two."""
        self.trouble = ""
        """Why the last attempt ended, until one has brought something to Kafka again."""

    def stop(self) -> None:
        """Asks `run` to finish: what has been read is published and acknowledged first."""
        self._stopping.set()

    async def run(self) -> None:
        """Returns after `stop`. A Retryable error closes everything, waits with jitter and starts again."""
        delay_s = self._settings.retry_delay_s
        while not self._stopping.is_set():
            made = await self._make()
            self.source = made.source
            attempt = _Run(made, self._settings, self.statistics, self._clock, self._stopping, self._observer)
            attempt.on_progress = self._forget_trouble
            try:
                await attempt.run()
                return
            except _PositionMoved:
                continue
            except Retryable as error:
                if not self._settings.patient_start and not self.statistics.acknowledged:
                    raise EnvironmentProblem(str(error)) from error
                self.statistics.retries += 1
                self.trouble = str(error)
                self.statistics.bytes_in_flight, self.source = 0, None  # what was on its way is read again
                if attempt.progressed:
                    delay_s = self._settings.retry_delay_s
                wait_s = delay_s * (0.5 + self._random.random())
                log.warning("%s Trying again in %.1f s.", error, wait_s)
                await _first_of(self._stopping.wait(), self._clock.sleep(wait_s))
                delay_s = min(delay_s * 2, self._settings.retry_delay_s_max)

    def _forget_trouble(self) -> None:
        self.trouble = ""


class _Run:
    """One attempt: a reading task that runs ahead by a bounded number of bytes, and a task that acknowledges."""

    def __init__(
        self,
        attempt: Attempt,
        settings: RuntimeSettings,
        statistics: Statistics,
        clock: Clock,
        stopping: asyncio.Event,
        observer: Observer | None,
    ) -> None:
        self._observer = observer
        self._source = attempt.source
        self._sink = attempt.sink
        self._positions = attempt.positions
        self._settings = settings
        self._statistics = statistics
        self._clock = clock
        self._stopping = stopping
        self._in_flight: deque[_InFlight] = deque()
        self._bytes = 0
        self._added = asyncio.Event()
        self._room = asyncio.Event()
        self._delivered: Position | None = None
        self._acknowledged: Position | None = None
        self._to_acknowledge = asyncio.Event()
        self.progressed = False
        self.on_progress: Callable[[], None] = lambda: None

    async def run(self) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._sink.start()
            await self._open()
            self._statistics.opened += 1
            reading = asyncio.create_task(self._read(), name="connector-read")
            tasks = [
                reading,
                asyncio.create_task(self._confirm(), name="connector-confirm"),
                asyncio.create_task(self._acknowledge_often(), name="connector-acknowledge"),
            ]
            await self._until_stopped(tasks)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await self._finish(tasks)
        finally:
            open_futures = [*tasks, *(item.delivery for item in self._in_flight)]
            for future in open_futures:
                future.cancel()
            await asyncio.gather(*open_futures, return_exceptions=True)
            await self._source.close()
            await self._sink.stop()

    async def _open(self) -> None:
        """A predecessor that was just leaving may have moved on after we looked: then its newer position counts."""
        position = await self._positions.load()
        try:
            await self._source.open(position)
        except PositionLost as error:
            if await self._positions.load() != position:
                raise _PositionMoved("The position moved while it was read.") from error
            raise

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            stopped.cancel()

    async def _finish(self, tasks: list[asyncio.Task[None]]) -> None:
        """After the last read: wait for Kafka, acknowledge what it has."""
        deadline = self._clock.monotonic_s() + self._settings.stop_timeout_s
        while self._in_flight and self._clock.monotonic_s() < deadline:
            for task in tasks[1:]:
                if task.done():
                    task.result()
            await self._clock.sleep(0.01)
        # Kafka may be gone: a position that is not stored is no loss, an end that does not come is.
        saving = asyncio.ensure_future(self._acknowledge())
        left_s = max(LAST_SAVE_S_MIN, deadline - self._clock.monotonic_s())
        await _first_of(asyncio.wait({saving}), self._clock.sleep(left_s))
        if saving.done():
            saving.result()
        else:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)

    async def _read(self) -> None:
        limit = self._settings.in_flight_bytes_max
        statistics = self._statistics
        while True:
            while self._bytes > limit:
                self._room.clear()
                await self._room.wait()
            batch = await self._source.read()
            observed = None
            if self._observer is not None and batch.records:
                observed = self._observer.captured(batch)
                batch = observed.batch
            delivery = await self._sink.publish(batch.records) if batch.records else _nothing()
            self._in_flight.append(_InFlight(batch, delivery, observed))
            self._bytes += batch.bytes_total
            statistics.records_read += len(batch.records)
            statistics.count(batch.records)
            statistics.bytes_in_flight = self._bytes
            self._added.set()
            await asyncio.sleep(0)  # let what was handed over go out before the next is computed

    async def _confirm(self) -> None:
        """Deliveries in order of reading: a position counts only when everything before it is in Kafka."""
        while True:
            while not self._in_flight:
                self._added.clear()
                await self._added.wait()
            first = self._in_flight[0]
            await first.delivery
            batch = first.batch
            if first.observed is not None:
                first.observed.delivered()
            if batch.position is not None:
                self._delivered = batch.position
                self._to_acknowledge.set()
            self._in_flight.popleft()
            self._bytes -= batch.bytes_total
            self._room.set()
            statistics = self._statistics
            statistics.records_delivered += len(batch.records)
            statistics.bytes_delivered += batch.bytes_total
            statistics.bytes_in_flight = self._bytes
            statistics.newest_commit_time_us = max(statistics.newest_commit_time_us, batch.commit_time_us)

    async def _acknowledge_often(self) -> None:
        while True:
            await self._to_acknowledge.wait()
            self._to_acknowledge.clear()
            await self._acknowledge()
            await self._clock.sleep(self._settings.acknowledge_interval_s)

    async def _acknowledge(self) -> None:
        """Promise 1: Kafka has the records, then it has the position, and only then may the source forget."""
        position = self._delivered
        if position is None or position is self._acknowledged:
            return
        await self._positions.save(position)
        await self._source.acknowledge(position)
        self._acknowledged = position
        self._statistics.acknowledged += 1
        self.progressed = True
        self.on_progress()


def _nothing() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


async def _first_of(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
