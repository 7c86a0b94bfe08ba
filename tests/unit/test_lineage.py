"""Lineage: every value of a bundle tells the row that it came from, and that row gives the value."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from pipeline.lookup.history import position_of
from pipeline.lookup.lineage import NO_ROW, NOTHING_NAMED, FieldLineage, Lineage, lineage_of, lineage_of_key
from pipeline.lookup.principal import BUNDLES, Principal
from schemas.bundle import SourceState
from schemas.event import version_of
from schemas.position import lsn_of, lsn_text
from tests.unit.test_flow import SPEC
from tests.unit.test_history import NARROW, Past

LINEAGE = {"history": {"retention_s": 60, "lineage": True}}
DEEP: dict[str, Any] = {
    **SPEC["sections"],
    "lines": {
        "entity": "item",
        "kind": "many",
        "on": {"order_id": "id"},
        "order_by": ["line"],
        "fields": ["line"],
        "sections": {
            "order": {"entity": "order", "on": {"id": "order_id"}, "fields": [{"name": "of", "column": "id"}]}
        },
    },
    "groups": {
        "entity": "item",
        "kind": "many",
        "on": {"order_id": "id"},
        "group_by": ["line"],
        "order_by": ["line"],
        "aggregates": {"pieces": {"sum": "pieces"}},
    },
}


async def found(world: Past, key: str = "1", principal: Principal | None = None) -> Lineage:
    lineage = await lineage_of_key(world.lookups, "order", key, principal)
    assert lineage is not None
    return lineage


def by_path(lineage: Lineage) -> dict[str, FieldLineage]:
    return {field.path: field for field in lineage.fields}


def value_at(bundle: Any, path: str) -> Any:
    for step in path.replace("[", ".[").split("."):
        bundle = bundle[int(step[1:-1])] if step.startswith("[") else bundle[step]
    return bundle


def leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict) and not path.endswith("extra"):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{path}.{name}" if path else name)]
    if isinstance(value, list):
        return [leaf for number, inner in enumerate(value) for leaf in leaves(inner, f"{path}[{number}]")]
    return [path]


async def test_every_value_names_its_row() -> None:
    world = Past(**LINEAGE)
    records = [world.order(1), world.customer("Ann"), world.item(1, 1, 5), world.item(1, 2, 6), world.item(1, 3, 7)]
    await world.flow.process(records)
    fields = by_path(await found(world))
    assert list(fields) == leaves(json.loads(world.answer("1")))
    rows = {path: field.row for path, field in fields.items()}
    keys = {path: None if row is None else (row.key, row.position.get("lsn"), row.many) for path, row in rows.items()}
    at = {number: lsn_text(number) for number in range(1, 6)}
    assert keys["amount"] == keys["large"] == ("1", at[1], False)
    assert keys["customer.name"] == keys["customer.mail"] == ("7", at[2], False)
    assert keys["items[0].line"] == keys["items[0].extra"] == ("1|3", at[5], False)
    assert keys["items[1].line"] == ("1|2", at[4], False)
    assert keys["sums.pieces"] == ("1", None, True)
    item, amount, sums = fields["items[0].line"], fields["amount"], fields["sums.pieces"]
    assert item.row is not None and item.row.columns == {"order_id": "1", "line": "3"}
    assert sums.row is not None and sums.row.columns == {"order_id": "1"}
    assert (amount.origin.table, amount.origin.column, fields["large"].origin.value) == (
        "public.orders",
        "total",
        "total > 100",
    )
    assert fields["customer.mail"].origin.mask == "hash"


async def test_the_rows_are_right_through_random_changes_deep_in_lists_and_over_hops() -> None:
    """A list's line is part of its row's key, so each value tells whether its row is the right one."""
    world, random = Past(**LINEAGE, sections=DEEP), Random(29)
    seen = 0
    for _ in range(80):
        await world.flow.process([world.changed(random) for _ in range(random.randint(1, 3))])
        for key in ("1", "2", "3"):
            lineage = await lineage_of_key(world.lookups, "order", key)
            if lineage is None:
                continue
            bundle = json.loads(world.answer(key))
            fields = by_path(lineage)
            assert list(fields) == [path for path in leaves(bundle) if path != "customer"], "null without a customer"
            for path, field in fields.items():
                assert json.loads(bytes(field.value)) == value_at(bundle, path)
                if field.origin.path in ("items.line", "lines.line"):
                    assert field.row is not None and field.row.key == f"{key}|{value_at(bundle, path)}"
                if field.origin.path in ("lines.order.of", "groups.pieces", "id"):
                    assert field.row is not None and field.row.key == key
                    seen += 1
    assert seen > 200


async def test_the_bytes_are_the_same_with_lineage_and_without() -> None:
    one, other = Past(**LINEAGE, sections=DEEP), Past(sections=DEEP)
    for world in (one, other):
        random = Random(31)
        for _ in range(60):
            await world.flow.process([world.changed(random)])
        await world.flow.process([world.order(1), world.order(2), world.customer("Ann")])
    live = [key for key, stored in other.bundles.values.items() if not stored.deleted]
    assert [one.bundles.values[key].body for key in live] == [other.bundles.values[key].body for key in live]
    assert len(live) >= 3 and all(
        stored.meta is None or not stored.meta.rows for stored in other.bundles.values.values()
    )


async def test_an_answer_of_the_past_names_the_rows_of_then() -> None:
    world = Past(**LINEAGE)
    await world.flow.process([world.order(1), world.customer("Ann")])
    _, text = await world.asked("1")
    assert text is not None
    before = (await found(world)).to_json()
    await world.flow.process([world.order(1, total="5"), world.customer("Bob")])
    kept = await world.history.find("order", text)
    assert (await lineage_of(kept)).to_json() == before != (await found(world)).to_json()
    assert (await found(world)).id != text


async def test_a_caller_sees_the_lineage_of_what_they_may_see() -> None:
    world = Past(**LINEAGE, tenant="customer_id")
    await world.flow.process([world.order(1), world.customer("Ann"), world.item(1, 1, 5)])
    fields = by_path(await found(world, principal=Principal("p", "7", NARROW.scopes, NARROW.fields)))
    assert list(fields) == ["id", "customer.name", "sums.lines", "sums.pieces", "sums.mean"]
    other = Principal("p", tenant="8", scopes=frozenset({BUNDLES}))
    assert await lineage_of_key(world.lookups, "order", "1", other) is None
    assert await lineage_of_key(world.lookups, "order", "77") is None


@pytest.mark.parametrize("lineage", [True, False])
async def test_what_has_no_row_says_why(lineage: bool) -> None:
    world = Past(history={"retention_s": 9, "lineage": lineage})
    await world.flow.process([world.order(1, customer_id=None)])
    fields = by_path(await found(world))
    assert fields["amount"].reason == ("" if lineage else NOTHING_NAMED)
    assert fields["sums.lines"].reason == ("" if lineage else NOTHING_NAMED)
    assert "customer.name" not in fields and NO_ROW not in {field.reason for field in fields.values()}


async def test_a_linked_section_that_is_not_there_has_no_row() -> None:
    sums = {**SPEC["sections"]["sums"], "compose": "link"}
    world = Past(**LINEAGE, sections={**SPEC["sections"], "sums": sums})
    await world.flow.process([world.order(1), world.item(1, 1, 5)])
    fields = by_path(await found(world))
    assert fields["sums.lines"].row is not None and fields["sums.lines"].row.many
    await world.flow.process([world.record("items", "d", {"order_id": 1, "line": 1}, None)])
    fields = by_path(await found(world))
    assert fields["sums.lines"].row is None and fields["sums.lines"].reason == NO_ROW
    assert fields["amount"].row is not None


async def test_fields_of_an_embedded_text_are_marked() -> None:
    embedding = {"engine": "hash", "dimension": 8, "template": "{{ note }} {{ customer.name }}"}
    world = Past(**LINEAGE, embedding=embedding)
    await world.flow.process([world.order(1), world.customer("Ann")])
    marked = {field.path for field in (await found(world)).fields if field.embedded}
    assert marked == {"note", "customer.name", "customer.card", "customer.mail"}
    told = json.loads((await found(world)).to_json({"note": {"offset": 3}}))
    note = next(field for field in told["fields"] if field["path"] == "note")
    assert note["record"] == {"offset": 3} and note["table"] == "public.orders" and note["value"] == "none"
    assert note["row"]["columns"] == {"id": "1"} and told["vector"] is None


def test_a_position_is_a_place_in_a_log_or_the_time_of_a_write() -> None:
    write_us, lsn = 1_767_323_045_678_901, lsn_of("16/B374D848")
    assert position_of(SourceState(version_of(write_us, 0), write_us)) == {"write_time": "2026-01-02T03:04:05.678901Z"}
    assert position_of(SourceState(version_of(lsn, 7), write_us)) == {
        "lsn": "16/B374D848",
        "commit_time": "2026-01-02T03:04:05.678901Z",
    }
