"""The first snapshot of a source: all rows as of the slot's start, read in parallel under its exported snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from connectors.feeding import next_of
from connectors.postgres.catalog import Catalog, Table
from connectors.postgres.copying import copy_rows, lock_sql, select_list
from connectors.postgres.encoder import Moment, TableEncoder, unreadable_row
from connectors.postgres.errors import mapped_errors
from connectors.postgres.pgoutput import Tuple
from connectors.postgres.server import quote_table, quote_text
from connectors.source import SourceRecord
from pipeline.core.errors import EnvironmentProblem, Poison, Retryable

RANGE_PAGES = 4096
"""Pages of one range: 32 MiB of table, so that a few readers share even one large table."""

QUEUE_BATCHES_MAX = 8

Progress = Callable[[str, int, int], None]
"""Called with a table, the rows read so far and the rows that the catalog estimates."""


class Captured(msgspec.Struct, frozen=True):
    """A table as it is published: its columns that travel and the filter of its rows."""

    table: Table
    columns: list[str]
    row_filter: str | None


class SnapshotPart(msgspec.Struct, frozen=True):
    """Some rows; or, with `finished`, the news that a table is complete."""

    records: list[SourceRecord]
    finished: str | None = None


class _Range(msgspec.Struct, frozen=True):
    captured: Captured
    encoder: TableEncoder
    query: str


class ExportedSnapshot:
    """Reads `tables` under the snapshot `name` while the connection that exported it is kept idle by the caller."""

    def __init__(
        self, source: str, catalog: Catalog, tables: Sequence[Captured], readers: int, progress: Progress | None
    ) -> None:
        self._source = source
        self._catalog = catalog
        self._tables = tables
        self._readers = readers
        self._progress = progress
        self._parts: asyncio.Queue[SnapshotPart] = asyncio.Queue(QUEUE_BATCHES_MAX)
        self._left: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._estimates: dict[str, int] = {}

    async def parts(self, name: str, moment: Moment) -> AsyncIterator[SnapshotPart]:
        """All rows, and after its last row each table as finished. Errors of any reader end it."""
        work: asyncio.Queue[_Range] = asyncio.Queue()
        for captured in self._tables:
            for item in await self._ranges(captured):
                work.put_nowait(item)
        readers = [
            asyncio.create_task(self._reader(name, work, moment), name=f"snapshot-{number}")
            for number in range(min(self._readers, work.qsize()))
        ]
        try:
            unfinished = len(self._tables)
            while unfinished:
                part = await next_of(self._parts, readers)
                unfinished -= part.finished is not None
                yield part
        finally:
            for task in readers:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _ranges(self, captured: Captured) -> list[_Range]:
        table = captured.table
        relation = table.relation(captured.columns)
        converters = await self._catalog.converters(relation.columns)
        encoder = TableEncoder(self._source, self._catalog.server.database, relation, table.key, converters)
        ranges = []
        total = 0
        for leaf in table.leaves or [quote_table(table.name)]:
            pages, rows = (await self._catalog.rows(_SIZE, leaf, leaf))[0]
            total += rows
            starts = list(range(0, max(pages, 1), RANGE_PAGES))
            for start in starts:
                last = start == starts[-1]  # open at its end: pages may have been added since
                where = [f"ctid >= '({start},0)'"] + ([] if last else [f"ctid < '({start + RANGE_PAGES},0)'"])
                where += [f"({captured.row_filter})"] if captured.row_filter else []
                columns = select_list(encoder.columns)
                ranges.append(
                    _Range(captured, encoder, f"SELECT {columns} FROM ONLY {leaf} WHERE {' AND '.join(where)}")
                )
        self._left[table.name] = len(ranges)
        self._read[table.name] = 0
        self._estimates[table.name] = total
        return ranges

    async def _reader(self, name: str, work: asyncio.Queue[_Range], moment: Moment) -> None:
        reader = await self._catalog.server.connect_reader()
        with mapped_errors(self._catalog.server.where):
            try:
                await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await reader.execute(f"SET TRANSACTION SNAPSHOT {quote_text(name)}")
                await self._hold_still(reader)
                while not work.empty():
                    await self._read_range(reader, work.get_nowait(), moment)
            finally:
                with suppress(TimeoutError):
                    await reader.close(timeout=2)

    async def _hold_still(self, reader: Any) -> None:
        """Raises Retryable for a table that was written anew since the snapshot: it is read by chunks then."""
        names = [captured.table.name for captured in self._tables]
        await reader.execute(lock_sql(names))
        changed = await reader.fetch(_WRITTEN_ANEW, [captured.table.oid for captured in self._tables])
        if changed:
            listed = ", ".join(str(row[0]) for row in changed)
            raise Retryable(f"{listed} was altered or truncated while its snapshot began.")

    async def _read_range(self, reader: Any, item: _Range, moment: Moment) -> None:
        table = item.captured.table.name

        async def take(rows: list[Tuple]) -> None:
            await self._parts.put(SnapshotPart(encode_rows(self._source, item.encoder, rows, moment)))
            self._read[table] += len(rows)
            if self._progress is not None:
                self._progress(table, self._read[table], max(self._estimates[table], self._read[table]))

        await copy_rows(reader, item.query, take)
        self._left[table] -= 1
        if self._left[table] == 0:
            if self._progress is not None:
                self._progress(table, self._read[table], self._read[table])
            await self._parts.put(SnapshotPart([], table))


def encode_rows(source: str, encoder: TableEncoder, rows: Sequence[Tuple], moment: Moment) -> list[SourceRecord]:
    """Snapshot records (op r) of rows; the change LSN is 0, so that every later change is newer."""
    records = []
    for row in rows:
        try:
            fragments = encoder.fragments(row)
            record = SourceRecord(encoder.topic, encoder.key(fragments), encoder.row("r", fragments, 0, moment))
        except (Poison, ValueError) as error:
            record = unreadable_row(source, encoder, 0, row, error)
        records.append(record)
    return records


async def captured_tables(
    catalog: Catalog, names: Sequence[str], publication: str, filters: Mapping[str, str]
) -> list[Captured]:
    """The tables as the publication lets them travel."""
    published = await catalog.published(publication)
    captured = []
    for name in names:
        table = await catalog.require(name)
        columns, row_filter = published.get(name, (None, filters.get(name)))
        own = [column.name for column in table.columns if columns is None or column.name in columns]
        if not set(table.key) <= set(own):
            raise EnvironmentProblem(
                f"Publication {publication} leaves out key columns of {name}. Mend: its column list must hold "
                f"{', '.join(table.key)}."
            )
        captured.append(Captured(table, own, row_filter))
    return captured


_WRITTEN_ANEW = """
SELECT c.oid::regclass::text FROM unnest($1::bigint[]) AS wanted (oid)
CROSS JOIN LATERAL (SELECT wanted.oid::oid::regclass AS oid UNION SELECT relid FROM pg_partition_tree(wanted.oid::oid))
  AS part
JOIN pg_class c ON c.oid = part.oid
WHERE c.relkind = 'r' AND c.relfilenode <> coalesce(pg_relation_filenode(c.oid), 0)
"""
"""The catalog row is as old as the snapshot, the function tells the file of now."""
_SIZE = """
SELECT (pg_relation_size(%s::regclass) / current_setting('block_size')::bigint)::bigint,
       (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = %s::regclass)
"""
