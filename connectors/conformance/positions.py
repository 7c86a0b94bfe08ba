"""The suite's tests of promise 1: whatever ends the connector, nothing is lost, and nothing is forgotten early."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import Any

import msgspec

from connectors.conformance.harness import Confirming, Foreign, Losing, needs
from connectors.conformance.killed import Killed
from connectors.conformance.limits import Limits
from connectors.conformance.memory import MemoryPositions, MemorySink, changes_of
from connectors.conformance.running import Running, Subject, read_until
from connectors.conformance.snapshots import delete_some
from connectors.conformance.waiting import eventually
from connectors.source import Batch, Position, Source
from pipeline.core.errors import PositionLost, Retryable

KILLS = 3


class PositionTests:
    """A position is a promise that everything before it has been read and nothing after it."""

    async def test_positions_are_json_and_increase(self, subject: Subject) -> None:
        await subject.write({number: f"row {number}" for number in range(1, 300)})
        async with subject.running() as running:
            await running.until_equal()
            for number in range(10):
                await subject.write({number: f"changed {number}"})
                await running.until_equal()
            await asyncio.sleep(0.5)  # time goes by without changes
        positions = [batch.position for batch in running.batches if batch.position is not None]
        assert len(positions) > 1
        for position in positions:
            assert msgspec.json.decode(msgspec.json.encode(position)) == position
        orders = [subject.harness.order(position) for position in positions]
        for before, after in pairwise(orders):
            assert before < after, "a position that is not beyond the one before it"

    async def test_resumes_from_every_position(self, subject: Subject) -> None:
        start = await subject.streaming_position()
        batches = [Batch([], start)]
        async with subject.opened(start) as first:
            for number in range(6):  # read one by one: what is written at once may be one batch
                await subject.write({10 + number: "new", 1: f"changed {number}."})
                await delete_some(subject.harness, [10 + number - 2])
                batches += await read_until(first, f"changed {number}.")
            await subject.write({99: "the marker"})
            batches += await read_until(first, "the marker")
        written = [f"changed {number}." for number in range(6)]
        assert [text for text in written if text.encode() not in _bytes(batches)] == [], f"lost behind {start}"
        changes = _changes(batches)
        done = 0
        for batch in batches:
            done += len(_changes([batch]))
            if batch.position is None or done == len(changes):
                continue
            async with subject.opened(batch.position) as again:
                suffix = _changes(await read_until(again, "the marker"))
            missing = [change for change in changes[done:] if change not in suffix]
            assert not missing, f"lost behind {batch.position}"
            assert suffix[-len(changes[done:]) :] == changes[done:], f"another order behind {batch.position}"
            assert len(suffix) <= len(changes), "repeats at most the open transaction"

    async def test_what_was_not_acknowledged_comes_again(self, subject: Subject) -> None:
        start = await subject.streaming_position()
        read: list[list[tuple[str, str, Any]]] = []
        for _attempt in range(2):
            async with subject.opened(start) as source:
                if not read:
                    await subject.write({1: "a", 2: "b"})
                    await subject.write({99: "the marker"})
                read.append(_changes(await read_until(source, "the marker")))
        assert read[0] == read[1] and read[0]

    async def test_stores_a_position_only_after_its_records(self, subject: Subject) -> None:
        async with subject.running() as running:
            await running.until_equal()
            await running.until(lambda: running.positions.saved, "a first position")
            await _hold_a_change(subject, running)
            written = len(running.positions.saved)
            for number in range(3):
                await subject.write({2: f"held back {number}"})
            await asyncio.sleep(0.2)  # time to store what must not be stored
            assert len(running.positions.saved) <= written + 1
            running.sink.release()
            await running.until_equal()
        events = running.positions.events
        for index, (kind, position) in enumerate(events):
            assert kind == "saved" or events[index - 1] == ("saved", position), "stored before acknowledged"

    @needs(Confirming)
    async def test_the_server_is_told_only_after_kafka_has_it(self, subject: Subject, harness: Any) -> None:
        async with subject.running() as running:
            await running.until_equal()
            await running.until(lambda: running.positions.saved, "a first position")
            await _hold_a_change(subject, running)
            before = await harness.confirmed()
            handed_over = running.sink.handed_over
            for number in range(3):
                await subject.write({2: f"held back {number}"})
            await running.until(lambda: running.sink.handed_over >= handed_over + 3, "later changes were read, too")
            assert await harness.confirmed() == before, "the server may forget what Kafka does not have"
            running.sink.release()
            await running.until_equal()
            await eventually(harness.confirmed, lambda now: now > before, what="the server was told")

    async def test_a_failing_sink_loses_nothing(self, subject: Subject) -> None:
        await subject.write(dict.fromkeys(range(20), "there before"))
        sink = MemorySink()
        sink.failures.append(Retryable("the sink is away"))
        async with subject.running(sink) as running:
            for number in range(20):
                if number % 5 == 0:
                    running.sink.failures.append(Retryable("the sink is away"))
                await subject.write({number: "x"})
            await running.until_equal()
            assert len(running.sources) > 1, "it was started again"

    async def test_a_crash_anywhere_loses_nothing(self, subject: Subject) -> None:
        sink, positions = MemorySink(), MemoryPositions()
        await subject.write({number: f"row {number}" for number in range(1, 500)})
        for number in range(4):
            async with subject.running(sink, positions) as running:
                await subject.write(dict.fromkeys(range(number + 1, 500, 7), f"round {number}"))
                await delete_some(subject.harness, [*range(number + 1, 500, 50)])
                seen = running.handed_over
                await running.until(lambda run=running, seen=seen: run.handed_over > seen, "it reads")  # type: ignore[misc]
                await running.crash()
        async with subject.running(sink, positions) as running:
            await running.until_equal()

    async def test_kill_9_loses_nothing(self, subject: Subject, conformance_random: random.Random) -> None:
        """A process of its own, that nobody lets close anything."""
        await subject.write({number: f"row {number}" for number in range(1, 500)})
        sink, positions = MemorySink(), MemoryPositions()
        for number in range(KILLS):
            killed = Killed(subject, sink, positions)
            await killed.run(batches=conformance_random.randint(1, 6), store_last=bool(number % 2))
            await subject.write(dict.fromkeys(range(number + 1, 500, 9), f"round {number}"))
            await delete_some(subject.harness, [*range(number + 1, 500, 60)])
        async with subject.running(sink, positions) as running:
            await running.until_equal()

    @needs(Foreign)
    async def test_a_foreign_position_is_refused(self, subject: Subject, harness: Any) -> None:
        position = await subject.streaming_position()
        await _refused(subject.source(), await harness.foreign_position(position))

    @needs(Losing)
    async def test_a_lost_position_is_refused(self, subject: Subject, harness: Any) -> None:
        position = await subject.streaming_position()
        await subject.write({1: "nobody reads this"})
        await harness.lose()
        await _refused(subject.source(), position)


def _bytes(batches: list[Batch]) -> bytes:
    return b"".join(record.value or b"" for batch in batches for record in batch.records)


def _changes(batches: list[Batch]) -> list[tuple[str, str, Any]]:
    return changes_of([record for batch in batches for record in batch.records])


async def _hold_a_change(subject: Subject, running: Running) -> None:
    """From now on the sink holds everything, and it holds something."""
    running.sink.hold()
    await subject.write({1: "held back"})
    await running.until(lambda: running.sink.handed_over > len(running.sink.records), "the change was read")


async def _refused(source: Source, position: Position) -> None:
    """A position where going on would leave a gap ends the source, and the message says what a person can do."""
    try:
        async with asyncio.timeout(Limits.patience_s):
            await source.open(position)
            while not (await source.read()).records:
                pass  # a source that looks at what is kept for it from time to time may say first where it is
    except PositionLost as error:
        assert str(error)
    else:
        raise AssertionError("it went on from a position that is lost")
    finally:
        await source.close()
