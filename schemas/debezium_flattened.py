"""Rows that Debezium's transform ExtractNewRecordState has flattened → the change that every stage understands.

A flattened record says less than an envelope: the row stands at top level, beside it what `add.fields` or `add.headers`
bring (`__op`, `__lsn`, `__source_ts_ms`, `__table`, …), and a deletion is, by the transform's setting, a tombstone or
the last row with `__deleted`. Tombstones have no log position. So positions order a topic's records only where
`__deleted` says that deletions come with one; everywhere else the offset does, because a key stays in one partition and
Debezium writes there in the order of its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.debezium_postgres import CREATED_BY, OLD_KEY_HEADER, canonical_key, canonical_row, with_key_change
from schemas.debezium_schema import RowConverters, key_converters
from schemas.debezium_values import is_unavailable
from schemas.errors import DecodeError
from schemas.event import ChangeEvent, Operation, Row, version_of
from schemas.record import Record
from schemas.source_format import SourceFormat
from schemas.wire import SIZE_MAX, parse_key, parse_object

_OPERATIONS = {one.value: one for one in (Operation.SNAPSHOT, Operation.CREATE, Operation.UPDATE, Operation.DELETE)}
_POSITIONS = ("__source_lsn", "__lsn")
_TIMES = (("__source_ts_us", 1), ("__source_ts_ms", 1000), ("__ts_us", 1), ("__ts_ms", 1000))
_DELETED = "__deleted"


def decode(
    record: Record, form: SourceFormat, table: str, declared: Mapping[str, str], size_max: int = SIZE_MAX
) -> ChangeEvent:
    """The change of a row of `table`. Raises DecodeError, and nothing else."""
    row, schema = parse_object(record.value, size_max)
    key, key_schema = parse_key(record.key)
    if row is None and key is None:
        raise DecodeError("a tombstone without a key: nobody can tell which row it deletes")
    if row is not None:
        _require_flat(row, form)
        _require_table(row, table)
    converters = key_converters(schema, declared)
    by_key = converters if key_schema is None else key_converters(key_schema, declared)
    event = ChangeEvent(
        source=form.topic_prefix,
        table=table,
        operation=_operation(row, record),
        key=None if key is None else canonical_key(key, by_key),
        row=None,
        version=_version(row, record),
        commit_time_us=_commit_time_us(row, record),
    )
    if row is not None:
        event = _with_row(event, row, converters)
    return with_key_change(event, record, by_key, declared) if record.headers else event


def _with_row(event: ChangeEvent, row: Row, converters: RowConverters) -> ChangeEvent:
    unavailable = frozenset([column for column, value in row.items() if is_unavailable(value)])
    canonical = canonical_row(row, converters, unavailable)
    if event.operation is not Operation.DELETE:
        return msgspec.structs.replace(event, row=canonical, unavailable=unavailable)
    # Without a record key the row that was deleted names itself.
    return msgspec.structs.replace(event, key=event.key if event.key is not None else canonical)


def _require_flat(row: Row, form: SourceFormat) -> None:
    if row.get("op").__class__ is str and row.get("source").__class__ is dict and ("after" in row or "before" in row):
        raise DecodeError(f"a change envelope, no flattened row; take format: flattened out of sources.{form.source}")


def _require_table(row: Row, table: str) -> None:
    schema, _, name = table.partition(".")
    for field, expected in (("__table", name), ("__source_table", name), ("__schema", schema)):
        if row.get(field) not in (None, expected):
            raise DecodeError(f"a row of {field.strip('_')} {row[field]!r:.80} on the topic of {table}")


def _operation(row: Row | None, record: Record) -> Operation:
    if row is None or row.get(_DELETED) in (True, "true"):
        return Operation.DELETE
    code = _beside(row, record, "__op")
    if code is None:
        has_old_key = any(name == OLD_KEY_HEADER for name, _ in record.headers)
        return CREATED_BY[has_old_key]
    operation = _OPERATIONS.get(str(code))
    if operation is None:
        raise DecodeError(f"unknown operation {code!r:.40} in '__op'; known are {', '.join(_OPERATIONS)}")
    return operation


def _version(row: Row | None, record: Record) -> str:
    """An offset stands below every log position: tombstones after rewritten deletions say nothing new."""
    if row is not None and _DELETED in row:
        for field in _POSITIONS:
            if row.get(field) is not None:
                position = _number(row[field], field)
                return version_of(position, position)
    return version_of(0, record.offset + 1)


def _commit_time_us(row: Row | None, record: Record) -> int:
    for field, to_us in _TIMES:
        found = _beside(row, record, field)
        if found is not None:
            return _number(found, field, 1 << 53) * to_us
    return max(record.timestamp_ms, 0) * 1000


def _beside(row: Row | None, record: Record, field: str) -> Any:
    """What `add.fields` or `add.headers` brought, None where neither did."""
    found = None if row is None else row.get(field)
    if found is not None:
        return found
    content = next((content for name, content in record.headers if name == field), None)
    return None if content is None else content.decode(errors="replace").strip('"')


def _number(value: Any, field: str, limit: int = 1 << 64) -> int:
    try:
        number = int(value) if value.__class__ in (int, str) else -1
    except ValueError:
        number = -1
    if not 0 <= number < limit:
        raise DecodeError(f"{field} is no number that it can be")
    return number
