"""Records that Debezium's connector for Cassandra really wrote, and what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import decode_record
from schemas.errors import DecodeError
from schemas.event import ChangeEvent, Operation
from schemas.mutation import Bound, Cell, Marker, Mutation
from schemas.record import Record
from schemas.types import UnsureValue
from tests.support.debezium_fixtures import FOLDER, golden_records

MORE = FOLDER / "debezium-cassandra5-more.txt"
TYPES = {
    "ks.coll": {"fl": "frozen", "fs": "frozen", "fm": "frozen", "fu": "frozen"},
    "ks.ty": {"c2": "timestamptz_ms", "ts": "timestamptz_ms", "da": "date", "tm": "time_ns", "d": "decimal"},
}


def caused_by(path: Path, types: Any = TYPES) -> list[tuple[str, ChangeEvent | None]]:
    """(statement, event) of each record, in order."""
    statements, lines = [], []
    comment = ""
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            comment = line.removeprefix("# ")
        else:
            statements.append(comment)
            lines.append(line)
    temporary = [record for line in lines for record in golden_line(line)]
    return [(text, decode_record(record, types)) for text, record in zip(statements, temporary, strict=True)]


def golden_line(line: str) -> list[Record]:
    class Once:
        def read_text(self) -> str:
            return line

    return golden_records(Once())  # type: ignore[arg-type]


EVENTS = caused_by(MORE)


def of(beginning: str) -> list[ChangeEvent]:
    found = [event for text, event in EVENTS if text.startswith(beginning)]
    assert found and all(event is not None for event in found), beginning
    return [event for event in found if event is not None]


def mutation(beginning: str) -> Mutation:
    found = of(beginning)[0].mutation
    assert found is not None
    return found


def test_every_record_is_a_mutation_of_its_table_at_its_write_time() -> None:
    assert len(EVENTS) > 40
    for text, event in EVENTS:
        assert event is not None and event.mutation is not None, text
        assert event.source == "cas" and event.table.startswith("ks.") and event.operation is Operation.UPDATE
        assert event.commit_time_us > 1_600_000_000_000_000


def test_an_insert_makes_the_row_exist_and_an_update_does_not() -> None:
    event = of("insert into ks.single")[0]
    assert event.key == {"id": 1} and event.mutation == Mutation(
        marker=Marker(event.commit_time_us),
        cells={"n": Cell(event.commit_time_us), "v": Cell(event.commit_time_us, "a")},
    )
    assert mutation("update ks.single set n=2").marker is None
    assert list(mutation("update ks.single set n=2").cells) == ["n"], "what is null was not touched"
    assert mutation("delete n from ks.single").cells["n"].value is None  # type: ignore[union-attr]
    assert mutation("insert into ks.coll (id,ck) values (1,3)").cells == {}


def test_times_to_live_are_times_of_expiry_of_values_and_of_the_row() -> None:
    row = mutation("insert into ks.coll (id,ck,v) values (1,2,'row ttl')")
    assert row.marker is not None and row.marker.expires == row.cells["v"].expires == 1795577119000000  # type: ignore[union-attr]
    update = mutation("update ks.coll using ttl 3600 set v='ttl'")
    assert update.marker is None and update.cells["v"].expires == 1795577118000000  # type: ignore[union-attr]


def test_deletions_of_row_partition_and_range() -> None:
    row, partition = of("delete from ks.coll where id=1 and ck=2")[0], of("delete from ks.coll where id=1")[-1]
    assert row.key == {"id": 1, "ck": 2} and row.mutation == Mutation(deleted=row.commit_time_us)
    assert partition.key == {"id": 1, "ck": None}
    assert partition.mutation == Mutation(scope="partition", deleted=partition.commit_time_us)
    ranges = [of(f"delete from ks.coll where id=1 and ck{rest}")[0].mutation for rest in (">=2", ">7", "<=1")]
    assert [(found.lower, found.upper) for found in ranges if found] == [
        (Bound((2,), True), Bound((5,), False)),
        (Bound((7,), False), None),
        (None, Bound((1,), True)),
    ]


def test_a_descending_clustering_column_turns_the_bounds_round() -> None:
    found = mutation("delete from ks.ty where id=123e4567-e89b-12d3-a456-426614174000 and c1='k' and c2>=")
    assert found.lower == Bound(("2024-01-01T00:00:00Z",), True)
    assert found.upper == Bound(("2025-01-01T00:00:00Z",), False)
    untyped = caused_by(MORE, {})
    (bare,) = [event for text, event in untyped if text.startswith("delete from ks.ty") and "c2>=" in text]
    assert bare is not None and bare.mutation is not None
    assert bare.mutation.lower == Bound((1704067200000,), True), "in the form that the key has without a declared type"


def test_a_deletion_has_its_own_time_in_a_batch_with_newer_writes() -> None:
    found = [
        event.mutation for event in of("begin unlogged batch delete from ks.coll using timestamp 1700000000000010")
    ]
    assert [item.deleted for item in found if item and item.scope == "partition"] == [1700000000000010]
    assert [item.marker for item in found if item and item.scope == "row"] == [Marker(1700000000000011)]


def test_declared_types_become_canonical() -> None:
    event = of("insert into ks.ty")[0]
    assert event.key == {"id": "123e4567-e89b-12d3-a456-426614174000", "c1": "k", "c2": "2024-02-29T12:34:56.789Z"}
    cells = event.mutation.cells if event.mutation else {}
    values: dict[str, Any] = {column: cell.value for column, cell in cells.items() if isinstance(cell, Cell)}
    assert values["d"] == "12345678901234567890.123456789" and values["da"] == "2024-02-29"
    assert values["ts"] == "1969-12-31T23:59:59.999Z"
    assert (
        values["vc"] == "ü€😀"
        and values["bi"] == 9223372036854775807
        and values["vi"] == "123456789012345678901234567890"
    )


def test_a_varint_is_read_as_the_snapshot_reads_it() -> None:
    source = {"connector": "cassandra", "name": "c", "keyspace": "ks", "table": "t", "version": "3.4.1", "ts_us": 5}
    cells = {"small": "-7", "large": str(-(2**70)), "number": 7}
    after = {column: {"value": value, "deletion_ts": None, "set": True} for column, value in cells.items()}
    value = json.dumps({"op": "i", "source": source, "after": after}).encode()
    types = {"ks.t": dict.fromkeys(cells, "integer")}
    event = decode_record(Record("c.ks.t", 0, 0, b'{"id":1}', value), types)
    assert event is not None and event.mutation is not None
    found = {column: cell.value for column, cell in event.mutation.cells.items()}  # type: ignore[union-attr]
    assert found == {"small": -7, "large": str(-(2**70)), "number": 7}


def test_an_address_is_read_as_the_snapshot_reads_it() -> None:
    """Java shows addresses with a slash and in full; the snapshot of the same row has what CQL shows."""
    source = {"connector": "cassandra", "name": "c", "keyspace": "ks", "table": "t", "version": "3.4.1", "ts_us": 5}
    cells = {"old": "/192.0.2.1", "new": "/fe80:0:0:0:0:0:0:1", "text": "/192.0.2.1"}
    after = {column: {"value": value, "deletion_ts": None, "set": True} for column, value in cells.items()}
    value = json.dumps({"op": "i", "source": source, "after": after}).encode()
    event = decode_record(Record("c.ks.t", 0, 0, b'{"id":1}', value), {"ks.t": {"old": "inet", "new": "inet"}})
    assert event is not None and event.mutation is not None
    found = {column: cell.value for column, cell in event.mutation.cells.items()}  # type: ignore[union-attr]
    assert found == {"old": "192.0.2.1", "new": "fe80::1", "text": "/192.0.2.1"}
    bad = {"old": {"value": "/192.0.2.256", "deletion_ts": None, "set": True}}
    value = json.dumps({"op": "i", "source": source, "after": bad}).encode()
    with pytest.raises(DecodeError, match="column old"):
        decode_record(Record("c.ks.t", 0, 0, b'{"id":1}', value), {"ks.t": {"old": "inet"}})


def test_a_collection_is_certain_only_where_it_is_declared_frozen() -> None:
    cells = mutation("update ks.coll set fl=[1,2]").cells
    assert {column: cell.value for column, cell in cells.items() if isinstance(cell, Cell)} == {
        "fl": [1, 2], "fs": ["a", "b"], "fm": {"k": 1}, "fu": {"street": "s", "zip": 9},
    }  # fmt: skip
    for statement in ("update ks.coll set tags=tags+{'z'}", "update ks.coll set m['k']=7"):
        (cell,) = mutation(statement).cells.values()
        assert isinstance(cell, Cell) and isinstance(cell.value, UnsureValue)
        assert "does not tell adding" in cell.value.refusal("tags")


def record(value: dict[str, Any], key: dict[str, Any] | None = None) -> Record:
    source = {
        "version": "3.4.1.Final",
        "connector": "cassandra",
        "name": "cas",
        "keyspace": "ks",
        "table": "t",
        "ts_us": 5,
    }
    body = {"source": source, "op": "u", "after": {}, **value}
    return Record("cas.ks.t", 0, 0, None if key is None else json.dumps(key).encode(), json.dumps(body).encode())


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        ({"op": "c"}, {"id": 1}, "unknown operation 'c'"),
        ({}, None, "has no key"),
        ({"after": {"v": 3}}, {"id": 1}, "column v is no cell"),
        ({}, {"id": 1, "ck": None}, "static columns"),
        ({"op": "r", "after": {"_range_start": {"values": [{"value": "x"}]}}}, {"id": 1, "ck": None}, "range bound"),
    ],
)
def test_what_is_not_certain_is_set_aside_in_words(value: Any, key: Any, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_record(record(value, key))
