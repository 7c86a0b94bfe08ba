"""The lookup service behind a guard: every route asks, wrong credentials are told apart for the audit alone."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.routing import Route

from pipeline.core.access import AccessConfig
from pipeline.lookup import http
from pipeline.lookup.api_keys import KeyList, StoredKey, make_key, write_keys
from pipeline.lookup.audit import Audit
from pipeline.lookup.credentials import Gate
from pipeline.lookup.guarding import Guard
from pipeline.lookup.page_assets import FILES
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.stores.store import Fetched
from schemas.bundle import Meta, Stored
from schemas.context import ContextSpec
from tests.unit.test_lookup import EMPTY, NOW_US, FixedClock, MemoryReader, position
from tests.unit.test_lookup_asked import BODY, SPEC

PUBLIC = {"/livez", "/readyz", "/startupz", "/openapi.json", *(f"/page/{name}" for name in FILES)}
TO_PAGE = {"/", "/page"}
NOW_S = NOW_US // 1_000_000


class World:
    """Two contexts, a file of keys, the service behind its guard."""

    def __init__(self, folder: Path) -> None:
        self.path, self.clock, self.reader = folder / "keys.json", FixedClock(), MemoryReader()
        self.reader.bundles["1"] = Fetched(Stored(1, Meta("h", 3, tenant="acme"), BODY), {})
        self.reader.applied = {("a", 0): position("nyc", 400), ("b", 0): position("fleet", 700)}
        self.keys: list[StoredKey] = []
        write_keys(self.path, KeyList())
        specs = [{**SPEC, "tenant": "account"}, {**SPEC, "context": "open"}]
        served = [ServedContext(ContextSpec.model_validate(one), self.reader, EMPTY) for one in specs]
        self.service = LookupService({one.spec.context: one for one in served}, self.clock)
        self.gate = Gate(AccessConfig(keys_file="keys.json"), folder, self.clock)
        self.app = http.make_app(self.service, None, Guard(self.gate, Audit(b"a secret of sixteen")))

    def key(self, *scopes: str, tenant: str | None = "acme", **more: Any) -> str:
        key_id, text, digest = make_key()
        made = StoredKey(id=key_id, name="orders", digest=digest, created_s=1, tenant=tenant, scopes=scopes, **more)
        self.keys.append(made)
        self.write()
        return text

    def write(self) -> None:
        write_keys(self.path, KeyList(tuple(self.keys)))
        self.clock.now += 2_000_000


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_every_route_asks_but_those_that_give_nothing_away(world: World, client: httpx.AsyncClient) -> None:
    for route in world.app.routes:
        assert isinstance(route, Route)
        path = route.path.replace("{context}", "flight").replace("{key:path}", "1")
        for method in (route.methods or set()) - {"HEAD"}:
            response = await client.request(method, path)
            if route.path in PUBLIC:
                assert response.status_code == 200
            elif route.path in TO_PAGE:
                assert (response.status_code, response.headers["location"]) == (307, "page/")
            else:
                assert response.status_code == 401, route.path
                assert response.headers["content-type"] == "application/problem+json"
                assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_key_opens_what_its_scopes_say(world: World, client: httpx.AsyncClient) -> None:
    everything = bearer(world.key("bundles:read", "metrics:read"))
    flight = {"x-api-key": world.key("bundles:read:flight")}
    path = "/v1/contexts/{}/1".format
    assert [(await client.get(path(name), headers=everything)).status_code for name in ("flight", "open")] == [200, 200]
    assert (await client.get("/metrics", headers=everything)).status_code == 200
    assert (await client.get(path("flight"), headers=flight)).status_code == 200
    batch = await client.post("/v1/contexts/flight:batchGet", headers=flight, json={"keys": ["1", "2"]})
    assert [answer["status"] for answer in batch.json()["answers"]] == ["stale", "fallback"]
    listed = (await client.get("/v1/contexts", headers=flight)).json()["contexts"]
    assert [item["context"] for item in listed] == ["flight"]
    refused = [await client.get(place, headers=flight) for place in (path("open"), path("no_such"), "/metrics")]
    assert [one.status_code for one in refused] == [403, 403, 403]
    told = {one.json()["detail"].replace("no_such", "open") for one in refused[:2]}
    assert told == {"this credential lacks the scope bundles:read:open"}, "nothing tells which contexts there are"
    assert (await client.get(path("no_such"), headers=everything)).status_code == 404
    assert (await client.post("/v1/contexts/flight:search", headers=everything, json={})).status_code == 403


async def test_another_tenants_key_reads_what_a_missing_key_reads(world: World, client: httpx.AsyncClient) -> None:
    other = bearer(world.key("bundles:read", tenant="globex"))
    hidden, missing = [await client.get(f"/v1/contexts/flight/{key}", headers=other) for key in ("1", "2")]
    assert hidden.content.replace(b'"key":"1"', b'"key":"2"') == missing.content
    kept = ("server-timing",)
    assert [(n, v) for n, v in hidden.headers.items() if n not in kept] == [
        (n, v) for n, v in missing.headers.items() if n not in kept
    ]
    assert (await client.get("/v1/contexts/open/1", headers=other)).json()["bundle"]["id"] == 1
    lines = await client.post(
        "/v1/contexts/flight:batchGet",
        headers={**other, "accept": "application/x-ndjson"},
        json={"keys": ["1"]},
    )
    assert json.loads(lines.text.splitlines()[0])["status"] == "fallback"


async def test_fields_that_a_key_does_not_name_are_left_out(world: World, client: httpx.AsyncClient) -> None:
    narrow = bearer(world.key("bundles:read", fields={"flight": ("gate",)}))
    found = (await client.get("/v1/contexts/flight/1", headers=narrow)).json()
    assert found["bundle"] == {"gate": "B4"} and found["left_out"] == [{"section": "plane", "reason": "not allowed"}]


WRONG = ["", "Bearer", "Bearer ", "Basic b3JkZXJzOng=", "Bearer ctxpipe_x", "Bearer ctxpipe_000000000000_x", "Bearer é"]


async def test_wrong_credentials_look_alike(world: World, client: httpx.AsyncClient) -> None:
    good, revoked, expired = (
        world.key("bundles:read"),
        world.key("bundles:read", revoked_s=NOW_S - 1),
        world.key("bundles:read", expires_s=NOW_S - 1),
    )
    wrong = [f"Bearer {key}" for key in (revoked, expired, good[:-1], good + "x", good.upper(), "a.b.c", "x" * 10_000)]
    for value in (*WRONG, *wrong):
        response = await client.get("/v1/contexts/flight/1", headers={b"authorization": value.encode("latin-1")})
        assert response.status_code == 401, value
        assert response.json()["detail"].startswith(("the credential is not valid", "write Authorization: Bearer"))
    twice = await client.get("/v1/contexts/flight/1", headers={**bearer(good), "x-api-key": good})
    assert twice.status_code == 400
    assert (await client.get("/v1/contexts/flight/1", headers={"x-api-key": "nonsense"})).status_code == 401
    assert (await client.get("/v1/contexts/flight/1", headers=bearer(good))).status_code == 200


async def test_a_running_server_takes_over_new_keys_and_lets_go_of_old_ones(
    world: World, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    key = world.key("bundles:read")
    path = "/v1/contexts/flight/1"
    assert (await client.get(path, headers=bearer(key))).status_code == 200
    soon = msgspec.structs.replace(world.keys[0], expires_s=world.clock.now // 1_000_000 + 10)
    world.keys = [soon]
    world.write()
    newer = world.key("bundles:read")
    for one in (key, newer):
        assert (await client.get(path, headers=bearer(one))).status_code == 200, "both, while they overlap"
    world.clock.now += 20_000_000
    assert (await client.get(path, headers=bearer(key))).status_code == 401
    world.path.write_text("{nonsense")
    world.clock.now += 2_000_000
    assert (await client.get(path, headers=bearer(newer))).status_code == 200, "a slip of an editor locks nobody out"
    assert "what was read before counts on" in caplog.text
    world.keys = []
    world.write()
    assert (await client.get(path, headers=bearer(newer))).status_code == 401


async def test_an_audit_line_says_who_asked_for_what_and_holds_no_secret(
    world: World, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ctxpipe.audit")
    key = world.key("bundles:read:flight")
    await client.get("/v1/contexts/flight/1", headers=bearer(key))
    await client.post("/v1/contexts/flight:batchGet", headers=bearer(key), json={"keys": ["1", "2"]})
    await client.get("/v1/contexts/open/1", headers=bearer(key))
    await client.get("/v1/contexts/flight/1", headers=bearer(key[:-1]))
    await client.get("/v1/contexts/flight/a|b", headers=bearer(key))
    await client.get("/v1/contexts/x%0Ay/1", headers=bearer(key))
    lines = [record for record in caplog.records if record.name == "ctxpipe.audit"]
    told = [
        tuple(getattr(one, name) for name in ("principal", "tenant", "action", "context", "outcome")) for one in lines
    ]
    mine = ("orders", "acme", "bundles:read")
    assert told == [
        (*mine, "flight", "answered"),
        (*mine, "flight", "answered"),
        (*mine, "open", "forbidden"),
        (None, None, "bundles:read", "flight", "unauthenticated"),
        (*mine, "flight", "not answered: MalformedKey"),
        (*mine, "invalid", "forbidden"),
    ]
    hashes = [one.keys.split() for one in lines]
    assert hashes[1][0] == hashes[0][0] and len(set(hashes[1])) == 2 and len(hashes[0][0]) == 16
    assert "wrong secret for key" in lines[3].reason
    shown = (await client.get("/metrics", headers=bearer(world.key("metrics:read")))).text
    assert 'ctxpipe_lookup_refused_total{kind="unauthenticated"}' in shown and 'kind="forbidden"' in shown
    shown = "".join(str(vars(one)) for one in lines)
    assert key.split("_", 2)[2][:-1] not in shown and all(one.duration_ms >= 0 for one in lines)


async def test_every_answer_has_headers_that_hold_browsers_back(world: World, client: httpx.AsyncClient) -> None:
    world.reader.error = RuntimeError("secret of the inside")
    broken = await client.get("/v1/contexts/flight/1", headers=bearer(world.key("bundles:read")))
    assert broken.status_code == 500 and "secret" not in broken.text and "Traceback" not in broken.text
    for response in (broken, await client.get("/livez"), await client.get("/nowhere"), await client.get("/metrics")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-frame-options"] == "DENY"


async def test_readiness_names_nothing_to_those_who_show_nothing(world: World, client: httpx.AsyncClient) -> None:
    world.reader.hangs = True
    assert "flight" not in (await client.get("/readyz")).text


async def test_a_deep_body_is_refused(world: World, client: httpx.AsyncClient) -> None:
    key = bearer(world.key("bundles:read", "search:read"))
    for body in (b"[" * 100_000, b'{"keys":' * 50_000, b'{"keys":' + b"[" * 100_000):
        for path in ("/v1/contexts/flight:batchGet", "/v1/contexts/flight:search"):
            assert (await client.post(path, headers=key, content=body)).status_code in (400, 501)
