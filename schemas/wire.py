"""The outer form of every change record: JSON bytes → envelope, with or without Connect's schemas around it."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.errors import DecodeError
from schemas.record import Record

SIZE_MAX = 16 * 1024 * 1024
"""Longest value that is read, in bytes; connectors publish no longer one, but set its row aside."""

OWN_VERSION = "ctxpipe-"
"""How `source.version` begins in what our own connectors write."""
HEARTBEAT_TOPIC_PREFIX = "__debezium-heartbeat"

_NOTHING = msgspec.Raw(b"")


class Source(msgspec.Struct, gc=False):
    """Where a change comes from; old and new versions of the connectors leave different fields out."""

    connector: str = ""
    version: str = ""
    name: str = ""
    ts_us: int | None = None
    ts_ms: int | None = None
    snapshot: str | bool | None = None
    schema: str = ""
    table: str = ""
    lsn: int | None = None
    sequence: str | None = None
    keyspace: str = ""
    keyspace_name: str = ""
    """As Scylla's own connector names it."""
    table_name: str = ""
    system: str = ""
    """Of our own connector for Postgres, in heartbeats: the server's system identifier."""


class Message(msgspec.Struct, gc=False):
    """A logical message; `content` is base64."""

    prefix: str
    content: str | None = None


class Envelope(msgspec.Struct, gc=False):
    """A change as Debezium writes it; `row_schema` is the raw schema around it, empty without schemas."""

    op: str | None = None
    source: Source | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    message: Message | None = None
    status: str | None = None
    id: Any = None
    schema: msgspec.Raw = _NOTHING
    payload: msgspec.Raw = _NOTHING
    mutation: msgspec.Raw = _NOTHING
    """Of our own connectors for wide-column databases: see schemas/mutation.py."""


class _Wrapped(msgspec.Struct, gc=False):
    schema: msgspec.Raw = _NOTHING


_DECODER = msgspec.json.Decoder(Envelope)
_ANY = msgspec.json.Decoder()
_WRAPPED = msgspec.json.Decoder(_Wrapped)


def parse(record: Record, size_max: int = SIZE_MAX) -> Envelope | None:
    """None for what carries no change: tombstones, transaction records, Debezium's own heartbeats.

    Raises DecodeError: too large, not JSON, no envelope.
    """
    value = record.value
    if value is None:
        return None
    if len(value) > size_max:
        raise DecodeError(f"the value has {len(value)} bytes, more than the limit of {size_max}")
    try:
        envelope = _DECODER.decode(value)
        if envelope.payload is not _NOTHING:
            schema = envelope.schema
            envelope = _DECODER.decode(envelope.payload)
            envelope.schema = schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(_reason(value, error)) from None
    if envelope.source is None or envelope.op is None:
        if envelope.status in ("BEGIN", "END") and envelope.id is not None:
            return None
        if record.topic.startswith(HEARTBEAT_TOPIC_PREFIX):
            return None
        raise DecodeError(_no_envelope(envelope))
    return envelope


def parse_object(value: bytes | None, size_max: int = SIZE_MAX) -> tuple[dict[str, Any] | None, msgspec.Raw | None]:
    """A record's JSON object and the raw schema around it, if any; (None, None) of a tombstone. Raises DecodeError."""
    if value is None:
        return None, None
    if len(value) > size_max:
        raise DecodeError(f"the value has {len(value)} bytes, more than the limit of {size_max}")
    schema = None
    try:
        decoded = _ANY.decode(value)
        if _is_wrapped(decoded):
            schema, decoded = _WRAPPED.decode(value).schema, decoded["payload"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(_reason(value, error)) from None
    if decoded is not None and decoded.__class__ is not dict:
        raise DecodeError("the value is no JSON object")
    return decoded, schema


def _is_wrapped(decoded: Any) -> bool:
    return decoded.__class__ is dict and len(decoded) == 2 and "schema" in decoded and "payload" in decoded


def parse_key(key: bytes | None) -> tuple[dict[str, Any] | None, msgspec.Raw | None]:
    """A record key's columns and the raw schema around them, if any. Raises DecodeError."""
    if key is None:
        return None, None
    schema = None
    try:
        decoded = _ANY.decode(key)
        if _is_wrapped(decoded):
            schema, decoded = _WRAPPED.decode(key).schema, decoded["payload"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"the key is {_reason(key, error)}") from None
    if decoded is None:
        return None, None
    if decoded.__class__ is not dict or not decoded:
        raise DecodeError("the key is no JSON object of key columns")
    return decoded, schema


def _reason(value: bytes, error: Exception) -> str:
    if value[:1] == b"\x00":
        return (
            "not JSON but Avro or Protobuf; name Avro's schema registry (schema_registry in the source's section), or "
            "let the connector write JSON (value.converter JsonConverter)"
        )
    if isinstance(error, RecursionError):
        return "JSON that is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, msgspec.ValidationError):
        return f"no change envelope: {error}"
    return f"not JSON: {error}"


def _no_envelope(envelope: Envelope) -> str:
    lacks = "'source'" if envelope.source is None else "'op'"
    if envelope.source is None and envelope.op is None:
        flattened = "rows flattened by ExtractNewRecordState need format: flattened in the source's section"
        lacks = f"'op' and 'source'; {flattened}"
    return f"no change envelope: it lacks {lacks}"
