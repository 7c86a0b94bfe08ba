"""Records of wide-column tables → mutations: our own envelope, and that of Debezium's connector for Cassandra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas import debezium_cassandra, debezium_scylla
from schemas.errors import DecodeError
from schemas.event import ChangeEvent, Operation, Row, version_of
from schemas.mutation import Bound, Cell, Elements, Marker, Mutation, newest_timestamp
from schemas.record import Record
from schemas.source_format import SourceFormat
from schemas.wire import OWN_VERSION, Envelope, Source, parse_key

Types = Mapping[str, Mapping[str, str]]


class _Rest(msgspec.Struct, gc=False):
    marker: Marker | None = None
    deleted: int | None = None
    lower: Bound | None = None
    upper: Bound | None = None


_REST = msgspec.json.Decoder(_Rest)


def decode_envelope(
    envelope: Envelope, record: Record, types: Types | None = None, form: SourceFormat | None = None
) -> ChangeEvent:
    """An envelope whose connector is cassandra or scylla. Raises DecodeError."""
    source = envelope.source
    assert source is not None
    source.keyspace, source.table = source.keyspace or source.keyspace_name, source.table or source.table_name
    if envelope.op == "m":
        return _heartbeat(envelope, source)
    if not source.name or not source.keyspace or not source.table:
        raise DecodeError("'source' does not name its connector, keyspace and table (name, keyspace, table)")
    key, key_schema = parse_key(record.key)
    if key is None:
        raise DecodeError("the record has no key: the primary key's columns are expected there")
    if source.version.startswith(OWN_VERSION):
        mutation = _own(envelope, key)
    else:
        declared = (types or {}).get(f"{source.keyspace}.{source.table}") or {}
        if source.connector == "scylla":
            _require_timestamp(source)
            key, mutation = debezium_scylla.mutation_of(envelope, key, key_schema, declared, form)
        else:
            key, mutation = debezium_cassandra.mutation_of(envelope, key, key_schema, declared)
    return event_of(source, key, mutation)


def _require_timestamp(source: Source) -> None:
    """Early versions tell milliseconds only."""
    if source.ts_us is None and source.ts_ms is not None:
        source.ts_us = source.ts_ms * 1000
    if source.ts_us is None or not 0 <= source.ts_us < 1 << 63:
        raise DecodeError("'source' has no ts_us or ts_ms, the write's timestamp")


def event_of(source: Source, key: Row, mutation: Mutation) -> ChangeEvent:
    """A mutation with where it comes from. Its position in the order of the source is its newest timestamp."""
    ts_us = source.ts_us if source.ts_us is not None else newest_timestamp(mutation)
    is_snapshot = source.snapshot in (True, "true", "first", "last")
    return ChangeEvent(
        source=source.name,
        table=f"{source.keyspace}.{source.table}",
        operation=Operation.SNAPSHOT if is_snapshot else Operation.UPDATE,
        key=key,
        row=None,
        version=version_of(max(ts_us, 0), 0),
        commit_time_us=ts_us,
        mutation=mutation,
    )


def _heartbeat(envelope: Envelope, source: Source) -> ChangeEvent:
    if envelope.message is None or source.ts_us is None:
        raise DecodeError("a message without prefix or time")
    return ChangeEvent(
        source=source.name,
        table="",
        operation=Operation.MESSAGE,
        key=None,
        row=None,
        version=version_of(source.ts_us, 0),
        commit_time_us=source.ts_us,
        message=(envelope.message.prefix, b""),
    )


def _own(envelope: Envelope, key: Row) -> Mutation:
    try:
        rest = _REST.decode(envelope.mutation)
        cells = {column: _cell(column, value) for column, value in (envelope.after or {}).items() if column not in key}
    except (msgspec.DecodeError, msgspec.ValidationError, TypeError, KeyError) as error:
        raise DecodeError(f"no mutation of ours: {error}") from None
    scope = "range" if envelope.op == "r" else "partition" if None in key.values() else "row"
    return Mutation(
        scope=scope,  # type: ignore[arg-type]
        marker=rest.marker,
        cells=cells,
        deleted=rest.deleted,
        lower=rest.lower,
        upper=rest.upper,
    )


def _cell(column: str, value: Any) -> Cell | Elements:
    if value.__class__ is not dict:
        raise DecodeError(f"column {column} is neither a cell nor part of the key")
    if "kind" in value:
        elements = tuple((key, Cell(ts, found, expires)) for key, found, ts, expires in value["elements"])
        return Elements(value["kind"], elements, value["cleared"])
    return Cell(value["ts"], value["value"], value.get("expires"), value.get("raw"))
