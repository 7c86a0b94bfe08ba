"""The world of a case: production's client over its context, what was asked and seen, and what goes wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.client import BadRequest, DeadlineExceeded, Unavailable, UnknownContext
from pipeline.core.clock import SystemClock
from pipeline.evaluation.values import Step
from pipeline.evaluation.world import WorldError, forget, open_world
from pipeline.lookup.http import make_app
from tests.support.eval_world import SmallSuite, case, order_log, small_suite

ANN = {"id": 7, "name": "Ann"}
ONE = {"id": 1, "note": "n", "owner": "acme", "customer": ANN, "sums": {"lines": 2, "pieces": 40}}
FIXED: list[Any] = [
    {"context": "order", "key": "1", "data": ONE, "fragments": {"customer": "7"}},
    {"context": "order", "key": "2", "data": {**ONE, "id": 2, "customer": None}, "fragments": {"customer": None}},
    {"context": "product", "key": "p1", "data": {"id": "p1", "title": "red boots", "year": 1999, "owner": "acme"}},
    {"context": "product", "key": "p2", "data": {"id": "p2", "title": "blue hat", "year": 2001}, "tenant": "other"},
]


@pytest.fixture
def suite(tmp_path: Path) -> SmallSuite:
    forget()
    made = small_suite(tmp_path)
    made.write("bundles/fixed.jsonl", FIXED)
    made.write("events/log.jsonl", order_log().lines)
    return made


def fixed(**conditions: Any) -> Any:
    return case(context={"bundles": "bundles/fixed.jsonl"}, conditions=conditions)


async def test_a_fixed_bundle_is_answered_with_its_fragment_in_its_place(suite: SmallSuite) -> None:
    told: list[Step] = []
    async with open_world(suite, fixed(), SystemClock(), told.append) as world:
        bundle = await world.client.get("order", "1")
        assert (bundle.status, bundle.rung, bundle.data) == ("fresh", "store", ONE)
        assert (await world.client.get("order", "2")).data["customer"] is None
        assert (await world.client.get("order", "3")).status == "missing"
        assert world.seen == {"order/1": ONE, "order/2": {**ONE, "id": 2, "customer": None}}
    assert [(one.what, one.name, one.asked["key"], one.came["status"]) for one in told] == [
        ("context", "order", "1", "fresh"),
        ("context", "order", "2", "fresh"),
        ("context", "order", "3", "missing"),
    ]


async def test_a_log_is_served_as_the_pipeline_leaves_it(suite: SmallSuite) -> None:
    told: list[Step] = []
    log = case(context={"events": "events/log.jsonl"})
    async with open_world(suite, log, SystemClock(), told.append) as world:
        first, gone = await world.client.get_many("order", ["1", "4"])
        assert first.data["customer"] == {"id": 7, "name": "Anne"} and first.status == "fresh"
        assert first.data["sums"] == {"lines": 2, "pieces": 40}
        assert gone.missing
        again = await world.client.get("order", "1", position=list(first.position.values()), fields=["note"])
        assert again.data == {"note": "note 1"} and not again.not_reached
        assert list(world.seen) == ["order/1", "order/1#2"]
    assert [one.asked["key"] for one in told] == ["1", "4", "1"]
    assert told[2].asked["fields"] == ["note"] and told[2].asked["position"]


async def test_age_makes_stale(suite: SmallSuite) -> None:
    async with open_world(suite, fixed(age_ms=61_000), SystemClock(), lambda step: None) as world:
        bundle = await world.client.get("order", "1")
        assert bundle.status == "stale" and set(bundle.age_ms) == {"crm", "shop"}
        assert all(age is not None and age >= 61_000 for age in bundle.age_ms.values())


async def test_sources_are_as_old_as_the_file_says_beside_the_newest(suite: SmallSuite) -> None:
    lines = [{**FIXED[0], "as_of_us": {"shop": 90_000_000, "crm": 20_000_000}}, {**FIXED[1], "as_of_us": None}]
    suite.write("bundles/fixed.jsonl", lines)
    async with open_world(suite, fixed(), SystemClock(), lambda step: None) as world:
        ages = (await world.client.get("order", "1", max_age_ms=69_000)).age_ms
        assert ages["shop"] is not None and ages["shop"] < 30_000
        assert ages["crm"] is not None and 70_000 <= ages["crm"] < 100_000
    suite.write("bundles/fixed.jsonl", [{**FIXED[0], "as_of_us": {"shop": 90_000_000, "crm": None}}])
    forget()
    async with open_world(suite, fixed(), SystemClock(), lambda step: None) as world:
        bundle = await world.client.get("order", "1")
        assert bundle.status == "stale" and bundle.age_ms["crm"] is None


async def test_a_late_fragment_makes_partial_and_is_not_seen(suite: SmallSuite) -> None:
    told: list[Step] = []
    async with open_world(suite, fixed(fragment_delay_ms=500), SystemClock(), told.append) as world:
        bundle = await world.client.get("order", "1")
        assert bundle.status == "partial" and "customer" not in bundle.data
        assert bundle.left_out == {"customer": "did not come in time"}
        assert "customer" not in world.seen["order/1"]
    assert told[0].came["left_out"] == ["customer"] and told[0].took_ms < 500


@pytest.mark.parametrize(("store", "error"), [("down", Unavailable), ("frozen", DeadlineExceeded)])
async def test_without_a_store_there_is_the_default_or_an_error(
    suite: SmallSuite, tmp_path: Path, store: str, error: type[Exception]
) -> None:
    told: list[Step] = []
    async with open_world(suite, fixed(store=store), SystemClock(), told.append) as world:
        with pytest.raises(error):
            await world.client.get("order", "1")
    assert (told[0].came["status"], told[0].came["error"]) == ("error", "LookupUnavailable")
    forget()
    defaulting = small_suite(tmp_path, serving={"budget_ms": 50, "default": {"note": "nobody knows"}})
    async with open_world(defaulting, fixed(store=store), SystemClock(), told.append) as world:
        bundle = await world.client.get("order", "1")
        assert (bundle.status, bundle.rung, bundle.data) == ("fallback", "default", {"note": "nobody knows"})


@pytest.mark.parametrize("store", ["down", "frozen"])
async def test_what_was_last_known_stands_in_and_is_never_fresher_than_it_was(suite: SmallSuite, store: str) -> None:
    warm = fixed(store=store, warm=True, age_ms=61_000)
    async with open_world(suite, warm, SystemClock(), lambda step: None) as world:
        bundle = await world.client.get("order", "1")
        assert (bundle.status, bundle.rung, bundle.data) == ("stale", "last_known", ONE)


async def test_a_tenant_sees_its_own_alone(suite: SmallSuite) -> None:
    told: list[Step] = []
    async with open_world(suite, fixed(tenant="acme"), SystemClock(), told.append) as world:
        assert not (await world.client.get("product", "p1")).missing
        assert (await world.client.get("product", "p2")).missing
        assert not (await world.client.get("order", "1")).missing  # which keeps no tenants apart
        assert [hit.key for hit in (await world.client.search("product", "hat boots")).hits] == ["p1"]
        assert list(world.seen) == ["product/p1", "order/1"]
    assert told[1].asked["tenant"] == "acme" and told[1].came["status"] == "missing"


async def test_a_search_is_a_step_and_its_bundles_are_seen(suite: SmallSuite) -> None:
    told: list[Step] = []
    async with open_world(suite, fixed(), SystemClock(), told.append) as world:
        found = await world.client.search("product", "red boots", k=2, filter={"year": {"lt": 2000}})
        assert [hit.key for hit in found.hits] == ["p1"] and found.hits[0].bundle.data["title"] == "red boots"
        assert found.mode == "hybrid" and found.degraded is None and not found.hits[0].moved_on
        label = (await world.client.get("product", "p1")).embedding
        assert label is not None and label.state == "current"
        (info,) = [one for one in await world.client.contexts() if one.context == "product"]
        assert info.space == found.space
    search = told[0]
    assert (search.what, search.name, search.came["hits"]) == ("search", "product", ["p1"])
    assert search.asked == {"k": 2, "mode": "auto", "text": "red boots", "filter": [["year", "lt", 2000]]}


async def test_mistakes_of_the_flow_are_errors_as_in_production(suite: SmallSuite) -> None:
    told: list[Step] = []
    async with open_world(suite, fixed(), SystemClock(), told.append) as world:
        with pytest.raises(UnknownContext):
            await world.client.get("oder", "1")
        with pytest.raises(UnknownContext):
            await world.client.get_many("oder", ["1", "2"], fields=["id"])
        with pytest.raises(BadRequest, match="has 1 part"):
            await world.client.get("order", "1|2")
        with pytest.raises(BadRequest, match="did you mean note"):
            await world.client.get("order", "1", fields=["notes"])
        with pytest.raises(BadRequest, match="declares no embedding"):
            await world.client.search("order", "x")
        with pytest.raises(BadRequest, match="no bundle id"):
            await world.client.by_id("order", "abc")
    assert [(one.what, one.asked.get("key"), one.came["error"]) for one in told] == [
        ("context", "1", "UnknownContext"),
        ("context", "1", "UnknownContext"),
        ("context", "2", "UnknownContext"),
        ("context", "1|2", "MalformedKey"),
        ("context", "1", "BadOptions"),
        ("search", None, "BadSearch"),
    ]


async def test_an_id_leads_back_to_what_was_answered(tmp_path: Path) -> None:
    forget()
    suite = small_suite(tmp_path, history={"retention_s": 60})
    suite.write("bundles/fixed.jsonl", FIXED)
    async with open_world(suite, fixed(), SystemClock(), lambda step: None) as world:
        bundle = await world.client.get("order", "1", fields=["note", "customer.name"])
        assert bundle.id is not None
        past = await world.client.by_id("order", bundle.id)
        assert past is not None and past.data == {"note": "n", "customer": {"name": "Ann"}}
        assert past.raw == bundle.raw


async def test_the_same_world_is_served_over_http(suite: SmallSuite) -> None:
    """For flows in other languages: the production interface on the case's service, told and narrowed all the same."""
    told: list[Step] = []
    async with open_world(suite, fixed(tenant="acme"), SystemClock(), told.append) as world:
        app = make_app(world.service, world.searches)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://world") as client:
            one = await client.get("/v1/contexts/order/1")
            hidden = await client.get("/v1/contexts/product/p2")
            both = await client.post("/v1/contexts/product:batchGet", json={"keys": ["p1", "p2"]})
            found = await client.post("/v1/contexts/product:search", json={"text": "hat boots"})
            unknown = await client.get("/v1/contexts/oder/1")
        assert one.json()["bundle"] == ONE and hidden.status_code == 404
        assert [answer["status"] for answer in both.json()["answers"]] == ["fresh", "missing"]
        assert [hit["key"] for hit in found.json()["hits"]] == ["p1"] and unknown.status_code == 404
        assert list(world.seen) == ["order/1", "product/p1"]
    asked = [(step.what, step.name, step.asked.get("key"), step.came["status"]) for step in told]
    assert asked == [
        ("context", "order", "1", "fresh"),
        ("context", "product", "p2", "missing"),
        ("context", "product", "p1", "fresh"),
        ("context", "product", "p2", "missing"),
        ("search", "product", None, "answered"),
    ]


