"""A row as the snapshot reads it → the mutation that, merged by write times, makes the same row. Pure.

Each cell comes with its own write time and time to live, so a snapshot row may arrive before or after what the commit
log tells of it: the newer write of each cell wins. What CQL does not tell is chosen so that it yields to the log:

The row marker's write time is not readable. It is the smallest write time of the row's cells: an INSERT writes marker
and cells with one time, and a smaller time only loses against a deletion that the log tells, whose later INSERT it then
tells as well. A row without any cell has a marker from an unknown time; it gets the time 1, below every deletion.
Whether there is a marker at all is not readable either; a row without one vanishes with its last cell, which is rarer
than a row whose cells are all null, and so every row gets one. It expires when all of its cells do, with the last.

Deletions are not readable. They need not be: what is deleted is not read, and a deletion younger than the change log is
in it. Of a list's elements the place is not readable; they get made-up places in their order, from a time before all
real ones, so that later appended elements come after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from connectors.cql.schema import Column, TableSchema, full_name, quoted
from connectors.cql.times import timeuuid
from connectors.cql.values import CqlType, canonical, components, pairs, pieces, raw_hex
from schemas.event import Row
from schemas.mutation import Cell, Elements, Kind, Marker, Mutation

UNKNOWN_TIME_US = 1
LIST_NODE = b"ctxpipe\x00"
_BIGINT = CqlType("bigint")
_INT = CqlType("int")

Bytes = Sequence[bytes | None]


class RowReader(msgspec.Struct, frozen=True):
    """Reads rows of one table. `element_times`: the server tells write times of single elements (Cassandra 5)."""

    table: TableSchema
    element_times: bool = True

    @property
    def regular(self) -> list[Column]:
        return [column for column in self.table.columns if column.kind == "regular"]

    def query(self) -> str:
        """Rows of one token range, whose bounds are the two parameters."""
        shown = [quoted(column.name) for column in self.table.key]
        for column in self.regular:
            name = quoted(column.name)
            shown.append(name)
            if self._timed(column):
                shown += [f"WRITETIME({name})", f"TTL({name})"]
        token = f"token({', '.join(quoted(column.name) for column in self.table.partition_key)})"
        where = f"{token} > ? AND {token} <= ?"
        return (
            f"SELECT {', '.join([*shown, 'toUnixTimestamp(now())'])} "
            f"FROM {full_name(self.table.keyspace, self.table.table)} WHERE {where}"
        )

    def mutation(self, row: Bytes) -> tuple[Row, Mutation] | None:
        """(key, mutation), None for a partition that has static columns only. Raises ValueError for bytes that are no
        value of their type."""
        keys = self.table.key
        key = {column.name: canonical(value, column.type) for column, value in zip(keys, row, strict=False)}
        if any(value is None for value in row[: len(keys)]):
            return None
        now_s = _integer(row[-1]) // 1000
        cells: dict[str, Cell | Elements] = {}
        at = len(keys)
        for column in self.regular:
            timed = self._timed(column)
            value, times, lives = (row[at], row[at + 1], row[at + 2]) if timed else (row[at], None, None)
            at += 3 if timed else 1
            if value is not None:
                change = _elements if column.multi_cell else _cell
                cells[column.name] = change(column.type, value, times, lives, now_s)
        return key, Mutation(marker=_marker(cells), cells=cells)

    def _timed(self, column: Column) -> bool:
        return self.element_times or not column.multi_cell


def _integer(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big", signed=True)


def _cell(kind: CqlType, value: bytes, time: bytes | None, life: bytes | None, now_s: int) -> Cell:
    written = _integer(time) if time else UNKNOWN_TIME_US
    return Cell(written, canonical(value, kind), _expiry(life, now_s), raw_hex(value, kind))


def _expiry(life: bytes | None, now_s: int) -> int | None:
    """TTL tells what is left of it, in whole seconds."""
    return (now_s + _integer(life)) * 1_000_000 if life else None


def _elements(kind: CqlType, value: bytes, times: bytes | None, lives: bytes | None, now_s: int) -> Elements:
    entries = _entries(kind, value)
    count = len(entries)
    # a null among the times to live is an empty piece; the driver's own decoder fails on it
    written = pieces(times) if times else [b""] * count
    living = pieces(lives) if lives else [b""] * count
    cells = []
    for (key, found, element_kind), time, life in zip(entries, written, living, strict=True):
        if found is None:
            continue  # a field of a user-defined type that is not set
        ts = _integer(time) if time else UNKNOWN_TIME_US
        expires = _expiry(life, now_s)
        if element_kind is None:
            cells.append((key, Cell(ts, True, expires)))
        else:
            cells.append((key, Cell(ts, canonical(found, element_kind), expires, raw_hex(found, element_kind))))
    name: Kind = kind.name  # type: ignore[assignment]
    return Elements(name, tuple(cells))


def _entries(kind: CqlType, value: bytes) -> list[tuple[Any, bytes | None, CqlType | None]]:
    """(key, value's bytes, its type) of each element; a set's has no value of its own."""
    if kind.name == "set":
        return [(canonical(piece, kind.parameters[0]), piece, None) for piece in pieces(value)]
    if kind.name == "map":
        name, item = kind.parameters
        return [(canonical(key, name), found, item) for key, found in pairs(value)]
    if kind.name == "list":
        places = ((_place(number), piece) for number, piece in enumerate(pieces(value)))
        return [(place, piece, kind.parameters[0]) for place, piece in places]
    parts = components(value, len(kind.fields))
    return list(zip(kind.fields, parts, kind.parameters, strict=True))


def _place(number: int) -> str:
    text = timeuuid(number, LIST_NODE).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _marker(cells: dict[str, Cell | Elements]) -> Marker:
    single = [cell for change in cells.values() for cell in _cells_of(change)]
    if not single:
        return Marker(UNKNOWN_TIME_US)
    ends = [cell.expires for cell in single]
    lasting = any(end is None for end in ends)
    return Marker(min(cell.ts for cell in single), None if lasting else max(end or 0 for end in ends))


def _cells_of(change: Cell | Elements) -> list[Cell]:
    return [change] if isinstance(change, Cell) else [cell for _, cell in change.elements]
