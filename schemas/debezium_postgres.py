"""A record of Debezium's or our own Postgres connector → the change that every stage understands."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import msgspec

from schemas import debezium_values as values
from schemas.debezium_schema import RowConverters, key_converters, row_converters
from schemas.errors import DecodeError
from schemas.event import VERSION_LENGTH, ChangeEvent, Operation, Row, version_of
from schemas.record import Record
from schemas.types import UnknownValue
from schemas.wire import OWN_VERSION, SIZE_MAX, Envelope, Source, parse, parse_key

Types = Mapping[str, Mapping[str, str]]
"""Table (`schema.table`) → column → declared type (see schemas.types)."""

CONNECTOR = "postgresql"
NEW_KEY_HEADER = "__debezium.newkey"
OLD_KEY_HEADER = "__debezium.oldkey"
OWN_KEY = "__ctxpipe"
"""The only member of keys that stand for no row: truncates and heartbeats of our own connectors."""

_OPERATIONS = {operation.value: operation for operation in Operation}
CREATED_BY = {True: Operation.CREATE, False: Operation.UPDATE}
"""What a row is that says nothing of its operation: the second half of a primary-key change names the old key."""
_PLACEHOLDER = values.PLACEHOLDER
_PLACEHOLDER_BYTES = _PLACEHOLDER.encode()
_NONE_UNAVAILABLE: frozenset[str] = frozenset()
_BROKEN = (ValueError, TypeError, KeyError, ArithmeticError, msgspec.MsgspecError, RecursionError)


def decode(record: Record, types: Types | None = None, size_max: int = SIZE_MAX) -> ChangeEvent | None:
    """None for tombstones and records without a change. Raises DecodeError; nothing else leaves.

    `types` matters for Debezium without schemas only: there a timestamp is a bare number, a numeric base64.
    """
    envelope = parse(record, size_max)
    return None if envelope is None else decode_envelope(envelope, record, types)


def decode_envelope(envelope: Envelope, record: Record, types: Types | None = None) -> ChangeEvent:
    """As `decode`, for an envelope that `wire.parse` gave."""
    source, operation = envelope.source, _OPERATIONS.get(envelope.op or "")
    if source is None or operation is None:
        raise DecodeError(f"unknown operation {envelope.op!r:.40}; known are {', '.join(_OPERATIONS)}")
    if source.connector != CONNECTOR:
        raise DecodeError(f"the record comes from connector {source.connector!r:.60}, not {CONNECTOR}")
    if operation is Operation.MESSAGE:
        return _message(envelope, source)
    if not source.schema or not source.table or not source.name:
        raise DecodeError("'source' does not name its connector, schema and table (name, schema, table)")
    key, key_schema = parse_key(record.key)
    if key is not None and OWN_KEY in key:
        key = None
    if operation is Operation.TRUNCATE:
        return _event(source, operation, None, None, None, _NONE_UNAVAILABLE)
    if key is None:
        raise DecodeError("the record has no key; give the table a primary key or set message.key.columns")
    row = envelope.after
    if operation is Operation.DELETE:
        row = None
    elif row is None:
        raise DecodeError(f"operation {operation.value!r} without 'after'")
    if source.version.startswith(OWN_VERSION):
        return _own(envelope, source, operation, key, row, record)
    table = f"{source.schema}.{source.table}"
    return _foreign(envelope, source, operation, (key, key_schema), row, record, (types or {}).get(table) or {})


def _own(
    envelope: Envelope, source: Source, operation: Operation, key: Row, row: Row | None, record: Record
) -> ChangeEvent:
    """Canonical values already; only the placeholder has to be looked for, and only where its bytes occur."""
    before, unavailable = envelope.before, _NONE_UNAVAILABLE
    if _PLACEHOLDER_BYTES in (record.value or b""):
        if row is not None:
            unavailable = frozenset([column for column, value in row.items() if value == _PLACEHOLDER])
            row = {column: value for column, value in row.items() if column not in unavailable}
        if before is not None:
            before = {column: value for column, value in before.items() if value != _PLACEHOLDER}
    event = _event(source, operation, key, row, before, unavailable)
    return with_key_change(event, record, RowConverters(), {}) if record.headers else event


def _foreign(
    envelope: Envelope,
    source: Source,
    operation: Operation,
    keyed: tuple[Row, msgspec.Raw | None],
    row: Row | None,
    record: Record,
    declared: Mapping[str, str],
) -> ChangeEvent:
    """Debezium's values become canonical, by the schema around them or by the declared types."""
    converters = row_converters(envelope.schema, declared)
    key, key_schema = keyed
    # A key converter without schemas writes the key's values in the same forms as the row's.
    by_key = converters if key_schema is None else key_converters(key_schema, declared)
    unavailable = _NONE_UNAVAILABLE
    if row is not None:
        unavailable = frozenset([column for column, value in row.items() if values.is_unavailable(value)])
        row = canonical_row(row, converters, unavailable)
    before = _known_before(envelope.before, key, converters) if envelope.before else None
    event = _event(source, operation, canonical_key(key, by_key), row, before, unavailable)
    return with_key_change(event, record, by_key, declared) if record.headers else event


