"""The Cassandra source: the snapshot in this process, the stream of changes in the sidecar, both into the same topics.

A position is {ids, ranges, left, snapshot}: which tables they were (`ids`, a table made anew is another one), and which
of the `ranges` of the ring each of them still has to read. The sources of a cluster's other nodes, whose `snapshot` is
never, share it and leave it as it is. The sidecar keeps its own place: what lies in cdc_raw is unread.
Between the two there is no order, and none is needed: cells merge by their write times. All that counts is that the
node keeps the change log (CDC) before the first row of the snapshot is read, which `open` makes sure of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from connectors.cassandra import node as nodes
from connectors.cassandra import ring
from connectors.cassandra.companion import Companion
from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.heartbeat import Heartbeat
from connectors.cassandra.rows import RowReader
from connectors.cassandra.snapshot import Reading, RingSnapshot
from connectors.cassandra.throttle import Throttle
from connectors.cassandra.watch import SnapshotRequests, Watch
from connectors.cql.schema import TableSchema, tables_of
from connectors.cql.session import CqlSession, connect
from connectors.publisher import KafkaSettings
from connectors.source import Batch, LagReport, Position, ShowProgress, SourceRecord, TableDescription
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import Fatal, PositionLost
from schemas.mutation import MutationSource

log = logging.getLogger(__name__)


class CassandraSource:
    """Implements Source, Topics, KeepingAll, UsingKafka, Lag, Discovering, Snapshotting; see connectors/source.py."""

    def __init__(
        self, config: CassandraConfig, progress: ShowProgress | None = None, clock: Clock | None = None
    ) -> None:
        self.config = config
        self.name = config.name
        self._progress = progress
        self._clock = clock or SystemClock()
        self._kafka: KafkaSettings | None = None
        self._session: CqlSession | None = None
        self._node: nodes.Node | None = None
        self._tables: dict[str, TableSchema] = {}
        self._left: dict[str, set[int]] = {}
        self._shared: Position | None = None
        self._companion: Companion | None = None
        self._heartbeat: Heartbeat | None = None
        self._watch: Watch | None = None
        self._requests = SnapshotRequests(config.data_directory)
        self._background: list[asyncio.Task[None]] = []
        self._batches: AsyncIterator[Batch] | None = None
        self._step: asyncio.Future[Batch] | None = None

    # Source

    async def open(self, position: Position | None) -> None:
        config = self.config
        self._session = session = await connect(config)
        self._node = node = await nodes.read_node(session)
        self._tables = await nodes.read_tables(session, config)
        nodes.require_readable(self._tables.values(), node)
        nodes.require_captured(list(self._tables.values()), await nodes.cdc_tables(session, config.keyspace))
        if config.sidecar is not None:
            await nodes.require_parsable(session, config.keyspace)
        self._left = self._resumed(position)
        if config.snapshot == "never" and position is not None and position.get("snapshot") == "initial":
            self._shared = position
        if config.sidecar is not None:
            self._companion = Companion(config, config.sidecar, self._clock)
            await self._start(self._companion, session, node, anew=_is_reset(position))
        self._batches = self._all_batches()

    async def read(self) -> Batch:
        assert self._batches is not None, "open first"
        if self._step is None:
            self._step = asyncio.ensure_future(anext(self._batches))
        waited: list[asyncio.Future[Any]] = [self._step, *self._background]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for task in self._background:
            if task.done():
                task.result()
        step, self._step = self._step, None
        return step.result()

    async def acknowledge(self, position: Position) -> None:
        """Nothing is kept for us but the segments in cdc_raw, which the sidecar answers for."""

    async def close(self) -> None:
        tasks: list[asyncio.Future[Any]] = [*self._background, *([self._step] if self._step is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._batches is not None:
            with suppress(RuntimeError):
                await self._batches.aclose()  # type: ignore[attr-defined]
        if self._heartbeat is not None:
            await self._heartbeat.close()
        if self._companion is not None:
            await self._companion.close()
        if self._session is not None:
            await self._session.close()

    # Topics, KeepingAll, UsingKafka, Lag, Discovering, Snapshotting

    def table_topics(self) -> list[str]:
        return [self.config.topic(name) for name in self.config.table_names]

    def other_topics(self) -> list[str]:
        return []

    def retention_ms(self) -> int:
        return self.config.retention_ms

    def use_kafka(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka

    def show_progress(self, show: ShowProgress) -> None:
        self._progress = show

    async def lag(self) -> LagReport:
        if self._companion is None:
            return LagReport(0, 0, "no sidecar")
        return await asyncio.to_thread(self._companion.lag)

    async def discover(self) -> list[TableDescription]:
        session = await connect(self.config)
        try:
            found = []
            for name in await tables_of(session, self.config.keyspace):
                config = self.config.model_copy(update={"tables": [name]})
                table = (await nodes.read_tables(session, config))[name]
                columns = {column.name: column.declared for column in table.columns}
                found.append(TableDescription(f"{table.keyspace}.{name}", columns, [one.name for one in table.key]))
            return found
        finally:
            await session.close()

    async def request_snapshot(self, table: str) -> None:
        self._requests.put(table.split(".")[-1])

    # the way of a source

    async def _start(self, companion: Companion, session: CqlSession, node: nodes.Node, *, anew: bool) -> None:
        """The sidecar, and what runs beside it."""
        config, kafka, clock = self.config, self._kafka, self._clock
        if kafka is None:
            raise Fatal("The sidecar was not told where Kafka is.")
        if config.heartbeat_table:
            self._heartbeat = Heartbeat(config, session, kafka, companion, clock)
            await self._heartbeat.open()
        self._watch = Watch(config, session, kafka, companion, clock, self._heartbeat)
        await self._watch.prepare()
        await companion.start(node, kafka.bootstrap_servers, anew=anew, security=kafka.java)
        assert companion.running is not None
        self._background = [companion.running, asyncio.create_task(self._watch.run(), name="cassandra-watch")]
        if self._heartbeat is not None:
            self._background.append(asyncio.create_task(self._heartbeat.run(), name="cassandra-heartbeat"))

    async def _all_batches(self) -> AsyncIterator[Batch]:
        yield Batch([], self._position())
        while True:
            if any(self._left.values()):
                async for batch in self._snapshot():
                    yield batch
            async for batch in self._heartbeats():
                yield batch
            for table in self._requests.wanted(self.config.table_names):
                log.info("%s is read again, as asked", self.config.qualified(table))
                self._left[table] = set(range(self.config.snapshot_ranges))
            yield Batch([], self._position())
            self._requests.taken()

    async def _heartbeats(self) -> AsyncIterator[Batch]:
        """Until tables are to be read again. Never while rows of a snapshot, also of one that another process reads,
        are still to come: nobody can say then what has been published."""
        config = self.config
        complete = self._shared is None or not self._shared.get("left")
        pause_s = min(config.watch_interval_s, config.heartbeat_interval_s)
        while not self._requests.wanted(config.table_names):
            until_us, records = self._heartbeat.records() if self._heartbeat and complete else (0, [])
            if records:
                yield Batch(records, None, _size(records), until_us)
            await self._clock.sleep(pause_s if self._heartbeat else config.watch_interval_s)

    async def _snapshot(self) -> AsyncIterator[Batch]:
        assert self._session is not None
        reading = RingSnapshot(
            self._session,
            [self._reading(name) for name, left in self._left.items() if left],
            self.config.snapshot_ranges,
            self.config.snapshot_readers,
            Throttle(self.config.rows_per_second, self._clock),
            self._clock,
            self._progress,
        )
        async for part in reading.parts():
            if part.finished is not None:
                self._left[part.table].discard(part.finished)
                yield Batch([], self._position())
            else:
                yield Batch(part.records, None, _size(part.records))

    def _reading(self, name: str) -> Reading:
        assert self._node is not None
        config, table = self.config, self._tables[name]
        return Reading(
            RowReader(table, self._node.major >= nodes.ELEMENT_TIMES_MAJOR),
            MutationSource("cassandra", self.name, config.keyspace, name, snapshot=True),
            config.topic(name),
            frozenset(self._left[name]),
        )

    # positions

    def _resumed(self, position: Position | None) -> dict[str, set[int]]:
        """What each table has to read. Raises PositionLost when one of them is another than it was."""
        everything = set(range(self.config.snapshot_ranges))
        unknown = everything if self.config.snapshot == "initial" or _is_reset(position) else set()
        if position is None or _is_reset(position):
            return {name: set(unknown) for name in self._tables}
        require_same(self.config, position, self._tables)
        if position.get("snapshot") != self.config.snapshot:
            return {name: set(unknown) for name in self._tables}
        left = {}
        for name in self._tables:
            stored = ring.numbers(position["left"].get(name, []))
            if stored and position["ranges"] != self.config.snapshot_ranges:
                stored = everything
            left[name] = set(stored if name in position["ids"] else unknown)
        return left

    def _position(self) -> Position:
        if self._shared is not None:
            return self._shared
        return {
            "snapshot": self.config.snapshot,
            "ids": {name: table.id for name, table in self._tables.items()},
            "ranges": self.config.snapshot_ranges,
            "left": {name: ring.runs(left) for name, left in self._left.items() if left},
        }


def reset_position() -> Position:
    """Stored by `ctxpipe connect --reset`: read all rows again, and forget what was lost of the change log."""
    return {"reset": True}


def require_same(config: CassandraConfig, position: Position, tables: dict[str, TableSchema]) -> None:
    """Raises PositionLost for a table that was dropped and made anew: nobody told that its old rows are gone."""
    stored = position.get("ids", {})
    other = [name for name, table in tables.items() if stored.get(name, table.id) != table.id]
    if other:
        names = ", ".join(config.qualified(name) for name in other)
        raise PositionLost(
            f"{names} was dropped and made anew, and the change log does not tell that its old rows are gone. Start "
            f"over with: ctxpipe connect {config.name} --reset, and a new version of the contexts that use it"
        )


def _is_reset(position: Position | None) -> bool:
    return position is not None and bool(position.get("reset"))


def _size(records: list[SourceRecord]) -> int:
    return sum(len(record.key) + len(record.value or b"") for record in records)
