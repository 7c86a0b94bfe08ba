"""Rows flattened by ExtractNewRecordState, under every setting of its deletions, with and without schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.plan import compile_plan
from pipeline.rows import Change, decode_batch
from schemas.context import ContextSpec
from schemas.envelope import decode_record
from schemas.errors import DecodeError
from schemas.event import ChangeEvent, Operation, version_of
from schemas.record import Record
from schemas.source_format import SourceFormat
from tests.support.debezium_fixtures import column

FORM = SourceFormat(source="shop", topic_prefix="dbserver1", flattened=True)
TABLE = "public.orders"


def record(row: dict[str, Any] | None, offset: int = 7, key: Any = None, headers: Any = (), **more: Any) -> Record:
    value = None if row is None else json.dumps({**row, **more}).encode()
    key = {"id": 1} if key is None else key
    pairs = tuple((name, content.encode()) for name, content in headers)
    return Record("dbserver1.public.orders", 0, offset, json.dumps(key).encode(), value, 1_000, pairs)


def decode(row: dict[str, Any] | None, types: Any = None, **parts: Any) -> ChangeEvent:
    event = decode_record(record(row, **parts), {TABLE: types or {}}, form=FORM, table=TABLE)
    assert event is not None
    return event


def test_a_row_without_anything_beside_it() -> None:
    event = decode({"id": 1, "amount": "BOI=", "note": None}, {"amount": "decimal(10,2)"})
    assert event == ChangeEvent(
        source="dbserver1",
        table=TABLE,
        operation=Operation.UPDATE,
        key={"id": 1},
        row={"id": 1, "amount": "12.50", "note": None},
        version=version_of(0, 8),
        commit_time_us=1_000_000,
    )


@pytest.mark.parametrize("where", ["fields", "headers"])
def test_what_is_beside_the_row(where: str) -> None:
    beside = {"__op": "r", "__source_ts_ms": 5}
    parts = {"headers": [(name, str(value)) for name, value in beside.items()]} if where == "headers" else beside
    event = decode({"id": 1}, **parts)
    assert (event.operation, event.commit_time_us) == (Operation.SNAPSHOT, 5_000)
    assert decode({"id": 1}, __source_ts_us=7, __source_ts_ms=5).commit_time_us == 7


def test_deletions_in_every_mode() -> None:
    tombstone = decode(None)
    assert (tombstone.operation, tombstone.key, tombstone.version) == (Operation.DELETE, {"id": 1}, version_of(0, 8))
    rewritten = decode({"id": 1, "note": None}, __deleted="true")
    assert (rewritten.operation, rewritten.row, rewritten.version) == (Operation.DELETE, None, version_of(0, 8))
    assert decode({"id": 1}, __deleted=True).operation is Operation.DELETE
    assert decode({"id": 1}, __deleted="false").row == {"id": 1, "__deleted": "false"}


def test_positions_order_where_deletions_have_one_and_offsets_elsewhere() -> None:
    assert decode({"id": 1}, __deleted="false", __lsn=500).version == version_of(500, 500)
    assert decode({"id": 1}, __deleted="true", __source_lsn=600, __lsn=1).version == version_of(600, 600)
    assert decode({"id": 1}, __deleted="false", __lsn=None).version == version_of(0, 8)
    written, tombstone = decode({"id": 1}, __lsn=500), decode(None, offset=8)
    assert written.version < tombstone.version, "a tombstone has no position, and must delete all the same"


def outcome(records: list[Record]) -> dict[str, Any]:
    """What is left when the newest version of each row wins, whatever the order of arrival."""
    entity = {"source": "shop", "table": TABLE, "key": ["id"]}
    spec = {"context": "c", "version": 1, "root": "o", "entities": {"o": entity}, "fields": ["id", "n"]}
    plan = compile_plan(ContextSpec.model_validate(spec), formats={"shop": FORM})
    decoded = decode_batch(plan, records)
    assert not decoded.dead_letters
    newest: dict[str, Change] = {}
    for change in decoded.changes:
        assert isinstance(change, Change)
        if change.key not in newest or change.version >= newest[change.key].version:
            newest[change.key] = change
    return {key: change.values for key, change in newest.items() if change.values is not None}


def test_a_replayed_stretch_changes_nothing_where_positions_order() -> None:
    """Connect writes a stretch again after a crash; the tombstone after a rewritten deletion has no position."""
    rows = [
        {"id": 1, "n": 1, "__lsn": 100, "__deleted": "false"},
        {"id": 1, "n": 1, "__lsn": 200, "__deleted": "true"},
        None,
        {"id": 1, "n": 2, "__lsn": 300, "__deleted": "false"},
    ]
    once = [record(row, offset) for offset, row in enumerate(rows)]
    again = [record(row, offset + 4) for offset, row in enumerate(rows[:3])]
    assert outcome(once) == outcome(once + again) == {"1": [1, 2]}
    assert outcome(once[:3]) == {}


def test_offsets_order_a_row_that_comes_back() -> None:
    rows = [{"id": 1, "n": 1, "__lsn": 900}, None, {"id": 1, "n": 2, "__lsn": 950}]
    assert outcome([record(row, offset) for offset, row in enumerate(rows)]) == {"1": [1, 2]}
    assert outcome([record(row, offset) for offset, row in enumerate(rows[:2])]) == {}


def test_a_primary_key_change_and_an_unsent_column() -> None:
    event = decode({"id": 2, "big": "__debezium_unavailable_value"}, headers=[("__debezium.oldkey", '{"id":1}')])
    assert (event.operation, event.old_key, event.unavailable) == (Operation.CREATE, {"id": 1}, {"big"})
    assert event.row == {"id": 2}
    assert decode(None, headers=[("__debezium.newkey", '{"id":2}')]).new_key == {"id": 2}


def test_with_schemas() -> None:
    fields = [column("id", "int32"), column("day", "int32", "io.debezium.time.Date"), column("__deleted", "string")]
    schema = {"type": "struct", "fields": fields}
    value = {"schema": schema, "payload": {"id": 1, "day": 0, "__deleted": "false"}}
    key = {"schema": {"type": "struct", "fields": fields[:1]}, "payload": {"id": 1}}
    wrapped = Record("t", 0, 0, json.dumps(key).encode(), json.dumps(value).encode())
    event = decode_record(wrapped, form=FORM, table=TABLE)
    assert event is not None
    assert event.row == {"id": 1, "day": "1970-01-01", "__deleted": "false"} and event.key == {"id": 1}


def test_a_record_without_a_key_takes_it_from_the_row() -> None:
    keyless = Record("dbserver1.public.orders", 0, 3, None, b'{"id": 5, "n": 1}')
    assert outcome([keyless]) == {"5": [5, 1]}
    gone = Record("dbserver1.public.orders", 0, 4, None, b'{"id": 5, "n": 1, "__deleted": "true"}')
    assert outcome([keyless, gone]) == {}


ENVELOPE = {"op": "c", "source": {}, "after": {}}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Record("t", 0, 0, None, None), "a tombstone without a key"),
        (Record("t", 0, 0, b"1", None), "the key is no JSON object"),
        (Record("t", 0, 0, b'{"id":1}', b"[]"), "the value is no JSON object"),
        (Record("t", 0, 0, b'{"id":1}', b"{"), "not JSON"),
        (Record("t", 0, 0, b'{"id":1}', b"\xff"), "not JSON"),
        (Record("t", 0, 0, b'{"id":1}', b'{"a":' + b"[" * 100_000), "nested too deeply"),
        (record(ENVELOPE), "take format: flattened out of sources.shop"),
        (record({"id": 1}, __op="x"), "unknown operation 'x'"),
        (record({"id": 1}, __table="items"), "a row of table 'items' on the topic of public.orders"),
        (record({"id": 1}, __deleted="false", __lsn=-1), "__lsn is no number"),
        (record({"id": 1}, __source_ts_ms="soon"), "__source_ts_ms is no number"),
        (record({"id": 1, "n": "secret!"}), "column n: not a value of type decimal(10,2)"),
    ],
)
def test_broken_records_are_refused_in_one_sentence(broken: Record, words: str) -> None:
    with pytest.raises(DecodeError) as told:
        decode_record(broken, {TABLE: {"n": "decimal(10,2)"}}, form=FORM, table=TABLE)
    assert words in str(told.value) and "secret" not in str(told.value)


def test_values_that_are_too_large_are_refused() -> None:
    with pytest.raises(DecodeError, match="more than the limit of 5"):
        decode_record(record({"id": 1}), size_max=5, form=FORM, table=TABLE)
