"""Snapshots of single tables beside the stream: chunks by primary key between two watermarks in the log (DBLog).

For each chunk a low watermark is written to the log, the chunk is read, a high watermark is written. Rows whose key
comes by in the stream between the two are dropped from the chunk, the others are passed on where the high watermark
stands in the stream, with its LSN: whatever is older in the stream has come before, whatever is newer comes after.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

import msgspec

from connectors.postgres.catalog import Catalog
from connectors.postgres.changes import SNAPSHOT_PREFIX, WATERMARK_PREFIX
from connectors.postgres.copying import copy_rows, lock_sql, select_list
from connectors.postgres.encoder import Fragments, Moment, TableEncoder, unreadable_row
from connectors.postgres.errors import Undefined, mapped_errors
from connectors.postgres.pgoutput import Tuple
from connectors.postgres.server import quote_name, quote_text
from connectors.postgres.snapshot import Captured, Progress
from connectors.source import SourceRecord
from pipeline.core.errors import CtxpipeError, Poison

log = logging.getLogger(__name__)

RECENT_COMMITS_MAX = 20_000
"""Remembered to recognise a chunk that was read before a transaction, streamed already, became visible."""

OLDER_POLL_S = 0.2

KeyTexts = list[str]
"""A primary key as Postgres prints it, in key column order."""


class TableProgress(msgspec.Struct):
    """Stored in the position: rows up to `after` are in Kafka, the snapshot ends with `until` (None: not asked yet).

    `since_xid`: of a table that was just published. A transaction older than this may have written to it unpublished,
    so that neither the stream nor a chunk read before its end would show the row.
    """

    after: KeyTexts | None = None
    until: KeyTexts | None = None
    rows: int = 0
    since_xid: int = 0


class _Signal(msgspec.Struct):
    """The content of our logical messages; `kind` and `mark` are the watermarks'."""

    source: str
    table: str
    kind: str = ""
    mark: str = ""


class _Chunk(msgspec.Struct):
    table: str
    encoder: TableEncoder
    progress: TableProgress
    last: bool
    rows: dict[bytes, Fragments]
    set_aside: list[SourceRecord]
    visible: tuple[int, int, frozenset[int]]
    """xmin, xmax and running transactions of the reader's snapshot."""
    read_time_us: int
    estimate: int


