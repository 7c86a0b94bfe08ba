"""Kafka Connect's schemas → converters per column; compiled once per schema, because each record repeats it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from schemas import debezium_values as values
from schemas.debezium_values import Converter
from schemas.errors import DecodeError
from schemas.types import UnknownValue

_CACHE_MAX = 500
_TIME = "io.debezium.time."
_CONNECT = "org.apache.kafka.connect.data."


class RowConverters(msgspec.Struct, frozen=True):
    """How the columns of a row become canonical; None needs nothing done. `defaults` are those of the schema."""

    by_column: dict[str, Converter | None] = {}
    defaults: dict[str, Any] = {}
    names: dict[str, str] = {}

    def name(self, column: str) -> str:
        return self.names.get(column, "undeclared")


class _Cache:
    """Converters by schema and declared types."""

    def __init__(self) -> None:
        self._known: dict[Any, RowConverters] = {}

    def get(self, key: Any, build: Callable[[], RowConverters]) -> RowConverters:
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            found = self._known[key] = build()
        return found


_CACHE = _Cache()


def row_converters(schema: msgspec.Raw, declared: Mapping[str, str]) -> RowConverters:
    """Converters of `before` and `after`. Raises DecodeError for a schema that is none."""
    raw = bytes(schema)
    if not raw or raw == b"null":
        return _declared(declared)
    return _CACHE.get((raw, tuple(declared.items())), lambda: _of_envelope_schema(raw, declared))


def key_converters(schema: msgspec.Raw | None, declared: Mapping[str, str]) -> RowConverters:
    """Converters of a key; `schema` is the raw schema around it, None without."""
    if schema is None:
        return _declared(declared)
    raw = bytes(schema)
    return _CACHE.get((raw, tuple(declared.items()), "key"), lambda: _of_key_schema(raw, declared))


def _declared(declared: Mapping[str, str]) -> RowConverters:
    def build() -> RowConverters:
        converters = {column: values.of_declared_type(name) for column, name in declared.items()}
        return RowConverters(dict(converters), {}, dict(declared))

    return _CACHE.get(tuple(declared.items()), build)


def _of_envelope_schema(raw: bytes, declared: Mapping[str, str]) -> RowConverters:
    try:
        fields = msgspec.json.decode(raw)["fields"]
        rows = [field for field in fields if field.get("field") in ("after", "before")]
        if not rows:
            return _declared(declared)  # a message has no rows
        return _of_struct(rows[-1], declared)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        raise DecodeError("the schema around the envelope is no Kafka Connect schema") from None


def _of_key_schema(raw: bytes, declared: Mapping[str, str]) -> RowConverters:
    try:
        return _of_struct(msgspec.json.decode(raw), declared)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise DecodeError("the schema around the key is no Kafka Connect schema") from None


def _of_struct(schema: Any, declared: Mapping[str, str]) -> RowConverters:
    by_column: dict[str, Converter | None] = {}
    defaults, names = {}, {}
    try:
        for field in schema["fields"]:
            column = field["field"]
            names[column] = str(field.get("name") or field["type"])[:100]
            by_column[column] = _declared_over(declared.get(column, ""), field) or _converter(field)
            if field.get("default") is not None:
                defaults[column] = field["default"]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DecodeError("the schema around the row is no Kafka Connect struct") from None
    return RowConverters(by_column, defaults, names)


def _declared_over(declared: str, field: Mapping[str, Any]) -> Converter | None:
    """The declared type matters where the schema says less: an hstore as JSON text, a decimal as text or a float."""
    if declared == "hstore":
        return values.hstore
    if declared.startswith(("decimal", "numeric")) and field["type"] in ("string", "double") and not field.get("name"):
        return values.decimal
    return None


def _converter(field: Mapping[str, Any]) -> Converter | None:
    """By the semantic name first, then by the wire type."""
    name, kind = field.get("name"), field["type"]
    parameters = field.get("parameters") or {}
    if name == f"{_CONNECT}Decimal":
        return values.decimal_of_bytes(int(parameters["scale"]))
    if name == "io.debezium.data.Bits":
        return values.bits(int(parameters["length"]) if "length" in parameters else None)
    if name in _BY_NAME:
        return _BY_NAME[name]
    if kind == "array":
        element = _converter(field["items"])
        return element if element is None or isinstance(element, _Unknown) else values.array_of(element)
    if kind in ("struct", "bytes") and name is not None:
        return _Unknown(str(name)[:100])
    return None


class _Unknown:
    """The converter of a type that stands in no table here, e.g. a new one; an array of such is one as a whole."""

    def __init__(self, name: str) -> None:
        self._value = UnknownValue(name)

    def __call__(self, value: Any) -> UnknownValue:
        return self._value


_BY_NAME: dict[str, Converter | None] = {
    "io.debezium.data.VariableScaleDecimal": values.variable_decimal,
    f"{_TIME}Date": values.date,
    f"{_CONNECT}Date": values.date,
    f"{_TIME}Timestamp": values.timestamp(1_000),
    f"{_CONNECT}Timestamp": values.timestamp(1_000),
    f"{_TIME}MicroTimestamp": values.timestamp(1_000_000),
    f"{_TIME}NanoTimestamp": values.timestamp(1_000_000_000),
    "avro.timestamp-millis": values.timestamp(1_000, "Z"),
    "avro.timestamp-micros": values.timestamp(1_000_000, "Z"),
    "avro.timestamp-nanos": values.timestamp(1_000_000_000, "Z"),
    f"{_TIME}Time": values.time(1_000),
    f"{_CONNECT}Time": values.time(1_000),
    f"{_TIME}MicroTime": values.time(1_000_000),
    f"{_TIME}NanoTime": values.time(1_000_000_000),
    f"{_TIME}ZonedTimestamp": values.zoned_timestamp,
    f"{_TIME}ZonedTime": values.zoned_time,
    f"{_TIME}MicroDuration": values.interval(1_000_000),
    f"{_TIME}NanoDuration": values.interval(1_000_000_000),
    f"{_TIME}Interval": values.iso_interval,
    f"{_TIME}IsoDate": values.iso_local,
    f"{_TIME}IsoTime": values.iso_local,
    f"{_TIME}IsoTimestamp": values.iso_local,
    "io.debezium.data.geometry.Point": values.point,
    "io.debezium.data.geometry.Geometry": values.geometry,
    "io.debezium.data.geometry.Geography": values.geometry,
    "io.debezium.data.DoubleVector": values.vector,
    "io.debezium.data.FloatVector": values.vector,
    "io.debezium.data.SparseDoubleVector": values.sparse_vector,
}
