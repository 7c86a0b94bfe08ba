"""`ctxpipe bench capture`: rows per second from a source to Kafka, beside bare reading; and latency."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from connectors.postgres.config import PostgresConfig
    from connectors.postgres.replication import StreamItem
    from connectors.publisher import KafkaSettings

ROWS, WIDE_ROWS = 300_000, 30_000
WIDE = ("cassandra", "scylla")
CONFIDENCE_WINDOW_S = 2.0
SAMPLE_ROWS = 20_000
TRANSACTION_ROWS = 1_000
TIMEOUT_S = 600
BARE_SLOT = "ctxpipe_bench_bare"
CREATE = """
CREATE TABLE readings (id bigint PRIMARY KEY, device text NOT NULL, place text, amount numeric(12, 2), quantity int,
  valid boolean, taken_at timestamptz, score double precision)
"""
INSERT = """
INSERT INTO readings SELECT i, 'device number ' || i, 'a place with a longer name, hall ' || i %% 97, i * 1.25,
  i %% 1000, i %% 3 = 0, timestamptz '2026-01-01' + i * interval '1.000001 s', i / 7.0::float8
FROM generate_series(%s::int, %s::int) i
"""
END_READERS = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE database = %s AND active"
"""Waits for them: the server lets go of a slot a moment after its reader has closed the connection."""
DROP_SLOTS = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s"


@click.command()
@click.option("--rows", type=click.IntRange(min=1000), help="Default: 300,000; of cassandra and scylla 30,000.")
@click.option("--dsn", help="A Postgres superuser's address; default: the local stack.")
@click.option("--kafka", help="host:port; default: the local stack.")
@click.option("--source", type=click.Choice(["postgres", "debezium", *WIDE]), default="postgres", show_default=True)
@click.option("--against", type=click.Choice(["debezium"]), help="Beside this peer instead of bare reading.")
@click.option("--cassandra", metavar="HOST:PORT", help="Of cassandra and scylla; default: one for the measurement.")
@click.option("--cassandra-yaml", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its settings.")
@click.option("--confidence-window-s", type=click.FloatRange(0.05, 600), help="Of scylla; default: 2.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
def command(as_json: bool, **options: Any) -> None:
    """Rows per second and latency of a source into Kafka.

    \b
    postgres   Rows are inserted, then read from the log twice: bare, and
               through the whole connector.
    debezium   Kafka Connect with Debezium alone.
    cassandra  A snapshot, a backlog read from the log, and single writes,
    scylla     timed from their stamp until a consumer has them.

    --against debezium: through ours and through Kafka Connect with Debezium, and single commits as well; ratios of rows
    per second and of latencies, ours to theirs.

    The latency of cassandra and scylla has a floor, which is shown apart. Scylla: a write is read when its timestamp is
    as old as the confidence window, not sooner; our own share is what is beyond that. Cassandra: a write is seen when
    the node syncs its commit log the next time; the own share is what is beyond that sync. Scylla's log is written as
    Scylla writes it, into a Cassandra.

    Takes the local stack if it is up, and otherwise starts one for the time of the measurement; Cassandra is always
    started, unless --cassandra names one that nobody else captures from.
    """
    require_fitting(options)
    rows, source = options["rows"] or (WIDE_ROWS if options["source"] in WIDE else ROWS), options["source"]
    if source in WIDE:
        _measure_wide(source, rows, options, as_json)
        return
    with _servers(options["dsn"], options["kafka"]) as (postgres, bootstrap):
        _measure_postgres(source, options["against"], (postgres, bootstrap, rows), as_json)


def require_fitting(options: dict[str, Any]) -> None:
    """Raises UsageError for options of another source than the chosen one, and for an address that is none."""
    source = options["source"]
    if options["against"] is not None and source != "postgres":
        raise click.UsageError("--against compares with our Postgres connector; leave --source out")
    if source in WIDE and options["dsn"] is not None:
        raise click.UsageError(f"--dsn is Postgres's address; --source {source} takes --cassandra HOST:PORT")
    for name in ("cassandra", "cassandra_yaml"):
        if options[name] is not None and source not in WIDE:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --source cassandra or --source scylla")
    if options["confidence_window_s"] is not None and source != "scylla":
        raise click.UsageError("--confidence-window-s goes with --source scylla")
    if source == "cassandra" and (options["cassandra"] is None) != (options["cassandra_yaml"] is None):
        raise click.UsageError(
            "--cassandra and --cassandra-yaml go together: the connector runs beside the node and reads its commit log"
        )
    for name in ("cassandra", "kafka") if source in WIDE else ():
        host, _, port = (options[name] or "host:1").rpartition(":")
        if not host or not port.isdecimal():
            raise click.UsageError(f"--{name}: {options[name]!r} is not host:port")


def _measure_wide(source: str, rows: int, options: dict[str, Any], as_json: bool) -> None:
    import asyncio
    import json

    from pipeline.commands._bench_wide import measure_cassandra, measure_scylla, show
    from pipeline.commands._bench_wide_tables import wide_servers

    with wide_servers(options["cassandra"], options["cassandra_yaml"], options["kafka"]) as servers:
        if source == "cassandra":
            result = asyncio.run(measure_cassandra(servers, rows))
        else:
            result = asyncio.run(measure_scylla(servers, rows, options["confidence_window_s"] or CONFIDENCE_WINDOW_S))
    show(result, err=as_json)
    if as_json:
        click.echo(json.dumps(result))


def _measure_postgres(source: str, against: str | None, where: tuple[str, str, int], as_json: bool) -> None:
    import asyncio
    import json

    if source == "debezium":
        from pipeline.commands._bench_against import measure_debezium

        _show_debezium(asyncio.run(measure_debezium(*where)), as_json)
        return
    if against is not None:
        from pipeline.commands._bench_against import measure_against

        _show_against(asyncio.run(measure_against(*where)), as_json)
        return
    result = asyncio.run(measure(*where))
    click.echo(
        f"{result['rows_per_s']:,} rows/s from the log to Kafka, {result['vs_bare_reading']:.0%} of bare reading; "
        f"limit: {result['limit']}",
        err=as_json,
    )
    if as_json:
        click.echo(json.dumps(result))


def _show_debezium(result: dict[str, Any], as_json: bool) -> None:
    import json

    text = f"{result['rows_per_s']:,} rows/s; from commit to Kafka p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms"
    click.echo(text, err=as_json)
    if as_json:
        click.echo(json.dumps(result))


def _show_against(result: dict[str, Any], as_json: bool) -> None:
    import json

    click.echo(
        f"{result['rows_per_s']:,} rows/s, Debezium {result['debezium_rows_per_s']:,} "
        f"(ratio {result['rows_per_s_ratio']}); p99 from commit to Kafka {result['p99_ms']} ms, Debezium "
        f"{result['debezium_p99_ms']} ms (ratio {result['p99_ratio']})",
        err=as_json,
    )
    if as_json:
        click.echo(json.dumps(result))


@contextmanager
def _servers(dsn: str | None, kafka: str | None) -> Iterator[tuple[str, str]]:
    """Addresses of Postgres and Kafka: as given, of the stack that is up, or of one that ends afterwards."""
    import tempfile
    from pathlib import Path

    from deploy.local.stack import Stack

    if dsn and kafka:
        yield dsn, kafka
        return
    addresses = {server.name: server.address for server in Stack().status() if server.state == "up"}
    if {"postgres", "kafka"} <= set(addresses):
        yield dsn or addresses["postgres"], kafka or addresses["kafka"]
        return
    with tempfile.TemporaryDirectory(prefix="ctxpipe-bench-") as directory:
        Path(directory).chmod(0o755)  # Postgres runs as another user when we are root
        stack = Stack(Path(directory) / "local")
        try:
            addresses = {
                server.name: server.address for server in stack.up(say=lambda line: click.echo(line, err=True))
            }
            yield dsn or addresses["postgres"], kafka or addresses["kafka"]
        finally:
            stack.down()


async def measure(dsn: str, bootstrap: str, rows: int) -> dict[str, Any]:
    """What the command prints. Leaves nothing behind but the topics."""
    from connectors.publisher import KafkaSettings

    kafka = KafkaSettings(bootstrap_servers=bootstrap)
    async with bench_database(dsn) as (config, connection):
        await _prepare(config, kafka, connection, rows)
        bare_rate, sample = await _bare(config, rows)
        converting_us = await _converting(config, sample)
        rate, cpu_share = await _capture(config, kafka, rows)
    share = {
        "reading": 1e6 / bare_rate,
        "converting": converting_us,
        "publishing": max(0.0, 1e6 / rate - 1e6 / bare_rate - converting_us),
    }
    largest = max(share, key=lambda name: share[name])
    parts = ", ".join(f"{name} {cost:.1f}" for name, cost in share.items())
    bound = f"the CPU of one process ({cpu_share:.0%} busy)" if cpu_share > 0.8 else "waiting for the servers"
    return {
        "rows_per_s": round(rate),
        "vs_bare_reading": round(rate / bare_rate, 3),
        "bare_rows_per_s": round(bare_rate),
        "rows": rows,
        "cpu_share": round(cpu_share, 2),
        "us_per_row": {name: round(cost, 2) for name, cost in share.items()},
        "limit": f"{bound}; µs per row: {parts}; most of it {largest}",
    }


@asynccontextmanager
async def bench_database(dsn: str) -> AsyncIterator[tuple[PostgresConfig, Any]]:
    """A database of its own, with its configuration and a connection; dropped with its slots afterwards."""
    import os
    import time

    from connectors.postgres.config import parse_config
    from connectors.postgres.server import Server, quote_name

    name = f"ctxpipe_bench_{os.getpid()}_{int(time.time()) % 100_000}"
    admin = await Server(dsn, "bench").connect()
    try:
        await admin.execute(f"CREATE DATABASE {quote_name(name)}".encode())
        own = Server(dsn, "bench").address_of(name)
        section = {"connector": "postgres", "dsn": own, "tables": ["public.readings"], "snapshot": "never"}
        connection = await Server(own, "bench").connect()
        try:
            yield parse_config(name, section), connection
        finally:
            await connection.close()
            await admin.execute(END_READERS, (name,))
            await admin.execute(DROP_SLOTS, (name,))
            await admin.execute(f"DROP DATABASE {quote_name(name)} WITH (FORCE)".encode())
    finally:
        await admin.close()


async def _prepare(config: PostgresConfig, kafka: KafkaSettings, connection: Any, rows: int) -> None:
    """Slots first, rows afterwards: both readers find the same log."""
    import asyncio

    from connectors.assembly import attempts
    from connectors.postgres.plugin import PLUGIN
    from connectors.registry import Configured
    from connectors.runtime import Runtime

    await connection.execute(CREATE)
    runtime = Runtime(attempts(Configured(PLUGIN, config), kafka))
    task = asyncio.create_task(runtime.run())
    await _until(lambda: runtime.statistics.acknowledged >= 2, task)
    runtime.stop()
    await task
    await connection.execute(
        "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (BARE_SLOT + config.name[-20:],)
    )
    for first in range(0, rows, TRANSACTION_ROWS):
        await connection.execute(INSERT, (first, min(first + TRANSACTION_ROWS, rows) - 1))


async def _bare(config: PostgresConfig, rows: int) -> tuple[float, list[StreamItem]]:
    """Rows per second of only taking messages off the connection, and the first of them."""
    import asyncio
    import time

    from connectors.postgres.replication import ReplicationStream
    from connectors.postgres.server import Server

    stream = ReplicationStream(Server(config.dsn.get_secret_value(), "bench"), config.queue_bytes_max)
    sample: list[StreamItem] = []
    count, started = 0, 0.0
    async with asyncio.timeout(TIMEOUT_S):
        await stream.open(BARE_SLOT + config.name[-20:], config.publication, 0)
        while count < rows:
            items = await stream.read()
            started = started or time.perf_counter()
            count += sum(1 for _, payload in items if payload is not None and payload[:1] == b"I")
            if len(sample) < SAMPLE_ROWS:
                sample += items
        elapsed = time.perf_counter() - started
        await stream.close()
    return rows / elapsed, sample


async def _converting(config: PostgresConfig, sample: list[StreamItem]) -> float:
    """Microseconds per row for turning messages into records, without any I/O."""
    import time

    from connectors.postgres.catalog import Catalog
    from connectors.postgres.changes import Changes
    from connectors.postgres.server import Server
    from connectors.postgres.transactions import StreamedTransactions
    from connectors.postgres.watermark import TableSnapshots

    catalog = Catalog(Server(config.dsn.get_secret_value(), "bench"))
    listener = TableSnapshots(config.name, catalog, [], _never, {}, config.chunk_rows, None)
    changes = Changes(config.name, config.tables, catalog, StreamedTransactions(1 << 30), listener)
    try:
        count, started = 0, time.perf_counter()
        async for step in changes.translate(sample):
            count += len(step.records)
        return (time.perf_counter() - started) / max(count, 1) * 1e6
    finally:
        await catalog.close()


async def _never(table: str) -> Any:
    raise AssertionError(f"no snapshot of {table} was asked for")


async def _capture(config: PostgresConfig, kafka: KafkaSettings, rows: int) -> tuple[float, float]:
    """Rows per second through the connector, until Kafka has acknowledged all; and how busy our core was."""
    import asyncio
    import time

    from connectors.assembly import attempts
    from connectors.postgres.plugin import PLUGIN
    from connectors.registry import Configured
    from connectors.runtime import Runtime

    runtime = Runtime(attempts(Configured(PLUGIN, config), kafka))
    task = asyncio.create_task(runtime.run())
    await _until(lambda: runtime.statistics.records_read > 0, task)
    before, busy, started = runtime.statistics.records_read, time.process_time(), time.perf_counter()
    await _until(lambda: runtime.statistics.records_delivered >= rows, task)
    elapsed = time.perf_counter() - started
    busy = time.process_time() - busy
    runtime.stop()
    await task
    return (rows - before) / elapsed, busy / elapsed


async def _until(reached: Any, task: Any) -> None:
    import asyncio

    async with asyncio.timeout(TIMEOUT_S):
        while not reached():
            if task.done():
                task.result()
            await asyncio.sleep(0.001)
