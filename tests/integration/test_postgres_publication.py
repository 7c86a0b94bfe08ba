"""What a publication may leave out, now or for a while: nothing is missing without a word."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from connectors.conformance.memory import MemoryPositions, MemorySink
from connectors.conformance.running import Running
from connectors.postgres.checks import check_postgres
from pipeline.core.errors import CtxpipeError, EnvironmentProblem, PositionLost
from tests.integration.test_postgres_source_changes import heartbeats
from tests.support.postgres_source import PostgresHarness

pytestmark = pytest.mark.servers

BOTH = ["public.t", "public.u"]
DDL = "CREATE TABLE {table} (id bigint PRIMARY KEY, v text); CREATE TABLE u (id bigint PRIMARY KEY, v text)"
PARTITIONED = """
CREATE TABLE {table} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE first PARTITION OF t FOR VALUES FROM (0) TO (100)
"""


def capture(harness: PostgresHarness, tables: list[str]) -> None:
    harness.config = harness.config.model_copy(update={"tables": tables})


async def run_until_it_streams(harness: PostgresHarness, sink: MemorySink, positions: MemoryPositions) -> None:
    seen = len(heartbeats(sink))
    async with Running(harness, sink, positions) as running:
        await running.until(lambda: len(heartbeats(sink)) > seen + 1, "heartbeats")


async def refusal(harness: PostgresHarness, positions: MemoryPositions | None = None) -> CtxpipeError:
    with pytest.raises(CtxpipeError) as caught:
        await asyncio.wait_for(Running(harness, positions=positions).runtime.run(), timeout=30)
    return caught.value


async def test_a_table_is_added_while_somebody_writes_to_it(postgres_dsn: str) -> None:
    """The row comes from a time when the table was not published, and is committed after the table is: a chunk that
    was read in between does not show it either."""
    sink, positions = MemorySink(), MemoryPositions()
    async with PostgresHarness(postgres_dsn, DDL) as harness:
        await run_until_it_streams(harness, sink, positions)
        writer = await psycopg.AsyncConnection.connect(postgres_dsn)
        await writer.execute("INSERT INTO u VALUES (1, 'before it is published')")
        capture(harness, BOTH)
        async with Running(harness, sink, positions) as running:
            await running.until(lambda: positions.saved[-1]["pending"], "the table is to be read")
            await asyncio.sleep(0.5)  # time to read it, for a source that would
            await writer.commit()
            await running.until(lambda: not positions.saved[-1]["pending"], "it was read")
            assert sink.fold()['{"id":1}']["v"] == "before it is published"
        await writer.close()


async def test_what_was_deleted_while_a_table_was_not_captured_vanishes(postgres_dsn: str) -> None:
    sink, positions = MemorySink(), MemoryPositions()
    async with PostgresHarness(postgres_dsn, DDL, tables=BOTH) as harness:
        await harness.write("INSERT INTO u VALUES (1, 'goes'), (2, 'stays')")
        await run_until_it_streams(harness, sink, positions)
        assert len(sink.fold()) == 2
        capture(harness, BOTH[:1])
        await run_until_it_streams(harness, sink, positions)
        await harness.write("DELETE FROM u WHERE id = 1")
        await run_until_it_streams(harness, sink, positions)
        capture(harness, BOTH)
        async with Running(harness, sink, positions) as running:
            await running.until(lambda: list(sink.fold()) == ['{"id":2}'], "only the row that is left")


@pytest.mark.parametrize(
    ("ddl", "publication", "words"),
    [
        (DDL, "FOR TABLE t WITH (publish = 'insert, update')", "publish = 'insert, update, delete, truncate'"),
        (PARTITIONED, "FOR TABLE t", "publish_via_partition_root = true"),
    ],
)
async def test_a_publication_that_leaves_changes_out(postgres_dsn: str, ddl: str, publication: str, words: str) -> None:
    async with PostgresHarness(postgres_dsn, ddl) as harness:
        await harness.write(f"CREATE PUBLICATION ctxpipe_src {publication}")
        found = [one for one in await check_postgres(harness.config) if one.severity == "unfit"]
        assert [one.subject for one in found] == ["publication ctxpipe_src"] and words in found[0].mend
        error = await refusal(harness)
        assert isinstance(error, EnvironmentProblem) and found[0].mend in str(error)
        await harness.write(found[0].mend)
        await run_until_it_streams(harness, MemorySink(), MemoryPositions())


async def test_a_row_filter_that_would_stop_the_owners_writes_is_refused(postgres_dsn: str) -> None:
    settings: dict[str, Any] = {"row_filters": {"public.t": "v <> 'hidden'"}}
    async with PostgresHarness(postgres_dsn, **settings) as harness:
        error = await refusal(harness)
        assert isinstance(error, EnvironmentProblem) and "REPLICA IDENTITY FULL" in str(error)
        await harness.write("INSERT INTO t VALUES (1, 'a'); UPDATE t SET v = 'b'; DELETE FROM t")
        await harness.write("ALTER TABLE t REPLICA IDENTITY FULL")
        await run_until_it_streams(harness, MemorySink(), MemoryPositions())


async def test_a_column_list_without_the_key_is_refused(postgres_dsn: str) -> None:
    async with PostgresHarness(postgres_dsn) as harness:
        await harness.write("CREATE PUBLICATION ctxpipe_src FOR TABLE t (v)")
        error = await refusal(harness)
        assert isinstance(error, EnvironmentProblem) and "column list must hold id" in str(error)


async def test_a_publication_that_was_dropped_says_how_to_go_on(postgres_dsn: str) -> None:
    positions = MemoryPositions()
    async with PostgresHarness(postgres_dsn) as harness:
        await run_until_it_streams(harness, MemorySink(), positions)
        await harness.write("DROP PUBLICATION ctxpipe_src")
        await harness.write("INSERT INTO t VALUES (1, 'while there was none')")
        error = await refusal(harness, positions)
        assert isinstance(error, PositionLost) and "--reset" in str(error)
