"""The snapshot: all rows of the tables, range by range around the ring, by a few readers at a bounded rate.

It needs no lock and no moment in time: each cell carries its own write time, so that rows which change while they are
read come out right whatever arrives first (see rows.py). A range is finished when all of its records have been given;
what was not finished is read again after a restart.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec

from connectors.cassandra import ring
from connectors.cassandra.rows import Bytes, RowReader
from connectors.cassandra.throttle import Throttle
from connectors.cql.session import CqlSession
from connectors.feeding import next_of
from connectors.set_aside import SetAside, letter_record
from connectors.source import ShowProgress, SourceRecord
from pipeline.core.clock import Clock
from schemas.mutation import MutationSource, encode_mutation

QUEUE_PAGES_MAX = 8
SHOWN_BYTES_MAX = 200


class Part(msgspec.Struct, frozen=True):
    """Some rows; or, with `finished`, the news that a range of a table is complete."""

    table: str
    records: list[SourceRecord]
    finished: int | None = None


class Reading(msgspec.Struct, frozen=True):
    """A table: how its rows are read, where they go, which of its ranges are left."""

    reader: RowReader
    source: MutationSource
    topic: str
    left: frozenset[int]


class _Work(msgspec.Struct, frozen=True):
    reading: Reading
    tokens: ring.TokenRange


class RingSnapshot:
    """Reads `left` of each table out of `ranges`."""

    def __init__(
        self,
        session: CqlSession,
        readings: Sequence[Reading],
        ranges: int,
        readers: int,
        throttle: Throttle,
        clock: Clock,
        progress: ShowProgress | None = None,
    ) -> None:
        self._session = session
        self._readings = readings
        self._ranges = ring.split(ranges)
        self._readers = readers
        self._throttle = throttle
        self._clock = clock
        self._progress = progress
        self._parts: asyncio.Queue[Part] = asyncio.Queue(QUEUE_PAGES_MAX)
        self._rows = dict.fromkeys((one.source.table for one in readings), 0)
        self._read = dict(self._rows)
        """Ranges read now, whose rows are counted; those of an earlier run are not."""

    async def parts(self) -> AsyncIterator[Part]:
        """An error of any reader ends it."""
        work: asyncio.Queue[_Work] = asyncio.Queue()
        for reading in self._readings:
            for number in sorted(reading.left):
                work.put_nowait(_Work(reading, self._ranges[number]))
        unfinished = work.qsize()
        readers = [
            asyncio.create_task(self._reader(work), name=f"snapshot-{number}")
            for number in range(min(self._readers, unfinished))
        ]
        try:
            while unfinished:
                part = await next_of(self._parts, readers)
                unfinished -= part.finished is not None
                yield part
        finally:
            for task in readers:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _reader(self, work: asyncio.Queue[_Work]) -> None:
        while not work.empty():
            await self._read_range(work.get_nowait())

    async def _read_range(self, item: _Work) -> None:
        table = item.reading.source.table
        query = await self._session.prepare(item.reading.reader.query())
        rows = 0
        async for page in self._session.pages(query, (item.tokens.after, item.tokens.until)):
            await self._throttle.take(len(page.rows))
            rows += len(page.rows)
            if page.rows:
                await self._parts.put(Part(table, records_of(item.reading, page.rows, self._clock.now_us() // 1000)))
        self._rows[table] += rows
        self._read[table] += 1
        self._show(item.reading)
        await self._parts.put(Part(table, [], item.tokens.number))

    def _show(self, reading: Reading) -> None:
        """About as many rows are in the other ranges as in those that were read; no node knows better."""
        if self._progress is not None:
            table = reading.source.table
            rows, read = self._rows[table], self._read[table]
            about = rows if read == len(reading.left) else max(rows, 1) * len(reading.left) // read
            self._progress(f"{reading.source.keyspace}.{table}", rows, max(about, rows))


def records_of(reading: Reading, rows: Sequence[Bytes], now_ms: int) -> list[SourceRecord]:
    """A row whose bytes are no values of its types is set aside."""
    records = []
    for row in rows:
        try:
            found = reading.reader.mutation(row)
        except (ValueError, IndexError, ArithmeticError, struct.error) as error:
            records.append(_unreadable(reading, row, error))
            continue
        if found is not None:
            key, value = encode_mutation(reading.source, *found, now_ms)
            records.append(SourceRecord(reading.topic, key, value))
    return records


def _unreadable(reading: Reading, row: Bytes, error: Exception) -> SourceRecord:
    table = reading.reader.table
    key = {column.name: (value or b"").hex() for column, value in zip(table.key, row, strict=False)}
    encoded = msgspec.json.encode(key)
    letter = SetAside(
        reason=f"A row of {reading.source.keyspace}.{reading.source.table} can't be read: {error}"[:500],
        topic=reading.topic,
        key=encoded[:SHOWN_BYTES_MAX].decode(errors="replace"),
        table=f"{reading.source.keyspace}.{reading.source.table}",
    )
    return letter_record(reading.source.name, letter, encoded)


def left_of(position: Mapping[str, Sequence[Sequence[int]]], table: str) -> frozenset[int]:
    """What a position says is left of a table."""
    return frozenset(ring.numbers(position.get(table, [])))