async def test_a_case_without_a_context_has_empty_stores(suite: SmallSuite) -> None:
    async with open_world(suite, case(), SystemClock(), lambda step: None) as world:
        assert (await world.client.get("order", "1")).missing


async def test_all_mistakes_of_a_file_are_told_at_once(suite: SmallSuite) -> None:
    lines: list[Any] = [
        "{",
        {"context": "oder", "key": "1", "data": ONE},
        {"context": "order", "key": "1|2", "data": {**ONE, "nots": 1}},
        {"context": "order", "key": "3", "data": ONE, "fragments": {"custmer": "7", "sums": None}},
        {"context": "order", "key": "4", "data": {"id": 4}, "fragments": {"customer": "7"}, "as_of_us": {"shp": 1}},
        {"context": "product", "key": "p", "data": {"id": "p"}},
        FIXED[0],
        FIXED[0],
        {**FIXED[0], "key": "9", "data": {**ONE, "customer": {"id": 7, "name": "Bob"}}},
        {"context": "order", "key": "5", "data": []},
        {"context": "order", "key": "5", "dat": {}},
    ]
    texts = []
    for chosen in (lines[:1] + lines[-2:], lines[1:-2]):
        suite.write("bundles/fixed.jsonl", chosen)
        with pytest.raises(WorldError) as error:
            async with open_world(suite, fixed(), SystemClock(), lambda step: None):
                pass
        texts.append(str(error.value))
    assert texts[0].splitlines()[1:] == [
        "bundles/fixed.jsonl:3: 'dat' is no part of such a line; did you mean data?",
        "bundles/fixed.jsonl:2: 'data' is the bundle, a JSON object",
    ]
    assert texts[1].splitlines() == [
        "bundles/fixed.jsonl:1: no context 'oder' in the suite; did you mean order?",
        "bundles/fixed.jsonl:2: a key of order has 1 part: id (a | inside a part is %7C)",
        "bundles/fixed.jsonl:2: order has no field 'nots'; did you mean note?",
        "bundles/fixed.jsonl:3: fragments: order has no section 'custmer'; did you mean customer?",
        'bundles/fixed.jsonl:3: fragments: sums links to nothing, so in \'data\' it is {"lines":0,"pieces":null}',
        "bundles/fixed.jsonl:4: fragments: customer is not in 'data', or in a list, whose items have their own keys",
        "bundles/fixed.jsonl:4: as_of_us: order has no source 'shp'; did you mean shop?",
        "bundles/fixed.jsonl:5: product keeps tenants apart by owner, which 'data' lacks: add 'tenant'",
        "bundles/fixed.jsonl:7: bundle 1 of order stands in line 6 already",
        "bundles/fixed.jsonl:8: fragment customer 7 of order stands in line 6 already",
    ]
