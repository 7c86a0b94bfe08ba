"""Rows that are older than the log: a snapshot of the tables, read beside it, range by range around the ring.

The rows carry their write times, so that it does not matter which of the two tells a change first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from connectors.cassandra import ring
from connectors.cassandra.rows import RowReader
from connectors.cassandra.snapshot import Reading, RingSnapshot, left_of
from connectors.cassandra.throttle import Throttle
from connectors.cql.schema import read_table
from connectors.cql.session import CqlSession
from connectors.scylla.config import ScyllaConfig
from connectors.scylla.messages import gone
from connectors.source import ShowProgress, SourceRecord
from pipeline.core.clock import Clock
from pipeline.core.errors import Fatal
from schemas.mutation import MutationSource


class Step(msgspec.Struct, frozen=True):
    """Rows, as records, and how far the snapshot is with them: JSON that it is given back when it goes on."""

    records: list[SourceRecord]
    progress: dict[str, Any]


class InitialRows(Protocol):
    """Reads tables while they are written."""

    def steps(self, session: CqlSession, tables: Sequence[str], progress: Mapping[str, Any]) -> AsyncIterator[Step]:
        """Goes on behind `progress` ({}: from the beginning); ends when all rows have been read."""


class RingRows:
    """InitialRows by token ranges. Progress is {ranges: how many parts, left: table → parts that are left, as runs}.

    `element_times`: the server tells the write times of single elements of collections; Scylla does not.
    """

    def __init__(
        self, config: ScyllaConfig, clock: Clock, *, element_times: bool, progress: ShowProgress | None = None
    ) -> None:
        self._config = config
        self._clock = clock
        self._element_times = element_times
        self._show = progress

    async def steps(
        self, session: CqlSession, tables: Sequence[str], progress: Mapping[str, Any]
    ) -> AsyncIterator[Step]:
        config = self._config
        left = _left(tables, progress, config.snapshot_ranges)
        readings = [await self._reading(session, table, frozenset(left[table])) for table in tables if left[table]]
        throttle = Throttle(config.rows_per_second, self._clock)
        reading = RingSnapshot(
            session, readings, config.snapshot_ranges, config.snapshot_readers, throttle, self._clock, self._show
        )
        async for part in reading.parts():
            if part.finished is not None:
                left[part.table].discard(part.finished)
            told = {table: ring.runs(numbers) for table, numbers in left.items() if numbers}
            yield Step(part.records, {"ranges": config.snapshot_ranges, "left": told})

    async def _reading(self, session: CqlSession, table: str, left: frozenset[int]) -> Reading:
        schema = await read_table(session, self._config.keyspace, table)
        if schema is None:
            raise Fatal(gone(self._config, table))
        source = MutationSource("scylla", self._config.name, self._config.keyspace, table, snapshot=True)
        return Reading(RowReader(schema, self._element_times), source, self._config.topic(table), left)


def _left(tables: Sequence[str], progress: Mapping[str, Any], ranges: int) -> dict[str, set[int]]:
    """A ring in other parts than before is read from the beginning."""
    if progress.get("ranges") != ranges:
        return {table: set(range(ranges)) for table in tables}
    return {table: set(left_of(progress["left"], table)) for table in tables}
