"""`ctxpipe bench capture --source cassandra|scylla`: a snapshot, a backlog, and single writes, seen from outside.

The connector runs as `ctxpipe connect`, a process of its own; all that counts is what a consumer sees in Kafka, beside
what the bare driver needs for the same rows. Of a write's latency the part that nobody could avoid is told apart:

- scylla: the floor is `confidence_window_s`. A write is read when its timestamp is that old and not before, so what is
  beyond it is our own share: waiting for the next window, reading, decoding, Kafka.
- cassandra: the floor is the node's next sync of its commit log after the write, at most `commitlog_sync_period`,
  seen by the index that the node writes then; what is beyond it are the sidecar's poll, its work, and Kafka.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.commands._bench_against import PARTITIONS, consumer_of, numbers_of
from pipeline.commands._bench_show import show_table, step
from pipeline.commands._bench_wide_tables import (
    DDL,
    SHARDS,
    TABLE,
    VNODES,
    CassandraTable,
    ScyllaTable,
    Servers,
    WideTable,
    insert_bare,
    now_us,
)

if TYPE_CHECKING:
    from connectors.cql.session import CqlSession

TIMEOUT_S = 600.0
CHANGES_PER_S = 100
CHANGES_MIN, CHANGES_MAX = 100, 1_000
STORED_S = 0.5
"""After the last row of a snapshot, until the connector has stored that it is complete."""
US = 1_000_000
SYNC_TAKES_US = 50_000
"""More than a node needs for one sync of its commit log."""
TOPIC = {"cleanup.policy": "delete", "retention.ms": "-1"}


class Written(NamedTuple):
    """A row: µs since 1970 when it was stamped, when its write had returned, and when a consumer had it."""

    stamp_us: int
    acknowledged_us: int
    arrived_us: int


async def measure_cassandra(servers: Servers, rows: int) -> dict[str, Any]:
    """What the command prints. Leaves nothing behind but the topics."""
    async with _keyspace(servers, rows) as (session, keyspace, directory):
        table = CassandraTable(session, servers, keyspace, directory)
        async with _running(servers, keyspace, table, directory) as run:
            found = await run.rates(rows)
            found["bare_rows_per_s"] = await _bare(servers, f"{keyspace}.{TABLE}")
            watching = asyncio.create_task(table.watch())
            try:
                written = await run.latencies(2 * rows, _changes(rows))
            finally:
                watching.cancel()
    found |= {"latency_ms": _spread([one.arrived_us - one.stamp_us for one in written])}
    synced = sorted(table.synced_us)
    visible = [_visible(one, synced) for one in written] if synced else []
    if visible:
        found["sync_wait_ms"] = _spread([at - one.stamp_us for one, at in zip(written, visible, strict=True)])
        found["own_share_ms"] = _spread([one.arrived_us - at for one, at in zip(written, visible, strict=True)])
    found |= {"commitlog_sync_period_ms": table.sync_period_ms, "poll_interval_ms": table.poll_interval_ms}
    ratios = _ratios(found, found["bare_rows_per_s"])
    return {"source": "cassandra", "rows": rows, "changes": len(written), **found, **ratios}


async def measure_scylla(servers: Servers, rows: int, confidence_window_s: float) -> dict[str, Any]:
    """What the command prints. Leaves nothing behind but the topics."""
    async with _keyspace(servers, rows) as (session, keyspace, directory):
        table = ScyllaTable(session, servers, keyspace, confidence_window_s)
        async with _running(servers, keyspace, table, directory) as run:
            found = await run.rates(rows)
            found["bare_rows_per_s"] = await _bare(servers, f"{keyspace}.{TABLE}")
            found["bare_log_rows_per_s"] = await _bare(servers, table.log)
            written = await run.latencies(2 * rows, _changes(rows))
    floor_us = round(confidence_window_s * US)
    latencies = [one.arrived_us - one.stamp_us for one in written]
    found |= {"latency_ms": _spread(latencies), "confidence_window_ms": floor_us / 1000}
    found |= {"own_share_ms": _spread([latency - floor_us for latency in latencies]), "streams": VNODES * SHARDS}
    ratios = _ratios(found, found["bare_log_rows_per_s"])
    return {"source": "scylla", "rows": rows, "changes": len(written), **found, **ratios}


class _Run:
    """The connector on its table, and a consumer of its topic; rows are numbered in the order of their writing."""

    def __init__(self, servers: Servers, name: str, table: WideTable, directory: Path, consumer: Any) -> None:
        from deploy.local.roles import Role

        self._servers, self._name, self._table, self._consumer = servers, name, table, consumer
        self._file = directory / "ctxpipe.yaml"
        self._role = Role(["connect", name, "--config", str(self._file)], directory / "connect.log")

    async def rates(self, rows: int) -> dict[str, Any]:
        """Rows per second of the snapshot and of a backlog as large. The connector goes on running."""
        await self._table.capture()
        await self._start(snapshot_only=True)
        snapshot = await self._rate("snapshot", 0, rows)
        await asyncio.sleep(STORED_S)
        await asyncio.to_thread(self._role.stop)
        with step("writing the backlog", rows) as tick:
            await self._table.write_many(rows, rows, tick)
        await self._start(snapshot_only=False)
        stream = await self._rate("backlog from the log", rows, rows)
        return {"snapshot_rows_per_s": round(snapshot), "stream_rows_per_s": round(stream)}

    async def latencies(self, first: int, count: int) -> list[Written]:
        """Of single writes at a steady rate."""
        written: dict[int, tuple[int, int]] = {}
        arrived: dict[int, int] = {}

        async def write() -> None:
            began = time.perf_counter()
            for number in range(count):
                stamp_us = await self._table.write(first + number)
                written[first + number] = stamp_us, now_us()
                await asyncio.sleep(max(0.0, began + (number + 1) / CHANGES_PER_S - time.perf_counter()))

        with step("single writes", count) as tick:
            async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
                group.create_task(write())
                while len(arrived) < count:
                    records = await self._consumer.getmany(timeout_ms=200)
                    now = now_us()
                    for number in numbers_of(records):
                        if first <= number:
                            arrived.setdefault(number, now)
                    tick(len(arrived))
                    self._role.ensure_running()
        return [Written(*written[number], at) for number, at in sorted(arrived.items())]

    async def close(self) -> None:
        await asyncio.to_thread(self._role.stop)

    async def _start(self, *, snapshot_only: bool) -> None:
        kafka = {"bootstrap_servers": self._servers.kafka, "partitions": PARTITIONS}
        section = self._table.section(snapshot_only=snapshot_only)
        body = {"kafka": kafka, "redis": {"url": "redis://127.0.0.1:1/0"}, "sources": {self._name: section}}
        self._file.write_text(json.dumps(body))  # JSON is YAML
        await asyncio.to_thread(self._role.start)

    async def _rate(self, title: str, first: int, rows: int) -> float:
        """Rows per second from the first row that is seen in Kafka to the last."""
        missing = set(range(first, first + rows))
        started, before = 0.0, 0
        with step(title, rows) as tick:
            async with asyncio.timeout(TIMEOUT_S):
                while missing:
                    seen = numbers_of(await self._consumer.getmany(timeout_ms=200))
                    missing.difference_update(seen)
                    if len(missing) < rows and not started:
                        started, before = time.perf_counter(), len(missing)
                    tick(rows - len(missing))
                    self._role.ensure_running()
        return before / (time.perf_counter() - started)


@asynccontextmanager
async def _keyspace(servers: Servers, rows: int) -> AsyncIterator[tuple[CqlSession, str, Path]]:
    """A session, a keyspace of its own with the table and its first rows, dropped afterwards, and a directory."""
    from connectors.cql.session import CqlServer, connect

    name = f"ctxpipe_bench_{os.getpid()}_{int(time.time()) % 100_000}"
    host, _, port = servers.cassandra.rpartition(":")
    session = await connect(CqlServer(hosts=[host], port=int(port)))
    replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
    try:
        await session.execute(f"CREATE KEYSPACE {name} WITH replication = {replication}")
        with tempfile.TemporaryDirectory(prefix="ctxpipe-bench-") as directory:
            await session.execute(f"CREATE TABLE {name}.{TABLE} ({DDL})")
            with step("writing the first rows", rows) as tick:
                await insert_bare(servers.cassandra, name, 0, rows, tick)
            yield session, name, Path(directory)
    finally:
        await session.execute(f"DROP KEYSPACE IF EXISTS {name}")
        await session.close()


@asynccontextmanager
async def _running(servers: Servers, name: str, table: WideTable, directory: Path) -> AsyncIterator[_Run]:
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    topic = f"{name}.{name}.{TABLE}"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs=TOPIC)])
    finally:
        await admin.close()
    async with consumer_of(servers.kafka, topic) as consumer:
        run = _Run(servers, name, table, directory, consumer)
        try:
            yield run
        finally:
            await run.close()


async def _bare(servers: Servers, table: str) -> int:
    """Rows per second of the bare driver that reads the whole table."""
    from deploy.local import bare_cql

    count, seconds = await asyncio.to_thread(bare_cql.read_all, servers.cassandra, f"SELECT * FROM {table}")
    return round(count / seconds)


def _ratios(found: dict[str, Any], bare_stream: float) -> dict[str, float]:
    return {
        "snapshot_vs_bare_reading": round(found["snapshot_rows_per_s"] / found["bare_rows_per_s"], 3),
        "stream_vs_bare_reading": round(found["stream_rows_per_s"] / bare_stream, 3),
    }


def _changes(rows: int) -> int:
    return max(CHANGES_MIN, min(CHANGES_MAX, rows // 20))


def _visible(one: Written, synced_us: Sequence[int]) -> int:
    """When it was on disk and known to be: at the first sync that was done after its write had returned. One that was
    under way at that moment may have begun without it; where the record came after the next one, it is that."""
    place = bisect_left(synced_us, one.acknowledged_us)
    done = list(synced_us[place : place + 2])
    if len(done) == 2 and done[0] - one.acknowledged_us < SYNC_TAKES_US and done[1] <= one.arrived_us:
        return done[1]
    if done and done[0] <= one.arrived_us:
        return done[0]
    earlier = synced_us[place - 1] if place else one.stamp_us  # it was written while the log was synced
    return max(one.stamp_us, earlier)


def _spread(latencies_us: Sequence[int]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(latencies_us)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: ordered[min(int(len(ordered) * part), len(ordered) - 1)] for name, part in places.items()}
    return {name: round(us / 1000, 1) for name, us in {**found, "max": ordered[-1]}.items()}


def show(result: dict[str, Any], *, err: bool) -> None:
    """For a person."""
    bare_log = result.get("bare_log_rows_per_s", result["bare_rows_per_s"])
    rates = [
        ("snapshot", "snapshot", result["bare_rows_per_s"]),
        ("from the log", "stream", bare_log),
    ]
    show_table(
        ("", "rows/s", "bare driver", "ratio"),
        [
            (title, f"{result[f'{name}_rows_per_s']:,}", f"{bare:,}", f"{result[f'{name}_vs_bare_reading']:.2f}")
            for title, name, bare in rates
        ],
        err=err,
    )
    parts = {"write to Kafka": "latency_ms", "of it until the node's sync": "sync_wait_ms", "own share": "own_share_ms"}
    rows = [
        (title, *(f"{one:,.1f}" for one in result[name].values())) for title, name in parts.items() if name in result
    ]
    show_table(("ms", *result["latency_ms"]), rows, err=err)
    floors = {
        "confidence_window_ms": "the floor, the confidence window, is {:,.0f} ms",
        "commitlog_sync_period_ms": "the node syncs its commit log every {:,} ms",
        "poll_interval_ms": "the sidecar looks every {:,} ms",
    }
    said = [text.format(result[name]) for name, text in floors.items() if result.get(name) is not None]
    click.echo("; ".join(said), err=err)
