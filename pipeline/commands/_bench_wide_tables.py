"""What `ctxpipe bench capture --source cassandra|scylla` measures on: servers, and a table that is captured.

Scylla's log is written as Scylla writes it by connectors/scylla/log_writer.py, into a Cassandra.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import click

from pipeline.commands._bench_show import Tick

if TYPE_CHECKING:
    from connectors.cql.session import CqlSession
    from connectors.scylla.log_writer import LogWriter

COLUMNS = ("id", "device", "place", "amount", "quantity", "valid", "taken_at", "score")
DDL = (
    "id bigint PRIMARY KEY, device text, place text, amount decimal, quantity int, valid boolean, "
    "taken_at timestamp, score double"
)
TABLE = "readings"
SNAPSHOT_ROWS_PER_S = 10_000_000
"""The snapshot's throttle out of the way."""
VNODES, SHARDS = 32, 4
WRITERS = 32
LOOK_S = 0.02
"""How often the commit log's directory is looked at, much oftener than it is synced."""


class Servers(NamedTuple):
    """`cassandra_yaml` is that of the node at `cassandra`, host:port; None where it does not matter."""

    cassandra: str
    cassandra_yaml: Path | None
    kafka: str


class WideTable(Protocol):
    """A captured table. Order of calls: `capture` after its first rows, `section` for each start of the connector."""

    async def capture(self) -> None: ...

    def section(self, *, snapshot_only: bool) -> dict[str, Any]: ...

    async def write(self, number: int) -> int:
        """One row, the last one of a few at a time; the µs since 1970 with which it was stamped just before."""

    async def write_many(self, first: int, count: int, tick: Tick) -> None:
        """Returns when a connector that starts now finds all of them."""


@contextmanager
def wide_servers(cassandra: str | None, cassandra_yaml: Path | None, kafka: str | None) -> Iterator[Servers]:
    """As given. Kafka otherwise of the stack that is up, or one that ends afterwards; Cassandra always the latter,
    because a connector takes the change log of the whole node away."""
    import tempfile

    from deploy.local import install
    from deploy.local.cassandra import CassandraServer
    from deploy.local.kafka import KafkaServer
    from deploy.local.processes import choose_port
    from deploy.local.server import Server
    from deploy.local.stack import Stack

    up = {server.name: server.address for server in Stack().status() if server.state == "up"}
    kafka = kafka or up.get("kafka")
    with tempfile.TemporaryDirectory(prefix="ctxpipe-bench-") as directory:
        started: list[Server] = []
        if kafka is None:
            started.append(KafkaServer(Path(directory) / "kafka", choose_port()))
            kafka = started[-1].address
        if cassandra is None:
            node = CassandraServer(Path(directory) / "cassandra", choose_port())
            started.append(node)
            cassandra, cassandra_yaml = node.address, node.config_file
        try:
            install.ensure([server.kind for server in started], lambda line: click.echo(line, err=True))
            for server in started:
                click.echo(f"Starting {server.name} on port {server.port}", err=True)
                server.launch()
            for server in started:
                server.wait_ready()
            yield Servers(cassandra, cassandra_yaml, kafka)
        finally:
            for server in reversed(started):
                server.kill()  # their data goes with the directory


def row(number: int) -> tuple[Any, ...]:
    """About 150 bytes, the same for the same number."""
    return (
        number,
        f"device number {number}",
        f"a place with a longer name, hall {number % 97}",
        Decimal(number) * Decimal("1.25"),
        number % 1000,
        number % 3 == 0,
        datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number),
        number / 7.0,
    )


def insert_into(keyspace: str) -> str:
    return f"INSERT INTO {keyspace}.{TABLE} ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


async def insert_bare(address: str, keyspace: str, first: int, count: int, tick: Tick) -> None:
    """By the bare driver."""
    from deploy.local import bare_cql

    rows = [row(number) for number in range(first, first + count)]
    # Cassandra goes on writing past the change log by statements that were prepared before it was switched on, and
    # knows them by their text.
    statement = f"{insert_into(keyspace)} /* from {first} */"
    await asyncio.to_thread(bare_cql.insert, address, statement, rows, tick)


