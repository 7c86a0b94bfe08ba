"""Models that ask by the Model Context Protocol, through the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import Client

from pipeline.core.errors import Retryable
from pipeline.lookup.mcp_server import make_server
from tests.support.search_world import SearchWorld


@pytest.fixture
async def world() -> AsyncIterator[SearchWorld]:
    made = SearchWorld()
    made.put("1", {"name": "wide body jet", "maker": "Boeing", "year": 1988})
    made.put("a b/ü", {"name": "narrow body jet", "maker": "Airbus", "year": 2001})
    yield made
    made.service.close()


def client(world: SearchWorld) -> Client:
    return Client(make_server(world.lookups, world.service, "1"))


async def call(connected: Client, tool: str, **arguments: Any) -> tuple[str, Any, bool]:
    result: Any = await connected.call_tool(tool, arguments)
    return result.content[0].text, result.structured_content, bool(result.is_error)


async def test_tools_are_offered_as_reading_only(world: SearchWorld) -> None:
    async with client(world) as connected:
        tools = (await connected.list_tools()).tools
    assert {tool.name for tool in tools} == {
        "get_context_bundle",
        "search_context",
        "list_contexts",
        "search",
        "fetch",
    }
    assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in tools)
    assert all(tool.description and "self" not in tool.input_schema["properties"] for tool in tools)


async def test_a_bundle_by_its_key(world: SearchWorld) -> None:
    async with client(world) as connected:
        text, answer, failed = await call(connected, "get_context_bundle", context="plane", key="1")
        assert not failed and "wide body jet" in text
        assert (answer["status"], answer["bundle"]["maker"]) == ("fresh", "Boeing")
        text, answer, failed = await call(connected, "get_context_bundle", context="plane", key="9")
        assert not failed and answer["status"] == "missing" and "there is no bundle 9" in text
        for wrong, told in (
            ({"context": "car", "key": "1"}, "no context 'car'"),
            ({"context": "plane", "key": ""}, "not empty"),
        ):
            text, _, failed = await call(connected, "get_context_bundle", **wrong)
            assert failed and told in text
        text, _, failed = await call(connected, "get_context_bundle", context="plane", key="1", sections=["wing"])
        assert failed and "no section 'wing'" in text


async def test_bundles_by_meaning(world: SearchWorld) -> None:
    async with client(world) as connected:
        text, answer, failed = await call(connected, "search_context", context="plane", text="wide body jet", k=1)
        assert not failed and text.startswith("1: ") and answer["hits"][0]["key"] == "1"
        _, answer, _ = await call(
            connected, "search_context", context="plane", text="jet", filter={"year": {"gt": 1990}}
        )
        assert [hit["key"] for hit in answer["hits"]] == ["a b/ü"]
        text, _, failed = await call(connected, "search_context", context="plane", text="jet", filter={"wings": 2})
        assert failed and "marks no field 'wings'" in text
        text, _, failed = await call(connected, "search_context", context="plane", text="jet", k=0)
        assert failed and "k is 1 to" in text


async def test_search_and_fetch_as_chats_expect_them(world: SearchWorld) -> None:
    async with client(world) as connected:
        text, found, _ = await call(connected, "search", query="narrow body jet")
        assert json.loads(text) == found
        first = found["results"][0]
        assert first["id"] == "plane/a b/ü" and first["url"] == "ctxpipe://plane/a%20b%2F%C3%BC"
        text, document, failed = await call(connected, "fetch", id=first["id"])
        assert not failed and "narrow body jet" in document["text"] and document["metadata"]["status"] == "fresh"
        text, _, failed = await call(connected, "fetch", id="nothing")
        assert failed and "CONTEXT/KEY" in text


async def test_a_resource_says_how_long_it_holds(world: SearchWorld) -> None:
    async with client(world) as connected:
        templates = (await connected.list_resource_templates()).resource_templates
        assert [template.uri_template for template in templates] == ["ctxpipe://{context}/{key}"]
        read: Any = await connected.read_resource("ctxpipe://plane/a%20b%2F%C3%BC")
        assert json.loads(read.contents[0].text)["bundle"]["maker"] == "Airbus"
        limit_ms = world.lookups.served("plane").spec.serving.max_age_ms
        assert 0 < read.ttl_ms <= limit_ms and read.cache_scope == "private"


async def test_a_store_that_is_away_is_told(world: SearchWorld) -> None:
    world.bundles.error = Retryable("the store is away")
    async with client(world) as connected:
        text, _, failed = await call(connected, "get_context_bundle", context="plane", key="1")
        assert failed and "away" in text


async def test_canaries_are_not_offered(world: SearchWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lookup.mcp_server.is_canary", lambda name, described: name == "plane")
    async with client(world) as connected:
        assert (await call(connected, "list_contexts"))[1] == {"contexts": []}
        assert (await call(connected, "search", query="wide body"))[1] == {"results": []}
