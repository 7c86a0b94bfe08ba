"""Rows of a log table → mutations (schemas/mutation.py). Pure.

What a row of the log says stands in Scylla's cdc/log.cc; two things are easily missed there. The deletion of a whole
collection is logged one microsecond late, together with the elements that replace it, so it really is of one before.
And a user-defined type's value is there even where only fields were removed: then all its fields are null.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from connectors.cql.times import timeuuid_us
from connectors.cql.values import CqlType, canonical, components, pairs, pieces, raw_hex
from connectors.scylla.layout import TIMEUUID, LogLayout, ValueColumn, is_true
from connectors.scylla.ranges import ascending
from pipeline.core.errors import Fatal
from schemas.event import Row
from schemas.mutation import Bound, Cell, Elements, Marker, Mutation

PREIMAGE, UPDATE, INSERT, ROW_DELETE, PARTITION_DELETE = 0, 1, 2, 3, 4
RANGE_START_INCLUSIVE, RANGE_START_EXCLUSIVE, RANGE_END_INCLUSIVE, RANGE_END_EXCLUSIVE = 5, 6, 7, 8
POSTIMAGE = 9
EXPIRED_ROW, EXPIRED_PARTITION = -3, -4
"""Deletions by Alternator's time to live."""

_IMAGES = (PREIMAGE, POSTIMAGE)
_SECOND_US = 1_000_000
_SMALLINT = CqlType("smallint")
LogRow = tuple[bytes | None, ...]


class Change(msgspec.Struct, frozen=True):
    """What one row of the log says: nothing, for images, static rows and the first half of a range."""

    stream: bytes
    time: bytes
    ts: int
    end_of_batch: bool
    key: Row
    mutations: list[Mutation]
    static: bool = False


class LogDecoder:
    """Decodes rows in the order of the log; keeps the first bound of a range until its second comes, by stream."""

    def __init__(self, layout: LogLayout) -> None:
        self.layout = layout
        self._started: dict[bytes, tuple[bytes, Bound | None]] = {}

    def decode(self, row: LogRow) -> Change:
        """Raises Fatal for an operation that is not known, or a range without its other half."""
        layout = self.layout
        stream, time = row[layout.stream_at] or b"", row[layout.time_at] or b""
        ts = timeuuid_us(time)
        operation = int.from_bytes(row[layout.operation_at] or b"\x00", "big", signed=True)
        key = {column.name: _decoded(row[column.at], column.decode) for column in layout.partition_key}
        key |= {column.name: _decoded(row[column.at], column.decode) for column in layout.clustering}
        static = operation in (UPDATE, INSERT) and bool(layout.clustering) and self._no_clustering(row)
        mutations: list[Mutation] = []
        if not static and operation not in _IMAGES:
            mutations = self._mutations(operation, row, stream, time, ts)
            if operation > ROW_DELETE or operation == EXPIRED_PARTITION:
                key |= {column.name: None for column in layout.clustering}
        return Change(stream, time, ts, is_true(row[layout.end_of_batch_at]), key, mutations, static)

    def _mutations(self, operation: int, row: LogRow, stream: bytes, time: bytes, ts: int) -> list[Mutation]:
        if operation in (UPDATE, INSERT):
            return [self._written(operation, row, ts)]
        if operation in (ROW_DELETE, EXPIRED_ROW):
            return [Mutation(deleted=ts)]
        if operation in (PARTITION_DELETE, EXPIRED_PARTITION):
            # Without clustering columns a partition is its only row.
            return [Mutation(scope="partition" if self.layout.clustering else "row", deleted=ts)]
        if operation in (RANGE_START_INCLUSIVE, RANGE_START_EXCLUSIVE):
            self._started[stream] = (time, self._bound(row, operation == RANGE_START_INCLUSIVE))
            return []
        if operation in (RANGE_END_INCLUSIVE, RANGE_END_EXCLUSIVE):
            started = self._started.pop(stream, None)
            if started is None or started[0] != time:
                raise Fatal(f"Stream {stream.hex()} of the log ends a range that it did not begin; nothing is guessed.")
            ranges = ascending(started[1], self._bound(row, operation == RANGE_END_INCLUSIVE), self.layout.descending)
            return [Mutation(scope="range", deleted=ts, lower=lower, upper=upper) for lower, upper in ranges]
        raise Fatal(f"The log holds the operation {operation}, which this version does not know.")

    def _written(self, operation: int, row: LogRow, ts: int) -> Mutation:
        ttl = row[self.layout.ttl_at]
        expires = ts + int.from_bytes(ttl, "big", signed=True) * _SECOND_US if ttl else None
        if expires == ts:
            expires = None
        cells: dict[str, Cell | Elements] = {}
        for column in self.layout.values:
            cell = _cell(column, row, ts, expires)
            if cell is not None:
                cells[column.name] = cell
        return Mutation(marker=Marker(ts, expires) if operation == INSERT else None, cells=cells)

    def _bound(self, row: LogRow, inclusive: bool) -> Bound | None:
        values = []
        for column in self.layout.clustering:
            value = row[column.at]
            if value is None:
                break
            values.append(column.decode(value))
        return Bound(tuple(values), inclusive) if values else None

    def _no_clustering(self, row: LogRow) -> bool:
        return all(row[column.at] is None for column in self.layout.clustering)


def _decoded(value: bytes | None, decode: Any) -> Any:
    return None if value is None else decode(value)


def _cell(column: ValueColumn, row: LogRow, ts: int, expires: int | None) -> Cell | Elements | None:
    """None: the write did not touch the column."""
    value = row[column.at]
    deleted = column.deleted_at >= 0 and is_true(row[column.deleted_at])
    if column.kind is not None:
        removed = row[column.elements_at]
        elements = [(key, Cell(ts, item, expires)) for key, item in _added(column, value)]
        elements += [(key, Cell(ts)) for key in _removed(column, removed)]
        if not deleted and not elements:
            return None
        return Elements(column.kind, tuple(elements), ts - 1 if deleted else None)
    if value is not None:
        return Cell(ts, column.decode(value), expires, raw_hex(value, column.type))
    return Cell(ts) if deleted else None


def _added(column: ValueColumn, value: bytes | None) -> Iterator[tuple[Any, Any]]:
    if value is None:
        return
    types = column.type.parameters
    if column.kind == "set":
        yield from ((canonical(piece, types[0]), True) for piece in pieces(value))
    elif column.kind == "udt":
        for name, kind, part in zip(column.type.fields, types, components(value, len(types)), strict=False):
            if part is not None:
                yield name, canonical(part, kind)
    else:
        yield from ((canonical(key, types[0]), canonical(item, types[1])) for key, item in pairs(value))


def _removed(column: ValueColumn, value: bytes | None) -> list[Any]:
    if value is None:
        return []
    if column.kind == "udt":
        return [column.type.fields[canonical(piece, _SMALLINT)] for piece in pieces(value)]
    kind = TIMEUUID if column.kind == "list" else column.type.parameters[0]
    return [canonical(piece, kind) for piece in pieces(value)]
