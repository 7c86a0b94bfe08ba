"""The Postgres source: slot and publication, the first snapshot, then the stream, handed over without a gap.

A position is {state, system, timeline, slot, lsn, tables, oids, pending}: `lsn` is where the stream goes on, `pending`
what is left of table snapshots. A first snapshot that is interrupted is not begun again with a new slot, because
deletes in between would be lost with the old one; the stream goes on from the slot's start and the tables that are not
complete are read beside it by watermark chunks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec

from connectors.postgres import slot as slots
from connectors.postgres.catalog import Catalog
from connectors.postgres.changes import SNAPSHOT_PREFIX, Changes
from connectors.postgres.config import PostgresConfig
from connectors.postgres.encoder import TRUNCATE_KEY, Moment, TableEncoder
from connectors.postgres.heartbeat import beat
from connectors.postgres.publication import ensure_publication
from connectors.postgres.replication import ReplicationStream
from connectors.postgres.server import Connection, Server
from connectors.postgres.snapshot import Captured, ExportedSnapshot, Progress, captured_tables
from connectors.postgres.transactions import StreamedTransactions
from connectors.postgres.watermark import TableProgress, TableSnapshots, emit_message
from connectors.source import Batch, LagReport, Position, SourceRecord, TableDescription
from pipeline.core.errors import CtxpipeError
from schemas.topics import message_topic, table_topic

log = logging.getLogger(__name__)


def reset_position() -> Position:
    """Stored by `ctxpipe connect --reset`: drop the slot, tell consumers to forget all rows, read everything again."""
    return {"state": slots.CREATING, "truncate": True}


class PostgresSource:
    """Implements Source, Topics, Lag, Discovering, Snapshotting; see connectors/source.py for the contract."""

    def __init__(self, config: PostgresConfig, progress: Progress | None = None) -> None:
        self.config = config
        self.name = config.name
        self._progress = progress
        self._server = Server(config.dsn.get_secret_value(), config.name)
        self._catalog = Catalog(self._server)
        self._stream = ReplicationStream(self._server, config.queue_bytes_max)
        self._transactions = StreamedTransactions(config.transaction_memory_bytes_max, config.spill_directory)
        self._snapshots: TableSnapshots | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        self._control: Connection | None = None
        self._batches: AsyncIterator[Batch] | None = None
        self._base: Position = {}
        self._acknowledged = asyncio.Event()

    # Source

    async def open(self, position: Position | None) -> None:
        self._control = await self._server.connect_replication()
        if position is not None and position.get("state") == slots.STREAMING:
            await self._resume(position)
        else:
            if position is None:
                await slots.require_none(self._catalog, self.config)
            self._batches = self._from_scratch(position or {"state": slots.CREATING})

    async def read(self) -> Batch:
        assert self._batches is not None, "open first"
        return await anext(self._batches)

    async def acknowledge(self, position: Position) -> None:
        self._acknowledged.set()
        if position.get("state") == slots.STREAMING:
            self._stream.confirm(position["lsn"])

    async def close(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            with suppress(asyncio.CancelledError, CtxpipeError):
                await self._heartbeat
        if self._snapshots is not None:
            await self._snapshots.close()
        if self._batches is not None:
            with suppress(RuntimeError):
                await self._batches.aclose()  # type: ignore[attr-defined]
        await self._stream.close()
        if self._control is not None:
            await self._control.close()
        await self._catalog.close()
        self._transactions.close()

    # Topics, Lag, Discovering, Snapshotting

    def table_topics(self) -> list[str]:
        return [table_topic(self.name, table) for table in self.config.tables]

    def other_topics(self) -> list[str]:
        return [message_topic(self.name)]

    async def lag(self) -> LagReport:
        rows = await self._catalog.rows(_LAG, self.config.slot)
        return LagReport(*rows[0]) if rows else LagReport(0, 0, "missing")

    async def discover(self) -> list[TableDescription]:
        found = []
        for (name,) in await self._catalog.rows(_READABLE):
            table = await self._catalog.table(name)
            if table is not None:
                found.append(TableDescription(name, {c.name: c.type_name for c in table.columns}, table.key))
        return found

    async def request_snapshot(self, table: str) -> None:
        await emit_message(self._catalog, SNAPSHOT_PREFIX, {"source": self.name, "table": table})

    # the way of a source

    async def _from_scratch(self, position: Position) -> AsyncIterator[Batch]:
        """The intention is stored before the slot is made: whoever comes after a crash knows that the slot is ours.
        The slot's start is stored before the first row is given: whoever comes then goes on from it.
        """
        truncate = bool(position.get("truncate"))
        yield Batch([], {"state": slots.CREATING, "truncate": truncate})
        await self._acknowledged.wait()
        await slots.require_free(self._catalog, self.config)
        await slots.drop_slot(self._catalog, self.config.slot)
        await ensure_publication(self._catalog, self.config)
        assert self._control is not None
        identity = await slots.identify(self._control, self._server.where)
        lsn, snapshot = await slots.create_slot(self._control, self.config.slot, self._server.where)
        log.info("%s: created slot %s at %x", self._server.where, self.config.slot, lsn)
        wanted = self.config.tables if self.config.snapshot == "initial" or truncate else []
        pending = {table: TableProgress() for table in wanted}
        self._base = self._new_base(identity, await self._oids())
        self._acknowledged.clear()
        truncates = await self._truncates(lsn, self.config.tables) if truncate else []
        yield Batch(truncates, self._position(lsn, pending))
        await self._acknowledged.wait()  # rows in Kafka before it would outlive their deletes if we were killed here
        if pending:
            async for batch in self._first_snapshot(lsn, snapshot, pending):
                yield batch
        await self._control.close()
        async for batch in self._streaming(lsn, pending):
            yield batch

    async def _first_snapshot(self, lsn: int, snapshot: str, pending: dict[str, TableProgress]) -> AsyncIterator[Batch]:
        captured = await self._captured(list(pending))
        reading = ExportedSnapshot(self.name, self._catalog, captured, self.config.snapshot_readers, self._progress)
        moment = _now(lsn, "true")
        async for part in reading.parts(snapshot, moment):
            if part.finished is not None:
                del pending[part.finished]
                yield Batch([], self._position(lsn, pending))
            else:
                yield Batch(part.records, None, _size(part.records), moment.commit_time_us)

    async def _truncates(self, lsn: int, tables: list[str]) -> list[SourceRecord]:
        """Consumers drop what they know: rows that were deleted meanwhile would stay for ever."""
        records = []
        for captured in await self._captured(tables):
            relation = captured.table.relation()
            encoder = TableEncoder(self.name, self._server.database, relation, captured.table.key, [])
            value = encoder.truncate(0, _now(lsn, "true"))
            records.append(SourceRecord(encoder.topic, TRUNCATE_KEY, value, partition=0))
        return records

    async def _resume(self, position: Position) -> None:
        assert self._control is not None
        await slots.require_free(self._catalog, self.config)
        identity = await slots.require_position(self._catalog, self._control, self.config, position)
        await self._control.close()
        added = await ensure_publication(self._catalog, self.config)
        self._base = self._new_base(identity, await self._oids())
        pending = {
            table: msgspec.convert(progress, TableProgress)
            for table, progress in position.get("pending", {}).items()
            if table in self.config.tables
        }
        known, oids = position["tables"], position.get("oids", {})
        same = {table for table, oid in self._base["oids"].items() if table in known and oids.get(table, oid) == oid}
        new = [table for table in self.config.tables if table in added or table not in same]
        if new:
            since_xid = (await self._catalog.rows(_NEXT_XID))[0][0]
            pending |= {table: TableProgress(since_xid=since_xid) for table in new}
        self._batches = self._resumed(position["lsn"], pending, new, identity.lsn)

    async def _resumed(
        self, lsn: int, pending: dict[str, TableProgress], new: list[str], now_lsn: int
    ) -> AsyncIterator[Batch]:
        """Tables that were not captured until now may have been at an earlier time: what was deleted since is dropped
        before they are read, as of now, because the reading comes later.
        """
        if new:
            yield Batch(await self._truncates(now_lsn, new), self._position(lsn, pending))
        async for batch in self._streaming(lsn, pending):
            yield batch

    async def _streaming(self, lsn: int, pending: dict[str, TableProgress]) -> AsyncIterator[Batch]:
        self._snapshots = snapshots = TableSnapshots(
            self.name,
            self._catalog,
            self.config.tables,
            self._capture,
            pending,
            self.config.chunk_rows,
            self._progress,
        )
        system = self._base["system"]
        changes = Changes(self.name, self.config.tables, self._catalog, self._transactions, snapshots, system)

        async def attempt() -> None:
            await self._stream.open(self.config.slot, self.config.publication, lsn)

        await slots.open_slot(self._catalog, self.config, attempt)
        snapshots.start()
        interval_s = self.config.heartbeat_interval_s
        self._heartbeat = asyncio.create_task(beat(self._server, self.name, interval_s), name="heartbeat")
        reached = lsn
        while True:
            items = await self._stream.read()
            snapshots.check()
            if self._heartbeat.done():
                self._heartbeat.result()  # ended by something that is not just a server away
            async for step in changes.translate(items):
                moved = step.lsn > reached
                reached = max(reached, step.lsn)
                position = self._position(reached, snapshots.pending) if moved else None
                if step.records or position is not None:
                    yield Batch(step.records, position, _size(step.records), step.commit_time_us)

    # positions

    async def _oids(self) -> dict[str, int]:
        """A table that is made anew under its old name is another one: its rows are read again."""
        return {name: (await self._catalog.require(name)).oid for name in self.config.tables}

    def _new_base(self, identity: slots.Identity, oids: dict[str, int]) -> Position:
        return {
            "state": slots.STREAMING,
            "system": identity.system,
            "timeline": identity.timeline,
            "slot": self.config.slot,
            "tables": list(self.config.tables),
            "oids": oids,
        }

    def _position(self, lsn: int, pending: dict[str, TableProgress]) -> Position:
        return {
            **self._base,
            "lsn": lsn,
            "pending": {table: msgspec.to_builtins(progress) for table, progress in pending.items()},
        }

    async def _captured(self, tables: list[str]) -> list[Captured]:
        return await captured_tables(self._catalog, tables, self.config.publication, self.config.row_filters)

    async def _capture(self, table: str) -> Captured:
        return (await self._captured([table]))[0]


def _now(lsn: int, snapshot: str) -> Moment:
    now_us = time.time_ns() // 1000
    return Moment(lsn, now_us, 0, now_us // 1000, snapshot)


def _size(records: list[SourceRecord]) -> int:
    return sum([len(record.value) if record.value is not None else 50 for record in records])


_LAG = """
SELECT (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint, (pg_current_wal_lsn() - restart_lsn)::bigint,
       coalesce(wal_status, 'lost')
FROM pg_replication_slots WHERE slot_name = %s
"""
_NEXT_XID = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
_READABLE = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^(pg_|information_schema)'
  AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1
"""
