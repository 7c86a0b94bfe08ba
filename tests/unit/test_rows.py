"""Records → changes of rows: what a spec does not list can't spoil a row."""

from __future__ import annotations

from typing import Any

from connectors.postgres.encoder import HEARTBEAT_KEY, Moment, message_value
from pipeline.plan import Plan, compile_plan
from pipeline.rows import Change, complete, decode_batch, rows_to_complete
from pipeline.stores.store import AppliedPosition, StoredRow
from schemas.context import ContextSpec
from schemas.event import version_of
from schemas.mutation import Cell, Mutation, MutationSource, encode_heartbeat, encode_mutation
from schemas.record import Record
from schemas.topics import HEARTBEAT_PREFIX
from tests.support.debezium_fixtures import column, plain, with_schemas

FIELDS = [column("id", "int32"), column("n", "string"), column("place", "struct", "io.debezium.data.New")]


def plan_of(**parts: Any) -> Plan:
    entity = {"source": "x", "table": "p.t", "key": ["id"], **parts.pop("entity", {})}
    spec = {"context": "c", "version": 1, "root": "t", "entities": {"t": entity}, "fields": ["id", "n"], **parts}
    return compile_plan(ContextSpec.model_validate(spec))


def test_a_column_of_unknown_type_refuses_only_rows_of_specs_that_list_it() -> None:
    record = with_schemas({"id": 1, "n": "a", "place": {"x": 1}}, FIELDS)
    decoded = decode_batch(plan_of(), [record])
    (change,) = decoded.changes
    assert isinstance(change, Change) and change.values == [1, "a"] and not decoded.dead_letters
    for listing in ({"fields": ["place"]}, {"entity": {"filter": "place is null"}}):
        decoded = decode_batch(plan_of(**listing), [record])
        (letter,) = decoded.dead_letters
        reason = "column place: not a value of type io.debezium.data.New (this type is unknown here)"
        assert (letter.reason, decoded.changes) == (reason, [])
    unset = with_schemas({"id": 1, "n": "a", "place": None}, FIELDS)
    assert not decode_batch(plan_of(fields=["place"]), [unset]).dead_letters


def test_only_heartbeats_tell_how_far_a_wide_column_table_is_applied() -> None:
    """A write's timestamp is its writer's: one from the future must not make everything before it seem applied."""
    source = MutationSource("scylla", "x", "p", "t")
    writes = [encode_mutation(source, {"id": 1}, Mutation(cells={"n": Cell(ts, "a")}), 0) for ts in (5, 10**17)]
    beat = encode_heartbeat(source, 700, 0)
    records = [Record("x.p.t", 0, number, key, value) for number, (key, value) in enumerate([*writes, beat])]
    plan = plan_of()
    assert decode_batch(plan, records[:2]).applied["x.p.t", 0] == AppliedPosition("x", 2, "", 0)
    assert decode_batch(plan, records).applied["x.p.t", 0].commit_time_us == 700
    assert [write.key for write in decode_batch(plan, records).writes] == ["1", "1"]


def test_the_cluster_of_a_heartbeat_stays_with_the_position() -> None:
    moment = Moment(700, 0, 0, 5)
    beat = message_value("x", "db", HEARTBEAT_PREFIX, b'{"ts_us":9}', 700, 9, moment, "77")
    later = message_value("x", "db", HEARTBEAT_PREFIX, b'{"ts_us":9}', 800, 10, Moment(800, 0, 0, 5))
    records = [Record("x.p.t", 0, number, HEARTBEAT_KEY, value) for number, value in enumerate((beat, later))]
    applied = decode_batch(plan_of(), records).applied
    assert applied["x.p.t", 0] == AppliedPosition("x", 2, version_of(800, 800), 10, "77")


def test_a_partition_key_that_contradicts_the_spec_is_set_aside_with_the_remedy() -> None:
    source = MutationSource("scylla", "x", "p", "t")
    wide = {"entity": {"key": ["a", "b", "id"]}}
    key = {"a": 1, "b": 2, "id": None}
    record = Record("x.p.t", 0, 0, *encode_mutation(source, key, Mutation(scope="partition", deleted=5), 0))
    (letter,) = decode_batch(plan_of(**wide), [record]).dead_letters
    assert "partition_key of the entity" in letter.reason and "names a, b" in letter.reason
    wide["entity"]["partition_key"] = ["a", "b"]
    (write,) = decode_batch(plan_of(**wide), [record]).writes
    assert (write.key, write.partition) == (None, "1|2")


def halves(partition: int = 0) -> tuple[Record, Record]:
    """A primary-key change of 1 to 2 as Debezium writes it, with the large value left out."""
    gone = plain({"id": 1, "n": None}, lsn=50)
    value = (gone.value or b"").replace(b'"op": "c"', b'"op": "d"').replace(b'"after"', b'"was"')
    deleted = Record("x.p.t", 0, 5, b'{"id":1}', value, headers=(("__debezium.newkey", b'{"id":2}'),))
    came = plain({"id": 2, "n": "__debezium_unavailable_value"}, lsn=50)
    created = Record("x.p.t", partition, 0, b'{"id":2}', came.value, headers=(("__debezium.oldkey", b'{"id":1}'),))
    return deleted, created


def stored(values: list[Any], version: str) -> StoredRow:
    return StoredRow(version, 1, values)


def test_a_row_that_moves_takes_along_what_was_not_sent_though_its_halves_come_apart() -> None:
    """They have different keys, so they may be in different partitions, and come in either order."""
    plan, (deleted, created) = plan_of(), halves()
    before = {("x.p.t", "1"): stored([1, "large"], version_of(7, 7))}
    changes = [change for change in decode_batch(plan, [deleted]).changes if isinstance(change, Change)]
    assert rows_to_complete(changes) == [("x.p.t", "1"), ("x.p.t", "2")]
    first, letters = complete(changes, before)
    heir, gone = first
    assert (heir.key, heir.values, gone.key, gone.values, letters) == ("2", [2, "large"], "1", None, [])
    late = [change for change in decode_batch(plan, [created]).changes if isinstance(change, Change)]
    (moved,), letters = complete(late, {("x.p.t", "2"): stored(heir.values or [], heir.version)})
    assert moved.values == [2, "large"] and moved.version > heir.version and not letters
    together = [change for change in decode_batch(plan, [deleted, created]).changes if isinstance(change, Change)]
    done, letters = complete(together, before)
    assert [(one.key, one.values) for one in done] == [("2", [2, "large"]), ("1", None), ("2", [2, "large"])]
    assert not letters
    done, letters = complete(changes, {})
    assert [one.key for one in done] == ["1"], "of a row that is not known nothing can be handed over"
