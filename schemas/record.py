"""A Kafka record as the stages see it: raw bytes and where they came from."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record of a topic partition; `value` None is a tombstone. `timestamp_ms` is the broker's."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()
