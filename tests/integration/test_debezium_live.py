"""Real Postgres, real Kafka Connect with Debezium, its topics, a worker, bundles; then verify agrees.

One Connect runs four connectors on the same tables: change envelopes without and with schemas, rows flattened by the
transform with its usual tombstones, and with deletions rewritten. Each is a source of three lines.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from deploy.local import install
from deploy.local.connect import ConnectServer, postgres_connector
from pipeline.commands._bench_against import measure_against, measure_debezium
from tests.support.cli import ROOT, ctxpipe
from tests.support.eventually import eventually
from tests.support.servers import LocalRoot
from tests.support.streams import new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]

TABLES = ["public.customers", "public.orders"]
# Debezium cuts the zeros of a numeric without a scale (4.00 comes as 4), so rebates have none at their ends.
CREATE = """
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, since date);
CREATE TABLE orders (id bigint PRIMARY KEY, customer int, amount numeric(10, 2), placed timestamptz, packed timestamp,
  at time, rebate numeric, note text, urgent boolean DEFAULT true);
ALTER TABLE orders ALTER COLUMN note SET STORAGE EXTERNAL;
INSERT INTO customers SELECT i, 'customer ' || i, date '2020-01-01' + i FROM generate_series(1, 20) i;
INSERT INTO orders SELECT i, 1 + i % 20, i * 1.25, timestamptz '2026-01-01 12:00+02' + i * interval '1.000001 s',
  timestamp '2026-01-01 08:00:00.5', time '09:30:00.25', i + 0.5, repeat('note ' || i || ' ', 2000), i % 2 = 0
FROM generate_series(1, 200) i;
"""
CHANGES = """
INSERT INTO orders SELECT i, 3, 9.99, now(), null, null, 1e-8, 'new', null FROM generate_series(1001, 1050) i;
UPDATE orders SET amount = amount + 0.01 WHERE id % 3 = 0;
UPDATE orders SET rebate = null, urgent = null WHERE id % 5 = 0;
UPDATE orders SET note = repeat('another ', 2000) WHERE id = 7;
DELETE FROM orders WHERE id % 10 = 1;
DELETE FROM orders WHERE id = 50;
INSERT INTO orders VALUES (50, 5, 50.00, null, null, null, null, 'it came back', false);
UPDATE orders SET id = 5000 + id WHERE id IN (12, 14);
UPDATE customers SET name = upper(name) WHERE id % 2 = 0;
UPDATE orders SET customer = 20 WHERE id = 16;
DELETE FROM customers WHERE id = 19;
"""
DECLARED = {
    "amount": "decimal(10,2)",
    "rebate": "decimal",
    "placed": "timestamptz",
    "packed": "timestamp",
    "at": "time_us",
}
UNWRAP = {"transforms": "unwrap", "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState"}
# Otherwise the transform, like the converter, writes a column's default where the row has a null.
UNWRAP |= {"transforms.unwrap.replace.null.with.default": "false"}
BESIDE = {**UNWRAP, "transforms.unwrap.add.fields": "op,table,lsn,source.ts_us"}
REWRITE = {**BESIDE, "transforms.unwrap.delete.tombstone.handling.mode": "rewrite-with-tombstone"}
# kind: (schemas around the records, properties of the transform, options of the source, declared types are needed)
KINDS: dict[str, tuple[bool, dict[str, str], dict[str, str], bool]] = {
    "plain": (False, {}, {}, True),
    "schemas": (True, {}, {}, False),
    "flat": (False, BESIDE, {"format": "flattened"}, True),
    "rewritten": (True, REWRITE, {"format": "flattened"}, False),
}


class Deployment:
    """The folder with the configuration, and the names of this run's sources and contexts."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        self.folder, run = folder, new_name("dbz")
        self.prefixes = {kind: f"{run}_{kind}" for kind in KINDS}
        self.contexts = {kind: f"{run}_c_{kind}" for kind in KINDS}
        self.connectors = {
            kind: {**postgres_connector(dsn, self.prefixes[kind], TABLES, schemas=schemas, partitions=2), **transform}
            for kind, (schemas, transform, _, _) in KINDS.items()
        }
        sources = {
            f"shop_{kind}": {"connector": "debezium", "topic_prefix": self.prefixes[kind], "dsn": dsn, **options}
            for kind, (_, _, options, _) in KINDS.items()
        }
        body = {"kafka": {"bootstrap_servers": kafka}, "redis": {"url": redis_url}, "sources": sources}
        (folder / "ctxpipe.yaml").write_text(yaml.safe_dump({**body, "contexts": ["*.context.yaml"]}))
        for kind in KINDS:
            (folder / f"{kind}.context.yaml").write_text(yaml.safe_dump(self._spec(kind)))

    def _spec(self, kind: str) -> dict[str, Any]:
        source, types = f"shop_{kind}", (DECLARED if KINDS[kind][3] else {})
        order = {"source": source, "table": "public.orders", "key": ["id"], "types": types}
        customer = {"source": source, "table": "public.customers", "key": ["id"], "types": {"since": "date"}}
        section = {"entity": "customer", "kind": "one", "on": {"id": "customer"}, "fields": ["name", "since"]}
        return {
            "context": self.contexts[kind],
            "version": 1,
            "root": "order",
            "entities": {"order": order, "customer": customer},
            "fields": ["id", "amount", "placed", "packed", "at", "rebate", "note", "urgent"],
            "sections": {"customer": section},
        }

    async def verify(self, kind: str) -> dict[str, Any]:
        words = ("verify", self.contexts[kind], "--json", "--wait", "60")
        done = await asyncio.to_thread(ctxpipe, *words, folder=self.folder, timeout_s=180)
        assert done.out, done.err
        found: dict[str, Any] = json.loads(done.out.splitlines()[-1])
        return found

    async def rows(self, kind: str) -> set[str]:
        """Which of some keys have bundles."""
        words = ("get", self.contexts[kind], "1", "50", "200", "5012", "--json")
        done = await asyncio.to_thread(ctxpipe, *words, folder=self.folder)
        answers = [json.loads(line) for line in done.out.splitlines()]
        return {str(answer["bundle"]["id"]) for answer in answers if answer["bundle"]}


