"""What every source must pass: subclass SourceSuite and give it a `harness` fixture (see Harness).

The suite runs the production runtime against a sink and a position store in memory, where deliveries can be held back
and failed at will; the source talks to its real server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from connectors.runtime import Attempt, Runtime, RuntimeSettings
from connectors.source import Batch, Position, Source, SourceRecord
from pipeline.core.errors import EnvironmentProblem, PositionLost, Retryable
from tests.support.eventually import eventually

Rows = dict[str, dict[str, Any]]
"""Key as JSON text → row, as canonical values."""


class Harness(Protocol):
    """One table of a real server, with columns `id` (key) and `v` (text)."""

    async def write(self, sql: str) -> None:
        """Runs statements; `{table}` stands for the table's name."""

    async def rows(self) -> Rows:
        """What the table holds now, read without the connector."""

    def source(self) -> Source:
        """A new source object on the table; all of them share slot and server."""

    async def confirmed(self) -> int:
        """How far the server has been told that it may forget."""

    async def alien_position(self, position: Position) -> Position:
        """The same position as if it came from another server."""

    async def skip_ahead(self) -> None:
        """Moves the server's own bookmark past changes that nobody has read."""

    async def lose(self) -> None:
        """Makes the server forget what comes after our position."""


class MemorySink:
    """Keeps what is delivered. While `hold` is set nothing is delivered; `failures` are raised, one per publish."""

    def __init__(self) -> None:
        self.records: list[SourceRecord] = []
        self.handed_over = 0
        self.failures: list[Exception] = []
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def publish(self, records: list[SourceRecord]) -> asyncio.Future[None]:
        self.handed_over += len(records)
        if self.failures:
            raise self.failures.pop()
        return asyncio.ensure_future(self._deliver(records))

    async def _deliver(self, records: list[SourceRecord]) -> None:
        await self._open.wait()
        self.records.extend(records)

    def fold(self) -> Rows:
        """The rows after all records: never backwards, deletes included."""
        rows: dict[str, tuple[tuple[int, int], dict[str, Any] | None]] = {}
        for record in self.records:
            apply(rows, record)
        return {key: row for key, (_, row) in rows.items() if row is not None}


TRUNCATED = "truncated"
"""Under this key `apply` keeps the newest truncate: whatever is older than it is refused."""


def apply(rows: dict[str, tuple[tuple[int, int], dict[str, Any] | None]], record: SourceRecord) -> None:
    """One record on top of what is known, as a consumer that keeps versions would do it."""
    if record.value is None:
        return
    event = msgspec.json.decode(record.value)
    first, second = msgspec.json.decode(event["source"]["sequence"])
    version = (int(first), int(second))
    floor = rows.get(TRUNCATED, ((0, 0), None))[0]
    if event["op"] == "t":
        rows[TRUNCATED] = (max(floor, version), None)
        rows.update({key: (version, None) for key, (old, _) in rows.items() if old < version})
    elif event["op"] in "crud" and version >= max(floor, rows.get(record.key.decode(), ((0, 0), None))[0]):
        rows[record.key.decode()] = (version, event["after"])


class MemoryPositions:
    """Every position that was saved, in order; `events` tells what came before what.

    While `hold` is set nothing is saved; `held` are those that wait.
    """

    def __init__(self, events: list[tuple[str, Any]] | None = None) -> None:
        self.saved: list[Position] = []
        self.held: list[Position] = []
        self.events = events if events is not None else []
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def load(self) -> Position | None:
        return self.saved[-1] if self.saved else None

    async def save(self, position: Position) -> None:
        if not self._open.is_set():
            self.held.append(position)
        await self._open.wait()
        self.events.append(("saved", position))
        self.saved.append(position)


class Watched:
    """A source whose acknowledgements are written down."""

    def __init__(self, source: Source, events: list[tuple[str, Any]]) -> None:
        self.inner = source
        self._events = events
        self.open, self.read, self.close = source.open, source.read, source.close

    async def acknowledge(self, position: Position) -> None:
        self._events.append(("acknowledged", position))
        await self.inner.acknowledge(position)