class TableSnapshots:
    """Runs beside the stream, one chunk at a time. It is the stream's listener (see changes.Listener).

    `pending` is what is left to do by table; it changes only where the stream passes a high watermark, so that it may
    be stored with the stream's position. Errors of the reading side come out of `check`.
    """

    def __init__(
        self,
        source: str,
        catalog: Catalog,
        tables: Collection[str],
        describe: Callable[[str], Awaitable[Captured]],
        pending: dict[str, TableProgress],
        chunk_rows: int,
        progress: Progress | None,
    ) -> None:
        self.pending = pending
        self.watching = False
        self._source = source
        self._catalog = catalog
        self._tables = tables
        self._describe = describe
        self._chunk_rows = chunk_rows
        self._progress = progress
        self._mark = ""
        self._low: tuple[str, int] | None = None
        self._touched: set[bytes] = set()
        self._truncated = False
        self._chunk: _Chunk | None = None
        self._passed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT_COMMITS_MAX)
        self._task: asyncio.Task[None] | None = None
        self.chunks_repeated = 0

    def start(self) -> None:
        self._wanted.set()
        self._task = asyncio.create_task(self._run(), name="table-snapshots")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, CtxpipeError):
                await self._task

    def check(self) -> None:
        """Raises what ended the reading side."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    # the stream's side

    def row_seen(self, table: str, key: bytes | None) -> None:
        if self.watching and self._low is not None and table == self._low[0]:
            if key is None:
                self._truncated = True
            else:
                self._touched.add(key)

    def committed(self, xid: int, lsn: int) -> None:
        self._recent.append((xid, lsn))

    def message(self, prefix: str, content: bytes, lsn: int) -> Iterable[SourceRecord]:
        try:
            body = msgspec.json.decode(content, type=_Signal)
        except msgspec.DecodeError as error:
            log.warning("a message with prefix %s that can't be read (%s) is ignored", prefix, error)
            return []
        if body.source != self._source or body.table not in self._tables:
            return []
        if prefix == SNAPSHOT_PREFIX:
            self.pending.setdefault(body.table, TableProgress())
            self._wanted.set()
            return []
        if body.mark != self._mark:
            return []  # of a predecessor, that died or has not noticed yet that it is none: our window stays open
        if body.kind == "low":
            self._low = (body.table, lsn)
            self._touched, self._truncated, self.watching = set(), False, True
            return []
        return self._pass_on(lsn)

    def _pass_on(self, lsn: int) -> list[SourceRecord]:
        """The high watermark: what is left of the chunk is as of here."""
        chunk, low = self._chunk, self._low
        assert chunk is not None and low is not None, "the marks are written around the reading"
        self.watching = False
        records: list[SourceRecord] = []
        if any(at < low[1] and not _sees(chunk.visible, xid) for xid, at in self._recent):
            self.chunks_repeated += 1  # read before a transaction became visible that had already streamed by
        else:
            if not self._truncated:
                records = self._records(chunk, lsn)
            self._advance(chunk)
        self._chunk = None
        self._passed.set()
        return records

    def _records(self, chunk: _Chunk, lsn: int) -> list[SourceRecord]:
        moment = Moment(lsn, chunk.read_time_us, 0, chunk.read_time_us // 1000, "incremental")
        encoder = chunk.encoder
        return chunk.set_aside + [
            SourceRecord(encoder.topic, key, encoder.row("r", fragments, 0, moment))
            for key, fragments in chunk.rows.items()
            if key not in self._touched
        ]

    def _advance(self, chunk: _Chunk) -> None:
        if chunk.last:
            self.pending.pop(chunk.table, None)
        else:
            self.pending[chunk.table] = chunk.progress
        if self._progress is not None:
            rows = chunk.progress.rows
            self._progress(chunk.table, rows, rows if chunk.last else max(rows, chunk.estimate))

    # the reading side

    async def _run(self) -> None:
        reader = ChunkReader(self._source, self._catalog, self._chunk_rows)
        try:
            while True:
                await self._wanted.wait()
                while self.pending:
                    table = next(iter(self.pending))
                    await self._older_ended(self.pending[table].since_xid)
                    with suppress(Undefined):  # altered since it was described: described again
                        await self._one_chunk(reader, await self._describe(table))
                self._wanted.clear()
        finally:
            await reader.close()

    async def _one_chunk(self, reader: ChunkReader, captured: Captured) -> None:
        table, self._mark = captured.table.name, uuid.uuid4().hex
        self._passed.clear()
        await self._write_mark("low", table)
        self._chunk = await reader.read(captured, self.pending[table])
        await self._write_mark("high", table)
        await self._passed.wait()

    async def _older_ended(self, xid: int) -> None:
        """Waits until every transaction older than `xid` has ended; those that write elsewhere count, too."""
        while True:
            oldest = (await self._catalog.rows(_OLDEST))[0][0]
            if oldest >= xid:
                return
            await asyncio.sleep(OLDER_POLL_S)

    async def _write_mark(self, kind: str, table: str) -> None:
        content = {"source": self._source, "kind": kind, "mark": self._mark, "table": table}
        await emit_message(self._catalog, WATERMARK_PREFIX, content)


class ChunkReader:
    """Reads one chunk at a time over a connection of its own."""

    def __init__(self, source: str, catalog: Catalog, chunk_rows: int) -> None:
        self._source = source
        self._catalog = catalog
        self._chunk_rows = chunk_rows
        self._reader: Any = None

    async def close(self) -> None:
        if self._reader is not None:
            with suppress(TimeoutError):
                await self._reader.close(timeout=2)

    async def read(self, captured: Captured, progress: TableProgress) -> _Chunk:
        """The next rows after `progress`, as one consistent read; its last chunk may be empty."""
        if self._reader is None:
            self._reader = await self._catalog.server.connect_reader()
        with mapped_errors(self._catalog.server.where):
            reader = self._reader
            async with reader.transaction(isolation="repeatable_read", readonly=True):
                await reader.execute(lock_sql([captured.table.name]))
                visible, time_us = await reader.fetchrow(_VISIBLE)
                until = progress.until or await self._greatest_key(reader, captured)
                rows = await self._rows(reader, captured, progress.after, until) if until else []
        table = captured.table
        relation = table.relation(captured.columns)
        converters = await self._catalog.converters(relation.columns)
        encoder = TableEncoder(self._source, self._catalog.server.database, relation, table.key, converters)
        readable, set_aside = _converted(self._source, encoder, rows)
        last = len(rows) < self._chunk_rows
        after = [(rows[-1][index] or b"").decode() for index in encoder.key_indexes] if rows else progress.after
        estimate = (await self._catalog.rows("SELECT reltuples::bigint FROM pg_class WHERE oid = %s", table.oid))[0][0]
        return _Chunk(
            table.name,
            encoder,
            TableProgress(after, until, progress.rows + len(rows)),
            last,
            readable,
            set_aside,
            _visibility(visible),
            time_us,
            estimate,
        )

    async def _greatest_key(self, reader: Any, captured: Captured) -> KeyTexts | None:
        key = captured.table.key
        order = ", ".join(f"{quote_name(name)} DESC" for name in key)
        query = f"SELECT {select_list(key)} FROM {captured.table.source} ORDER BY {order} LIMIT 1"
        rows = await _copied(reader, query)
        return [(value or b"").decode() for value in rows[0]] if rows else None

    async def _rows(self, reader: Any, captured: Captured, after: KeyTexts | None, until: KeyTexts) -> list[Tuple]:
        key = select_list(captured.table.key)
        types = {column.name: column.type_name for column in captured.table.columns}

        def values(texts: KeyTexts) -> str:
            typed = zip(texts, captured.table.key, strict=True)
            return ", ".join(f"{quote_text(text)}::{types[name]}" for text, name in typed)

        where = [f"ROW({key}) <= ROW({values(until)})"]
        where += [f"ROW({key}) > ROW({values(after)})"] if after is not None else []
        where += [f"({captured.row_filter})"] if captured.row_filter else []
        return await _copied(
            reader,
            f"SELECT {select_list(captured.columns)} FROM {captured.table.source} "
            f"WHERE {' AND '.join(where)} ORDER BY {key} LIMIT {self._chunk_rows}",
        )


async def emit_message(catalog: Catalog, prefix: str, content: dict[str, str]) -> None:
    """Writes a logical message into the source's log, at once and outside of any transaction."""
    query = "SELECT pg_logical_emit_message(false, %s, %s)"
    await catalog.rows(query, prefix, msgspec.json.encode(content).decode())


