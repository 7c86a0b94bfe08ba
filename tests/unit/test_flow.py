"""The story on the in-memory stores, case by case: golden bundles, dead letters, fan-out, what is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.bundle import foresee
from pipeline.composition import default_composition
from pipeline.core.errors import ConfigError
from pipeline.flow import Flow, FlowLimits
from pipeline.masks import mask
from pipeline.plan import compile_plan
from pipeline.report import BatchReport
from pipeline.stores.memory import MemoryBundles, MemoryRelations, MemoryRows
from schemas.bundle import UnitKey
from schemas.context import ContextSpec
from schemas.record import Record
from tests.simulation.compare import composed

SPEC: dict[str, Any] = {
    "context": "order",
    "version": 3,
    "root": "order",
    "entities": {
        "order": {"source": "shop", "table": "public.orders", "key": ["id"], "types": {"total": "decimal"}},
        "customer": {"source": "shop", "table": "public.customers", "key": ["id"]},
        "item": {"source": "shop", "table": "public.items", "key": ["order_id", "line"], "types": {"extra": "json"}},
    },
    "fields": [
        "id",
        {"name": "amount", "column": "total"},
        {"name": "large", "value": "total > 100"},
        {"name": "note", "default": "none"},
    ],
    "sections": {
        "customer": {
            "entity": "customer",
            "on": {"id": "customer_id"},
            "compose": "link",
            "fields": ["name", {"name": "card", "mask": "last4"}, {"name": "mail", "mask": "hash"}],
        },
        "items": {
            "entity": "item",
            "kind": "many",
            "on": {"order_id": "id"},
            "order_by": ["-line"],
            "limit": 2,
            "fields": ["line", "extra"],
        },
        "sums": {
            "entity": "item",
            "kind": "many",
            "on": {"order_id": "id"},
            "aggregates": {"lines": "count", "pieces": {"sum": "pieces"}, "mean": {"avg": "pieces", "round": 1}},
        },
    },
}


class World:
    """A flow over memory, fed with own-envelope records."""

    def __init__(self, limits: FlowLimits | None = None) -> None:
        self.plan = compile_plan(ContextSpec.model_validate(SPEC), mask_secret=b"s3cret")
        self.bundles = MemoryBundles()
        self.flow = Flow(self.plan, MemoryRows(), MemoryRelations(), self.bundles, limits)
        self.lsn = 0

    def record(self, table: str, operation: str, key: dict[str, Any], row: dict[str, Any] | None) -> Record:
        self.lsn += 1
        source = {"version": "ctxpipe-test", "connector": "postgresql", "name": "shop", "ts_ms": 1, "ts_us": self.lsn}
        source |= {"snapshot": "false", "db": "d", "schema": "public", "table": table, "txId": 1, "lsn": self.lsn}
        source["sequence"] = f'["{self.lsn}","{self.lsn}"]'
        value = {"before": None, "after": row, "source": source, "op": operation, "ts_ms": 1}
        topic = f"shop.public.{table}"
        return Record(topic, 0, self.lsn, json.dumps(key).encode(), json.dumps(value).encode())

    def order(self, number: int, **columns: Any) -> Record:
        row = {"id": number, "customer_id": 7, "total": "99.50", "note": None, "secret": "x", **columns}
        return self.record("orders", "c", {"id": number}, row)

    def customer(self, name: str, number: int = 7) -> Record:
        row = {"id": number, "name": name, "card": "4242424242424242", "mail": "a@b.c", "password": "p"}
        return self.record("customers", "u", {"id": number}, row)

    def item(self, order: int, line: int, pieces: int | None, extra: str = '{"k":[1]}') -> Record:
        row = {"order_id": order, "line": line, "pieces": pieces, "extra": extra}
        return self.record("items", "c", {"order_id": order, "line": line}, row)

    def answer(self, key: str) -> bytes:
        return composed(self.plan, self.bundles, self.bundles.values[UnitKey("", key)])


async def test_the_golden_bundle() -> None:
    world = World()
    records = [world.order(1), world.customer("Ann"), *(world.item(1, line, line) for line in (1, 2, 3))]
    report = await world.flow.process([*records, world.item(1, 4, None)])
    hashed = mask("hash", "a@b.c", b"s3cret")
    assert report.events == 6
    assert world.answer("1") == (
        b'{"id":1,"amount":"99.50","large":false,"note":"none",'
        b'"customer":{"name":"Ann","card":"***4242","mail":"%b"},'
        b'"items":[{"line":4,"extra":{"k":[1]}},{"line":3,"extra":{"k":[1]}}],'
        b'"sums":{"lines":4,"pieces":6,"mean":2}}' % (hashed or "").encode()
    )


async def test_a_small_batch_takes_three_round_trips_where_the_stores_keep_the_order() -> None:
    """Apply; relate, count and read; put. A row that is known tells what the next level needs, before it is read."""
    trips = {}
    for in_order, foresight in ((True, 250), (True, 0), (False, 250), (False, 0)):
        world = World(FlowLimits(foresight_keys=foresight))
        world.flow = Flow(
            world.plan, MemoryRows(), MemoryRelations(), world.bundles, world.flow.limits, in_order=in_order
        )
        report = await world.flow.process([world.order(1), world.customer("Ann"), world.item(1, 1, 2)])
        trips[in_order, foresight] = report.round_trips
        assert report.bundles_written == 1 and report.fragments_written == 1
        assert b'"pieces":2' in world.answer("1") and b'"name":"Ann"' in world.answer("1")
    assert trips == {(True, 250): 3, (True, 0): 4, (False, 250): 5, (False, 0): 6}


async def test_what_was_foreseen_wrongly_is_read_again() -> None:
    """Another worker moved the order's line to another order after this batch was applied: what lies there counts."""
    world = World()
    await world.flow.process([world.order(1), world.item(1, 1, 5)])
    foreseen = foresee(world.plan, [UnitKey("", "1")], {("shop.public.orders", "1"): None})
    known = foresee(world.plan, [UnitKey("", "1")], {})
    assert foreseen == known, "a deleted row tells nothing but its key"
    assert [read.parent for read in known[1]] == ["1", "1"] and known[0] == [("shop.public.orders", "1")]
    columns = world.plan.tables["shop.public.orders"].columns
    wrong = {("shop.public.orders", "1"): [99 if name == "id" else None for name in columns]}
    await world.flow._assemble([UnitKey("", "1")], BatchReport(), known=wrong)
    assert b'"pieces":5' in world.answer("1")


