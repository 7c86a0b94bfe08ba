"""Every record of a source topic, whatever wrote it → a change; and a change → the records of our own envelope.

The connector builds the same bytes from templates, for speed; `encode` here is what they are checked against.
"""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

import msgspec

from schemas import debezium_flattened, debezium_postgres, mutation, wide_column
from schemas.debezium_postgres import CONNECTOR, NEW_KEY_HEADER, OLD_KEY_HEADER, OWN_KEY, Types
from schemas.debezium_values import PLACEHOLDER
from schemas.errors import DecodeError
from schemas.event import ChangeEvent, Operation, Row
from schemas.record import Record
from schemas.source_format import SourceFormat
from schemas.topics import HEARTBEAT_PREFIX
from schemas.wire import OWN_VERSION, SIZE_MAX, parse

CONNECTOR_VERSION = f"{OWN_VERSION}0.1.0"

_encode = msgspec.json.Encoder().encode


def decode_record(
    record: Record,
    types: Types | None = None,
    size_max: int = SIZE_MAX,
    form: SourceFormat | None = None,
    table: str = "",
) -> ChangeEvent | None:
    """None for what carries no change (tombstones, transaction records). Raises DecodeError, and nothing else.

    `types`: table (`schema.table`) → column → declared type, for envelopes that say nothing of types. `form`: how the
    source's topics are written, where others fill them; `table`: what the record's topic carries, for flattened rows.
    """
    if form is not None and form.translate is not None:
        record = form.translate(record)
    if form is not None and form.flattened:
        return debezium_flattened.decode(record, form, table, (types or {}).get(table) or {}, size_max)
    envelope = parse(record, size_max)
    if envelope is None:
        return None
    connector = envelope.source.connector if envelope.source else ""
    if connector == CONNECTOR:
        return debezium_postgres.decode_envelope(envelope, record, types)
    if connector in mutation.CONNECTORS:
        return wide_column.decode_envelope(envelope, record, types, form)
    known = ", ".join((CONNECTOR, *mutation.CONNECTORS))
    raise DecodeError(f"no decoder for records of connector {connector!r:.60}; known: {known}")


class Encoded(NamedTuple):
    """One record to produce."""

    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def encode(
    event: ChangeEvent, database: str, now_ms: int, transaction: int | None = None, snapshot: str = "false"
) -> list[Encoded]:
    """The records of one change, in order: a delete is followed by its tombstone.

    The halves of a primary-key change name each other's key in a header. `transaction` is the id of the source's
    transaction, `snapshot` one of "false", "true", "incremental".
    """
    major, minor = int(event.version[:16], 16), int(event.version[16:], 16)
    schema, _, table = event.table.partition(".")
    value: dict[str, Any] = {
        "before": event.before,
        "after": _after(event),
        "source": {
            "version": CONNECTOR_VERSION,
            "connector": CONNECTOR,
            "name": event.source,
            "ts_ms": event.commit_time_us // 1000,
            "ts_us": event.commit_time_us,
            "snapshot": snapshot,
            "db": database,
            "schema": schema,
            "table": table,
            "txId": transaction,
            "lsn": minor,
            "sequence": f'["{major}","{minor}"]',
        },
        "op": event.operation.value,
        "ts_ms": now_ms,
    }
    if event.message is not None:
        prefix, content = event.message
        value["message"] = {"prefix": prefix, "content": base64.b64encode(content).decode()}
    headers = tuple(
        (name, _encode(key))
        for name, key in ((NEW_KEY_HEADER, event.new_key), (OLD_KEY_HEADER, event.old_key))
        if key is not None
    )
    first = Encoded(_encode(_key(event)), _encode(value), headers)
    return [first, Encoded(first.key, None, headers)] if event.operation is Operation.DELETE else [first]


def _key(event: ChangeEvent) -> Row:
    if event.operation is Operation.TRUNCATE:
        return {OWN_KEY: "truncate"}
    if event.message is not None:
        prefix = event.message[0]
        return {OWN_KEY: "heartbeat"} if prefix == HEARTBEAT_PREFIX else {"prefix": prefix}
    if event.key is None:
        raise ValueError(f"a change of {event.table} without a key")
    return event.key


def _after(event: ChangeEvent) -> Row | None:
    if event.row is None or not event.unavailable:
        return event.row
    return {**event.row, **dict.fromkeys(sorted(event.unavailable), PLACEHOLDER)}