async def _copied(reader: Any, query: str) -> list[Tuple]:
    rows: list[Tuple] = []

    async def take(some: list[Tuple]) -> None:
        rows.extend(some)

    await copy_rows(reader, query, take)
    return rows


def _converted(
    source: str, encoder: TableEncoder, rows: list[Tuple]
) -> tuple[dict[bytes, Fragments], list[SourceRecord]]:
    """Rows by record key, and the letters of those that no converter can read."""
    readable: dict[bytes, Fragments] = {}
    set_aside = []
    for row in rows:
        try:
            fragments = encoder.fragments(row)
            readable[encoder.key(fragments)] = fragments
        except (Poison, ValueError) as error:
            set_aside.append(unreadable_row(source, encoder, 0, row, error))
    return readable, set_aside


def _visibility(snapshot: str) -> tuple[int, int, frozenset[int]]:
    """pg_current_snapshot's text `xmin:xmax:xip,xip`."""
    lowest, highest, running = snapshot.split(":")
    return int(lowest), int(highest), frozenset(int(xid) for xid in running.split(",") if xid)


def _sees(visible: tuple[int, int, frozenset[int]], xid: int) -> bool:
    """Whether a snapshot sees a committed transaction; the stream's xid has 32 bits, the snapshot's 64."""
    lowest, highest, running = visible
    whole = highest + ((xid - highest + (1 << 31)) % (1 << 32)) - (1 << 31)
    return whole < lowest or (whole < highest and whole not in running)


_VISIBLE = "SELECT pg_current_snapshot()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_OLDEST = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
