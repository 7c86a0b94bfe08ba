"""Records → changes of rows: what a spec does not list can't spoil a row."""

from __future__ import annotations

from typing import Any

from pipeline.plan import Plan, compile_plan
from pipeline.rows import Change, decode_batch
from schemas.context import ContextSpec
from tests.support.debezium_fixtures import column, with_schemas

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
