"""Lookups and searches for somebody: another tenant's bundle is as good as missing, a field that is not allowed is not
there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from pipeline.lookup.narrowing import NotAllowed
from pipeline.lookup.options import LookupOptions
from pipeline.lookup.principal import Principal
from pipeline.lookup.search import UnknownBundle
from pipeline.lookup.search_request import SearchRequest
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.stores.spaces import Condition
from pipeline.stores.store import Fetched
from schemas.bundle import Meta, Stored
from schemas.context import ContextSpec
from tests.support.search_world import SearchWorld, plane_spec
from tests.unit.test_lookup import EMPTY, FixedClock, MemoryReader, position
from tests.unit.test_lookup_asked import BODY, SPEC

ACME, GLOBEX = Principal("a", "acme"), Principal("g", "globex")
NOBODY, OPERATOR = Principal("n"), Principal("o", scopes=frozenset({"tenants:all"}))


@pytest.fixture
def reader() -> MemoryReader:
    made = MemoryReader()
    made.bundles["1"] = Fetched(Stored(1, Meta("h", 3, tenant="acme"), BODY), {})
    made.bundles["none"] = Fetched(Stored(1, Meta("h", 3), BODY), {})
    made.applied = {("a", 0): position("nyc", 400), ("b", 0): position("fleet", 700)}
    return made


def service(reader: MemoryReader, **more: Any) -> LookupService:
    spec = ContextSpec.model_validate({**SPEC, "tenant": "account", **more})
    return LookupService({"flight": ServedContext(spec, reader, EMPTY)}, FixedClock())


async def answered(lookups: LookupService, key: str, principal: Principal, **asked: Any) -> bytes:
    answer = await lookups.get("flight", key, LookupOptions(principal=principal, **asked))
    return msgspec.structs.replace(answer, key="").to_json()


@pytest.mark.parametrize("serving", [SPEC["serving"], {"budget_ms": 200, "max_age_ms": 1000}])
@pytest.mark.parametrize("principal", [GLOBEX, NOBODY, Principal("e", ""), Principal("b", "ACME")])
async def test_another_tenants_bundle_is_answered_as_a_missing_one(
    reader: MemoryReader, principal: Principal, serving: Any
) -> None:
    lookups = service(reader, serving=serving)
    missing = await answered(lookups, "2", principal)
    assert await answered(lookups, "1", principal) == await answered(lookups, "none", principal) == missing
    assert json.loads(missing)["status"] == ("fallback" if "default" in serving else "missing")
    asked: dict[str, Any] = {"fields": ("gate",), "token_budget": 10}
    assert await answered(lookups, "1", principal, **asked) == await answered(lookups, "2", principal, **asked)


async def test_its_own_tenant_and_an_operator_see_it(reader: MemoryReader) -> None:
    lookups = service(reader)
    for principal in (ACME, OPERATOR):
        assert json.loads(await answered(lookups, "1", principal))["status"] == "fresh"
    assert json.loads(await answered(lookups, "none", OPERATOR))["status"] == "fresh"
    answers = await lookups.get_many("flight", ["1", "2"], LookupOptions(principal=ACME))
    assert [answer.status for answer in answers] == ["fresh", "fallback"]
    open_to_all = service(reader, tenant=None)
    assert json.loads(await answered(open_to_all, "1", NOBODY))["status"] == "fresh"


async def test_only_allowed_fields_are_shown(reader: MemoryReader) -> None:
    lookups = service(reader)
    narrow = Principal("n", "acme", fields={"flight": ("id", "plane.year")})
    whole = await lookups.get("flight", "1", LookupOptions(principal=ACME))
    part = await lookups.get("flight", "1", LookupOptions(principal=narrow))
    assert part.bundle == b'{"id":1,"plane":{"year":1990}}' and part.hash != whole.hash and part.left_out == {}
    asked = await lookups.get("flight", "1", LookupOptions(principal=narrow, fields=("gate", "plane.tail")))
    assert asked.bundle == b'{"plane":{}}'
    bare = Principal("n", "acme", fields={"flight": ("id",)})
    answer = await lookups.get("flight", "1", LookupOptions(principal=bare))
    assert (answer.bundle, answer.left_out, answer.sections) == (b'{"id":1}', {"plane": "not allowed"}, {})
    nothing = Principal("n", "acme", fields={"flight": ()})
    assert (await lookups.get("flight", "1", LookupOptions(principal=nothing))).bundle == b"{}"
    elsewhere = Principal("n", "acme", fields={"other": ("id",)})
    assert (await lookups.get("flight", "1", LookupOptions(principal=elsewhere))).bundle == BODY


async def test_a_path_below_a_plain_value_does_not_show_the_value(reader: MemoryReader) -> None:
    below = Principal("n", "acme", fields={"flight": ("gate.x", "plane.tail.x")})
    answer = await service(reader).get("flight", "1", LookupOptions(principal=below))
    assert answer.bundle == b'{"gate":null,"plane":{"tail":null}}'


@pytest.fixture
async def world() -> AsyncIterator[SearchWorld]:
    fields = ["id", "name", {"name": "maker", "column": "maker"}, "year"]
    made = SearchWorld(plane_spec(fields=fields, tenant="maker"))
    for key, maker in (("1", "Boeing"), ("2", "Airbus"), ("3", "Boeing")):
        made.put(key, {"name": "wide body jet", "maker": maker, "year": 1988})
        fetched = made.bundles.found[key]
        assert fetched.bundle is not None and fetched.bundle.meta is not None
        meta = msgspec.structs.replace(fetched.bundle.meta, tenant=maker)
        made.bundles.found[key] = Fetched(msgspec.structs.replace(fetched.bundle, meta=meta), {})
    yield made
    made.service.close()


BOEING = Principal("b", "Boeing")


async def test_a_search_finds_ones_own_only_and_counts_nothing_else(world: SearchWorld) -> None:
    found = await world.service.search("plane", SearchRequest(text="wide body jet"), BOEING)
    assert ([hit.key for hit in found.hits], found.dropped) == (["1", "3"], 0)
    alone = [hit.score for hit in found.hits]
    world.put("0", {"name": "wide body jet", "maker": "Airbus", "year": 1988})
    again = await world.service.search("plane", SearchRequest(text="wide body jet"), BOEING)
    assert [hit.score for hit in again.hits] == alone, "ranks tell nothing of other tenants' bundles"
    nobody = await world.service.search("plane", SearchRequest(text="wide body jet"), NOBODY)
    assert (nobody.hits, nobody.dropped) == ([], 0)
    everybody = await world.service.search("plane", SearchRequest(text="wide body jet"), OPERATOR)
    assert {hit.key for hit in everybody.hits} >= {"1", "2", "3"}


async def test_what_changed_hands_since_it_was_indexed_is_not_shown(world: SearchWorld) -> None:
    fetched = world.bundles.found["3"].bundle
    assert fetched is not None and fetched.meta is not None
    meta = msgspec.structs.replace(fetched.meta, tenant="Airbus")
    world.bundles.found["3"] = Fetched(msgspec.structs.replace(fetched, meta=meta), {})
    found = await world.service.search("plane", SearchRequest(text="wide body jet"), BOEING)
    assert [hit.key for hit in found.hits] == ["1"]


async def test_more_like_another_tenants_bundle_is_more_like_none(world: SearchWorld) -> None:
    async def refused(key: str) -> str:
        with pytest.raises(UnknownBundle) as told:
            await world.service.search("plane", SearchRequest(key=key), BOEING)
        return str(told.value).replace(key, "")

    assert await refused("2") == await refused("9")
    found = await world.service.search("plane", SearchRequest(key="1"), BOEING)
    assert [hit.key for hit in found.hits] == ["3"]


async def test_a_filter_cannot_ask_for_another_tenant(world: SearchWorld) -> None:
    asked = SearchRequest(text="wide", conditions=(Condition("maker", "eq", "Airbus"),))
    assert (await world.service.search("plane", asked, BOEING)).hits == []


async def test_fields_that_are_not_shown_cannot_be_guessed_by_searching(world: SearchWorld) -> None:
    narrow = Principal("n", "Boeing", fields={"plane": ("id", "maker")})
    found = await world.service.search("plane", SearchRequest(text="wide body jet"), narrow)
    hit = found.hits[0]
    assert hit.answer.bundle == b'{"maker":"Boeing"}' and hit.passage is not None and hit.passage.text is None
    assert not hit.moved_on and b"wide" not in hit.to_json(True)
    asked = SearchRequest(text="wide", conditions=(Condition("year", "lt", 1990),))
    with pytest.raises(NotAllowed, match="does not show year"):
        await world.service.search("plane", asked, narrow)


async def test_a_space_that_cannot_tell_tenants_apart_answers_none_of_them() -> None:
    world = SearchWorld(plane_spec(tenant="owner"))
    world.put("1", {"name": "wide body jet", "maker": "Boeing", "year": 1988})
    with pytest.raises(NotAllowed, match="can't keep tenants apart"):
        await world.service.search("plane", SearchRequest(text="wide"), BOEING)
    assert (await world.service.search("plane", SearchRequest(text="wide"), OPERATOR)).hits
    world.service.close()