async def test_what_the_spec_does_not_list_does_not_travel() -> None:
    world = World()
    await world.flow.process([world.order(1), world.customer("Ann")])
    everything = repr((world.flow.rows.tables, world.flow.relations.places, world.bundles.values))  # type: ignore[attr-defined]
    assert "secret" not in everything
    assert "password" not in everything


async def test_a_linked_parent_changes_with_one_write() -> None:
    world = World()
    await world.flow.process([world.customer("Ann"), *(world.order(number) for number in range(50))])
    report = await world.flow.process([world.customer("Bob")])
    assert (report.bundles_written, report.fragments_written) == (0, 1)
    assert b'"name":"Bob"' in world.answer("49")


async def test_a_newer_version_with_the_same_content_writes_nothing() -> None:
    world = World()
    await world.flow.process([world.order(1)])
    report = await world.flow.process([world.order(1, secret="changed")])
    assert report.bundles_written == 0


async def test_a_deleted_row_is_gone_and_stays_away() -> None:
    world = World()
    old = world.order(1)
    await world.flow.process([old, world.record("orders", "d", {"id": 1}, None)])
    await world.flow.process([old])
    assert await world.bundles.get([UnitKey("", "1")]) == [None]


async def test_a_broken_record_stops_nobody_and_names_its_bundles() -> None:
    world = World()
    await world.flow.process([world.order(1), world.item(1, 1, 5)])
    broken = Record("shop.public.items", 0, 99, b'{"order_id":1,"line":1}', b"not json")
    strange = Record("shop.public.unknown", 0, 1, b"{}", b"{}")
    report = await world.flow.process([broken, strange, world.order(2)])
    assert b'"id":2' in world.answer("2")
    assert [letter.bundle_keys for letter in report.dead_letters] == [["1"], []]
    assert "shop.public.unknown" in report.dead_letters[1].reason


async def test_an_unchanged_large_value_comes_from_the_row_before() -> None:
    world = World()
    await world.flow.process([world.order(1, note="long text")])
    await world.flow.process([world.order(1, note="__debezium_unavailable_value", total="1")])
    assert b'"amount":"1","large":false,"note":"long text"' in world.answer("1")
    report = await world.flow.process([world.order(2, note="__debezium_unavailable_value")])
    assert "note" in report.dead_letters[0].reason
    assert UnitKey("", "2") not in world.bundles.values


async def test_hot_parents_go_through_the_dirty_lane() -> None:
    spec = {**SPEC, "sections": {"customer": {**SPEC["sections"]["customer"], "compose": "copy"}}}
    world = World(FlowLimits(parent_children_max=10, chunk_keys=7))
    world.plan = compile_plan(ContextSpec.model_validate(spec))
    world.flow.plan = world.plan
    await world.flow.process([world.order(number) for number in range(20)])
    report = await world.flow.process([world.customer("Ann")])
    assert sorted(key.key for chunk in report.fan_out for key in chunk) == sorted(map(str, range(20)))
    assert max(map(len, report.fan_out)) <= 7
    assert b'"customer":null' in world.answer("3")
    for chunk in report.fan_out:
        await world.flow.rebuild(chunk)
    assert b'"name":"Ann"' in world.answer("3")


async def test_a_truncate_empties_and_later_rows_live() -> None:
    world = World()
    await world.flow.process([world.order(1), world.item(1, 1, 5)])
    early = world.item(1, 2, 9)
    truncate = world.record("items", "t", {"__ctxpipe": "truncate"}, None)
    await world.flow.process([truncate, early, world.item(1, 3, 1)])
    assert b'"items":[{"line":3,' in world.answer("1")
    assert b'"sums":{"lines":1,"pieces":1,"mean":1}' in world.answer("1")


def test_auto_copies_where_one_bundle_is_concerned_and_links_elsewhere() -> None:
    sections = {name: {**section, "compose": "auto"} for name, section in SPEC["sections"].items()}
    spec = ContextSpec.model_validate({**SPEC, "sections": sections})
    assert default_composition(spec) == {"customer": "link", "items": "copy", "sums": "copy"}


def test_two_keys_of_one_table_are_refused() -> None:
    entities = {**SPEC["entities"], "twin": {"source": "shop", "table": "public.orders", "key": ["number"]}}
    with pytest.raises(ConfigError, match=r"two keys"):
        compile_plan(ContextSpec.model_validate({**SPEC, "entities": entities}))
