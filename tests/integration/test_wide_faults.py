"""Wide-column tables under load: workers and connector die, Redis loses everything; verify finds no difference.

A real Cassandra with a log as Scylla writes it, a connector that reads the log, workers, random writes of every kind.
The log holds all of them: a snapshot could not tell a row that was inserted from one that only has values.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from connectors.cql.schema import read_table
from connectors.cql.session import CqlServer, CqlSession, connect
from connectors.scylla.config import Metadata
from connectors.scylla.log_statements import Add, Overwrite, Remove, Write
from connectors.scylla.log_tables import create_log, create_metadata, new_generation, tell_vnodes
from connectors.scylla.log_writer import LogWriter
from deploy.demo.harness import Harness
from deploy.local.roles import Role
from tests.support.running_pipeline import SOON_MISSED

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]

METADATA = Metadata(keyspace="ops", tablets_keyspace="ops")
CONTEXT = """
context: spot
version: 1
entities:
  spot: {source: ops, table: ops.spots, key: [p]}
  event: {source: ops, table: ops.events, key: [p, c]}
root: spot
fields: [p, name]
sections:
  last: {entity: event, kind: many, on: {p: p}, order_by: [-c], limit: 3, fields: [c, v, n, tags]}
  sums:
    entity: event
    kind: many
    on: {p: p}
    compose: link
    aggregates: {events: count, total: {sum: n}, kinds: {count_distinct: v}}
"""


class Writer:
    """Random writes of every kind, with clocks that differ, at most one at a time."""

    def __init__(self, session: CqlSession, logs: dict[str, LogWriter]) -> None:
        self.session, self.logs, self.random = session, logs, random.Random(7)
        self.writes = 0

    async def write(self, count: int) -> None:
        for _ in range(count):
            await self.logs["spots"].write(self._spot())
            await self.logs["events"].write(self._event())
            self.writes += 2

    def _now(self) -> int:
        return time.time_ns() // 1000 - self.random.choice([0, 0, 1000, 200_000])

    def _spot(self) -> Write:
        key, kind = {"p": self.random.randint(1, 12)}, self.random.choice(["insert", "update", "update", "delete row"])
        edits: Any = {} if kind == "delete row" else {"name": Overwrite(self.random.choice(["a", "ü", "z", None]))}
        return Write(kind=kind, key=key, ts=self._now(), edits=edits)

    def _event(self) -> Write:
        pick, p, c, ts = self.random.choice, self.random.randint(1, 12), self.random.randint(1, 6), self._now()
        roll = self.random.random()
        if roll < 0.05:
            return Write(kind="delete partition", key={"p": p}, ts=ts)
        if roll < 0.15:
            return Write(kind="delete range", key={"p": p}, ts=ts, lower=((pick([1, 2, 3]),), roll < 0.1), upper=None)
        if roll < 0.25:
            return Write(kind="delete row", key={"p": p, "c": c}, ts=ts)
        edits: dict[str, Any] = {"v": Overwrite(pick(["x", "y", None])), "n": Overwrite(pick([1, 5, -3, None]))}
        if roll < 0.6:
            edits["tags"] = pick([Add({"red"}), Add({"blue"}), Remove({"red"}), Overwrite({"green"}), Overwrite(None)])
        kind = "insert" if roll < 0.5 and not isinstance(edits.get("tags"), Add | Remove) else "update"
        return Write(kind=kind, key={"p": p, "c": c}, ts=ts, ttl=1 if roll > 0.9 else 0, edits=edits)  # type: ignore[arg-type]


class Pipeline:
    """Order of calls: `start`, then anything; `close`."""

    def __init__(self, root: Path) -> None:
        self.harness = Harness(root)
        addresses = self.harness.up(extra=("cassandra",))
        host, _, port = addresses.cassandra.rpartition(":")
        self.place = {"hosts": [host], "port": int(port)}
        self.addresses = addresses

    async def open(self) -> Writer:
        session = await connect(CqlServer(**self.place))
        replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
        await session.execute(f"CREATE KEYSPACE ops WITH replication = {replication}")
        await session.execute("CREATE TABLE ops.spots (p int PRIMARY KEY, name text)")
        await session.execute(
            "CREATE TABLE ops.events (p int, c int, v text, n int, tags set<text>, PRIMARY KEY (p, c))"
            " WITH CLUSTERING ORDER BY (c DESC)"
        )
        generation = new_generation(int(time.time() * 1000) - 5000, 4, 2, random.Random(1))
        logs = {}
        for name in ("spots", "events"):
            table = await read_table(session, "ops", name)
            assert table is not None
            await create_log(session, table)
            logs[name] = LogWriter(session, table, [generation], randomness=random.Random(2))
        await create_metadata(session, METADATA)
        await tell_vnodes(session, METADATA, generation)
        return Writer(session, logs)

    def start(self) -> None:
        folder = self.harness.root
        (folder / "contexts").mkdir()
        (folder / "contexts" / "spot.yaml").write_text(CONTEXT)
        source = {
            "connector": "scylla",
            **self.place,
            "keyspace": "ops",
            "tables": ["spots", "events"],
            "confidence_window_s": 0.7,
            "snapshot": "never",
            "metadata": {"keyspace": "ops", "tablets_keyspace": "ops"},
        }
        config = {
            "kafka": {"bootstrap_servers": self.addresses.kafka, "partitions": 4, **SOON_MISSED},
            "redis": {"url": self.addresses.redis},
            "sources": {"ops": source},
            "contexts": ["contexts/*.yaml"],
        }
        self.harness.config_path.write_text(yaml.safe_dump(config))
        self.connector = self.harness.role("connect", "ops").start()
        self.worker = self.harness.role("worker", "spot").start()

    def verify(self) -> int:
        command = [sys.executable, "-m", "pipeline.cli", "verify", "spot", "--json", "--wait", "120"]
        command += ["--config", str(self.harness.config_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        tails = "\n".join(f"== {role.arguments[0]}: {role.tail()}" for role in self.harness.roles)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}\n{tails}"
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["mismatches"] == 0
        return int(result["verified"])


def kill_children(role: Role) -> None:
    """kill -9 of the worker processes; their supervisor starts them again."""
    children = Path(f"/proc/{role.pid}/task/{role.pid}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, 0o755)
    made = Pipeline(tmp_path / "wide")
    yield made
    made.harness.close()


async def test_nothing_is_lost_resurrected_or_taken_back(pipeline: Pipeline) -> None:
    writer = await pipeline.open()
    pipeline.start()
    await writer.write(60)
    assert await asyncio.to_thread(pipeline.verify) > 0
    for fault in ("worker", "connector", "redis", "worker"):
        writing = asyncio.create_task(writer.write(80))
        await asyncio.sleep(0.4)
        if fault == "worker":
            kill_children(pipeline.worker)
        elif fault == "connector":
            pipeline.connector.kill()
            pipeline.connector = pipeline.harness.role("connect", "ops").start()
        else:
            await asyncio.to_thread(redis.Redis.from_url(pipeline.addresses.redis).flushall)
        await writing
        assert await asyncio.to_thread(pipeline.verify) > 0, fault
    await writer.session.close()
