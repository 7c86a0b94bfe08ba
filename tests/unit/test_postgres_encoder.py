"""The template encoder against the reference encoder, and its output through the decoder that consumers use."""

from __future__ import annotations

import msgspec
import pytest

from connectors.postgres.encoder import HEARTBEAT_KEY, TRUNCATE_KEY, Moment, TableEncoder, message_value
from connectors.postgres.pgoutput import UNCHANGED, Relation, RelationColumn
from connectors.postgres.values import BUILT_IN_TYPES, converter_for
from schemas.envelope import decode_record, encode
from schemas.event import ChangeEvent, Operation, version_of
from schemas.record import Record
from schemas.topics import HEARTBEAT_PREFIX

COLUMNS = [("id", 20), ('odd "%b" név\\', 25), ("big", 25), ("at", 1184), ("n", 1700)]
RELATION = Relation(
    0, 1, "public", "t%d", "d", tuple(RelationColumn(name, oid, -1, name == "id") for name, oid in COLUMNS)
)
ENCODER = TableEncoder("src", "d%b", RELATION, ["id"], [converter_for(oid, -1, BUILT_IN_TYPES) for _, oid in COLUMNS])
MOMENT = Moment(5000, 1_700_000_000_123_456, 77, 1_700_000_000_999)
VALUES = [b"7", 'a "b" %s \\ é'.encode(), UNCHANGED, b"2026-01-02 03:04:05.6+00", None]
ROW = {"id": 7, 'odd "%b" név\\': 'a "b" %s \\ é', "at": "2026-01-02T03:04:05.6Z", "n": None}


def event(operation: Operation, **changes: object) -> ChangeEvent:
    fields = {
        "source": "src",
        "table": "public.t%d",
        "operation": operation,
        "key": {"id": 7},
        "row": ROW,
        "version": version_of(5000, 4321),
        "commit_time_us": MOMENT.commit_time_us,
        "unavailable": frozenset({"big"}),
        **changes,
    }
    return ChangeEvent(**fields)  # type: ignore[arg-type]


def reference(change: ChangeEvent, snapshot: str = "false", transaction: int | None = 77) -> tuple[bytes, object]:
    first = encode(change, "d%b", MOMENT.now_ms, transaction, snapshot)[0]
    return first.key, msgspec.json.decode(first.value or b"null")


@pytest.mark.parametrize("operation", ["c", "u"])
def test_rows_are_what_the_reference_writes(operation: str) -> None:
    fragments = ENCODER.fragments(VALUES)
    value = ENCODER.row(operation, fragments, 4321, MOMENT)
    assert (ENCODER.key(fragments), msgspec.json.decode(value)) == reference(event(Operation(operation)))
    decoded = decode_record(Record("src.public.t", 0, 0, ENCODER.key(fragments), value))
    assert decoded is not None and (decoded.row, decoded.unavailable) == (ROW, frozenset({"big"}))
    assert (decoded.version, decoded.key, decoded.table) == (version_of(5000, 4321), {"id": 7}, "public.t%d")


def test_the_compiled_parser_gives_the_same_fragments() -> None:
    body = len(VALUES).to_bytes(2, "big")
    for value in VALUES:
        if value is None:
            body += b"n"
        else:
            body += b"u" if value is UNCHANGED else b"t" + len(value).to_bytes(4, "big") + value
    fragments, end = ENCODER.parse_row(b"head" + body, 4)
    assert list(fragments) == list(ENCODER.fragments(VALUES)) and end == 4 + len(body)


def test_snapshot_rows_deletes_and_truncates() -> None:
    fragments = ENCODER.fragments(VALUES)
    moment = Moment(5000, MOMENT.commit_time_us, 0, MOMENT.now_ms, "incremental")
    value = ENCODER.row("r", fragments, 0, moment)
    change = event(Operation.SNAPSHOT, version=version_of(5000, 0))
    assert msgspec.json.decode(value) == reference(change, "incremental", None)[1]
    deleted = ENCODER.delete(fragments, False, 4321, MOMENT)
    change = event(Operation.DELETE, row=None, before={"id": 7}, unavailable=frozenset())
    assert msgspec.json.decode(deleted) == reference(change)[1]
    assert ENCODER.delete_by(ENCODER.key(fragments), 4321, MOMENT) == deleted
    truncated = ENCODER.truncate(4321, MOMENT)
    change = event(Operation.TRUNCATE, row=None, key=None, unavailable=frozenset())
    assert (TRUNCATE_KEY, msgspec.json.decode(truncated)) == reference(change)


def test_an_update_with_its_whole_old_row() -> None:
    old = [b"7", b"before", b"big", None, b"1.50"]
    value = msgspec.json.decode(ENCODER.update(ENCODER.fragments(old), ENCODER.fragments(VALUES), 4321, MOMENT))
    before = {"id": 7, 'odd "%b" név\\': "before", "big": "big", "at": None, "n": "1.50"}
    assert value == reference(event(Operation.UPDATE, before=before))[1]


def test_each_transaction_has_its_own_moment() -> None:
    fragments = ENCODER.fragments(VALUES)
    first = msgspec.json.decode(ENCODER.row("c", fragments, 1, MOMENT))
    second = msgspec.json.decode(ENCODER.row("c", fragments, 1, Moment(6000, 1, 78, 2)))
    assert first["source"]["sequence"] == '["5000","1"]' and second["source"]["sequence"] == '["6000","1"]'
    assert second["source"]["txId"] == 78 and second["source"]["ts_us"] == 1 and second["ts_ms"] == 2


def test_a_heartbeat_is_decoded_as_one() -> None:
    value = message_value("src", "db", HEARTBEAT_PREFIX, b'{"ts_us":9}', 4321, 9, Moment(4321, 0, 0, 5))
    decoded = decode_record(Record("src.public.t", 3, 0, HEARTBEAT_KEY, value))
    assert decoded is not None and decoded.operation is Operation.MESSAGE
    assert decoded.message == (HEARTBEAT_PREFIX, b'{"ts_us":9}') and decoded.commit_time_us == 9
    assert decoded.version == version_of(4321, 4321) and decoded.cluster == ""


def test_a_heartbeat_tells_whose_log_its_position_is_of() -> None:
    moment = Moment(4321, 0, 0, 5)
    value = message_value("src", "db", HEARTBEAT_PREFIX, b'{"ts_us":9}', 4321, 9, moment, "7412345678901234567")
    decoded = decode_record(Record("src.public.t", 3, 0, HEARTBEAT_KEY, value))
    assert decoded is not None and decoded.cluster == "7412345678901234567"
