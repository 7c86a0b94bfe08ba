"""The suite's tests of the beginning: everything that is there is read, without a gap to what comes after."""

from __future__ import annotations

import asyncio
from typing import Any

from connectors.conformance.harness import Deleting, Harness, Snapshots, needs
from connectors.conformance.limits import Limits
from connectors.conformance.memory import MemoryPositions, MemorySink, from_snapshot
from connectors.conformance.running import Running, Subject
from connectors.source import Position, Source, SourceRecord

CHUNKS = 8
ROWS_OTHERWISE = 800
"""Of a source that does not read in chunks."""
KILLS_MAX = CHUNKS * 2
RESUMES_MAX = 10


class SnapshotTests:
    """From nothing to equal, whatever is written meanwhile and wherever it is killed."""

    async def test_the_start_reads_every_row(self, subject: Subject) -> None:
        await subject.write(many_rows(subject.harness))
        async with subject.running() as running:
            await running.until_equal()

    async def test_an_empty_table_is_a_start_too(self, subject: Subject) -> None:
        async with subject.running() as running:
            await running.until(lambda: running.positions.saved, "a first position")
            await subject.write({1: "the first row"})
            await running.until_equal()

    @needs(Snapshots)
    async def test_snapshot_rows_say_so(self, subject: Subject) -> None:
        await subject.write(many_rows(subject.harness))
        async with subject.running() as running:
            await running.until_equal()
            assert False not in map(from_snapshot, running.sink.records), "a row that was there came as a change"
            seen = len(running.sink.records)
            await subject.write({1: "changed"})
            await running.until_equal()
            assert True not in map(from_snapshot, running.sink.records[seen:]), "a change came as a snapshot row"

    async def test_no_gap_between_the_start_and_the_stream(self, subject: Subject) -> None:
        await subject.write(many_rows(subject.harness))
        async with subject.running() as running:
            number = 0
            while number < 10 or not running.sink.records:  # before, while and after the start is read
                await subject.write({100_000 + number: "new", 1 + number * 3: f"changed {number}"})
                await delete_some(subject.harness, [2 + number * 3])
                running.alive()
                number += 1
                await asyncio.sleep(0.001)
            for last in range(10):
                await subject.write({200_000 + last: "new", 1 + last * 3: "changed after"})
                await delete_some(subject.harness, [100_000 + last])
            await running.until_equal()

    async def test_killed_at_every_chunk_edge(self, subject: Subject) -> None:
        """Killed after one batch, then after two, and so on, until it comes through; rows change in between."""
        await subject.write(many_rows(subject.harness))
        sink, positions = MemorySink(), MemoryPositions()
        for number in range(1, KILLS_MAX):
            async with subject.running(sink, positions) as running:
                await running.until(lambda running=running, number=number: _far(running, number), "batches")  # type: ignore[misc]
                through = running.fold() == await subject.rows()
                await running.crash()
            if through and number > 3:
                break
            await subject.write({number * 7: f"changed {number}", 100_000 + number: "new"})
            await delete_some(subject.harness, [number * 5, 100_000 + number - 3])
        async with subject.running(sink, positions) as running:
            await running.until_equal()

    @needs(Snapshots)
    async def test_a_start_resumes_from_every_position(self, subject: Subject) -> None:
        """What was read up to a position, and what comes behind it, is every row."""
        rows = many_rows(subject.harness)
        await subject.write(rows)
        places: list[tuple[Position, list[SourceRecord]]] = []
        async with subject.opened(None) as source:
            await _read_start(source, rows, [], places)
        assert places, "no position before its end"
        for position, before in places[:: -max(1, len(places) // RESUMES_MAX)]:  # an early one may begin anew
            async with subject.opened(position) as source:
                await _read_start(source, rows, before, [])

    @needs(Deleting)
    async def test_a_kill_before_the_first_position_is_stored(self, subject: Subject, harness: Any) -> None:
        """Whoever comes after such a kill begins anew, and would never hear of a row deleted in between."""
        rows = many_rows(subject.harness)
        await subject.write(rows)
        sink, positions = MemorySink(), MemoryPositions()
        positions.hold()
        async with subject.running(sink, positions) as running:
            await running.until(lambda: positions.held, "it has begun, and says so")
            await asyncio.sleep(0.3)  # time to read ahead, for a source that would
            await running.crash()
        await harness.delete(list(rows)[: len(rows) // 2])
        positions.release()
        async with subject.running(sink, positions) as running:
            await running.until_equal()


def many_rows(harness: Harness) -> dict[int, str]:
    """Several chunks and a part of one."""
    count = harness.chunk_rows() * CHUNKS + 1 if isinstance(harness, Snapshots) else ROWS_OTHERWISE
    return {number: f"row {number}" for number in range(1, count + 1)}


async def delete_some(harness: Harness, ids: list[int]) -> None:
    """Where rows can be deleted."""
    if isinstance(harness, Deleting):
        await harness.delete(ids)


async def _read_start(
    source: Source,
    rows: dict[int, str],
    before: list[SourceRecord],
    places: list[tuple[Position, list[SourceRecord]]],
) -> None:
    """Reads until every row has come, `before` included; `places` gets the positions on the way and what was read."""
    records = list(before)
    while not _complete(records, rows):
        batch = await asyncio.wait_for(source.read(), Limits.patience_s)
        records += batch.records
        if batch.position is not None and not _complete(records, rows):
            places.append((batch.position, list(records)))
            if len(records) == len(before):
                await source.acknowledge(batch.position)  # it may wait for that before it gives a row


def _complete(records: list[SourceRecord], rows: dict[int, str]) -> bool:
    return len({record.key for record in records if from_snapshot(record)}) >= len(rows)


def _far(running: Running, batches: int) -> bool:
    return len(running.batches) >= batches