class Running:
    """A runtime in the background, over memory sink and positions."""

    def __init__(self, harness: Harness, sink: MemorySink | None = None, positions: MemoryPositions | None = None):
        self.sink = sink or MemorySink()
        self.positions = positions or MemoryPositions()
        self.sources: list[Source] = []
        self._harness = harness
        settings = RuntimeSettings(acknowledge_interval_s=0.01, retry_delay_s=0.05, in_flight_bytes_max=1 << 20)
        self.runtime = Runtime(self._attempt, settings, randomness=random.Random(1))
        self.task: asyncio.Task[None] | None = None

    async def _attempt(self) -> Attempt:
        source = self._harness.source()
        self.sources.append(source)
        return Attempt(Watched(source, self.positions.events), self.sink, self.positions)

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
        def checked() -> Any:
            self.alive()
            return probe()

        await eventually(checked, what=what, timeout_s=40)

    async def until_equal(self) -> None:
        """The records, folded, are the table."""

        async def same() -> bool:
            self.alive()
            return self.sink.fold() == await self._harness.rows()

        await eventually(same, what="records equal to the table", timeout_s=40)


async def read_until(source: Source, marker: str) -> list[Batch]:
    """Batches up to the one whose records hold `marker`."""
    batches = []
    while True:
        batch = await asyncio.wait_for(source.read(), timeout=30)
        batches.append(batch)
        if any(record.value is not None and marker.encode() in record.value for record in batch.records):
            return batches