class CassandraTable:
    """WideTable of Cassandra's own change log."""

    def __init__(self, session: CqlSession, servers: Servers, keyspace: str, directory: Path) -> None:
        import yaml

        assert servers.cassandra_yaml is not None
        self._session, self._servers, self.keyspace, self._directory = session, servers, keyspace, directory
        self._node = yaml.safe_load(servers.cassandra_yaml.read_text())
        self.synced_us: set[int] = set()
        """When the node said of a part of its log that it is on disk, as long as `watch` runs."""

    @property
    def sync_period_ms(self) -> int | None:
        """None where cassandra.yaml says it in another way than in milliseconds or seconds."""
        said = self._node.get("commitlog_sync_period", self._node.get("commitlog_sync_period_in_ms", "10000ms"))
        return milliseconds(said)

    @property
    def poll_interval_ms(self) -> int:
        from connectors.cassandra.config import SidecarConfig

        return int(SidecarConfig.model_fields["poll_interval_ms"].default)

    async def capture(self) -> None:
        await self._session.execute(f"ALTER TABLE {self.keyspace}.{TABLE} WITH cdc = true")

    def section(self, *, snapshot_only: bool) -> dict[str, Any]:
        section = _section("cassandra", self._servers.cassandra, self.keyspace)
        section |= {"data_directory": str(self._directory / "data")}
        return (
            section if snapshot_only else section | {"sidecar": {"cassandra_yaml": str(self._servers.cassandra_yaml)}}
        )

    async def write(self, number: int) -> int:
        stamp = now_us()
        await self._session.execute(insert_into(self.keyspace), row(number))
        return stamp

    async def write_many(self, first: int, count: int, tick: Tick) -> None:
        await insert_bare(self._servers.cassandra, self.keyspace, first, count, tick)
        await asyncio.sleep(2 * (self.sync_period_ms or 1000) / 1000)

    async def watch(self) -> None:
        """The index beside a segment is written anew each time that it has been synced."""
        directory = Path(str(self._node.get("cdc_raw_directory", "")))
        while True:
            for file in await asyncio.to_thread(lambda: list(directory.glob("*_cdc.idx"))):
                try:
                    self.synced_us.add(file.stat().st_mtime_ns // 1000)
                except FileNotFoundError:
                    continue  # the connector took it away
            await asyncio.sleep(LOOK_S)


class ScyllaTable:
    """WideTable of a log as Scylla keeps it, of VNODES × SHARDS streams."""

    def __init__(self, session: CqlSession, servers: Servers, keyspace: str, confidence_window_s: float) -> None:
        self._session, self._servers, self.keyspace = session, servers, keyspace
        self._confidence_window_s = confidence_window_s
        self._writer: LogWriter | None = None

    @property
    def log(self) -> str:
        return f"{self.keyspace}.{TABLE}_scylla_cdc_log"

    async def capture(self) -> None:
        from connectors.cql.schema import read_table
        from connectors.scylla.config import Metadata
        from connectors.scylla.log_tables import create_log, create_metadata, new_generation, tell_vnodes
        from connectors.scylla.log_writer import LogWriter

        table = await read_table(self._session, self.keyspace, TABLE)
        assert table is not None
        metadata = Metadata(**self._metadata())
        await create_metadata(self._session, metadata)
        await create_log(self._session, table)
        chance = random.Random(1)
        generation = new_generation(now_us() // 1000 - 600_000, VNODES, SHARDS, chance)
        await tell_vnodes(self._session, metadata, generation)
        self._writer = LogWriter(self._session, table, [generation], randomness=chance)

    def section(self, *, snapshot_only: bool) -> dict[str, Any]:
        section = _section("scylla", self._servers.cassandra, self.keyspace)
        return section | {"confidence_window_s": self._confidence_window_s, "metadata": self._metadata()}

    async def write(self, number: int) -> int:
        from connectors.scylla.log_statements import Overwrite, Write

        assert self._writer is not None
        values = dict(zip(COLUMNS, row(number), strict=True))
        key = {"id": values.pop("id")}
        edits = {name: Overwrite(value) for name, value in values.items()}
        stamp = now_us()
        await self._writer.write(Write(kind="insert", key=key, ts=stamp, edits=edits))
        return stamp

    async def write_many(self, first: int, count: int, tick: Tick) -> None:
        numbers = iter(range(first, first + count))

        async def write_some() -> None:
            for number in numbers:
                await self.write(number)
                tick(number - first + 1)

        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(write_some())
        await asyncio.sleep(self._confidence_window_s)

    def _metadata(self) -> dict[str, str]:
        return {"keyspace": self.keyspace, "tablets_keyspace": self.keyspace}


def _section(connector: str, address: str, keyspace: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    place = {"connector": connector, "hosts": [host], "port": int(port), "keyspace": keyspace, "tables": [TABLE]}
    return {**place, "consistency": "ONE", "rows_per_second": SNAPSHOT_ROWS_PER_S}


def milliseconds(said: object) -> int | None:
    """A duration of cassandra.yaml; None for a form that is not known here."""
    found = re.fullmatch(r"(\d+)(ms|s|)", str(said))
    return int(found[1]) * (1000 if found[2] == "s" else 1) if found else None


def now_us() -> int:
    return time.time_ns() // 1000
