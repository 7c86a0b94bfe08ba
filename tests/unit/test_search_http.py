"""Searches over HTTP: what is asked, what is answered, and every bad question, all mistakes at once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import Retryable
from pipeline.lookup.http import BODY_BYTES_MAX, make_app
from pipeline.lookup.search_request import BadSearch, read_request, request_mistakes
from pipeline.lookup.service import LookupService
from tests.support.search_world import MARKED, SearchWorld, plane_spec
from tests.support.space_records import DIMENSION
from tests.unit.test_lookup import problem

PATH = "/v1/contexts/plane:search"


@pytest.fixture
async def world() -> AsyncIterator[SearchWorld]:
    made = SearchWorld()
    made.put("1", {"name": "wide body jet", "maker": "Boeing", "year": 1988})
    made.put("2", {"name": "narrow body jet", "maker": "Airbus", "year": 2001})
    yield made
    made.service.close()


@pytest.fixture
async def client(world: SearchWorld) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=make_app(world.lookups, world.service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as made:
        yield made


async def test_an_answer_has_hits_with_bundles_and_labels(client: httpx.AsyncClient, world: SearchWorld) -> None:
    response = await client.post(PATH, json={"text": "wide body jet", "k": 1, "filter": {"year": {"lt": 1990}}})
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    answer = response.json()
    hit = answer.pop("hits")[0]
    assert answer == {
        "context": "plane",
        "space": world.space,
        "spec_version": 3,
        "mode": "hybrid",
        "degraded": None,
        "index": {"behind_records": 0, "age_ms": None},
        "dropped": 0,
    }
    assert (hit["key"], hit["moved_on"], hit["passage"]["text"]) == ("1", False, "wide body jet of Boeing")
    assert hit["answer"]["bundle"]["maker"] == "Boeing" and hit["answer"]["status"] == "fresh"
    assert hit["answer"]["embedding"]["state"] == "pending"


async def test_bundles_can_be_left_out(client: httpx.AsyncClient) -> None:
    hit = (await client.post(PATH, json={"key": "1", "bundles": False})).json()["hits"][0]
    assert "bundle" not in hit["answer"] and hit["answer"]["status"] == "fresh"


async def test_contexts_show_their_space(client: httpx.AsyncClient, world: SearchWorld) -> None:
    assert (await client.get("/v1/contexts")).json()["contexts"][0]["space"] == world.space
    assert (await client.get("/readyz")).status_code == 200
    world.replica.vectors_loaded = world.replica.texts_loaded = False
    assert (await client.get("/readyz")).status_code == 200, "lookups are answered while an index is being read"
    assert "is being read" in problem(await client.post(PATH, json={"text": "wide"}), 503)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "give one of"),
        ({"text": "a", "key": "1"}, "not text and key together"),
        ({"text": ""}, "text is empty"),
        ({"text": "  \n"}, "text is empty"),
        ({"text": "x" * 20_001}, "20,001 characters"),
        ({"text": 7}, "text is a text"),
        ({"text": "a", "k": 0}, "k is 1 to 1,000, not 0"),
        ({"text": "a", "k": 1_000_000}, "k is 1 to 1,000, not 1,000,000"),
        ({"text": "a", "k": 1.5}, "k is a whole number"),
        ({"text": "a", "k": True}, "k is a whole number"),
        ({"text": "a", "k": 10**400}, "k is 1 to 1,000"),
        ({"text": "a", "min_score": 1.1}, "min_score is a cosine, -1 to 1, not 1.1"),
        ({"text": "a", "min_score": "high"}, "min_score is a number"),
        ({"text": "a", "min_score": 0.5, "mode": "lexical"}, "min_score is a cosine, which a lexical"),
        ({"text": "a", "mode": "magic"}, "mode is one of auto, vector, lexical, hybrid"),
        ({"text": "a", "mode": ["auto"]}, "mode is one of auto"),
        ({"text": "a", "space": 3}, "space is the id of a space"),
        ({"text": "a", "bundles": "yes"}, "bundles is true or false"),
        ({"text": "a", "budget_ms": 0}, "budget_ms is 1 to 60,000, not 0"),
        ({"text": "a", "budget_ms": 1e9}, "budget_ms is 1 to 60,000"),
        ({"text": "a", "limit": 3}, "'limit' is no part of a search"),
        ({"vector": [1.0] * (DIMENSION - 1)}, f"vector has {DIMENSION - 1} numbers; the space has {DIMENSION}"),
        ({"vector": []}, f"vector has 0 numbers; the space has {DIMENSION}"),
        ({"vector": [0.0] * DIMENSION}, "all zeros"),
        ({"vector": ["1"] * DIMENSION}, "vector is a list of numbers"),
        ({"vector": [1e300] * DIMENSION}, "not finite, or too large"),
        ({"vector": [1.0] * DIMENSION, "mode": "hybrid"}, "a vector has no words"),
        ({"key": "a|b"}, "a key of plane has 1 part"),
        ({"key": ""}, "not empty"),
        ({"text": "a", "filter": []}, "filter is an object"),
        ({"text": "a", "filter": {"seats": 7}}, "marks no field 'seats' under embedding: filters: (maker, year)"),
        ({"text": "a", "filter": {"year": {"near": 7}}}, "'near' is no comparison"),
        ({"text": "a", "filter": {"year": {}}}, "an empty object says nothing"),
        ({"text": "a", "filter": {"year": [{}]}}, "values are texts, numbers"),
        ({"text": "a", "filter": {"year": {"lt": None}}}, "lt compares numbers or texts"),
        ({"text": "a", "filter": {"year": {"lt": [1]}}}, "lt takes a single value"),
        ({"text": "a", "filter": {"year": {"in": 1}}}, "in takes a list"),
        ({"text": "a", "filter": {"year": list(range(1001))}}, "1,001 values; at most 1,000"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_question_is_refused(client: httpx.AsyncClient, body: dict[str, Any], said: str) -> None:
    response = await client.post(PATH, content=json.dumps(body))
    assert said in problem(response, 400)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"vector":[NaN]}', b"\xff", b"[" * 100_000])
async def test_what_is_no_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    problem(await client.post(PATH, content=body), 400)


async def test_a_body_has_a_limit(client: httpx.AsyncClient) -> None:
    problem(await client.post(PATH, content=b" " * (BODY_BYTES_MAX + 1)), 413)


async def test_all_mistakes_are_told_at_once(client: httpx.AsyncClient) -> None:
    body = {"text": "", "k": 0, "min_score": 7, "mode": "magic", "limit": 3, "filter": {"seats": 1, "year": {"lt": []}}}
    response = await client.post(PATH, json=body)
    problem(response, 400)
    assert len(response.json()["mistakes"]) == 7


async def test_other_refusals(client: httpx.AsyncClient, world: SearchWorld) -> None:
    assert "answers searches of plane, not other" in problem(
        await client.post(PATH, json={"text": "a", "space": "other"}), 409
    )
    assert "'9'" in problem(await client.post(PATH, json={"key": "9"}), 404)
    problem(await client.post("/v1/contexts/boat:search", json={"text": "a"}), 404)
    problem(await client.get(PATH), 405)
    world.bundles.error = Retryable("secret address")
    assert "secret" not in problem(await client.post(PATH, json={"text": "wide"}), 503)


async def test_a_context_that_embeds_nothing_is_not_searched(world: SearchWorld) -> None:
    plain = plane_spec(embedding=None)
    world.served.spec, world.current = plain, None
    transport = httpx.ASGITransport(app=make_app(world.lookups, world.service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as client:
        assert "declares no embedding" in problem(await client.post(PATH, json={"text": "a"}), 400)
        assert "space" not in (await client.get("/v1/contexts")).json()["contexts"][0]


async def test_a_server_without_searches_says_so(world: SearchWorld) -> None:
    app = make_app(LookupService({"plane": world.served}, world.clock))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as client:
        problem(await client.post(PATH, json={"text": "a"}), 501)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = ("text", "vector", "key", "k", "filter", "min_score", "mode", "space", "bundles", "budget_ms")


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_nothing_but_mistakes_comes_of_any_question(asked: dict[str, Any]) -> None:
    try:
        request = read_request(json.dumps(asked).encode("utf-8", "surrogatepass"))
    except BadSearch:
        return
    mistakes = request_mistakes(request, plane_spec(), MARKED, DIMENSION)
    assert all(isinstance(mistake, str) and mistake for mistake in mistakes)
