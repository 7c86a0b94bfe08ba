"""From raw replication messages to Kafka records: transactions, relations, keys, TOAST, messages; order is kept.

Everything but two rare look-ups (a relation that changed, columns to read again after a key change) is computed here
without I/O, for thousands of rows at a time.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

import msgspec

from connectors.postgres import pgoutput
from connectors.postgres.catalog import Catalog, record_key, without_key
from connectors.postgres.encoder import (
    HEARTBEAT_KEY,
    TRUNCATE_KEY,
    Fragments,
    Moment,
    TableEncoder,
    message_value,
    unreadable_row,
)
from connectors.postgres.errors import Undefined
from connectors.postgres.pgoutput import UNCHANGED, Tuple
from connectors.postgres.replication import StreamItem
from connectors.postgres.slot import RESET
from connectors.postgres.transactions import StreamedTransactions
from connectors.source import EVERY_PARTITION, SourceRecord
from pipeline.core.errors import Fatal, Poison, PositionLost
from schemas.topics import HEARTBEAT_PREFIX, message_topic, table_topic

log = logging.getLogger(__name__)

STEP_BYTES = 1 << 18
"""A step's messages while a large transaction is replayed."""

LARGE_BYTES = 1 << 16
"""Every topic takes as much; of larger values of whole rows a smaller form is kept."""

VISIBLE_AFTER_S = (0.0, 0.01, 0.05, 0.2)
"""Waits before each look for a row whose commit has just been told of."""

SNAPSHOT_PREFIX = "ctxpipe.snapshot"
WATERMARK_PREFIX = "ctxpipe.watermark"


class Step(msgspec.Struct):
    """Records in order, and the LSN behind the last complete transaction among them (0: none)."""

    records: list[SourceRecord]
    lsn: int
    commit_time_us: int


class _Heartbeat(msgspec.Struct):
    """What postgres/heartbeat.py writes."""

    source: str
    ts_us: int


class Listener(Protocol):
    """Who hears what else comes in the stream: the table snapshots that run beside it."""

    watching: bool
    """Whether `row_seen` wants to be called: a chunk's window is open."""

    def row_seen(self, table: str, key: bytes | None) -> None:
        """A change of a row, or of all rows (None), was passed on."""

    def committed(self, xid: int, lsn: int) -> None:
        """A transaction was passed on completely."""

    def message(self, prefix: str, content: bytes, lsn: int) -> Iterable[SourceRecord]:
        """A logical message of ours; returns records to publish here."""


