"""Asks a log table for the changes of a group of streams in a window of write time, and decodes what it answers.

Statements are not prepared: an answer then always says which columns it has, so that a column that came a moment ago
is neither missed nor mistaken for another.
"""

from __future__ import annotations

import logging
import struct
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence

import msgspec

from connectors.cql.errors import Undefined
from connectors.cql.schema import TableSchema, full_name, read_table
from connectors.cql.session import CqlSession
from connectors.cql.times import last_timeuuid, timeuuid_us
from connectors.cql.values import CqlType
from connectors.scylla.config import LOG_SUFFIX, ScyllaConfig
from connectors.scylla.decoding import Change, LogDecoder, LogRow
from connectors.scylla.layout import LogLayout, is_true, log_layout
from connectors.scylla.messages import gone
from connectors.scylla.streams import Group
from connectors.set_aside import SetAside
from pipeline.core.errors import Fatal

log = logging.getLogger(__name__)

STREAMS_PER_QUERY = 100
"""Scylla refuses longer lists of partitions, unless it is told otherwise."""
_MALFORMED = (struct.error, ValueError, IndexError)
_SHOWN_BYTES = 60


class Unreadable(msgspec.Struct, frozen=True):
    """A row of the log whose values are no values of their types; its place, and the letter that tells of it."""

    stream: bytes
    time: bytes
    end_of_batch: bool
    letter: SetAside


class LogReader:
    """Of one table. Several groups may be read at once."""

    def __init__(self, session: CqlSession, config: ScyllaConfig, table: TableSchema, *, bypass_cache: bool) -> None:
        self._session = session
        self._config = config
        self.table = table
        self._suffix = " BYPASS CACHE" if bypass_cache else ""
        self._layouts: dict[tuple[tuple[str, CqlType], ...], LogLayout] = {}

    async def read(self, group: Group, start_us: int, end_us: int) -> AsyncIterator[list[Change | Unreadable]]:
        """Page by page: stream by stream, each in the order of its log.

        Raises Fatal when the table, or its log, is gone.
        """
        decoder: LogDecoder | None = None
        for first in range(0, len(group.streams), STREAMS_PER_QUERY):
            query = self._query(group.streams[first : first + STREAMS_PER_QUERY], start_us, end_us)
            try:
                async for page in self._session.pages(query):
                    if not page.rows:
                        continue
                    layout = await self._layout(tuple(page.columns))
                    if decoder is None:
                        decoder = LogDecoder(layout)
                    decoder.layout = layout
                    yield [self._decoded(decoder, row) for row in page.rows if row[layout.time_at] is not None]
            except Undefined as error:
                raise Fatal(f"{error}. {gone(self._config, self.table.table)}") from error

    def _query(self, streams: Sequence[bytes], start_us: int, end_us: int) -> str:
        wanted = ", ".join(f"0x{stream.hex()}" for stream in streams)
        after, until = (uuid.UUID(bytes=last_timeuuid(at)) for at in (start_us, end_us))
        return (
            f"SELECT * FROM {full_name(self._config.keyspace, self.table.table + LOG_SUFFIX)} "
            f'WHERE "cdc$stream_id" IN ({wanted}) AND "cdc$time" > {after} AND "cdc$time" <= {until}{self._suffix}'
        )

    async def _layout(self, columns: tuple[tuple[str, CqlType], ...]) -> LogLayout:
        """Of an answer. Other columns than until now: the table was altered, and is looked at again."""
        known = self._layouts.get(columns)
        if known is not None:
            return known
        layout = log_layout(columns, self.table)
        if self._layouts or layout.missing:
            await self._look_again()
            layout = log_layout(columns, self.table)
            before = {name for earlier in self._layouts for name, _ in earlier}
            new = [name for name, _ in columns if before and name not in before and not name.startswith("cdc$")]
            if new:
                log.info("%s: the table has new columns: %s", self._name, ", ".join(new))
            if layout.missing:
                log.warning("%s: dropped columns are left out: %s", self._name, ", ".join(layout.missing))
        self._layouts[columns] = layout
        return layout

    async def _look_again(self) -> None:
        table = await read_table(self._session, self._config.keyspace, self.table.table)
        if table is None:
            raise Fatal(gone(self._config, self.table.table))
        self.table = table

    @property
    def _name(self) -> str:
        return f"{self._config.keyspace}.{self.table.table}"

    def _decoded(self, decoder: LogDecoder, row: LogRow) -> Change | Unreadable:
        try:
            return decoder.decode(row)
        except _MALFORMED as error:
            layout = decoder.layout
            time = row[layout.time_at] or b""
            places = {column.name: column.at for column in (*layout.partition_key, *layout.clustering)}
            places |= {column.name: column.at for column in layout.values}
            letter = SetAside(
                reason=f"A change of {timeuuid_us(time)} µs can't be read: {error}",
                topic=self._config.topic(self.table.table),
                table=self._name,
                row={name: _shown(row[place]) for name, place in places.items()},
            )
            ends = is_true(row[layout.end_of_batch_at])
            return Unreadable(row[layout.stream_at] or b"", time, ends, letter)


def _shown(value: bytes | None) -> str | None:
    return None if value is None else b64encode(value[:_SHOWN_BYTES]).decode()
