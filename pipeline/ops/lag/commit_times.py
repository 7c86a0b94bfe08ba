"""Reads the times of records around a committed offset out of the bytes of a fetch, without a consumer."""

from __future__ import annotations

from typing import Any

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords

from pipeline.ops.lag.model import Place

ENVELOPE_BYTES_MAX = 4 * 1024 * 1024


class _Source(msgspec.Struct):
    ts_us: int | None = None
    ts_ms: int | None = None


class _Payload(msgspec.Struct):
    source: _Source | None = None
    flat_us: int | None = msgspec.field(name="__source_ts_us", default=None)
    flat_ms: int | None = msgspec.field(name="__source_ts_ms", default=None)


class _Envelope(_Payload):
    payload: _Payload | None = None


_DECODER = msgspec.json.Decoder(_Envelope)


def source_time_us(value: bytes | None) -> int | None:
    """The source's commit time in a change event, microseconds since 1970 UTC; None where none is said. Debezium's
    envelope with and without its schema, and flattened rows that were given `__source_ts_ms`."""
    if value is None or value[:1] != b"{" or len(value) > ENVELOPE_BYTES_MAX:
        return None
    try:
        found: _Payload = _DECODER.decode(value)
    except msgspec.MsgspecError:
        return None
    inner = found.payload if isinstance(found, _Envelope) and found.payload is not None else found
    source = inner.source or _Source(inner.flat_us, inner.flat_ms)
    if source.ts_us is not None and source.ts_us > 0:
        return source.ts_us
    return source.ts_ms * 1000 if source.ts_ms is not None and source.ts_ms > 0 else None


def place_in(data: bytes, committed: int, end: int) -> Place | None:
    """What `data`, the answer to a fetch at `committed` - 1 or a little later, tells of the place before `committed`;
    None where it holds no whole batch (ask again with more room)."""
    applied: Any = None
    waiting: Any = None
    reached = -1
    batches = MemoryRecords(data)
    try:
        while waiting is None and batches.has_next():
            batch = batches.next_batch()
            reached = max(reached, getattr(batch, "next_offset", -1))
            if batch.is_control_batch:
                continue
            for record in batch:
                reached = max(reached, record.offset + 1)
                if record.offset == committed - 1:
                    applied = record
                elif record.offset >= committed:
                    waiting = record
                    break
    except KafkaError as error:
        return Place(None, None, problem=f"the record can't be read: {error!r}")
    if reached < 0:
        return None
    nothing = waiting is None and reached >= end
    chosen = applied if applied is not None else waiting
    if chosen is None:
        return Place(None, None, nothing_waits=nothing, problem="" if nothing else "no record is left near the commit")
    from_source_us = source_time_us(chosen.value)
    return Place(
        commit_time_us=from_source_us if from_source_us is not None else chosen.timestamp * 1000,
        written_time_us=chosen.timestamp * 1000,
        applied=applied is not None,
        from_source=from_source_us is not None,
        waiting_time_us=None if waiting is None else source_time_us(waiting.value) or waiting.timestamp * 1000,
        nothing_waits=nothing,
    )
