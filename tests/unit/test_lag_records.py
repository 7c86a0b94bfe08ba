"""Times out of the bytes of a fetch: batches as Kafka keeps them, with gaps, marks of transactions and odd values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from pipeline.ops.lag.commit_times import place_in, source_time_us


def batch(base: int, *records: tuple[int, int, bytes | None], control: bool = False) -> bytes:
    """Records as (offset, milliseconds, value), in one batch that begins at `base`."""
    builder = DefaultRecordBatchBuilder(2, 0, int(control), -1, -1, -1, 1 << 20)
    for offset, time_ms, value in records:
        builder.append(offset - base, time_ms, b"key", value, [])
    data = bytearray(bytes(builder.build()))
    data[0:8] = base.to_bytes(8, "big")
    if control:
        data[21:23] = (int.from_bytes(data[21:23], "big") | 0x20).to_bytes(2, "big")
    return bytes(data)


def envelope(**source: Any) -> bytes:
    return json.dumps({"before": None, "after": {"id": 1}, "source": source, "op": "c", "ts_ms": 5}).encode()


@pytest.mark.parametrize(
    ("value", "time_us"),
    [
        (None, None),
        (b"", None),
        (b"plain", None),
        (b"{broken", None),
        (b'{"source": "text"}', None),
        (b'{"after": {}}', None),
        (envelope(ts_ms=12), 12_000),
        (envelope(ts_ms=12, ts_us=12_345), 12_345),
        (envelope(ts_ms=0), None),
        (envelope(ts_ms=None, name="shop"), None),
        (json.dumps({"schema": {}, "payload": {"source": {"ts_ms": 7}}}).encode(), 7_000),
        (b'{"id": 1, "__source_ts_ms": 9}', 9_000),
        (b"\x00\x00\x00\x00\x01avro", None),
    ],
)
def test_source_time(value: bytes | None, time_us: int | None) -> None:
    assert source_time_us(value) == time_us


def test_the_record_before_the_commit_counts() -> None:
    data = batch(98, (98, 1000, None), (99, 2000, envelope(ts_us=1_500_000)), (100, 3000, envelope(ts_ms=2)))
    found = place_in(data, 100, 101)
    assert found is not None and found.applied and found.from_source
    assert (found.commit_time_us, found.written_time_us, found.waiting_time_us) == (1_500_000, 2_000_000, 2_000)


def test_where_compaction_took_it_the_first_that_waits_counts() -> None:
    data = batch(50, (50, 1000, b"old"), (120, 3000, b"waits"))
    found = place_in(data, 100, 200)
    assert found is not None and not found.applied
    assert (found.commit_time_us, found.from_source, found.nothing_waits) == (3_000_000, False, False)


def test_marks_of_transactions_are_nothing_that_waits() -> None:
    data = batch(99, (99, 1000, b"last")) + batch(100, (100, 2000, b"\x00\x00\x00\x01"), control=True)
    found = place_in(data, 100, 101)
    assert found is not None and found.nothing_waits and found.applied
    more = place_in(data + batch(101, (101, 3000, b"next")), 100, 102)
    assert more is not None and not more.nothing_waits and more.waiting_time_us == 3_000_000


def test_what_is_not_there_is_said() -> None:
    assert place_in(b"", 100, 200) is None, "no whole batch: ask with more room"
    assert place_in(batch(99, (99, 1000, b"x"))[:-3], 100, 200) is None
    found = place_in(batch(90, (90, 1000, b"x")), 100, 200)
    assert found is not None and found.problem and found.commit_time_us is None
    ended = place_in(batch(90, (90, 1000, b"x")), 100, 91)
    assert ended is not None and ended.nothing_waits


def test_bytes_that_are_no_batch_are_told() -> None:
    data = bytearray(batch(99, (99, 1000, b"x")))
    data[-4:] = b"\xff\xff\xff\xff"
    found = place_in(bytes(data), 100, 200)
    assert found is None or found.problem or found.applied
