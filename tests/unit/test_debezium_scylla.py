"""Records of Scylla's CDC source connector, as its manual shows them, with and without schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.plan import Plan, compile_plan
from pipeline.rows import decode_batch
from schemas.context import ContextSpec
from schemas.envelope import decode_record
from schemas.errors import DecodeError
from schemas.event import ChangeEvent, Operation, version_of
from schemas.mutation import Cell, Marker, Mutation
from schemas.record import Record
from schemas.source_format import SourceFormat
from schemas.types import UnknownValue
from tests.support.debezium_fixtures import column

TIME_US = 1611578778701813
SOURCE = {
    "version": "1.0.1-SNAPSHOT", "connector": "scylla", "name": "MyScyllaCluster", "ts_ms": 1611578778701,
    "ts_us": TIME_US, "snapshot": "false", "db": "ks", "keyspace_name": "ks", "table_name": "t",
}  # fmt: skip
KEY = {"ck": 1, "pk": 1}
ADVANCED = SourceFormat(source="shop", topic_prefix="MyScyllaCluster", plain_cells=True)
WHOLE = SourceFormat(source="shop", topic_prefix="MyScyllaCluster", plain_cells=True, full_images=True)


def record(op: str, after: dict[str, Any] | None, key: dict[str, Any] | None = None, **parts: Any) -> Record:
    key = KEY if key is None else key
    value = {"source": SOURCE, "op": op, "ts_ms": 1611578838754, "transaction": None, "before": None}
    value |= {"after": None if after is None else {**key, **after}, **parts}
    return Record("MyScyllaCluster.ks.t", 0, 0, json.dumps(key).encode(), json.dumps(value).encode())


def decode(
    op: str, after: dict[str, Any] | None, form: SourceFormat | None = None, types: Any = None, **parts: Any
) -> Any:
    event = decode_record(record(op, after, **parts), {"ks.t": types or {}}, form=form)
    assert event is not None
    return event


def test_legacy_cells_say_what_was_written_and_what_was_not_touched() -> None:
    after = {"v": {"value": "new"}, "w": None, "x": {"value": None}}
    event = decode("u", after)
    assert event == ChangeEvent(
        source="MyScyllaCluster",
        table="ks.t",
        operation=Operation.UPDATE,
        key=KEY,
        row=None,
        version=version_of(TIME_US, 0),
        commit_time_us=TIME_US,
        mutation=Mutation(cells={"v": Cell(TIME_US, "new"), "x": Cell(TIME_US)}),
    )
    assert decode("c", after).mutation.marker == Marker(TIME_US)
    assert decode("c", {"v": None}).mutation == Mutation(marker=Marker(TIME_US)), "an INSERT of the key alone"


def test_a_deletion_names_its_row_or_its_partition() -> None:
    before = {"ck": 1, "pk": 1, "v": None}
    assert decode("d", None, before=before).mutation == Mutation(deleted=TIME_US)
    event = decode("d", None, key={"pk": 1, "ck": None}, before={"pk": 1, "ck": None, "v": None})
    assert event.mutation == Mutation(scope="partition", deleted=TIME_US)


def test_milliseconds_are_taken_where_microseconds_are_missing() -> None:
    source = {name: value for name, value in SOURCE.items() if name != "ts_us"}
    event = decode("d", None, source=source)
    assert event.mutation.deleted == event.commit_time_us == 1611578778701000


def test_advanced_values_are_plain_and_whole_rows_make_nulls_sure() -> None:
    event = decode("u", {"v": "new", "w": None}, WHOLE)
    assert event.mutation.cells == {"v": Cell(TIME_US, "new"), "w": Cell(TIME_US)}
    cells = decode("u", {"v": "new", "w": None}, ADVANCED).mutation.cells
    assert cells["v"] == Cell(TIME_US, "new") and isinstance(cells["w"].value, UnknownValue)
    assert decode("u", {"tags": ["a"]}, WHOLE).mutation.cells["tags"].value == ["a"]
    assert decode("d", None, ADVANCED).mutation == Mutation(deleted=TIME_US)


def plan_of(form: SourceFormat, *fields: str, **types: str) -> Plan:
    entity = {"source": "shop", "table": "ks.t", "key": ["pk", "ck"], "partition_key": ["pk"], "types": types}
    spec = {"context": "c", "version": 1, "root": "t", "entities": {"t": entity}, "fields": ["pk", *fields]}
    return compile_plan(ContextSpec.model_validate(spec), formats={"shop": form})


def test_an_unsure_null_sets_aside_only_rows_of_contexts_that_list_its_column() -> None:
    unsure = record("u", {"v": "new", "w": None})
    (letter,) = decode_batch(plan_of(ADVANCED, "v", "w"), [unsure]).dead_letters
    assert "column w is null" in letter.reason and "full_images: true in sources.shop" in letter.reason
    decoded = decode_batch(plan_of(ADVANCED, "v"), [unsure])
    assert not decoded.dead_letters and decoded.writes[0].table.topic == "MyScyllaCluster.ks.t"
    assert not decode_batch(plan_of(WHOLE, "v", "w"), [unsure]).dead_letters


def test_a_collection_counts_where_it_is_declared_to_be_frozen() -> None:
    unsure = record("u", {"v": {"value": ["a"]}})
    legacy = SourceFormat(source="shop", topic_prefix="MyScyllaCluster")
    (letter,) = decode_batch(plan_of(legacy, "v"), [unsure]).dead_letters
    assert "types: {v: frozen}" in letter.reason
    assert not decode_batch(plan_of(legacy, "v", v="frozen"), [unsure]).dead_letters


def test_values_become_canonical_by_declared_types() -> None:
    types = {"at": "timestamptz_ms", "day": "date", "n": "decimal", "big": "integer", "clock": "time_ns"}
    after = {"at": 1, "day": 0, "n": "1E-8", "big": "12", "clock": 1_000_000_001}
    cells = decode("u", {name: {"value": value} for name, value in after.items()}, types=types).mutation.cells
    assert {name: cell.value for name, cell in cells.items()} == {
        "at": "1970-01-01T00:00:00.001Z",
        "day": "1970-01-01",
        "n": "0.00000001",
        "big": 12,
        "clock": "00:00:01.000000001",
    }


CONNECT = "org.apache.kafka.connect.data."


@pytest.mark.parametrize("form", [None, WHOLE], ids=["legacy", "advanced"])
def test_values_become_canonical_by_schemas(form: SourceFormat | None) -> None:
    columns = [column("at", "int64", f"{CONNECT}Timestamp"), column("day", "int32", f"{CONNECT}Date")]
    if form is None:
        columns = [{**column(one["field"], "struct"), "fields": [{**one, "field": "value"}]} for one in columns]
    keys = [column("pk", "int32"), column("ck", "int32")]
    rows = [{"type": "struct", "field": part, "fields": [*keys, *columns]} for part in ("before", "after")]
    given = {"at": 1, "day": 1} if form else {"at": {"value": 1}, "day": {"value": 1}}
    plain = record("u", given)
    value = {"schema": {"type": "struct", "fields": rows}, "payload": json.loads(plain.value or b"")}
    key = {"schema": {"type": "struct", "fields": keys}, "payload": KEY}
    wrapped = Record(plain.topic, 0, 0, json.dumps(key).encode(), json.dumps(value).encode())
    event = decode_record(wrapped, form=form)
    assert event is not None and event.mutation is not None
    expected = {"at": Cell(TIME_US, "1970-01-01T00:00:00.001Z"), "day": Cell(TIME_US, "1970-01-02")}
    assert event.mutation.cells == expected


@pytest.mark.parametrize(
    ("op", "after", "parts", "words"),
    [
        ("u", {"v": "plain"}, {}, "set format: advanced"),
        ("u", {"v": {"value": 1, "more": 2}}, {}, "no cell of the form {value}"),
        ("u", None, {}, "cdc.include.after=full"),
        ("r", {}, {}, "unknown operation 'r' of connector scylla"),
        ("u", {}, {"key": {"pk": 1, "ck": None}}, "static columns"),
        ("u", {}, {"source": {**SOURCE, "ts_us": None, "ts_ms": None}}, "no ts_us or ts_ms"),
        ("u", {}, {"source": {**SOURCE, "ts_us": -1}}, "no ts_us or ts_ms"),
        ("u", {}, {"source": {**SOURCE, "table_name": ""}}, "does not name"),
        ("u", {"at": {"value": "x"}}, {}, "column at: not a value of type timestamptz_ms"),
    ],
)
def test_what_is_not_certain_is_refused_in_words(op: str, after: Any, parts: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError) as told:
        decode(op, after, types={"at": "timestamptz_ms"}, **parts)
    assert words in str(told.value) and "\n" not in str(told.value)
