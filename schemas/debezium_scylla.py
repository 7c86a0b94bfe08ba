"""The envelope of Scylla's CDC source connector for Kafka Connect, in both its formats → a mutation.

Legacy: a column is {"value": x}, null where it was not touched, {"value": null} where it was set to null. Advanced: the
plain value, and a null that may be either, unless the connector writes whole rows. It tells one timestamp for all cells
of a write and nothing of times to live; a deletion names its row in the key and in `before`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import msgspec

from schemas import debezium_values as values
from schemas.debezium_schema import RowConverters, key_converters
from schemas.errors import DecodeError
from schemas.event import Row
from schemas.mutation import Cell, Elements, Marker, Mutation
from schemas.source_format import SourceFormat
from schemas.types import UnknownValue
from schemas.wire import Envelope

_INSTANT = values.timestamp(1_000, "Z")
_CONNECT_TIMESTAMP = "org.apache.kafka.connect.data.Timestamp"
_BROKEN = (ValueError, TypeError, KeyError, OverflowError, ArithmeticError)


class UnsureNull(UnknownValue):
    """A null that either was written or stands for a column that was not touched."""

    __slots__ = ("_source",)

    def __init__(self, source: str) -> None:
        super().__init__("null")
        self._source = source

    def refusal(self, column: str) -> str:
        return (
            f"column {column} is null, and Scylla's connector writes null both for what was set to null and for what "
            "was not touched; let it write whole rows (cdc.include.after=full, postimages on the table) and set "
            f"full_images: true in sources.{self._source}"
        )


class UnsureElements(UnknownValue):
    """A collection: of one that is not frozen it may be only what was changed."""

    __slots__ = ()

    def refusal(self, column: str) -> str:
        return (
            f"column {column} holds a collection, and Scylla's connector does not tell elements that were added or "
            "removed from a whole one; declare it in the entity's types if it is frozen "
            f"(types: {{{column}: frozen}}), else leave it out"
        )


def mutation_of(
    envelope: Envelope, key: Row, key_schema: msgspec.Raw | None, declared: Mapping[str, str], form: SourceFormat | None
) -> tuple[Row, Mutation]:
    """(canonical key, mutation); `source.ts_us` is set. Raises DecodeError for what is not certain."""
    source = envelope.source
    assert source is not None and source.ts_us is not None
    plain = form is not None and form.plain_cells
    converters = _converters(bytes(envelope.schema), plain, declared)
    by_key = converters if key_schema is None else key_converters(key_schema, declared)
    key = {column: _canonical(value, column, by_key, declared) for column, value in key.items()}
    if envelope.op == "d":
        scope = "partition" if None in key.values() else "row"
        return key, Mutation(scope=scope, deleted=source.ts_us)  # type: ignore[arg-type]
    if envelope.op not in ("c", "u"):
        raise DecodeError(f"unknown operation {envelope.op!r:.40} of connector scylla; known are c, u, d")
    if envelope.after is None:
        raise DecodeError(
            f"operation {envelope.op!r} without 'after'; let the connector write it: cdc.include.after=full"
        )
    if None in key.values():
        raise DecodeError("a write of static columns: they belong to a partition, not to a row, and are not captured")
    cells: dict[str, Cell | Elements] = {}
    for column, value in envelope.after.items():
        if column in key or (not plain and value is None):
            continue
        found = _plain(value, column, form) if plain and form is not None else _unwrapped(value, column, form)
        cells[column] = Cell(source.ts_us, _sure(found, column, converters, declared, form))
    return key, Mutation(marker=Marker(source.ts_us) if envelope.op == "c" else None, cells=cells)


def _plain(value: Any, column: str, form: SourceFormat) -> Any:
    return UnsureNull(form.source) if value is None and not form.full_images else value


def _unwrapped(value: Any, column: str, form: SourceFormat | None) -> Any:
    if value.__class__ is not dict or value.keys() != {"value"}:
        where = f"sources.{form.source}" if form is not None else "its section under sources (connector: debezium)"
        raise DecodeError(
            f"column {column} is no cell of the form {{value}}; where Scylla's connector writes its advanced format, "
            f"set format: advanced in {where} and raise the versions of its contexts, so that all is read again"
        )
    return value["value"]


def _sure(
    value: Any, column: str, converters: RowConverters, declared: Mapping[str, str], form: SourceFormat | None
) -> Any:
    whole = form is not None and form.full_images
    if value.__class__ in (list, dict) and column not in declared and not whole:
        return UnsureElements("collection")
    return _canonical(value, column, converters, declared)


def _canonical(value: Any, column: str, converters: RowConverters, declared: Mapping[str, str]) -> Any:
    if value is None or isinstance(value, UnknownValue):
        return value
    try:
        if converters.names.get(column) == _CONNECT_TIMESTAMP:
            return _INSTANT(value)  # CQL's timestamps are moments
        if declared.get(column) == "integer" and value.__class__ is str:
            return int(value)  # a varint
        converter = converters.by_column.get(column)
        return value if converter is None else converter(value)
    except _BROKEN as error:
        raise DecodeError(f"column {column}: not a value of type {converters.name(column)} ({error})") from None


def _converters(raw: bytes, plain: bool, declared: Mapping[str, str]) -> RowConverters:
    """Of the columns' values, without the cells around them."""
    if not raw or raw == b"null":
        return key_converters(None, declared)
    return key_converters(_row_schema(raw, plain), declared)


@functools.lru_cache(maxsize=200)
def _row_schema(raw: bytes, plain: bool) -> msgspec.Raw:
    try:
        fields = msgspec.json.decode(raw)["fields"]
        row = next(field for field in fields if field.get("field") == "after")
        columns = row["fields"] if plain else [_inner(field) for field in row["fields"]]
        return msgspec.Raw(msgspec.json.encode({"type": "struct", "fields": columns}))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        raise DecodeError("the schema around the envelope is no Kafka Connect schema") from None
    except StopIteration:
        raise DecodeError("the schema around the envelope has no 'after'") from None


def _inner(field: dict[str, Any]) -> dict[str, Any]:
    inner = field.get("fields") or []
    if field.get("type") == "struct" and len(inner) == 1 and inner[0].get("field") == "value":
        return {**inner[0], "field": field["field"]}
    return field
