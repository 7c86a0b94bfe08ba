"""Two workers and two lookup servers are restarted one after the other, while rows change and are looked up.

Callers go where /readyz says that they may, as behind a load balancer. Not one lookup may fail, and all that was
written must be there afterwards; how late the latest change was seen on the way is reported.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from deploy.local.roles import Role
from pipeline.client import AsyncClient
from tests.support.eventually import eventually
from tests.support.running_pipeline import RunningPipeline, free_port

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

ITEMS, CHANGES_PER_S, CALLERS = 60, 60, 3
TABLES = f"""
CREATE TABLE item (id int PRIMARY KEY, shop_id int, number bigint NOT NULL);
CREATE TABLE shop (id int PRIMARY KEY, town text);
INSERT INTO item SELECT i, i % 7, 0 FROM generate_series(1, {ITEMS}) i;
INSERT INTO shop SELECT i, 'town ' || i FROM generate_series(0, 6) i;
"""
PROBE_EVERY_S = 0.2
"""Of the load balancer; a server pauses for PAUSE_S before it stops to accept."""
PAUSE_S = 2.0


class Changes:
    """Commits changes from a thread, and knows when which was committed, by this process's clock."""

    def __init__(self, dsn: str) -> None:
        self._dsn, self._random, self._stop = dsn, random.Random(7), threading.Event()
        self._numbers: dict[int, list[int]] = {key: [0] for key in range(1, ITEMS + 1)}
        self._times_s: dict[int, list[float]] = {key: [0.0] for key in range(1, ITEMS + 1)}
        self.count, self.failure = 0, ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self.failure and not self._thread.is_alive(), self.failure

    def unseen_s(self, key: int, number: int, asked_s: float) -> float:
        """How long before `asked_s` the first change after `number` was committed; 0 where there was none."""
        later = bisect.bisect_right(self._numbers[key], number)
        return max(0.0, asked_s - self._times_s[key][later]) if later < len(self._times_s[key]) else 0.0

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self._stop.wait(1 / CHANGES_PER_S):
                    key, number = self._random.randint(1, ITEMS), self.count + 1
                    connection.execute("UPDATE item SET number = %s WHERE id = %s", (number, key))
                    self._times_s[key].append(time.monotonic())
                    self._numbers[key].append(number)
                    self.count = number
        except psycopg.Error as error:
            self.failure = str(error)


