"""Debezium's envelope of its connector for Cassandra → a mutation: other operation codes, cells, ranges, no before.

It tells one timestamp for all cells of a write, the newest of the partition update, and nothing of the marker's time to
live; both are taken as what an ordinary statement writes: one timestamp, one time to live.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import msgspec

from schemas import debezium_values as values
from schemas.debezium_schema import key_converters
from schemas.errors import DecodeError
from schemas.event import Row
from schemas.mutation import Bound, Cell, Elements, Marker, Mutation
from schemas.types import UnsureValue
from schemas.wire import Envelope

_RANGE_START, _RANGE_END = "_range_start", "_range_end"
_NUMBERS = ("Int32Type", "LongType", "ShortType", "ByteType", "IntegerType")
_COLLECTIONS = {list: "list or set", dict: "map or user-defined type"}


def mutation_of(
    envelope: Envelope, key: Row, key_schema: msgspec.Raw | None, declared: Mapping[str, str]
) -> tuple[Row, Mutation]:
    """(canonical key, mutation). Raises DecodeError for what is not certain: it is set aside, never guessed."""
    source, after = envelope.source, envelope.after or {}
    assert source is not None
    if source.ts_us is None:
        raise DecodeError("'source' has no ts_us, the write's timestamp")
    converters = key_converters(key_schema, declared).by_column
    key = {column: _canonical(converters.get(column), value, column) for column, value in key.items()}
    if envelope.op == "r":
        lower, upper = _bounds(after.get(_RANGE_START), after.get(_RANGE_END), declared)
        return key, Mutation(scope="range", deleted=source.ts_us, lower=lower, upper=upper)
    if envelope.op == "d":
        scope = "partition" if None in key.values() else "row"
        return key, Mutation(scope=scope, deleted=_deleted_at(after, source.ts_us))  # type: ignore[arg-type]
    if envelope.op not in ("i", "u"):
        raise DecodeError(f"unknown operation {envelope.op!r:.40} of connector cassandra; known are i, u, d, r")
    if None in key.values():
        raise DecodeError("a write of static columns: they belong to a partition, not to a row, and are not captured")
    cells: dict[str, Cell | Elements] = {
        column: _cell(column, cell, source.ts_us, converters.get(column))
        for column, cell in after.items()
        if cell is not None and column not in key and column not in (_RANGE_START, _RANGE_END)
    }
    marker = Marker(source.ts_us, _marker_expiry(cells)) if envelope.op == "i" else None
    return key, Mutation(marker=marker, cells=cells)


def _deleted_at(after: Row, ts_us: int) -> int:
    """The deletion's own time stands in its cells; `ts_us` is the newest of the whole statement."""
    times = [cell["deletion_ts"] for cell in after.values() if cell.__class__ is dict and cell.get("deletion_ts")]
    return min(times, default=ts_us)


def _cell(column: str, cell: Any, ts_us: int, converter: Any) -> Cell:
    if cell.__class__ is not dict or "value" not in cell:
        raise DecodeError(f"column {column} is no cell of the form {{value, deletion_ts, set}}")
    value = cell["value"]
    if value is None:
        return Cell(ts_us)
    if value.__class__ in _COLLECTIONS and converter is None:
        return Cell(ts_us, UnsureValue(_COLLECTIONS[value.__class__]), cell.get("deletion_ts"))
    return Cell(ts_us, _canonical(converter, value, column), cell.get("deletion_ts"))


def _canonical(converter: Any, value: Any, column: str) -> Any:
    if value is None or converter is None:
        return value
    try:
        return converter(value)
    except (ValueError, TypeError, KeyError, OverflowError, ArithmeticError) as error:
        raise DecodeError(f"column {column} does not hold what its type says: {error}") from None


def _marker_expiry(cells: Mapping[str, Cell | Elements]) -> int | None:
    """An INSERT with a time to live gives it to the marker and to every value alike."""
    times = [cell.expires for cell in cells.values() if isinstance(cell, Cell) and cell.value is not None]
    return max(times) if times and None not in times else None  # type: ignore[type-var]


def _bounds(start: Any, end: Any, declared: Mapping[str, str]) -> tuple[Bound | None, Bound | None]:
    """In ascending order of the values: a descending clustering column turns a range round."""
    lower, upper = _bound(start, declared), _bound(end, declared)
    kinds = [value.get("type", "") for side in (start, end) if side for value in side["values"]]
    return (upper, lower) if kinds and "ReversedType" in kinds[-1] else (lower, upper)


def _bound(side: Any, declared: Mapping[str, str]) -> Bound | None:
    if not side or not side.get("values"):
        return None
    try:
        found = tuple(
            _bound_value(value["value"], value["type"], value["name"] in declared) for value in side["values"]
        )
        return Bound(found, str(side["method"]).startswith("INCL"))
    except (KeyError, TypeError, ValueError) as error:
        raise DecodeError(f"a range bound that cannot be read: {error}") from None


def _bound_value(text: Any, kind: str, is_declared: bool) -> Any:
    """Bounds are text whatever their type; keys are in the wire's form where the spec declares no type."""
    name = kind.rsplit(".", 1)[-1].rstrip(")")
    if text.__class__ is not str:
        return text
    if name in _NUMBERS and text.lstrip("-").isdigit():
        return int(text)
    if name in ("DoubleType", "FloatType"):
        return float(text)
    if name == "DecimalType":
        return values.decimal(text)
    if name == "BooleanType":
        return text == "true"
    if name == "TimestampType":
        moment = datetime.fromisoformat(text)
        return values.zoned_timestamp(text) if is_declared else int(moment.timestamp() * 1000)
    if name == "SimpleDateType" and not is_declared:
        return (date.fromisoformat(text) - date(1970, 1, 1)).days
    return text
