"""The past over HTTP: exact bytes by id, lineage, who may see them, and one clear message for everything else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.core.access import AccessConfig
from pipeline.lookup import http
from pipeline.lookup.api_keys import KeyList, StoredKey, make_key, write_keys
from pipeline.lookup.audit import Audit
from pipeline.lookup.credentials import Gate
from pipeline.lookup.guarding import Guard
from tests.unit.test_history import Past
from tests.unit.test_lookup import FixedClock

BASE = "/v1/contexts/order"


async def filled(**spec: Any) -> Past:
    world = Past(history={"retention_s": 60, "lineage": True}, **spec)
    await world.flow.process([world.order(1), world.order(2, customer_id=8), world.customer("Ann")])
    return world


def client_of(world: Past, guard: Guard | None = None) -> httpx.AsyncClient:
    app = http.make_app(world.lookups, None, guard, world.history)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://lookup")


async def test_the_bytes_of_then_and_where_they_came_from() -> None:
    world = await filled()
    answer, text = await world.asked("1")
    await world.flow.process([world.order(1, total="1"), world.customer("Bob")])
    async with client_of(world) as client:
        past = await client.get(f"{BASE}:byId/{text}")
        assert past.status_code == 200 and past.content.endswith(b'"bundle":' + (answer.bundle or b"") + b"}")
        assert past.headers["cache-control"] == "no-store" and past.json()["id"] == text
        then = (await client.get(f"{BASE}:lineageById/{text}")).json()
        now = (await client.get(f"{BASE}:lineage/1")).json()
    amounts = [next(field for field in told["fields"] if field["path"] == "amount") for told in (then, now)]
    assert [amount["value"] for amount in amounts] == ["99.50", "1"]
    assert [amount["row"]["position"]["lsn"] for amount in amounts] == ["0/1", "0/4"]
    assert then["id"] == text and amounts[0]["table"] == "public.orders" and amounts[0]["column"] == "total"


@pytest.mark.parametrize("route", ["byId", "lineageById"])
async def test_what_is_no_id_is_400_and_what_is_not_kept_404(route: str) -> None:
    world = await filled()
    _, text = await world.asked("1")
    assert text is not None
    await world.flow.process([world.order(1, total="1")])
    world.bundles.former.clear()
    async with client_of(world) as client:
        for asked, status, told in [
            (f"{BASE}:{route}/nonsense", 400, "'nonsense' is no bundle id; take it from the id of an answer"),
            (f"{BASE}:{route}/a/b%00", 400, "is no bundle id"),
            (f"{BASE}:{route}/{text}", 404, "no bundle of order is kept under this id (any more)"),
            (f"/v1/contexts/other:{route}/{text}", 404, "no context 'other' is served here"),
        ]:
            answer = await client.get(asked)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
            assert told in answer.json()["detail"]


async def test_a_key_that_looks_like_a_route_is_a_key() -> None:
    world = await filled()
    async with client_of(world) as client:
        assert (await client.get(f"{BASE}/1:byId")).status_code == 404
        assert (await client.get(f"{BASE}/byId/1")).json()["key"] == "byId/1"
        assert (await client.get(f"{BASE}:lineage/77")).status_code == 404
        assert (await client.get(f"{BASE}:lineage/1|2")).status_code == 400


async def test_a_stranger_is_told_what_nobody_would_be_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = await filled(tenant="customer_id")
    _, mine = await world.asked("1")
    _, theirs = await world.asked("2")
    key_id, text, digest = make_key()
    scopes, fields = ("bundles:read:order",), {"order": ("id", "customer.name")}
    made = StoredKey(id=key_id, name="orders", digest=digest, created_s=1, tenant="7", scopes=scopes, fields=fields)
    write_keys(tmp_path / "keys.json", KeyList((made,)))
    gate = Gate(AccessConfig(keys_file="keys.json"), tmp_path, FixedClock())
    caplog.set_level(logging.INFO, logger="ctxpipe.audit")
    async with client_of(world, Guard(gate, Audit(b"a secret of sixteen"))) as client:
        assert (await client.get(f"{BASE}:byId/{mine}")).status_code == 401
        headers = {"x-api-key": text}
        past = await client.get(f"{BASE}:byId/{mine}", headers=headers)
        assert past.json()["bundle"] == {"id": 1, "customer": {"name": "Ann"}}
        lineage = (await client.get(f"{BASE}:lineage/1", headers=headers)).json()
        assert [field["path"] for field in lineage["fields"]] == ["id", "customer.name"]
        strange = await client.get(f"{BASE}:byId/{theirs}", headers=headers)
        assert (strange.status_code, strange.json()["detail"]) == (
            404,
            "no bundle of order is kept under this id (any more)",
        )
        assert (await client.get(f"{BASE}:lineage/2", headers=headers)).status_code == 404
        assert (await client.get(f"{BASE}:lineage/77", headers=headers)).status_code == 404
    told = [json.loads(record.message) if record.message.startswith("{") else vars(record) for record in caplog.records]
    lines = [line for line in told if line.get("action") == "bundles:read"]
    assert len(lines) == 6 and all(line["keys"] for line in lines[1:]), "the key of an id is told, hashed"
    assert lines[1]["keys"] == lines[2]["keys"] != lines[3]["keys"]