class Callers:
    """Look up at whichever server was ready when it was last asked."""

    def __init__(self, context: str, urls: list[str], changes: Changes) -> None:
        self.context, self.urls, self.changes = context, urls, changes
        self.ready: set[str] = set()
        self.errors: list[str] = []
        self.lookups, self.latest_s, self.phase = 0, {"": 0.0}, ""
        self._random = random.Random(8)

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=5) as probing:
            tasks = [asyncio.create_task(self._probe(probing, url)) for url in self.urls]
            clients = {url: AsyncClient(url) for url in self.urls}
            await eventually(lambda: self.ready == set(self.urls), timeout_s=60)
            tasks += [asyncio.create_task(self._call(clients)) for _ in range(CALLERS)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                for client in clients.values():
                    await client.close()
                assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended

    def begin(self, phase: str) -> None:
        self.phase = phase
        self.latest_s[phase] = 0.0

    async def _probe(self, probing: httpx.AsyncClient, url: str) -> None:
        while True:
            try:
                answered = (await probing.get(f"{url}/readyz")).status_code == 200
            except httpx.HTTPError:
                answered = False
            (self.ready.add if answered else self.ready.discard)(url)
            await asyncio.sleep(PROBE_EVERY_S)

    async def _call(self, clients: dict[str, AsyncClient]) -> None:
        while True:
            url, key, asked_s = (
                self._random.choice(sorted(self.ready)),
                self._random.randint(1, ITEMS),
                time.monotonic(),
            )
            try:
                bundle = await clients[url].get(self.context, str(key), budget_ms=5_000)
                assert bundle.raw is not None and bundle.data["shop"]["town"], bundle.status
            except Exception as error:  # noqa: BLE001 - each is one that no caller may get
                self.errors.append(f"{self.phase}: {error!r}")
            else:
                unseen_s = self.changes.unseen_s(key, bundle.data["number"], asked_s)
                self.latest_s[self.phase] = max(self.latest_s[self.phase], unseen_s)
            self.lookups += 1
            await asyncio.sleep(0.02)


class Deployment(RunningPipeline):
    """A connector, two workers with names of their own, and two servers."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        super().__init__(folder, kafka, redis_url, dsn, TABLES, ("item", "shop"))
        self.config["kafka"] |= {"session.timeout.ms": 25_000, "group.instance.id": "${POD_NAME:-}"}
        self.config["running"] = {"pause_s": PAUSE_S}
        self.config["serve"] = {"data_directory": "${POD_NAME:-data}"}
        self.write_config()
        spec = {
            "context": self.context,
            "version": 1,
            "root": "item",
            "entities": {
                name: {"source": self.source, "table": f"public.{name}", "key": ["id"]} for name in ("item", "shop")
            },
            "fields": ["id", "number"],
            "sections": {"shop": {"entity": "shop", "on": {"id": "shop_id"}, "fields": ["town"], "compose": "copy"}},
            "serving": {"budget_ms": 5_000, "max_age_ms": 60_000},
        }
        self.write_file("context.yaml", spec)
        self.ports = {name: free_port() for name in ("worker-0", "worker-1", "serve-0", "serve-1")}

    def begin(self, name: str) -> Role:
        """One of `ports`, or again after its end."""
        port = str(self.ports[name])
        words = {
            "worker": ["worker", self.context, "--health-port", port],
            "serve": ["serve", "--port", port],
        }[name.split("-")[0]]
        environment = {"PYTHONPATH": os.getcwd(), "POD_NAME": name}
        role = Role([*words, "--config", str(self.config_path)], self.folder / f"{name}.log", environment)
        self.roles.append(role)
        return role.start()

    async def until_ready(self, name: str) -> None:
        async with httpx.AsyncClient(timeout=5) as client:
            url = f"http://127.0.0.1:{self.ports[name]}/readyz"
            await eventually(
                lambda: client.get(url), lambda seen: seen.status_code == 200, timeout_s=90, ignore=(httpx.HTTPError,)
            )

    async def restart(self, name: str, role: Role) -> tuple[Role, int | None, tuple[float, float]]:
        """Its successor, the exit code, and how long the end and the new beginning took."""
        asked_s = time.monotonic()
        code = await asyncio.to_thread(role.stop)
        ended_s = time.monotonic()
        self.roles.remove(role)
        successor = self.begin(name)
        await self.until_ready(name)
        return successor, code, (round(ended_s - asked_s, 2), round(time.monotonic() - ended_s, 2))


@pytest.fixture
def deployment(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> Iterator[Deployment]:
    made = Deployment(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    yield made
    made.stop()


async def test_a_rolling_restart_fails_no_lookup_and_loses_nothing(
    deployment: Deployment, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.role("connect", "--all")
    roles = {name: deployment.begin(name) for name in ("worker-0", "worker-1")}
    await deployment.until_serving(1)
    roles |= {name: deployment.begin(name) for name in ("serve-0", "serve-1")}
    for name in roles:
        await deployment.until_ready(name)
    urls = [f"http://127.0.0.1:{deployment.ports[name]}" for name in ("serve-0", "serve-1")]
    with Changes(deployment.dsn) as changes:
        callers = Callers(deployment.context, urls, changes)
        async with callers.calling():
            before = changes.count
            await eventually(lambda: changes.count > before + CHANGES_PER_S)
            codes, took_s = {}, {}
            for name in ("worker-0", "worker-1", "serve-0", "serve-1"):
                callers.begin(name)
                roles[name], codes[name], took_s[name] = await deployment.restart(name, roles[name])
                await eventually(lambda: callers.ready == set(urls))
            callers.begin("afterwards")
            settled = changes.count
            await eventually(lambda: changes.count > settled + CHANGES_PER_S)
    told = {name: round(latest_s, 3) for name, latest_s in callers.latest_s.items()}
    record_property("freshness_s_max", json.dumps(told))
    with capsys.disabled():
        print(f"\nrolling restart: {callers.lookups} lookups, {changes.count} changes, latest seen after, in s: {told}")
        print(f"ended and ready again, in s: {took_s}")
    assert not callers.errors, f"{len(callers.errors)} of {callers.lookups}: {callers.errors[:5]}"
    assert set(codes.values()) == {0}, codes

    async def clean() -> tuple[int, int, int]:
        return await deployment.verified()

    await eventually(clean, lambda seen: seen == (1, ITEMS, 0), timeout_s=60)
    for name in ("worker-0", "worker-1"):
        log = (deployment.folder / f"{name}.log").read_text()
        assert "not everything stopped" not in log and "killing it" not in log, log[-3000:]
