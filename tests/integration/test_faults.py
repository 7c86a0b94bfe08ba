"""Under load, everything that can die dies; each time `ctxpipe verify` finds no difference afterwards.

One real pipeline for the module: Postgres, Kafka, Redis behind a forwarder, one connector, workers, and steady changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.backfill import wait_until_backfilled
from deploy.demo.data import TABLES
from deploy.demo.harness import Harness
from deploy.local.redis import RedisServer
from deploy.local.roles import Role
from tests.support.forwarder import Forwarder
from tests.support.load import Load
from tests.support.running_pipeline import SOON_MISSED

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]
ROWS = 2_000
_LOST_S = 1.0


class Pipeline:
    """The running pipeline; its roles may be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.harness = Harness(root)
        self.harness.up()
        self.redis: Any = self.harness.stack.server("redis")
        self.forwarder = Forwarder(self.redis.port)
        self.harness.use_redis(f"redis://127.0.0.1:{self.forwarder.port}/0")
        asyncio.run(self._load())
        self.harness.write_config(("flight", "airport"), kafka=SOON_MISSED)
        self.connector = self.harness.role("connect", "nyc").start()
        self.workers = [self.harness.role("worker", "flight", "airport").start()]
        roles = [self.connector, *self.workers]
        asyncio.run(wait_until_backfilled(self.harness, ("flight", "airport"), ROWS, roles))

    async def _load(self) -> None:
        await self.harness.create_tables()
        for table in TABLES:
            await self.harness.load(table, ROWS if table.name == "flights" else None)

    def add_worker(self) -> Role:
        role = self.harness.role("worker", "flight", "airport").start()
        self.workers.append(role)
        return role

    def verify(self) -> None:
        for context in ("flight", "airport"):
            command = [sys.executable, "-m", "pipeline.cli", "verify", context, "--json", "--wait", "120"]
            command += ["--config", str(self.harness.config_path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            assert done.returncode == 0, f"{context}: {done.stdout[-3000:]}\n{done.stderr[-2000:]}\n{self.tails()}"
            result = json.loads(done.stdout.splitlines()[-1])
            assert result["mismatches"] == 0
            assert result["verified"] > 1000

    def tails(self) -> str:
        return "\n".join(f"== {role.arguments[0]}: {role.tail()}" for role in self.harness.roles)

    def close(self) -> None:
        self.harness.close()
        self.forwarder.close()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    root = tmp_path_factory.mktemp("faults")
    # Postgres runs as another user, who must be able to reach its data.
    for folder in (root, *root.parents[:3]):
        os.chmod(folder, 0o755)
    running = Pipeline(root)
    yield running
    running.close()


def test_kill_of_the_worker(pipeline: Pipeline) -> None:
    with Load(pipeline.harness.dsn, seed=1) as load:
        load.wait(150)
        pipeline.workers.pop().kill()
        load.wait(150)
        pipeline.add_worker()
        load.wait(150)
    pipeline.verify()


def test_kill_of_the_connector(pipeline: Pipeline) -> None:
    with Load(pipeline.harness.dsn, seed=2) as load:
        load.wait(150)
        pipeline.connector.kill()
        load.wait(150)
        pipeline.connector = pipeline.harness.role("connect", "nyc").start()
        load.wait(150)
    pipeline.verify()


def test_redis_comes_back_without_its_last_second(pipeline: Pipeline) -> None:
    with Load(pipeline.harness.dsn, seed=3) as load:
        load.wait(150)
        sizes = _watch_sizes(pipeline.redis.data_dir, 3 * _LOST_S)
        pipeline.redis.kill()
        lost = _cut_off(sizes, _LOST_S)
        assert lost > 0, "nothing was lost, so nothing would be tested"
        load.wait(50)
        pipeline.redis.start()
        load.wait(100)
    pipeline.verify()


def test_failover_to_a_replica_that_had_been_paused(pipeline: Pipeline, make_redis: Callable[..., RedisServer]) -> None:
    replica = make_redis(appendonly=True, replica_of=("127.0.0.1", pipeline.redis.port))
    _wait_for_link(replica)
    try:
        with Load(pipeline.harness.dsn, seed=4) as load:
            load.wait(150)
            replica.pause()
            load.wait(200)
            pipeline.redis.kill()
            replica.resume()
            _redis(replica, "REPLICAOF", "NO", "ONE")
            pipeline.forwarder.switch(replica.port)
            load.wait(150)
        pipeline.verify()
    finally:
        _move_back(pipeline, replica)


def test_broker_restart(pipeline: Pipeline) -> None:
    broker = pipeline.harness.stack.server("kafka")
    with Load(pipeline.harness.dsn, seed=5) as load:
        load.wait(150)
        broker.kill()
        load.wait(100)
        broker.start()
        load.wait(150)
    pipeline.verify()


def test_workers_from_one_to_three_and_back(pipeline: Pipeline) -> None:
    with Load(pipeline.harness.dsn, seed=6) as load:
        load.wait(100)
        more = [pipeline.add_worker(), pipeline.add_worker()]
        load.wait(400)
        for role in more:
            pipeline.workers.remove(role)
            role.stop()
        load.wait(200)
    pipeline.verify()


def _watch_sizes(data_dir: Path, duration_s: float) -> list[tuple[float, Path, int]]:
    """(time, append-only file, its size), sampled while the load runs."""
    found: list[tuple[float, Path, int]] = []
    ends = time.monotonic() + duration_s
    while time.monotonic() < ends:
        for file in data_dir.rglob("*.incr.aof"):
            found.append((time.monotonic(), file, file.stat().st_size))
        time.sleep(0.05)
    return found


def _cut_off(sizes: list[tuple[float, Path, int]], lost_s: float) -> int:
    """Cuts the newest file to what it was `lost_s` before; the number of bytes that are gone."""
    end, file, _ = sizes[-1]
    before = [size for moment, path, size in sizes if path == file and moment <= end - lost_s]
    lost = file.stat().st_size - before[-1]
    os.truncate(file, before[-1])
    return lost


def _redis(server: RedisServer, *command: str) -> Any:
    import redis

    with redis.Redis(host="127.0.0.1", port=server.port) as client:
        return client.execute_command(*command)


def _wait_for_link(replica: RedisServer) -> None:
    for _ in range(200):
        if b"master_link_status:up" in _redis_info(replica):
            return
        time.sleep(0.05)
    raise AssertionError("the replica never caught up")


def _redis_info(server: RedisServer) -> bytes:
    info = _redis(server, "INFO", "replication")
    return b"master_link_status:" + str(info["master_link_status"]).encode()


def _move_back(pipeline: Pipeline, replica: RedisServer) -> None:
    """The old primary takes everything over again, so that the next test finds what it expects."""
    pipeline.redis.start()
    _redis(pipeline.redis, "REPLICAOF", "127.0.0.1", str(replica.port))
    _wait_for_link(pipeline.redis)
    _redis(pipeline.redis, "REPLICAOF", "NO", "ONE")
    pipeline.forwarder.switch(pipeline.redis.port)
