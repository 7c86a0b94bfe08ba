"""Records in Avro, as the converters of schema registries write them → the same records in Connect's JSON.

The bytes are a zero, the schema's number in the registry, the datum. The schema becomes one of Kafka Connect, whose
named types (`connect.name`) say the same here as in JSON; Avro's own logical types become named types, too. So one set
of converters reads both encodings.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import msgspec

from schemas.errors import DecodeError
from schemas.record import Record

HEADER_BYTES = 5
_CONNECT = "org.apache.kafka.connect.data."
_LOGICAL = {
    "date": "io.debezium.time.Date",
    "time-millis": "io.debezium.time.Time",
    "time-micros": "io.debezium.time.MicroTime",
    "timestamp-millis": "avro.timestamp-millis",
    "timestamp-micros": "avro.timestamp-micros",
    "timestamp-nanos": "avro.timestamp-nanos",
    "local-timestamp-millis": "io.debezium.time.Timestamp",
    "local-timestamp-micros": "io.debezium.time.MicroTimestamp",
    "local-timestamp-nanos": "io.debezium.time.NanoTimestamp",
}
_KINDS = {"int": "int32", "long": "int64", "float": "float", "double": "double", "boolean": "boolean"}
_KINDS |= {"string": "string", "bytes": "bytes", "fixed": "bytes", "enum": "string", "map": "map", "null": "string"}
_DEPTH_MAX = 50
_BROKEN = (EOFError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, struct.error, RecursionError)
"""What the library raises, by what the bytes happen to say."""


class AvroSchema(msgspec.Struct, frozen=True):
    """`reader` is what the Avro library reads by, `connect` the schema that stands around the value in JSON."""

    reader: Any
    connect: msgspec.Raw


def parse_schema(text: str) -> AvroSchema:
    """Of a schema as a registry keeps it. Raises DecodeError."""
    from fastavro import schema as library

    try:
        described = msgspec.json.decode(text)
        # Types that a schema takes from others are refused here, as everything else that makes no schema.
        reader = library.parse_schema(_without_conversions(described), _write_hint=False)
        whole = library.parse_schema(described, _write_hint=False)
        connect = _Connect().of(whole, 0)
    except (msgspec.MsgspecError, RecursionError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DecodeError(f"the registry's schema is no Avro schema: {error}") from None
    except library.SchemaParseException as error:
        raise DecodeError(f"the registry's schema can't be read: {error}") from None
    return AvroSchema(reader, msgspec.Raw(msgspec.json.encode(connect)))


def schema_number(data: bytes | None) -> int | None:
    """The number that a value or key begins with; None for what is not written by a registry's converter."""
    if data is None or len(data) < HEADER_BYTES or data[0] != 0:
        return None
    return int.from_bytes(data[1:HEADER_BYTES], "big")


def as_json(record: Record, schemas: Mapping[int, AvroSchema | str]) -> Record:
    """`schemas`: by number; text says why there is none. What is no Avro stays as it is: keys often are JSON.

    Raises DecodeError.
    """
    key, value = _as_json(record.key, schemas, "key"), _as_json(record.value, schemas, "value")
    return msgspec.structs.replace(record, key=key, value=value)


def _as_json(data: bytes | None, schemas: Mapping[int, AvroSchema | str], part: str) -> bytes | None:
    number = schema_number(data)
    if number is None or data is None:
        return data
    schema = schemas.get(number, f"schema {number} has not been asked for")
    if isinstance(schema, str):
        raise DecodeError(f"the {part} can't be read: {schema}")
    datum = _read(data, schema, part)
    return msgspec.json.encode({"schema": schema.connect, "payload": _plain(datum)})


