"""Our own envelope: what is encoded comes back as it was, and looks on the wire as the contract says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.debezium_values import PLACEHOLDER
from schemas.envelope import Encoded, decode_record, encode
from schemas.event import ChangeEvent, Operation, Row, version_of
from schemas.record import Record
from schemas.topics import HEARTBEAT_PREFIX


def record_of(encoded: Encoded) -> Record:
    return Record("s.public.t", 0, 0, encoded.key, encoded.value, headers=encoded.headers)


def event_of(operation: Operation, **more: Any) -> ChangeEvent:
    at = more.pop("at", (20, 10))
    given: dict[str, Any] = {
        "source": "s",
        "table": "public.t",
        "key": {"id": 1},
        "row": None,
        "commit_time_us": 5_000_001,
    }
    position = f'["{at[0]}","{at[1]}"]'
    return ChangeEvent(operation=operation, version=version_of(*at), position=position, **{**given, **more})


def test_an_update_on_the_wire() -> None:
    event = event_of(Operation.UPDATE, row={"id": 1, "amount": "12.50"}, unavailable=frozenset({"body"}))
    (encoded,) = encode(event, "shop", now_ms=7, transaction=785)
    assert encoded.key == b'{"id":1}'
    assert json.loads(encoded.value or b"") == {
        "before": None,
        "after": {"id": 1, "amount": "12.50", "body": PLACEHOLDER},
        "source": {
            "version": "ctxpipe-0.1.0",
            "connector": "postgresql",
            "name": "s",
            "ts_ms": 5000,
            "ts_us": 5000001,
            "snapshot": "false",
            "db": "shop",
            "schema": "public",
            "table": "t",
            "txId": 785,
            "lsn": 10,
            "sequence": '["20","10"]',
        },
        "op": "u",
        "ts_ms": 7,
    }


def test_a_key_change_is_a_delete_a_tombstone_and_a_create_that_name_each_other() -> None:
    delete = event_of(Operation.DELETE, before={"id": 1}, new_key={"id": 2})
    create = event_of(Operation.CREATE, key={"id": 2}, row={"id": 2}, old_key={"id": 1})
    first, tombstone, second = (*encode(delete, "d", 0), *encode(create, "d", 0))
    assert (tombstone.key, tombstone.value) == (b'{"id":1}', None)
    assert first.headers == tombstone.headers == (("__debezium.newkey", b'{"id":2}'),)
    assert second.headers == (("__debezium.oldkey", b'{"id":1}'),)
    assert decode_record(record_of(first)) == delete
    assert decode_record(record_of(tombstone)) is None
    assert decode_record(record_of(second)) == create


def test_a_truncate_and_a_heartbeat_have_keys_of_their_own() -> None:
    truncate = event_of(Operation.TRUNCATE, key=None)
    (encoded,) = encode(truncate, "d", 0)
    assert encoded.key == b'{"__ctxpipe":"truncate"}'
    assert decode_record(record_of(encoded)) == truncate
    beat = event_of(Operation.MESSAGE, table="", key=None, message=(HEARTBEAT_PREFIX, b"\x00\xff"))
    (encoded,) = encode(beat, "d", 0)
    assert encoded.key == b'{"__ctxpipe":"heartbeat"}'
    assert decode_record(record_of(encoded)) == beat
    other = event_of(Operation.MESSAGE, table="", key=None, message=("mine", b"x"))
    assert encode(other, "d", 0)[0].key == b'{"prefix":"mine"}'


def test_a_change_without_a_key_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="without a key"):
        encode(event_of(Operation.CREATE, key=None, row={"a": 1}), "d", 0)


def test_declared_types_leave_our_own_values_alone() -> None:
    event = event_of(Operation.CREATE, row={"id": 1, "day": "2026-01-02", "n": "1250"})
    (encoded,) = encode(event, "d", 0)
    assert decode_record(record_of(encoded), {"public.t": {"day": "timestamp_ms", "n": "decimal(10,0)"}}) == event


names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name != "__ctxpipe"
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
    | st.sampled_from(["NaN", "-Infinity", "12.50", "\x00", "2026-01-02T03:04:05.6Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
rows = st.dictionaries(names, values, min_size=1, max_size=5)
positions = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
changes = st.sampled_from([Operation.SNAPSHOT, Operation.CREATE, Operation.UPDATE, Operation.DELETE])


@settings(deadline=None)
@given(
    changes,
    rows,
    rows,
    st.none() | rows,
    st.sets(names, max_size=2),
    positions,
    st.integers(0, 2**62),
    st.none() | rows,
)
def test_what_is_encoded_comes_back(
    operation: Operation,
    key: Row,
    row: Row,
    before: Row | None,
    unsent: set[str],
    at: tuple[int, int],
    time_us: int,
    other_key: Row | None,
) -> None:
    deleted = operation is Operation.DELETE
    event = event_of(
        operation,
        at=at,
        key=key,
        row=None if deleted else row,
        before=before,
        commit_time_us=time_us,
        unavailable=frozenset() if deleted else frozenset(unsent - row.keys()),
        new_key=other_key if deleted else None,
        old_key=other_key if operation is Operation.CREATE else None,
    )
    encoded = encode(event, "d", 1)
    assert decode_record(record_of(encoded[0])) == event
    assert [decode_record(record_of(more)) for more in encoded[1:]] == ([None] if deleted else [])


def test_a_float_comes_back_with_every_digit() -> None:
    event = event_of(Operation.CREATE, row={"id": 1, "f": 0.1 + 0.2, "big": 2**63 - 1})
    decoded = decode_record(record_of(encode(event, "d", 0)[0]))
    assert decoded is not None
    assert msgspec.to_builtins(decoded.row) == {"id": 1, "f": 0.30000000000000004, "big": 9223372036854775807}