def _known_before(before: Row, key: Row, converters: RowConverters) -> Row:
    """What is sure of the state before.

    Under REPLICA IDENTITY DEFAULT Debezium sends every column, those outside the key as null or, with its converter's
    default settings, as the column's default. So a single null outside the key makes everything outside it unknown.
    """
    rest = {column: value for column, value in before.items() if column not in key}
    guessed = [value is None or value == converters.defaults.get(column) for column, value in rest.items()]
    unavailable = frozenset([column for column, value in before.items() if values.is_unavailable(value)])
    if any(guessed):
        unavailable |= rest.keys()
    known = canonical_row(before, converters, unavailable)
    return {column: value for column, value in known.items() if value.__class__ is not UnknownValue}


def canonical_key(key: Row, converters: RowConverters) -> Row:
    """A row has no name without its key, so nothing in it may be unknown."""
    canonical = canonical_row(key, converters, _NONE_UNAVAILABLE)
    for column, value in canonical.items():
        if value.__class__ is UnknownValue:
            raise DecodeError(value.refusal(column))
    return canonical


def canonical_row(row: Row, converters: RowConverters, left_out: frozenset[str]) -> Row:
    """Every column's canonical value but those of `left_out`. Raises DecodeError."""
    convert = converters.by_column
    result = {}
    for column, value in row.items():
        if column in left_out:
            continue
        converter = convert.get(column, values.plain)
        try:
            result[column] = value if value is None or converter is None else converter(value)
        except _BROKEN as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            raise DecodeError(f"column {column}: not a value of type {converters.name(column)} ({reason})") from None
    return result


def _message(envelope: Envelope, source: Source) -> ChangeEvent:
    message = envelope.message
    if message is None:
        raise DecodeError("operation 'm' without 'message'")
    try:
        content = base64.b64decode(message.content or "", validate=True)
    except ValueError:
        raise DecodeError("the content of the logical message is not base64") from None
    return _event(source, Operation.MESSAGE, None, None, None, _NONE_UNAVAILABLE, (message.prefix, content))


def _event(
    source: Source,
    operation: Operation,
    key: Row | None,
    row: Row | None,
    before: Row | None,
    unavailable: frozenset[str],
    message: tuple[str, bytes] | None = None,
) -> ChangeEvent:
    time_us = source.ts_us
    if time_us is None:
        time_us = (source.ts_ms or 0) * 1000
    if not 0 <= time_us < 1 << 63:
        raise DecodeError("the time of the change ('source.ts_us' or 'ts_ms') is no time since 1970")
    return ChangeEvent(
        source=source.name,
        table=f"{source.schema}.{source.table}" if source.table else "",
        operation=operation,
        key=key,
        row=row,
        version=_version(source),
        commit_time_us=time_us,
        before=before,
        unavailable=unavailable,
        position=source.sequence or "",
        message=message,
        cluster=source.system,
    )


def _version(source: Source) -> str:
    """`sequence` is `["<commit LSN>","<LSN>"]` in JSON, where either may be null and old versions lack it."""
    sequence, lsn = source.sequence, source.lsn
    try:
        if sequence is not None:
            pieces = sequence.split('"')
            if len(pieces) == 5:
                version = "%016x%016x" % (int(pieces[1]), int(pieces[3]))  # noqa: UP031 - faster than an f-string
                if len(version) != VERSION_LENGTH or "-" in version:
                    raise ValueError("no log positions")
                return version
            parts = msgspec.json.decode(sequence, type=tuple[int | None, int | None], strict=False)
            last = parts[1] if parts[1] is not None else lsn
            first = parts[0] if parts[0] is not None else last
            if first is not None and last is not None:
                return _checked(first, last)
        elif lsn is not None:
            return _checked(lsn, lsn)
    except (ValueError, msgspec.MsgspecError):
        raise DecodeError("'source.sequence' is not a pair of log positions") from None
    raise DecodeError("'source' says nothing of the position (neither sequence nor lsn)")


def _checked(major: int, minor: int) -> str:
    if not (0 <= major < 1 << 64 and 0 <= minor < 1 << 64):
        raise ValueError("no log position")
    return version_of(major, minor)


def with_key_change(
    event: ChangeEvent, record: Record, by_key: RowConverters, declared: Mapping[str, str]
) -> ChangeEvent:
    """A primary-key change is a delete that names the new key and a create that names the old one."""
    for name, content in record.headers:
        if name == NEW_KEY_HEADER and event.operation is Operation.DELETE:
            return msgspec.structs.replace(event, new_key=_header_key(content, by_key, declared))
        if name == OLD_KEY_HEADER and event.operation is Operation.CREATE:
            return msgspec.structs.replace(event, old_key=_header_key(content, by_key, declared))
    return event


def _header_key(content: bytes, by_key: RowConverters, declared: Mapping[str, str]) -> Row | None:
    """Connect's usual header converter writes no schema, whatever the key's does."""
    key, schema = parse_key(content)
    converters = by_key if schema is None else key_converters(schema, declared)
    return None if key is None else canonical_key(key, converters)