class Changes:
    """Call `translate` with what the stream gave, in order; `close` removes spilled transactions."""

    def __init__(
        self,
        source: str,
        tables: Iterable[str],
        catalog: Catalog,
        transactions: StreamedTransactions,
        listener: Listener,
        system: str = "",
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._source = source
        self._tables = set(tables)
        self._catalog = catalog
        self._database = catalog.server.database
        self._transactions = transactions
        self._listener = listener
        self._system = system
        self._now_us = now_us
        self._topics = [table_topic(source, table) for table in sorted(self._tables)]
        self._encoders: dict[int, TableEncoder | None] = {}
        self._records: list[SourceRecord] = []
        self._stream_xid: int | None = None
        self._moment = Moment(0, 0, 0, 0)
        self._in_transaction = False
        self._lsn = 0

    async def translate(self, items: Iterable[StreamItem]) -> AsyncIterator[Step]:
        """Steps in order; the last one may hold the beginning of a transaction that goes on in the next call."""
        for lsn, payload in items:
            if payload is None:
                if not self._in_transaction and self._stream_xid is None:
                    self._lsn = lsn
                continue
            if self._stream_xid is not None and payload[0] not in _SEGMENT_TAGS:
                self._transactions.add(self._stream_xid, lsn, payload)
                continue
            if payload[0] == _INSERT and self._insert(lsn, payload):
                continue
            message = pgoutput.decode(payload)
            if message.__class__ is pgoutput.StreamCommit:
                async for step in self._replay(message):
                    yield step
            else:
                await self._handle(lsn, message)
        yield self._step()

    def _insert(self, lsn: int, payload: bytes) -> bool:
        """The fast way of the commonest message; False when it is one for the ordinary way."""
        encoder = self._encoders.get(_OID(payload, 1)[0])
        if encoder is None or payload[5] != _NEW:
            return False
        try:
            fragments, end = encoder.parse_row(payload, 6)
        except (ValueError, struct.error, IndexError, Poison):
            return False
        if end != len(payload):
            return False
        key = encoder.key(fragments)
        self._records.append(SourceRecord(encoder.topic, key, encoder.row("c", fragments, lsn, self._moment)))
        if self._listener.watching:
            self._listener.row_seen(encoder.table, key)
        return True

    def _step(self) -> Step:
        records, self._records = self._records, []
        return Step(records, self._lsn, self._moment.commit_time_us if records else 0)

    async def _handle(self, lsn: int, message: pgoutput.Message) -> None:
        handler = _HANDLERS.get(message.__class__)
        if handler is not None:
            handler(self, lsn, message)
        elif isinstance(message, pgoutput.Insert | pgoutput.Update | pgoutput.Delete):
            await self._row(lsn, message)
        elif isinstance(message, pgoutput.Relation):
            self._encoders[message.oid] = await self._encoder(message)

    async def _replay(self, commit: pgoutput.StreamCommit) -> AsyncIterator[Step]:
        """A streamed transaction, now that it has committed; in steps, because it may be larger than memory."""
        self._moment = self._now(commit.commit_lsn, commit.commit_time_us, commit.xid)
        self._in_transaction = True
        size = 0
        for lsn, payload in self._transactions.commit(commit.xid):
            await self._handle(lsn, pgoutput.decode(payload, in_stream=True))
            size += len(payload)
            if size >= STEP_BYTES:
                size = 0
                yield self._step()
        self._committed(commit)

    def _now(self, lsn: int, time_us: int, xid: int) -> Moment:
        return Moment(lsn, time_us, xid, self._now_us() // 1000)

    def _begin(self, _lsn: int, message: pgoutput.Begin) -> None:
        self._moment = self._now(message.commit_lsn, message.commit_time_us, message.xid)
        self._in_transaction = True

    def _commit(self, _lsn: int, message: pgoutput.Commit) -> None:
        self._committed(message)

    def _committed(self, message: pgoutput.Commit | pgoutput.StreamCommit) -> None:
        self._in_transaction = False
        self._lsn = message.end_lsn
        self._listener.committed(self._moment.xid, message.commit_lsn)

    def _stream_start(self, _lsn: int, message: pgoutput.StreamStart) -> None:
        self._transactions.begin(message.xid, message.first)
        self._stream_xid = message.xid

    def _stream_stop(self, _lsn: int, _message: pgoutput.StreamStop) -> None:
        self._stream_xid = None

    def _stream_abort(self, _lsn: int, message: pgoutput.StreamAbort) -> None:
        self._transactions.abort(message.xid, message.sub_xid)

    def _nothing(self, _lsn: int, _message: pgoutput.Message) -> None:
        """Origins say where a change came from first, type names are read from the catalog by oid."""

    def _truncate(self, lsn: int, message: pgoutput.Truncate) -> None:
        for oid in message.relations:
            encoder = self._known(oid)
            if encoder is not None:
                value = encoder.truncate(lsn, self._moment)
                self._records.append(SourceRecord(encoder.topic, TRUNCATE_KEY, value, partition=0))
                self._listener.row_seen(encoder.table, None)

    def _message(self, lsn: int, message: pgoutput.LogicalMessage) -> None:
        moment = self._moment if message.transactional else self._now(message.lsn, self._now_us(), 0)
        if message.prefix == HEARTBEAT_PREFIX:
            self._heartbeat(message, moment)
        elif message.prefix in (SNAPSHOT_PREFIX, WATERMARK_PREFIX):
            self._records.extend(self._listener.message(message.prefix, message.content, message.lsn))
        else:
            key = msgspec.json.encode({"prefix": message.prefix})
            value = self._message_value(message, moment, moment.commit_time_us)
            self._records.append(SourceRecord(message_topic(self._source), key, value))
        if not message.transactional and not self._in_transaction:
            self._lsn = max(self._lsn, lsn)

    def _heartbeat(self, message: pgoutput.LogicalMessage, moment: Moment) -> None:
        """Everything committed before it has been passed on: every partition of every table gets to know."""
        try:
            beat = msgspec.json.decode(message.content, type=_Heartbeat)
        except msgspec.DecodeError as error:
            log.warning("a heartbeat that can't be read (%s) is ignored", error)
            return
        if beat.source != self._source:
            return
        # Whose position this is: lookups refuse a position of another server.
        value = self._message_value(message, moment, beat.ts_us, self._system)
        self._records.extend(
            SourceRecord(topic, HEARTBEAT_KEY, value, partition=EVERY_PARTITION) for topic in self._topics
        )

    def _message_value(self, message: pgoutput.LogicalMessage, moment: Moment, time_us: int, system: str = "") -> bytes:
        prefix, content = message.prefix, message.content
        return message_value(self._source, self._database, prefix, content, message.lsn, time_us, moment, system)

    async def _row(self, lsn: int, message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete) -> None:
        encoder = self._known(message.relation)
        if encoder is None:
            return
        try:
            if message.__class__ is pgoutput.Insert:
                fragments = encoder.fragments(message.new)
                key = encoder.key(fragments)
                self._records.append(SourceRecord(encoder.topic, key, encoder.row("c", fragments, lsn, self._moment)))
                if self._listener.watching:
                    self._listener.row_seen(encoder.table, key)
            elif isinstance(message, pgoutput.Update):
                await self._update(encoder, lsn, message)
            elif isinstance(message, pgoutput.Delete):
                self._delete(encoder, lsn, encoder.fragments(message.old), message.old_kind == "O", ())
        except (Poison, ValueError) as error:
            values = message.old if isinstance(message, pgoutput.Delete) else message.new
            self._records.append(unreadable_row(self._source, encoder, lsn, values, error))

    async def _update(self, encoder: TableEncoder, lsn: int, message: pgoutput.Update) -> None:
        old, new = message.old, message.new
        if old is None:
            fragments = encoder.fragments(new)
            key = encoder.key(fragments)
            self._records.append(SourceRecord(encoder.topic, key, encoder.row("u", fragments, lsn, self._moment)))
            self._listener.row_seen(encoder.table, key)
            return
        whole = message.old_kind == "O"
        new = _filled(encoder, old, new, whole)
        before = encoder.fragments(old)
        if encoder.key(before) != encoder.key(encoder.fragments(new)):
            await self._change_key(encoder, lsn, before, new, whole)
            return
        after = encoder.fragments(new)
        key = encoder.key(after)
        smaller = None
        if whole:
            value = encoder.update(before, after, lsn, self._moment)
            smaller = encoder.row("u", after, lsn, self._moment) if len(value) > LARGE_BYTES else None
        else:
            value = encoder.row("u", after, lsn, self._moment)
        self._records.append(SourceRecord(encoder.topic, key, value, smaller=smaller))
        self._listener.row_seen(encoder.table, key)

    async def _change_key(self, encoder: TableEncoder, lsn: int, before: Fragments, new: Tuple, whole: bool) -> None:
        """Three records, as Debezium writes them; columns that were not sent are read again under the new key."""
        after = encoder.fragments(await self._select_unsent(encoder, new))
        old_key, new_key = encoder.key(before), encoder.key(after)
        self._delete(encoder, lsn, before, whole, (("__debezium.newkey", new_key),))
        value = encoder.row("c", after, lsn, self._moment)
        self._records.append(SourceRecord(encoder.topic, new_key, value, (("__debezium.oldkey", old_key),)))
        self._listener.row_seen(encoder.table, new_key)

    async def _select_unsent(self, encoder: TableEncoder, new: Tuple) -> Tuple:
        """The value may be newer than this change: harmless, a later change carries it too. A row that is not found is
        gone, or not yet there: the log tells of a commit a moment before others see it. Then consumers take the value
        from the row under its old key."""
        missing = [index for index, value in enumerate(new) if value is UNCHANGED]
        if not missing:
            return new
        names = [encoder.columns[index] for index in missing]
        key = [new[index] for index in encoder.key_indexes]
        found = None
        for pause_s in VISIBLE_AFTER_S:
            await asyncio.sleep(pause_s)
            try:
                found = await self._catalog.select_columns(encoder.table, names, encoder.key_columns, key)
            except Undefined:
                return new  # renamed or dropped since
            if found is not None:
                break
        if found is None:
            return new
        complete = list(new)
        for place, index in enumerate(missing):
            complete[index] = found[place]
        return complete

    def _delete(
        self,
        encoder: TableEncoder,
        lsn: int,
        before: Fragments,
        whole: bool,
        headers: tuple[tuple[str, bytes], ...],
    ) -> None:
        key = encoder.key(before)
        value = encoder.delete(before, whole, lsn, self._moment)
        smaller = encoder.delete_by(key, lsn, self._moment) if whole and len(value) > LARGE_BYTES else None
        self._records.append(SourceRecord(encoder.topic, key, value, headers, smaller=smaller))
        self._records.append(SourceRecord(encoder.topic, key, None, headers))
        self._listener.row_seen(encoder.table, key)

    def _known(self, oid: int) -> TableEncoder | None:
        try:
            return self._encoders[oid]
        except KeyError:
            raise Fatal(f"The server sent a change of relation {oid} without describing it first.") from None

    async def _encoder(self, relation: pgoutput.Relation) -> TableEncoder | None:
        """None for a table of the publication that is not captured."""
        table = f"{relation.schema}.{relation.name}"
        former = self._encoders.get(relation.oid)
        if former is not None and former.table != table:
            raise PositionLost(renamed(self._source, former.table, table))
        if table not in self._tables:
            return None
        columns = [column.name for column in relation.columns]
        identity = [column.name for column in relation.columns if column.in_identity]
        primary: list[str] = []
        if relation.replica_identity != "d":
            primary = await self._primary_key(relation, columns)
        key = record_key(relation.replica_identity, columns, identity, primary)
        if not key:
            now = await self._catalog.table(table)
            raise Fatal(without_key(now) if now else f"{table} has no usable key and is gone from the catalog.")
        converters = await self._catalog.converters(relation.columns)
        return TableEncoder(self._source, self._database, relation, key, converters)

    async def _primary_key(self, relation: pgoutput.Relation, columns: list[str]) -> list[str]:
        """By name; by place where columns were renamed after this change was written."""
        now = await self._catalog.table(f"{relation.schema}.{relation.name}")
        if now is not None and set(now.primary_key) <= set(columns):
            return now.primary_key
        if now is not None and len(now.columns) == len(columns):
            return [columns[i] for i, column in enumerate(now.columns) if column.name in now.primary_key]
        former = self._encoders.get(relation.oid)
        return former.key_columns if former is not None and set(former.key_columns) <= set(columns) else []


def renamed(source: str, former: str, table: str) -> str:
    """Passed over, the table's changes would be missing under its old name."""
    return (
        f"The captured table {former} was renamed to {table}. If that is to stay, write the new name into "
        f"sources.{source}.tables. {RESET.format(source=source)}"
    )


def _filled(encoder: TableEncoder, old: Tuple, new: Tuple, whole: bool) -> Tuple:
    """Unsent columns of the new row that the old one shows."""
    columns = encoder.relation.columns
    return [
        old[index] if value is UNCHANGED and (whole or columns[index].in_identity) else value
        for index, value in enumerate(new)
    ]


_SEGMENT_TAGS = b"SEcA"
_INSERT, _NEW = b"I"[0], b"N"[0]
_OID = struct.Struct(">I").unpack_from

_HANDLERS: dict[type, Callable[..., None]] = {
    pgoutput.Begin: Changes._begin,
    pgoutput.Commit: Changes._commit,
    pgoutput.StreamStart: Changes._stream_start,
    pgoutput.StreamStop: Changes._stream_stop,
    pgoutput.StreamAbort: Changes._stream_abort,
    pgoutput.Truncate: Changes._truncate,
    pgoutput.LogicalMessage: Changes._message,
    pgoutput.Origin: Changes._nothing,
    pgoutput.TypeName: Changes._nothing,
}
