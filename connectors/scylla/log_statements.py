"""A write to a table, as CQL for the table and as the rows that Scylla's log has of it. Pure.

How a write falls into rows stands in Scylla's cdc/split.cc: cells of one time to live stand together, deletions have
none, the deletion of a whole collection is logged one microsecond late, and a row's INSERT cannot say that elements
were added to a collection without clearing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from connectors.cql.schema import Column, TableSchema, full_name, quoted
from connectors.scylla import decoding

Values = Mapping[str, Any]
Edge = tuple[tuple[Any, ...], bool]
"""Leading clustering columns' values, and whether they are included."""


class Overwrite(msgspec.Struct, frozen=True):
    """`SET v = value`; None makes it null."""

    value: Any


class Erase(msgspec.Struct, frozen=True):
    """`DELETE v FROM`."""


class Add(msgspec.Struct, frozen=True):
    """`SET v = v + value`; of a user-defined type, the fields by name."""

    value: Any


class Remove(msgspec.Struct, frozen=True):
    """`SET v = v - keys`: elements of a set, keys of a map, fields of a user-defined type, places of a list."""

    keys: Any


Edit = Overwrite | Erase | Add | Remove


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """One statement; values are the driver's. For `log_parts` those of lists are maps from the timeuuids of places,
    which LogWriter makes. `lower` and `upper` of a range are in the order of the values."""

    kind: Literal["insert", "update", "delete row", "delete partition", "delete range"]
    key: Values
    ts: int
    ttl: int = 0
    edits: Mapping[str, Edit] = {}
    lower: Edge | None = None
    upper: Edge | None = None


class Part(msgspec.Struct, frozen=True):
    """Some rows of the log under one cdc$time; columns that a row does not name are null."""

    ts: int
    rows: list[dict[str, Any]]


def log_parts(write: Write, table: TableSchema) -> list[Part]:
    """Without images, stream, number and end of batch, which come with the writing."""
    if write.kind in ("insert", "update"):
        return _upsert(write, table)
    key = dict(write.key)
    if write.kind == "delete row":
        return [Part(write.ts, [{**key, "cdc$operation": decoding.ROW_DELETE}])]
    if write.kind == "delete partition":
        return [Part(write.ts, [{**key, "cdc$operation": decoding.PARTITION_DELETE}])]
    return [Part(write.ts, _range_rows(write, table))]


def _upsert(write: Write, table: TableSchema) -> list[Part]:
    """Rows by (time, time to live), as a map would order them: inserts before updates of the same time."""
    static = not all(column.name in write.key for column in table.clustering)
    inserts: dict[int, dict[str, Any]] = {}
    updates: dict[tuple[int, int], dict[str, Any]] = {}
    if write.kind == "insert":
        inserts[write.ttl] = {}
    for name, edit in write.edits.items():
        column = table.column(name)
        assert column is not None, f"{table.table} has no column {name}"
        for ts, ttl, cells, clears in _cells(column, edit, write):
            fits = not column.multi_cell or clears
            into_insert = write.kind == "insert" and ts == write.ts and ttl == write.ttl and fits
            target = inserts[write.ttl] if into_insert else updates.setdefault((ts, ttl), {})
            target.update(cells)
    rows = [(write.ts, ttl, decoding.INSERT, cells) for ttl, cells in inserts.items()]
    rows += [
        (ts, ttl, decoding.UPDATE, cells) for (ts, ttl), cells in sorted(updates.items(), key=lambda item: item[0])
    ]
    parts: dict[int, list[dict[str, Any]]] = {}
    for ts, ttl, operation, cells in rows:
        row = {**write.key, **cells, "cdc$operation": decoding.UPDATE if static else operation}
        parts.setdefault(ts, []).append({**row, "cdc$ttl": ttl} if ttl else row)
    return [Part(ts, found) for ts, found in sorted(parts.items())]


def _cells(column: Column, edit: Edit, write: Write) -> Iterator[tuple[int, int, dict[str, Any], bool]]:
    """(time in the log, time to live, columns of the log, whether the column is cleared)."""
    deleted = {f"cdc$deleted_{column.name}": True}
    if not column.multi_cell:
        if isinstance(edit, Overwrite) and edit.value is not None:
            yield write.ts, write.ttl, {column.name: edit.value}, False
        else:
            yield write.ts, 0, deleted, False
        return
    if isinstance(edit, Erase):
        yield write.ts + 1, 0, {**_touched(column, None), **deleted}, True
    elif isinstance(edit, Remove):
        yield write.ts, 0, {**_touched(column, None), **_elements_gone(column, edit.keys)}, False
    elif isinstance(edit, Add):
        yield write.ts, write.ttl, _touched(column, edit.value), False
    elif write.ttl and edit.value:
        yield write.ts, 0, {**_touched(column, None), **deleted}, True
        yield write.ts, write.ttl, _touched(column, edit.value), False
    else:
        yield write.ts, 0, {**_touched(column, edit.value), **deleted}, True


