"""`ctxpipe serve` while Redis stands still, is gone, and comes back: every rung of the ladder on real servers."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.local.redis import RedisServer
from deploy.local.roles import Role
from tests.integration.test_answer_commands import fill, write_config
from tests.support.eventually import eventually
from tests.support.running_pipeline import free_port

pytestmark = pytest.mark.servers

BUDGET_MS = 250
NAMES = {number: f"name {number}" for number in range(1, 30)}


class Served:
    """One `ctxpipe serve` on Redis servers of its own."""

    def __init__(self, folder: Path, redis_url: str, **redis: str) -> None:
        self.folder = folder
        self.path = write_config(folder, redis_url, "postgresql://nobody@127.0.0.1:1/nothing")
        config = yaml.safe_load(self.path.read_text())
        config["redis"].update(redis)
        config["serve"] = {"last_known": {"age_s_max": 3600}}
        self.path.write_text(yaml.safe_dump(config))
        self.client = httpx.AsyncClient(timeout=10)
        self.role: Role | None = None

    async def start(self) -> None:
        port = free_port()
        words = ["serve", "--port", str(port), "--config", str(self.path)]
        self.role = Role(words, self.folder / "serve.log", {"PYTHONPATH": os.getcwd()}).start()
        self.url = f"http://127.0.0.1:{port}"
        await eventually(self._listens, timeout_s=30, what="serve listens")

    async def _listens(self) -> bool:
        assert self.role is not None
        self.role.ensure_running()
        try:
            return (await self.client.get(f"{self.url}/livez")).status_code == 200
        except httpx.HTTPError:
            return False

    async def get(self, key: int, **parameters: Any) -> dict[str, Any]:
        response = await self.client.get(
            f"{self.url}/v1/contexts/thing/{key}", params={"budget_ms": BUDGET_MS, **parameters}
        )
        return {"http": response.status_code, **response.json()}

    async def rungs(self, keys: Any = NAMES) -> Counter[str]:
        """Where answers come from; each is the right one."""
        found: Counter[str] = Counter()
        for key in keys:
            answer = await self.get(key)
            assert answer["http"] == 200, answer
            assert answer["bundle"] == {"id": key, "name": NAMES[key]} and answer["status"] in ("fresh", "stale")
            found[answer["rung"]] += 1
        return found

    async def metric(self, name: str) -> float:
        lines = (await self.client.get(f"{self.url}/metrics")).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    async def stop(self) -> None:
        if self.role is not None:
            await asyncio.to_thread(self.role.stop)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Callable[..., Served]]:
    started: list[Served] = []

    def make(redis_url: str, **redis: str) -> Served:
        started.append(Served(tmp_path, redis_url, **redis))
        return started[-1]

    yield make
    for served in started:
        await served.stop()
        await served.client.aclose()


async def test_a_redis_that_stands_still_and_is_gone(
    made: Callable[..., Served], make_redis: Callable[..., RedisServer]
) -> None:
    redis = await asyncio.to_thread(make_redis, appendonly=True)
    await fill(redis.address, NAMES)
    served = made(redis.address)
    await served.start()
    assert await served.rungs() <= Counter(store=len(NAMES), near=len(NAMES))
    await eventually(lambda: _only(served, "near"), timeout_s=20, what="the near cache is warm")
    redis.pause()
    try:
        await eventually(lambda: _only(served, "last_known"), timeout_s=20, what="nothing near is too old")
        assert (await served.get(99))["http"] == 503, "nobody knows whether there is one"
    finally:
        redis.resume()
    await eventually(lambda: _only(served, "near"), timeout_s=30, what="Redis is asked again")
    assert (await served.get(99))["status"] == "missing"
    assert await served.metric('ctxpipe_lookup_rung_passed_total{context="thing",reason="late",rung="store"}') > 0
    assert await served.metric('ctxpipe_lookup_rung_answers_total{context="thing",rung="last_known"}') > 0
    await asyncio.sleep(4)  # what was seen last is written every few seconds
    await asyncio.to_thread(redis.stop)
    assert (await served.rungs())["last_known"] == len(NAMES)
    await served.stop()
    await served.start()
    assert await served.rungs() == Counter(last_known=len(NAMES)), "from disk, without Redis"
    await asyncio.to_thread(redis.start)
    await eventually(lambda: _only(served, "near"), timeout_s=30, what="Redis is found again")


async def test_what_was_deleted_is_not_there_when_redis_is_gone(
    made: Callable[..., Served], make_redis: Callable[..., RedisServer]
) -> None:
    redis = await asyncio.to_thread(make_redis, appendonly=True)
    await fill(redis.address, NAMES)
    served = made(redis.address)
    await served.start()
    await served.rungs()
    key = next(name for name in redis.ask("KEYS", "ctxpipe:thing:v1:b:*") if name.endswith(":7"))
    redis.ask("SET", key, "0000000000000002 -")

    async def forgotten() -> bool:
        return (await served.get(7))["status"] == "missing"

    await eventually(forgotten, timeout_s=20, what="the near cache hears of it")
    await asyncio.sleep(0.5)
    await asyncio.to_thread(redis.stop)

    async def unknown() -> bool:
        answer = await served.get(7)
        assert answer["http"] in (404, 503) and answer.get("bundle") is None, answer
        return bool(answer["http"] == 503)

    await eventually(unknown, timeout_s=20, what="what was near is too old")
    assert (await served.rungs([8]))["last_known"] == 1


async def test_a_replica_stands_in(made: Callable[..., Served], make_redis: Callable[..., RedisServer]) -> None:
    primary = await asyncio.to_thread(make_redis, appendonly=False)
    replica = await asyncio.to_thread(make_redis, appendonly=False, replica_of=("127.0.0.1", primary.port))
    await fill(primary.address, NAMES)
    await eventually(
        lambda: "master_link_status:up" in replica.ask("INFO", "replication"), timeout_s=20, what="the replica follows"
    )
    await eventually(lambda: replica.ask("DBSIZE") == primary.ask("DBSIZE"), timeout_s=20, what="it has everything")
    served = made(primary.address, replica_url=replica.address)
    await served.start()
    primary.pause()
    try:
        await eventually(lambda: _only(served, "replica"), timeout_s=30, what="the replica answers")
    finally:
        primary.resume()
    await eventually(lambda: _only(served, "near"), timeout_s=30, what="the primary is asked again")


async def _only(served: Served, rung: str) -> bool:
    return set(await served.rungs()) == {rung}
