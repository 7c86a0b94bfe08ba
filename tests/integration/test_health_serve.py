"""`ctxpipe serve` on a real Redis: what its probes say from its start to its end, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.client_world import client_world, served
from tests.support.eventually import eventually

pytestmark = pytest.mark.servers

PAUSE_S = 2.0


async def test_a_server_steps_back_before_it_stops(tmp_path: Path, redis_url: str) -> None:
    world = client_world(tmp_path, redis_url)
    world.write(running={"pause_s": PAUSE_S, "drain_s": 15})
    await world.fill()
    async with served(world) as process, httpx.AsyncClient(base_url=world.url, timeout=20) as client:
        assert [(await client.get(path)).status_code for path in ("/livez", "/startupz", "/readyz")] == [200] * 3
        told = (await client.get("/readyz?verbose")).text
        assert "[+]indexes ok" in told and "[+]flight ok" in told and "[+]seat ok" in told
        process.terminate()
        asked_s = time.monotonic()
        await eventually(lambda: client.get("/readyz"), lambda seen: seen.status_code == 503)
        answered, closing = 0, ""
        while closing != "close" or time.monotonic() - asked_s < PAUSE_S / 2:
            answer = await client.get("/v1/contexts/flight/1")
            assert answer.status_code == 200, "callers are answered, and told to go elsewhere"
            answered, closing = answered + 1, answer.headers.get("connection", "")
        await eventually(lambda: process.returncode is not None)
        assert answered > 1
        assert process.returncode == 0 and time.monotonic() - asked_s >= PAUSE_S
        assert (tmp_path / ".ctxpipe").exists()


async def test_an_outage_of_redis_degrades_who_remembers(tmp_path: Path, make_redis: Callable[..., Any]) -> None:
    redis = make_redis()
    world = client_world(tmp_path, redis.address)
    await world.fill()
    async with served(world), httpx.AsyncClient(base_url=world.url, timeout=20) as client:
        assert (await client.get("/v1/contexts/flight/1")).status_code == 200
        redis.stop()
        told = await eventually(lambda: client.get("/readyz?verbose"), lambda seen: "[~]flight degraded" in seen.text)
        assert told.status_code == 200 and "answers come from what was last known" in told.text
        assert "[~]seat degraded" in told.text and "the default bundle" in told.text
        assert (await client.get("/v1/contexts/flight/1")).json()["status"] in ("stale", "fresh")
        redis.start()
        await eventually(lambda: client.get("/readyz?verbose"), lambda seen: "degraded" not in seen.text)