class SourceSuite:
    """The tests. Every one fails for a source that breaks its promise."""

    async def test_snapshot_is_complete(self, harness: Harness) -> None:
        await harness.write("INSERT INTO {table} SELECT i, 'row ' || i FROM generate_series(1, 3000) i")
        async with Running(harness) as running:
            await running.until_equal()
            operations = {msgspec.json.decode(r.value)["op"] for r in running.sink.records if r.value is not None}
            assert operations <= {"r", "m"}

    async def test_no_gap_between_snapshot_and_stream(self, harness: Harness) -> None:
        await harness.write("INSERT INTO {table} SELECT i, 'row ' || i FROM generate_series(1, 500) i")
        async with Running(harness) as running:
            number, after_snapshot = 0, 0
            while after_snapshot < 20:  # writes go on before, while and after the snapshot is taken
                await harness.write(f"INSERT INTO {{table}} VALUES ({1000 + number}, 'new')")
                await harness.write(f"UPDATE {{table}} SET v = 'changed {number}' WHERE id = {1 + number % 160 * 3}")
                await harness.write(f"DELETE FROM {{table}} WHERE id = {2 + number % 160 * 3}")
                running.alive()
                number += 1
                after_snapshot += bool(running.sink.records)
            await running.until_equal()
            created = [c for c in map(_change, running.sink.records) if c and c[0] == "c"]
            assert 0 < len(created) < number, "the writes ran across the snapshot"

    async def test_resumes_from_every_position(self, harness: Harness) -> None:
        await harness.write("INSERT INTO {table} VALUES (1, 'a')")
        async with Running(harness) as running:
            await running.until_equal()
        start = running.positions.saved[-1]
        first = harness.source()
        await first.open(start)
        try:
            for number in range(5):
                await harness.write(
                    f"INSERT INTO {{table}} VALUES ({10 + number}, 'n'); UPDATE {{table}} SET v = v || 1"
                )
            await harness.write("INSERT INTO {table} VALUES (99, 'marker')")
            batches = await read_until(first, "marker")
        finally:
            await first.close()
        changes = [_change(r) for batch in batches for r in batch.records if _change(r)]
        done = 0
        for batch in batches:
            done += len([r for r in batch.records if _change(r)])
            if batch.position is None:
                continue
            again = harness.source()
            await again.open(batch.position)
            try:
                rest = await read_until(again, "marker") if done < len(changes) else []
            finally:
                await again.close()
            suffix = [_change(r) for later in rest for r in later.records if _change(r)]
            assert suffix[-len(changes[done:]) or len(suffix) :] == changes[done:], "something is missing"
            assert len(suffix) <= len(changes), "repeats at most the open transaction"

    async def test_acknowledges_only_what_was_delivered_and_stored(self, harness: Harness) -> None:
        async with Running(harness) as running:
            await running.until_equal()
            await running.until(lambda: running.positions.saved, "a first position")
            running.sink.hold()
            await harness.write("INSERT INTO {table} VALUES (1, 'held back')")
            await running.until(lambda: b"held back" in running_bytes(running, harness), "the change was read")
            before = await harness.confirmed()
            written = len(running.positions.saved)
            for number in range(3):
                await harness.write(f"UPDATE {{table}} SET v = 'held back {number}'")
            await running.until(lambda: running.sink.handed_over >= 4, "later changes were read, too")
            assert len(running.positions.saved) <= written + 1 and await harness.confirmed() == before
            running.sink.release()
            await running.until_equal()
            await eventually(harness.confirmed, lambda now: now > before, what="the server was told")
        events = running.positions.events
        acknowledged = [position for kind, position in events if kind == "acknowledged"]
        assert acknowledged == [position for kind, position in events if kind == "saved"]
        for index, (kind, position) in enumerate(events):
            assert kind == "saved" or events[index - 1] == ("saved", position), "stored before acknowledged"

    async def test_failing_sink_loses_nothing(self, harness: Harness) -> None:
        async with Running(harness) as running:
            for number in range(20):
                if number % 5 == 0:
                    running.sink.failures.append(Retryable("the sink is away"))
                await harness.write(f"INSERT INTO {{table}} VALUES ({number}, 'x')")
            await running.until_equal()
            assert len(running.sources) > 1, "it was started again"

    async def test_crash_anywhere_and_go_on(self, harness: Harness) -> None:
        sink, positions = MemorySink(), MemoryPositions()
        await harness.write("INSERT INTO {table} SELECT i, 'row ' || i FROM generate_series(1, 2000) i")
        for number in range(5):
            async with Running(harness, sink, positions) as running:
                await harness.write(f"UPDATE {{table}} SET v = 'round {number}' WHERE id % 7 = {number}")
                await harness.write(f"DELETE FROM {{table}} WHERE id % 50 = {number}")
                seen = sink.handed_over
                await running.until(lambda seen=seen: sink.handed_over > seen, "it reads")  # type: ignore[misc]
                await running.crash()
        async with Running(harness, sink, positions) as running:
            await running.until_equal()

    async def test_crash_before_the_first_position_is_stored(self, harness: Harness) -> None:
        """Whoever comes after such a crash begins anew, and would never hear of a row deleted in between."""
        await harness.write("INSERT INTO {table} SELECT i, 'row ' || i FROM generate_series(1, 500) i")
        sink, positions = MemorySink(), MemoryPositions()
        async with Running(harness, sink, positions) as running:
            await running.until(lambda: positions.saved, "it intends to begin")
            positions.hold()
            await running.until(lambda: positions.held, "it has begun, and says so")
            await asyncio.sleep(0.5)  # time to read ahead, for a source that would
            await running.crash()
        await harness.write("DELETE FROM {table} WHERE id <= 250")
        positions.release()
        async with Running(harness, sink, positions) as running:
            await running.until_equal()

    async def test_lost_position_is_refused(self, harness: Harness) -> None:
        async with Running(harness) as running:
            await running.until(lambda: running.positions.saved[1:], "positions")
        position = running.positions.saved[-1]
        await _refused(harness.source(), await harness.alien_position(position))
        await harness.write("INSERT INTO {table} VALUES (1, 'nobody reads this')")
        await harness.skip_ahead()
        await _refused(harness.source(), position)
        await harness.lose()
        await _refused(harness.source(), position)

    async def test_second_reader_is_refused(self, harness: Harness) -> None:
        async with Running(harness) as running:
            await running.until(lambda: running.positions.saved[2:], "it streams")
            second = harness.source()
            try:
                await second.open(running.positions.saved[-1])
                await asyncio.wait_for(second.read(), timeout=30)
            except EnvironmentProblem as error:
                assert "two connectors" in str(error)
            else:
                raise AssertionError("a second reader was let in")
            finally:
                await second.close()
            await harness.write("INSERT INTO {table} VALUES (1, 'still read by the first')")
            await running.until_equal()

    async def test_idle_position_moves_and_close_is_quick(self, harness: Harness) -> None:
        async with Running(harness) as running:
            await running.until(lambda: running.positions.saved[2:], "positions move without changes")
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not [task for task in tasks if not task.done()], "tasks left behind"


def running_bytes(running: Running, _harness: Harness) -> bytes:
    """A held-back sink has got something when more was handed over than delivered."""
    return b"held back" if running.sink.handed_over > len(running.sink.records) else b""


def _change(record: SourceRecord) -> tuple[str, str, Any] | None:
    if record.value is None:
        return None
    event = msgspec.json.decode(record.value)
    return (event["op"], record.key.decode(), event["after"]) if event["op"] in "cud" else None


async def _refused(source: Source, position: Position) -> None:
    try:
        await source.open(position)
        await asyncio.wait_for(source.read(), timeout=30)
    except PositionLost as error:
        assert "--reset" in str(error), error
    else:
        raise AssertionError("it went on from a position that is lost")
    finally:
        await source.close()