def _read(data: bytes, schema: AvroSchema, part: str) -> Any:
    from fastavro import schemaless_reader

    stream = BytesIO(data)
    stream.seek(HEADER_BYTES)
    try:
        datum = schemaless_reader(stream, schema.reader, None)
    except _BROKEN as error:
        raise DecodeError(f"the {part} is not what its Avro schema says ({type(error).__name__})") from None
    if stream.tell() != len(data):
        raise DecodeError(f"the {part} is longer than its Avro schema says")
    return datum


def _plain(value: Any) -> Any:
    """As Connect's JSON converter writes it: bytes as base64, what is no number in words."""
    if value.__class__ is dict:
        return {str(name): _plain(inner) for name, inner in value.items()}
    if value.__class__ is list:
        return [_plain(inner) for inner in value]
    if value.__class__ is bytes:
        return base64.b64encode(value).decode()
    if value.__class__ is float and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _without_conversions(schema: Any) -> Any:
    """The library would make dates and decimals of numbers and bytes; ours are made later. A uuid becomes text."""
    if isinstance(schema, list):
        return [_without_conversions(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: inner for name, inner in schema.items() if name != "logicalType" or inner == "uuid"}
    for name in ("type", "items", "values"):
        if name in kept:
            kept[name] = _without_conversions(kept[name])
    if isinstance(kept.get("fields"), list):
        kept["fields"] = [_without_conversions(field) for field in kept["fields"]]
    return kept


class _Connect:
    """A parsed Avro schema as one of Kafka Connect; `named` are the types met so far, by full name."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}

    def of(self, schema: Any, depth: int) -> dict[str, Any]:
        if depth > _DEPTH_MAX:
            raise ValueError("it is nested too deeply, or holds itself")
        if isinstance(schema, list):
            return self._of_union(schema, depth)
        if isinstance(schema, str):
            return self.of(self.named[schema], depth + 1) if schema in self.named else {"type": _KINDS[schema]}
        if schema.get("name") and schema["type"] in ("record", "enum", "fixed", "error"):
            self.named[schema["name"]] = schema
        kind = schema["type"]
        if not isinstance(kind, str) or (kind not in _KINDS and kind not in ("record", "error", "array")):
            return {**self.of(kind, depth + 1), **_named(schema)}
        if kind in ("record", "error"):
            fields = [self._of_field(field, depth) for field in schema["fields"]]
            return {"type": "struct", "fields": fields, "name": schema["name"], **_named(schema)}
        if kind == "array":
            return {"type": "array", "items": self.of(schema["items"], depth + 1), **_named(schema)}
        if kind == "map":
            self.of(schema["values"], depth + 1)  # it may name types
        return {"type": _KINDS[kind], **_named(schema)}

    def _of_field(self, field: Mapping[str, Any], depth: int) -> dict[str, Any]:
        found = {**self.of(field["type"], depth + 1), "field": field["name"]}
        if field.get("default") is not None:
            default = field["default"]
            is_bytes = found["type"] == "bytes" and isinstance(default, str)
            found["default"] = base64.b64encode(default.encode("latin-1")).decode() if is_bytes else default
        return found

    def _of_union(self, schema: list[Any], depth: int) -> dict[str, Any]:
        branches = [self.of(inner, depth + 1) for inner in schema if inner != "null"]
        if len(branches) == 1:
            return {**branches[0], "optional": True}
        # Which of them a value is, its JSON would not say.
        return {"type": "struct", "name": "an Avro union of several types", "optional": True}


def _named(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Connect's name of a type where its converter left one, else that of the logical type."""
    found: dict[str, Any] = {}
    logical = schema.get("logicalType")
    if logical == "decimal":
        found = {"name": f"{_CONNECT}Decimal", "parameters": {"scale": str(schema.get("scale", 0))}}
    elif logical in _LOGICAL:
        found = {"name": _LOGICAL[logical]}
    if isinstance(schema.get("connect.name"), str):
        found["name"] = schema["connect.name"]
    if isinstance(schema.get("connect.parameters"), dict):
        found["parameters"] = {**found.get("parameters", {}), **schema["connect.parameters"]}
    return found