def _touched(column: Column, value: Any) -> dict[str, Any]:
    """Of a user-defined type the log always has a value, if only of nulls."""
    if column.type.name != "udt":
        return {column.name: value} if value else {}
    by_name = value if isinstance(value, Mapping) else dict(zip(column.type.fields, value or (), strict=False))
    return {column.name: tuple(by_name.get(field) for field in column.type.fields)}


def _elements_gone(column: Column, keys: Any) -> dict[str, Any]:
    found = {column.type.fields.index(key) for key in keys} if column.type.name == "udt" else set(keys)
    return {f"cdc$deleted_elements_{column.name}": found}


def _range_rows(write: Write, table: TableSchema) -> list[dict[str, Any]]:
    """The bounds in the table's own order: of a descending column the greater one comes first."""
    fixed = [column.name for column in table.clustering if column.name in write.key]
    ranged = table.clustering[len(fixed)] if len(fixed) < len(table.clustering) else None
    first, last = write.lower, write.upper
    if ranged is not None and ranged.descending:
        first, last = last, first
    partition = {column.name: write.key[column.name] for column in table.partition_key}
    operations = (
        (first, decoding.RANGE_START_INCLUSIVE, decoding.RANGE_START_EXCLUSIVE),
        (last, decoding.RANGE_END_INCLUSIVE, decoding.RANGE_END_EXCLUSIVE),
    )
    rows = []
    for edge, inclusive, exclusive in operations:
        values = edge[0] if edge is not None else tuple(write.key[name] for name in fixed)
        bound = dict(zip((column.name for column in table.clustering), values, strict=False))
        rows.append({**partition, **bound, "cdc$operation": inclusive if edge is None or edge[1] else exclusive})
    return rows


def base_cql(write: Write, table: TableSchema) -> tuple[str, list[Any]]:
    """The statement for the table itself, and its parameters. Writes that differ in values and times alone have the
    same statement, which is prepared once."""
    name, using = full_name(table.keyspace, table.table), "USING TIMESTAMP ?"
    where, parameters = _where(write, table)
    if write.kind == "insert":
        columns = {**write.key, **{column: _plain(edit) for column, edit in write.edits.items()}}
        shown = ", ".join(map(quoted, columns))
        marks = ", ".join("?" * len(columns))
        query = f"INSERT INTO {name} ({shown}) VALUES ({marks}) {using} AND TTL ?"
        return query, [*columns.values(), write.ts, write.ttl]
    erased = [quoted(column) for column, edit in write.edits.items() if isinstance(edit, Erase)]
    if write.kind == "update" and not erased:
        sets, values = _sets(write, table)
        times = [write.ts, write.ttl]
        return f"UPDATE {name} {using} AND TTL ? SET {sets} WHERE {where}", [*times, *values, *parameters]
    assert len(erased) == len(write.edits), "a DELETE of columns writes no others"
    return f"DELETE {', '.join(erased)} FROM {name} {using} WHERE {where}", [write.ts, *parameters]


def _sets(write: Write, table: TableSchema) -> tuple[str, list[Any]]:
    sets: list[str] = []
    values: list[Any] = []
    for name, edit in write.edits.items():
        column, shown = table.column(name), quoted(name)
        udt = column is not None and column.type.name == "udt" and column.multi_cell
        if udt and isinstance(edit, Add):
            sets += [f"{shown}.{quoted(field)} = ?" for field in edit.value]
            values += edit.value.values()
        elif udt and isinstance(edit, Remove):
            sets += [f"{shown}.{quoted(field)} = null" for field in edit.keys]
        elif isinstance(edit, Add | Remove):
            sets.append(f"{shown} = {shown} {'+' if isinstance(edit, Add) else '-'} ?")
            values.append(_plain(edit))
        else:
            sets.append(f"{shown} = ?")
            values.append(_plain(edit))
    return ", ".join(sets), values


def _plain(edit: Edit) -> Any:
    if isinstance(edit, Remove):
        return edit.keys
    return None if isinstance(edit, Erase) else edit.value


def _where(write: Write, table: TableSchema) -> tuple[str, list[Any]]:
    terms = [f"{quoted(name)} = ?" for name in write.key]
    values = list(write.key.values())
    for edge, sign in ((write.lower, ">"), (write.upper, "<")):
        if edge is not None:
            names = [column.name for column in table.clustering if column.name not in write.key]
            own = edge[0][len(table.clustering) - len(names) :]
            shown, marks = ", ".join(map(quoted, names[: len(own)])), ", ".join("?" * len(own))
            terms.append(f"({shown}) {sign}{'=' if edge[1] else ''} ({marks})")
            values += own
    return " AND ".join(terms), values
