"""Models that ask over HTTP where access is configured: the official client, with and without a good credential."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import httpx2
import pytest
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from pipeline.core.access import AccessConfig
from pipeline.core.clock import SystemClock
from pipeline.lookup.api_keys import KeyList, StoredKey, make_key, write_keys
from pipeline.lookup.audit import Audit
from pipeline.lookup.credentials import Gate
from pipeline.lookup.guarding import Guard
from pipeline.lookup.mcp_access import GuardedTransport
from pipeline.lookup.mcp_server import make_server
from tests.support.search_world import SearchWorld

Mode = Literal["auto", "legacy"]


class World(SearchWorld):
    """Two planes behind a guard, answered over a socket."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.put("1", {"name": "wide body jet", "maker": "Boeing", "year": 1988})
        self.put("2", {"name": "narrow body jet", "maker": "Airbus", "year": 2001})
        self.keys: dict[str, str] = {}
        kept = []
        for name, scopes, fields in (
            ("reader", ("bundles:read:plane",), {"plane": ("name", "year")}),
            ("finder", ("search:read", "bundles:read"), {}),
            ("counter", ("metrics:read",), {}),
        ):
            key_id, self.keys[name], digest = make_key()
            kept.append(StoredKey(id=key_id, name=name, digest=digest, created_s=1, scopes=scopes, fields=fields))
        write_keys(folder / "keys.json", KeyList(tuple(kept)))
        gate = Gate(AccessConfig(keys_file="keys.json"), folder, SystemClock())
        self.guard = Guard(gate, Audit(b"a secret of sixteen"))
        self.server = make_server(self.lookups, self.service, "1", guard=self.guard)
        self.url = ""

    @asynccontextmanager
    async def asked_by(self, name: str, mode: Mode = "auto", bearer: bool = False) -> AsyncIterator[Client]:
        key = self.keys[name]
        headers = {"authorization": f"Bearer {key}"} if bearer else {"x-api-key": key}
        async with (
            httpx2.AsyncClient(headers=headers) as connection,
            Client(streamable_http_client(self.url, http_client=connection), mode=mode) as client,
        ):
            yield client


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    application = GuardedTransport(made.server.streamable_http_app(stateless_http=True), made.guard)
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="critical"))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    yield made
    server.should_exit = True
    await serving
    made.service.close()


async def call(connected: Client, tool: str, **arguments: Any) -> tuple[str, Any, bool]:
    result: Any = await connected.call_tool(tool, arguments)
    return result.content[0].text, result.structured_content, bool(result.is_error)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "ctx_0_wrong"}, {"authorization": "Bearer x.y.z"}])
async def test_without_a_good_credential_nothing_is_answered(
    world: World, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ctxpipe.audit")
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"accept": "application/json, text/event-stream"}
    async with httpx.AsyncClient(headers={**accept, **headers}) as client:
        for response in (await client.post(world.url, json=message), await client.get(world.url)):
            assert response.status_code == 401 and response.headers["www-authenticate"].startswith("Bearer")
            assert response.headers["content-type"] == "application/problem+json" and "tools" not in response.text
            assert response.headers["x-content-type-options"] == "nosniff"
    assert [record.outcome for record in caplog.records] == ["unauthenticated"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_key_opens_what_its_scopes_and_fields_say(world: World, mode: Mode) -> None:
    async with world.asked_by("reader", mode) as reader:
        text, answer, failed = await call(reader, "get_context_bundle", context="plane", key="1")
        assert not failed and answer["bundle"] == {"name": "wide body jet", "year": 1988} and "Boeing" not in text
        read: Any = await reader.read_resource("ctxpipe://plane/1")
        assert "wide body jet" in read.contents[0].text and "Boeing" not in read.contents[0].text
        text, _, failed = await call(reader, "search_context", context="plane", text="jet")
        assert failed and "lacks the scope search:read:plane" in text
        assert (await call(reader, "search", query="jet"))[1] == {"results": []}
        text, _, failed = await call(reader, "get_context_bundle", context="car", key="1")
        assert failed and "lacks the scope bundles:read:car" in text
    async with world.asked_by("finder", mode, bearer=True) as finder:
        _, found, failed = await call(finder, "search_context", context="plane", text="wide body jet", k=1)
        assert not failed and found["hits"][0]["answer"]["bundle"]["maker"] == "Boeing"
        assert [one["context"] for one in (await call(finder, "list_contexts"))[1]["contexts"]] == ["plane"]
    async with world.asked_by("counter", mode) as counter:
        assert (await call(counter, "list_contexts"))[1] == {"contexts": []}
        text, _, failed = await call(counter, "fetch", id="plane/1")
        assert failed and "lacks the scope bundles:read:plane" in text


async def test_everybody_is_answered_by_their_own_key(world: World) -> None:
    async with world.asked_by("reader") as reader, world.asked_by("finder") as finder:
        asking = [call(one, "get_context_bundle", context="plane", key="2") for one in (reader, finder) * 10]
        answers = [answer["bundle"] for _, answer, _ in await asyncio.gather(*asking)]
    assert answers[::2] == [{"name": "narrow body jet", "year": 2001}] * 10
    assert all(bundle["maker"] == "Airbus" for bundle in answers[1::2])


async def test_each_access_leaves_a_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctxpipe.audit")
    async with world.asked_by("reader") as reader:
        await call(reader, "get_context_bundle", context="plane", key="1")
        await call(reader, "search_context", context="plane", text="jet")
    told = [
        (one.principal, one.action, one.context, one.outcome, one.answered)
        for one in caplog.records
        if one.name == "ctxpipe.audit"
    ]
    assert told == [
        ("reader", "bundles:read", "plane", "answered", "fresh"),
        ("reader", "search:read", "plane", "forbidden", ""),
    ]
    assert all(world.keys["reader"] not in str(record.__dict__) for record in caplog.records)


async def test_what_came_past_the_guard_is_refused(world: World) -> None:
    """In-process, where no transport asked for a credential."""
    async with Client(world.server) as connected:
        for tool, arguments in (("get_context_bundle", {"context": "plane", "key": "1"}), ("list_contexts", {})):
            text, answer, failed = await call(connected, tool, **arguments)
            assert failed and answer is None and "Boeing" not in text
