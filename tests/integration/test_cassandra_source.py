"""The Cassandra source on a real Cassandra 5, a real Kafka and the real sidecar."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from connectors.cassandra.node import enable_cdc
from connectors.cassandra.source import CassandraSource
from connectors.cql.session import CqlSession
from connectors.source import Position
from deploy.local.cassandra import CassandraServer
from pipeline.core.errors import EnvironmentProblem, PositionLost
from tests.support.cassandra import cql_session, fresh_keyspace
from tests.support.cassandra_source import configured, merged_rows, mutations, running, sidecar_of, table_rows
from tests.support.eventually import eventually

COLUMNS = ["id", "ck", "n", "v"]
TABLE = "CREATE TABLE {} (id int, ck int, n int, v text, PRIMARY KEY (id, ck)) WITH cdc = true"
pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


@pytest.fixture
async def session(cassandra_server: CassandraServer) -> AsyncIterator[CqlSession]:
    async with cql_session(cassandra_server) as connected:
        yield connected


@pytest.fixture
async def keyspace(session: CqlSession) -> AsyncIterator[str]:
    async with fresh_keyspace(session) as name:
        yield name


async def make_table(session: CqlSession, keyspace: str, rows: int = 0) -> str:
    table = f"{keyspace}.t"
    await session.execute(TABLE.format(table))
    for number in range(rows):
        await session.execute(f"INSERT INTO {table} (id, ck, n, v) VALUES ({number}, {number % 3}, {number}, 'old')")
    return table


async def converged(session: CqlSession, table: str, bootstrap: str, source: Any) -> None:
    """The topics make the rows that the table has."""

    async def same() -> bool:
        expected = await table_rows(session, table, COLUMNS, ["id", "ck"])
        return await merged_rows(bootstrap, source, COLUMNS) == expected

    await eventually(same, timeout_s=90, what="the topics make the table's rows")


async def test_a_snapshot_beside_writers_and_the_stream_make_the_table(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    table = await make_table(session, keyspace, rows=200)
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, page_rows=20, rows_per_second=150)
    finished = asyncio.Event()

    def progress(_table: str, rows: int, about: int) -> None:
        if rows and rows == about:
            finished.set()

    async def write() -> None:
        number = 0
        while not finished.is_set() or number < 60:
            key = f"id = {number % 200} AND ck = {number % 200 % 3}"
            await session.execute(f"UPDATE {table} SET v = 'new {number}' WHERE {key}")
            if number % 5 == 0:
                await session.execute(f"DELETE FROM {table} WHERE id = {(number + 50) % 200}")
            if number % 7 == 0:
                await session.execute(f"DELETE n FROM {table} WHERE {key}")
            number += 1
            await asyncio.sleep(0.005)

    async with running(source, kafka_bootstrap, progress) as (_, task):
        await asyncio.gather(write(), asyncio.wait_for(finished.wait(), 60))
        assert not task.done()
        await session.execute(f"INSERT INTO {table} (id, ck, n, v) VALUES (1000, 1, NULL, 'inserted') USING TTL 9000")
        await session.execute(f"UPDATE {table} SET n = 4 WHERE id = 1000 AND ck = 2")
        for clustering in range(8):
            await session.execute(f"INSERT INTO {table} (id, ck, n) VALUES (1001, {clustering}, 1)")
        await session.execute(f"DELETE FROM {table} WHERE id = 1001 AND ck > 1 AND ck <= 4")
        await session.execute(f"DELETE FROM {table} WHERE id = 1001 AND ck = 7")
        await session.execute(f"DELETE FROM {table} WHERE id = 3")
        await converged(session, table, kafka_bootstrap, source)
    found = await mutations(kafka_bootstrap, source)
    assert {event.mutation.scope for event in found} == {"row", "partition", "range"}
    ttl = [event.mutation.cells["v"] for event in found if event.key == {"id": 1000, "ck": 1}]
    assert all(cell.expires is not None and cell.expires > cell.ts + 8_000_000_000 for cell in ttl) and ttl


async def read_until(source: CassandraSource, position: Position) -> tuple[list[Any], list[Position]]:
    """All records and positions of one run, until nothing is left to be read."""
    await source.open(position)
    records: list[Any] = []
    positions: list[Position] = []
    try:
        while not positions or positions[-1]["left"]:
            batch = await asyncio.wait_for(source.read(), 30)
            records += batch.records
            if batch.position is not None:
                positions.append(batch.position)
    finally:
        await source.close()
    return records, positions


async def test_a_snapshot_goes_on_from_every_edge_of_a_range(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, tmp_path: Path
) -> None:
    await make_table(session, keyspace, rows=120)
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, page_rows=10, sidecar=None)
    everything, positions = await read_until(source.source(), None)
    keys = {record.key for record in everything}
    assert len(keys) == len(everything) == 120 and len(positions) == 9
    for position in positions[:-1]:
        rest, _ = await read_until(source.source(), position)
        left = sum(last - first + 1 for first, last in position["left"]["t"])
        assert len(rest) <= 120 and {record.key for record in rest} <= keys and (len(rest) == 120) == (left == 8)
        if left < 8:
            again, _ = await read_until(source.source(), {**position, "left": {"t": complement(position["left"]["t"])}})
            assert {record.key for record in rest} | {record.key for record in again} == keys


def complement(runs: list[list[int]]) -> list[list[int]]:
    left = {number for first, last in runs for number in range(first, last + 1)}
    return [[number, number] for number in range(8) if number not in left]


async def test_the_sidecar_dies_at_any_time_and_nothing_is_lost(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    table = await make_table(session, keyspace)
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
    async with running(source, kafka_bootstrap) as (runtime, task):
        await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=60)
        killed: set[int] = set()
        for number in range(90):
            await session.execute(f"INSERT INTO {table} (id, ck, n, v) VALUES ({number}, 0, {number}, 'x')")
            if number % 30 == 10:
                await eventually(lambda: sidecar_of(runtime).pid not in killed, timeout_s=30)
                killed.add(sidecar_of(runtime).pid)
                os.kill(sidecar_of(runtime).pid, signal.SIGKILL)
        await converged(session, table, kafka_bootstrap, source)
        assert not task.done() and sidecar_of(runtime).starts == 4


async def test_columns_added_live_arrive(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    table = await make_table(session, keyspace)
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
    async with running(source, kafka_bootstrap) as (runtime, task):
        await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=60)
        await session.execute(f"ALTER TABLE {table} ADD added text")
        await session.execute(f"INSERT INTO {table} (id, ck, added) VALUES (1, 1, 'there')")

        async def arrived() -> bool:
            found = await mutations(kafka_bootstrap, source)
            return any("added" in event.mutation.cells for event in found)

        await eventually(arrived, timeout_s=60, what="the new column arrives")
        assert not task.done()


async def test_a_table_without_a_change_log_is_refused_with_what_mends_it(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    await session.execute(f"CREATE TABLE {keyspace}.t (id int PRIMARY KEY)")
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
    with pytest.raises(EnvironmentProblem, match=f'ALTER TABLE "{keyspace}"."t" WITH cdc = true;'):
        async with running(source, kafka_bootstrap) as (_, task):
            await task
    findings = await source.source().check()
    assert [one.mend for one in findings if one.severity == "unfit"] == [enable_cdc(keyspace, "t")]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("ALTER TABLE {} WITH cdc = false", "was switched off"),
        ("DROP TABLE {}", "dropped while it was captured"),
        ("DROP KEYSPACE {}", "There is no keyspace .* dropped while it was captured"),
    ],
)
async def test_what_ends_the_stream_is_told(
    statement: str,
    words: str,
    cassandra_server: CassandraServer,
    session: CqlSession,
    keyspace: str,
    kafka_bootstrap: str,
    tmp_path: Path,
) -> None:
    table = await make_table(session, keyspace)
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
    async with running(source, kafka_bootstrap) as (runtime, task):
        await eventually(lambda: sidecar_of(runtime) is not None, timeout_s=30)
        await session.execute(statement.format(keyspace if "KEYSPACE" in statement else table))
        with pytest.raises(EnvironmentProblem, match=words):
            await asyncio.wait_for(task, 60)


async def test_a_table_made_anew_is_not_taken_for_the_old_one(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, tmp_path: Path
) -> None:
    table = await make_table(session, keyspace)
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, sidecar=None)
    _, positions = await read_until(source.source(), None)
    await session.execute(f"DROP TABLE {table}")
    await make_table(session, keyspace)
    (finding,) = await source.source().check_position(positions[-1])
    assert finding.severity == "unfit" and "made anew" in finding.message
    with pytest.raises(PositionLost, match="made anew"):
        await read_until(source.source(), positions[-1])


async def test_a_second_process_is_refused_and_a_request_reads_a_table_again(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    await make_table(session, keyspace, rows=5)
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
    async with running(source, kafka_bootstrap) as (runtime, task):
        await eventually(lambda: runtime.statistics.records_delivered >= 5, timeout_s=30)
        with pytest.raises(EnvironmentProblem, match="one at a time"):
            async with running(source, kafka_bootstrap) as (_, second):
                await second
        await source.source().request_snapshot(f"{keyspace}.t")
        await eventually(lambda: runtime.statistics.records_delivered >= 10, timeout_s=30)
        assert not task.done()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"port": 1}, "can't be reached"),
        ({"local_datacenter": "elsewhere"}, "has no datacenter 'elsewhere'"),
        ({"keyspace": "no_such_keyspace"}, "There is no keyspace no_such_keyspace"),
        ({"tables": ["tt"]}, "Did you mean t?"),
    ],
)
async def test_bad_input_is_one_clear_message(
    changed: dict[str, Any],
    words: str,
    cassandra_server: CassandraServer,
    session: CqlSession,
    keyspace: str,
    kafka_bootstrap: str,
    tmp_path: Path,
) -> None:
    await make_table(session, keyspace)
    source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
    other = source.config.model_copy(update=changed)
    with pytest.raises(EnvironmentProblem, match=words) as told:
        async with running(type(source)(source.plugin, other), kafka_bootstrap) as (_, task):
            await task
    assert "\n" not in str(told.value) and len(str(told.value)) < 500
