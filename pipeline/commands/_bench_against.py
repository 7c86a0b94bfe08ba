"""`ctxpipe bench capture --against debezium`: our connector and Debezium's, on the same table and the same broker.

Each runs alone, as a process of its own with its own slot and topic, and both are measured from outside by what a
consumer sees in Kafka: first a backlog of rows as fast as they come, then single commits at a steady rate.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from connectors.postgres.config import PostgresConfig
    from deploy.local.connect import ConnectServer

TIMEOUT_S = 300.0
OFFSETS_STORED_S = 3.0
"""Connect stores offsets each second, our connector positions more often."""
PARTITIONS = 4
TRANSACTION_ROWS = 1_000
COMMITS_PER_S = 200
COMMITS = 2_000
TABLE = "public.readings"


class Contender(Protocol):
    """A connector as a process. `start` may return before it reads; `stop` returns when it has ended."""

    topic: str

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def ensure_running(self) -> None:
        """Raises EnvironmentProblem when it has ended."""


class Measured(NamedTuple):
    """Of one contender."""

    rows_per_s: float
    p50_ms: float
    p99_ms: float


async def measure_against(dsn: str, bootstrap: str, rows: int, commits: int = COMMITS) -> dict[str, Any]:
    """What `--against debezium` prints. Leaves nothing behind but the topics."""
    ours, theirs = await _measured(dsn, bootstrap, (rows, commits), (Ours, Debezium))
    return {
        "rows_per_s_ratio": round(ours.rows_per_s / theirs.rows_per_s, 2),
        "p99_ratio": round(ours.p99_ms / theirs.p99_ms, 3),
        "p50_ratio": round(ours.p50_ms / theirs.p50_ms, 3),
        "rows_per_s": round(ours.rows_per_s),
        "debezium_rows_per_s": round(theirs.rows_per_s),
        "p99_ms": round(ours.p99_ms, 1),
        "debezium_p99_ms": round(theirs.p99_ms, 1),
        "rows": rows,
        "commits": commits,
    }


async def measure_debezium(dsn: str, bootstrap: str, rows: int, commits: int = COMMITS) -> dict[str, Any]:
    """What `--source debezium` prints: how fast the topics of such a deployment are filled."""
    (one,) = await _measured(dsn, bootstrap, (rows, commits), (Debezium,))
    found = {"rows_per_s": round(one.rows_per_s), "p50_ms": round(one.p50_ms, 1), "p99_ms": round(one.p99_ms, 1)}
    return {"source": "debezium", **found, "rows": rows, "commits": commits}


async def _measured(
    dsn: str,
    bootstrap: str,
    size: tuple[int, int],
    kinds: Sequence[Callable[[PostgresConfig, str, Path], Contender]],
) -> list[Measured]:
    """One after the other over the same rows. `size`: rows of the backlog, commits whose latency is measured."""
    from pipeline.commands.bench_capture import CREATE, bench_database

    rows, commits = size
    async with bench_database(dsn) as (config, connection):
        await connection.execute(CREATE)
        with tempfile.TemporaryDirectory(prefix="ctxpipe-against-") as directory:
            contenders = [kind(config, bootstrap, Path(directory)) for kind in kinds]
            run = _Run(bootstrap, connection)
            try:
                for one in contenders:
                    await run.warm_up(one)
                await run.insert_backlog(rows)
                return [await run.measure(one, commits) for one in contenders]
            finally:
                for one in contenders:
                    await asyncio.to_thread(one.stop)


class Ours:
    """`ctxpipe connect`."""

    def __init__(self, config: PostgresConfig, bootstrap: str, directory: Path) -> None:
        from deploy.local.roles import Role

        self.topic = f"{config.name}.{TABLE}"
        section = {
            "connector": "postgres",
            "dsn": config.dsn.get_secret_value(),
            "tables": [TABLE],
            "snapshot": "never",
        }
        kafka = {"bootstrap_servers": bootstrap, "partitions": PARTITIONS}
        body = {"kafka": kafka, "redis": {"url": "redis://127.0.0.1:1/0"}, "sources": {config.name: section}}
        file = directory / "ctxpipe.yaml"
        file.write_text(json.dumps(body))  # JSON is YAML
        self._role = Role(["connect", config.name, "--config", str(file)], directory / "connect.log")

    def start(self) -> None:
        self._role.start()

    def stop(self) -> None:
        self._role.stop()

    def ensure_running(self) -> None:
        self._role.ensure_running()


class Debezium:
    """Kafka Connect with Debezium, as they come."""

    def __init__(self, config: PostgresConfig, bootstrap: str, directory: Path) -> None:
        from deploy.local.connect import ConnectServer, postgres_connector
        from deploy.local.processes import choose_port

        prefix = f"{config.name}_dbz"
        self.topic = f"{prefix}.{TABLE}"
        properties = postgres_connector(config.dsn.get_secret_value(), prefix, [TABLE], partitions=PARTITIONS)
        connectors = {"bench": {**properties, "snapshot.mode": "no_data"}}
        self._server: ConnectServer = ConnectServer(
            directory / "connect", choose_port(), kafka=bootstrap, connectors=connectors, log_dir=directory
        )

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def ensure_running(self) -> None:
        if not self._server.running():
            raise EnvironmentProblem(f"Kafka Connect ended. Its log ends with:\n{self._server.log_tail()}")


class _Run:
    """The table, and where its rows have come; rows are numbered in the order in which they were committed."""

    def __init__(self, bootstrap: str, connection: Any) -> None:
        self._bootstrap, self._connection = bootstrap, connection
        self._count = 0
        self._first = 0
        """Rows before this one only warmed up."""

    async def insert(self, rows: int, together: int = 1) -> None:
        from pipeline.commands.bench_capture import INSERT

        end = self._count + rows
        while self._count < end:
            last = min(self._count + together, end)
            await self._connection.execute(INSERT, (self._count, last - 1))
            self._count = last

    async def insert_backlog(self, rows: int) -> None:
        self._first = self._count
        await self.insert(rows, TRANSACTION_ROWS)

    async def warm_up(self, one: Contender) -> None:
        """Slot, publication and topic are made, and it stores where it is: its next start goes on from there."""
        await asyncio.to_thread(one.start)
        async with asyncio.timeout(TIMEOUT_S):
            # What is committed before the slot is there is nobody's business, so rows come until one is seen.
            while not await _has_records(self._bootstrap, one.topic):
                one.ensure_running()
                await self.insert(1)
                await asyncio.sleep(0.5)
        await asyncio.sleep(OFFSETS_STORED_S)
        await asyncio.to_thread(one.stop)

    async def measure(self, one: Contender, commits: int) -> Measured:
        async with consumer_of(self._bootstrap, one.topic) as consumer:
            await asyncio.to_thread(one.start)
            rate = await self._rate(one, consumer)
            latencies = sorted(await self._latencies(one, consumer, commits))
        await asyncio.to_thread(one.stop)
        return Measured(rate, latencies[len(latencies) // 2] * 1e3, latencies[int(len(latencies) * 0.99)] * 1e3)

    async def _rate(self, one: Contender, consumer: Any) -> float:
        """Rows per second from the first row of the backlog that is seen in Kafka to the last."""
        missing = self._count - self._first
        started, before = 0.0, 0
        async with asyncio.timeout(TIMEOUT_S):
            while missing:
                seen = sum(number >= self._first for number in numbers_of(await consumer.getmany(timeout_ms=200)))
                missing -= seen
                if seen and not started:
                    started, before = time.perf_counter(), missing
                one.ensure_running()
        return before / (time.perf_counter() - started)

    async def _latencies(self, one: Contender, consumer: Any, commits: int) -> list[float]:
        """Seconds from the return of a row's commit to its record in a consumer's hands."""
        committed: dict[int, float] = {}
        arrived: dict[int, float] = {}
        end = self._count + commits

        async def write() -> None:
            began = time.perf_counter()
            for number in range(commits):
                await self.insert(1)
                committed[self._count - 1] = time.perf_counter()
                await asyncio.sleep(max(0.0, began + (number + 1) / COMMITS_PER_S - time.perf_counter()))

        first = self._count
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
            group.create_task(write())
            while len(arrived) < commits:
                records = await consumer.getmany(timeout_ms=200)
                now = time.perf_counter()
                arrived.update((number, now) for number in numbers_of(records) if first <= number < end)
                one.ensure_running()
        # A record may be here before the client knows that its commit has returned.
        return [max(0.0, arrived[number] - committed[number]) for number in arrived]


def numbers_of(records: dict[Any, list[Any]]) -> Iterator[int]:
    """Of the rows among them: keys are {"id":5}; heartbeats have others."""
    for batch in records.values():
        for record in batch:
            if record.key is not None and record.key.startswith(b'{"id":'):
                yield int(record.key[6:-1])


@asynccontextmanager
async def consumer_of(bootstrap: str, topic: str) -> AsyncIterator[Any]:
    """Reads all partitions of the topic from their beginnings."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False, fetch_max_wait_ms=100
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, number) for number in range(PARTITIONS)])
        yield consumer
    finally:
        await consumer.stop()


async def _has_records(bootstrap: str, topic: str) -> bool:
    """Whether the topic is there and holds a row."""
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        exists = topic in await admin.list_topics()
    finally:
        await admin.close()
    if not exists:
        return False
    async with consumer_of(bootstrap, topic) as consumer:
        return any(True for _ in numbers_of(await consumer.getmany(timeout_ms=500)))
