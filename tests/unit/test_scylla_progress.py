"""How far a log has been read: only ends of batches count, and an old generation is left for good."""

from __future__ import annotations

import msgspec

from connectors.cql.times import timeuuid
from connectors.scylla.progress import TableProgress, restored
from connectors.scylla.windows import Window

STREAM, OTHER = b"\x01" * 16, b"\x02" * 16


def uuid_at(us: int, low: int = 0) -> bytes:
    return timeuuid(us * 10, low.to_bytes(8, "big"))


def progress() -> TableProgress:
    return TableProgress("table", 1, 100, {}, {})


def test_what_was_delivered_is_not_delivered_again() -> None:
    made = progress()
    assert not made.delivered(STREAM, uuid_at(100))
    made.batch_ended(STREAM, uuid_at(150, low=5))
    assert made.delivered(STREAM, uuid_at(149)) and made.delivered(STREAM, uuid_at(150, low=5))
    assert not made.delivered(STREAM, uuid_at(150, low=6)) and not made.delivered(STREAM, uuid_at(151))
    assert not made.delivered(OTHER, uuid_at(149))


def test_low_bytes_are_signed_as_in_the_log() -> None:
    made = progress()
    made.batch_ended(STREAM, timeuuid(1500, b"\xff" + bytes(7)))
    assert made.delivered(STREAM, timeuuid(1500, b"\x80" + bytes(7)))
    assert not made.delivered(STREAM, timeuuid(1500, bytes(8)))


def test_a_window_group_by_group() -> None:
    made = progress()
    made.batch_ended(STREAM, uuid_at(150))
    made.group_ended("v1", (STREAM,), 200)
    assert made.partial == {} and made.start_of("v1") == 200 and made.start_of("v2") == 100
    made.group_ended("v2", (OTHER,), 200)
    made.window_ended(Window(100, 200, False, True), None)
    assert (made.until_us, made.ahead, made.generation_ms) == (200, {}, 1)


def test_a_generation_is_left_with_everything_of_it() -> None:
    made = progress()
    made.group_ended("v1", (STREAM,), 200)
    made.window_ended(Window(100, 200, True, False), 7)
    assert (made.until_us, made.generation_ms, made.ahead, made.partial) == (200, 7, {}, {})


def test_as_json_and_back() -> None:
    made = progress()
    made.batch_ended(STREAM, uuid_at(150))
    made.group_ended("v2", (OTHER,), 200)
    stored = made.stored()
    assert restored(msgspec.json.decode(msgspec.json.encode(stored))) == made
    made.batch_ended(OTHER, uuid_at(151))
    assert OTHER.hex() not in stored["partial"], "what was stored stays as it was"
