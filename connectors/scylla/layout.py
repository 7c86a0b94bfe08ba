"""The columns of a log table and what each of them says of the table's own. Pure.

Of a column `v` the log holds `v` itself, `cdc$deleted_v`, and for collections and user-defined types that are not
frozen `cdc$deleted_elements_v`; lists come as maps from the timeuuid of their places.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from connectors.cql.schema import TableSchema
from connectors.cql.values import CqlType, Decoder, decoder
from pipeline.core.errors import Fatal
from schemas.mutation import Kind

_META = ("cdc$stream_id", "cdc$time", "cdc$operation", "cdc$ttl", "cdc$end_of_batch")
_TRUE = b"\x01"
TIMEUUID = CqlType("timeuuid")


class KeyColumn(msgspec.Struct, frozen=True):
    name: str
    at: int
    decode: Decoder


class ValueColumn(msgspec.Struct, frozen=True):
    """Places of a column's parts in a row of the log, -1 where there is none. `kind` of one that is not frozen."""

    name: str
    type: CqlType
    at: int
    deleted_at: int
    decode: Decoder
    kind: Kind | None = None
    elements_at: int = -1


class LogLayout(msgspec.Struct, frozen=True):
    """Made for one list of columns, as an answer has them. `missing` are columns that the table does not have."""

    stream_at: int
    time_at: int
    operation_at: int
    ttl_at: int
    end_of_batch_at: int
    partition_key: tuple[KeyColumn, ...]
    clustering: tuple[KeyColumn, ...]
    descending: tuple[bool, ...]
    values: tuple[ValueColumn, ...]
    missing: tuple[str, ...]


def log_layout(columns: Sequence[tuple[str, CqlType]], table: TableSchema) -> LogLayout:
    """Raises Fatal for a table that is no log of `table`, UnknownType for a column that nobody can read."""
    places = {name: place for place, (name, _) in enumerate(columns)}
    types = dict(columns)
    lacking = [name for name in (*_META, *(column.name for column in table.key)) if name not in places]
    if lacking:
        text = f"The log of {table.keyspace}.{table.table} has no column {', '.join(lacking)}; it is no CDC log of it."
        raise Fatal(text)
    keys = {column.name: KeyColumn(column.name, places[column.name], decoder(column.type)) for column in table.key}
    regular = [column for column in table.columns if column.kind == "regular" and column.name in places]
    known = {column.name for column in table.columns}
    stream_at, time_at, operation_at, ttl_at, end_of_batch_at = (places[name] for name in _META)
    return LogLayout(
        stream_at,
        time_at,
        operation_at,
        ttl_at,
        end_of_batch_at,
        partition_key=tuple(keys[column.name] for column in table.partition_key),
        clustering=tuple(keys[column.name] for column in table.clustering),
        descending=tuple(column.descending for column in table.clustering),
        values=tuple(_value_column(column.name, column.declared, places, types) for column in regular),
        missing=tuple(name for name in places if not name.startswith("cdc$") and name not in known),
    )


def _value_column(name: str, declared: str, places: dict[str, int], types: dict[str, CqlType]) -> ValueColumn:
    elements_at = places.get(f"cdc$deleted_elements_{name}", -1)
    kind: Kind | None = None
    if elements_at >= 0:
        kind = next((one for one in _KINDS if declared.startswith(f"{one}<")), "udt")
    deleted_at = places.get(f"cdc$deleted_{name}", -1)
    return ValueColumn(name, types[name], places[name], deleted_at, decoder(types[name]), kind, elements_at)


_KINDS: tuple[Kind, ...] = ("list", "set", "map")


def is_true(value: bytes | None) -> bool:
    return value == _TRUE