@pytest.fixture
def connect(local_root: LocalRoot, kafka_bootstrap: str) -> Iterator[Any]:
    """connect(connectors): a Kafka Connect of the test's own."""
    install.ensure(["kafka"])
    started: list[ConnectServer] = []

    def start(connectors: Any) -> ConnectServer:
        started.append(ConnectServer(**local_root.place("connect"), kafka=kafka_bootstrap, connectors=connectors))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.kill()
        server.remove_data()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Any]:
    """worker(folder): `ctxpipe worker` for all contexts there; its words go to a file."""
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path) -> None:
        with (tmp_path / "worker.log").open("wb") as log:
            words = [sys.executable, "-m", "pipeline.cli", "worker"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            started.append(subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env=environment))

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


async def test_four_ways_of_debezium_give_the_bundles_that_sql_gives(
    tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str, connect: Any, worker: Any
) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as database:
        database.execute(CREATE)
        deployment = Deployment(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
        server = await asyncio.to_thread(connect, deployment.connectors)
        worker(tmp_path)
        for kind in KINDS:
            await eventually(lambda kind=kind: deployment.rows(kind), lambda keys: keys == {"1", "50", "200"},
                             timeout_s=120, what=f"the snapshot of {kind}")  # fmt: skip
        for statement in CHANGES.strip().split(";\n"):
            database.execute(statement)  # type: ignore[arg-type]
        expected = database.execute("SELECT count(*) FROM orders").fetchall()[0][0]
        for kind in KINDS:
            await eventually(lambda kind=kind: deployment.rows(kind), lambda keys: keys == {"50", "200", "5012"},
                             timeout_s=120, what=f"the changes of {kind}")  # fmt: skip
            result = await deployment.verify(kind)
            assert (result["mismatches"], result["unsettled"]) == (0, 0), f"{kind}: {result}"
            assert result["verified"] == expected, kind
            assert ctxpipe("dlq", deployment.contexts[kind], "list", folder=tmp_path).out == "No dead letters.\n", kind
        checked = await asyncio.to_thread(ctxpipe, "check", "--json", folder=tmp_path, timeout_s=120)
        assert checked.code == 0, checked.out
        await asyncio.to_thread(server.stop)


async def test_bench_against_debezium_runs_small(postgres_server: str, kafka_bootstrap: str) -> None:
    install.ensure(["kafka"])
    result = await measure_against(postgres_server, kafka_bootstrap, rows=2_000, commits=50)
    assert result["rows_per_s_ratio"] > 0 and result["p99_ratio"] > 0
    assert (result["rows"], result["commits"]) == (2_000, 50)
    alone = await measure_debezium(postgres_server, kafka_bootstrap, rows=1_000, commits=50)
    assert alone["source"] == "debezium" and alone["rows_per_s"] > 0 and alone["p99_ms"] >= alone["p50_ms"] > 0
