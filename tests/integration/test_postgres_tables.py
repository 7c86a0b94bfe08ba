"""Tables that are renamed, made anew, hidden or inherited: the connector goes on exactly, or says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg
import pytest
from pydantic import SecretStr

from connectors.conformance.memory import MemoryPositions, MemorySink
from connectors.conformance.running import Running
from connectors.postgres import slot as slots
from connectors.postgres.checks import check_postgres
from connectors.postgres.source import PostgresSource
from connectors.postgres.watermark import ChunkReader
from connectors.source import SourceRecord
from pipeline.core.errors import EnvironmentProblem, PositionLost
from tests.integration.test_postgres_publication import refusal, run_until_it_streams
from tests.integration.test_postgres_source_changes import PLACEHOLDER, events, heartbeats, settled
from tests.support.postgres_source import PostgresHarness

pytestmark = pytest.mark.servers


async def test_a_renamed_table_is_not_passed_over(postgres_dsn: str) -> None:
    async with PostgresHarness(postgres_dsn) as harness:
        running = Running(harness)
        task = asyncio.create_task(running.runtime.run())
        await running.until(lambda: heartbeats(running.sink), "the stream")
        await harness.write("INSERT INTO t VALUES (1, 'a'); ALTER TABLE t RENAME TO t2")
        await harness.write("INSERT INTO t2 VALUES (2, 'b')")
        with pytest.raises(PositionLost, match=r"public\.t was renamed to public\.t2"):
            await asyncio.wait_for(task, timeout=30)


async def test_a_table_that_was_made_anew_is_read_anew(postgres_dsn: str) -> None:
    sink, positions = MemorySink(), MemoryPositions()
    async with PostgresHarness(postgres_dsn) as harness:
        await harness.write("CREATE PUBLICATION ctxpipe_src FOR ALL TABLES WITH (publish_via_partition_root = true)")
        await harness.write("INSERT INTO t VALUES (1, 'old'), (2, 'old')")
        await run_until_it_streams(harness, sink, positions)
        await harness.write(
            "DROP TABLE t; CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t VALUES (2, 'new')"
        )
        async with Running(harness, sink, positions) as running:
            await running.until(lambda: sink.fold() == {'{"id":2}': {"id": 2, "v": "new"}}, "the new table's rows")


async def test_a_key_changes_and_then_its_unsent_column_is_renamed(postgres_dsn: str) -> None:
    """Its value can't be asked for any more: consumers have it in the row under the old key."""
    sink, positions = MemorySink(), MemoryPositions()
    async with PostgresHarness(postgres_dsn) as harness:
        await harness.write("ALTER TABLE t ALTER v SET STORAGE EXTERNAL; INSERT INTO t VALUES (1, repeat('x', 10000))")
        await run_until_it_streams(harness, sink, positions)
        await harness.write("UPDATE t SET id = 2")
        await harness.write("ALTER TABLE t RENAME v TO w")
        async with Running(harness, sink, positions) as running:
            await harness.write("INSERT INTO t VALUES (3, 'on it goes')")
            found = [event for event in await settled(harness, running) if event[0] == "c"]
            assert found[0] == ("c", {"id": 2}, None, {"id": 2, "v": PLACEHOLDER}) and found[1][1] == {"id": 3}


async def test_a_deferrable_key_is_none(postgres_dsn: str) -> None:
    ddl = "CREATE TABLE {table} (id int PRIMARY KEY DEFERRABLE, v text)"
    async with PostgresHarness(postgres_dsn, ddl) as harness:
        assert [one.subject for one in await check_postgres(harness.config) if one.severity == "unfit"] == ["public.t"]
        error = await refusal(harness)
        assert isinstance(error, EnvironmentProblem) and "deferrable" in str(error)
        await harness.write("INSERT INTO t VALUES (1, 'a'); UPDATE t SET v = 'b'")


@pytest.fixture
def limited_role(postgres_dsn: str) -> Iterator[str]:
    """A login that may replicate and is no superuser."""
    name = postgres_dsn.rsplit("/", 1)[1] + "_role"
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN REPLICATION PASSWORD 'secret'")  # type: ignore[arg-type]
        yield name
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")  # type: ignore[arg-type]


async def test_rows_hidden_by_a_policy_stop_the_snapshot(postgres_dsn: str, limited_role: str) -> None:
    """The stream shows them: a snapshot without them would be a mixture."""
    async with PostgresHarness(postgres_dsn) as harness:
        where = psycopg.conninfo.conninfo_to_dict(postgres_dsn)
        address = f"postgresql://{limited_role}:secret@{where['host']}:{where['port']}/{where['dbname']}"
        harness.config = harness.config.model_copy(update={"dsn": SecretStr(address)})
        await harness.write(f"GRANT SELECT ON t TO {limited_role}; INSERT INTO t VALUES (1, 'seen'), (2, 'hidden')")
        found = {one.subject: one for one in await check_postgres(harness.config) if one.severity == "unfit"}
        assert "GRANT CREATE ON DATABASE" in found["publication ctxpipe_src"].mend
        await harness.write("ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (id = 1)")
        await harness.write("CREATE PUBLICATION ctxpipe_src FOR TABLE t")
        unfit = [one for one in await check_postgres(harness.config) if one.severity == "unfit"]
        assert [one.subject for one in unfit] == ["public.t"] and unfit[0].mend.endswith("BYPASSRLS;")
        sink, positions = MemorySink(), MemoryPositions()
        error = await refusal(harness, positions)
        assert isinstance(error, EnvironmentProblem) and "row-level security" in str(error)
        await harness.write(unfit[0].mend)
        async with Running(harness, sink, positions) as running:
            await running.until(lambda: len(sink.fold()) == 2, "both rows")


async def test_what_inherits_is_another_table(postgres_dsn: str) -> None:
    async with PostgresHarness(postgres_dsn) as harness:
        await harness.write("CREATE TABLE kid (PRIMARY KEY (id)) INHERITS (t)")
        await harness.write(
            "INSERT INTO t VALUES (1, 'own'); INSERT INTO kid VALUES (1, 'of a child'), (2, 'of a child')"
        )
        warned = [one for one in await check_postgres(harness.config) if one.severity == "warning"]
        assert any("inherit" in one.message for one in warned)
        async with Running(harness) as running:
            await running.until(lambda: heartbeats(running.sink), "the stream")
            count = len(events(running.sink))
            await harness.source().request_snapshot("public.t")
            await running.until(lambda: len(events(running.sink)) > count, "the chunk")
            assert running.sink.fold() == {'{"id":1}': {"id": 1, "v": "own"}}


async def test_a_delete_keeps_a_smaller_form_of_a_large_row(postgres_dsn: str) -> None:
    ddl = "CREATE TABLE {table} (id int PRIMARY KEY, v text); ALTER TABLE {table} REPLICA IDENTITY FULL"
    async with PostgresHarness(postgres_dsn, ddl) as harness, Running(harness) as running:
        await running.until(lambda: heartbeats(running.sink), "the stream")
        await harness.write("INSERT INTO t VALUES (1, 'a'); UPDATE t SET v = repeat('x', 100000); DELETE FROM t")
        await settled(harness, running)
        smaller = [msgspec.json.decode(record.smaller) for record in running.sink.records if record.smaller]
        assert [(one["op"], one["before"]) for one in smaller] == [("u", None), ("d", {"id": 1})]
        assert len(smaller[0]["after"]["v"]) == 100_000 and smaller[1]["after"] is None


REWRITE = "ALTER TABLE t ALTER v TYPE text USING v || '!'"
"""Rows written anew, which looks like an empty table to an older snapshot, and of which the stream tells nothing."""


async def test_a_table_written_anew_while_its_snapshot_begins(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with PostgresHarness(postgres_dsn) as harness:
        await harness.write("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        create_slot = slots.create_slot

        async def and_then_alter(*arguments: Any) -> tuple[int, str]:
            made = await create_slot(*arguments)
            await harness.write(REWRITE)
            return made

        monkeypatch.setattr(slots, "create_slot", and_then_alter)
        async with Running(harness) as running:
            await running.until(lambda: len(running.sink.fold()) == 2, "both rows")


async def test_a_table_is_not_written_anew_while_a_chunk_is_read(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with PostgresHarness(postgres_dsn) as harness, Running(harness) as running:
        await harness.write("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        await running.until(lambda: len(running.sink.fold()) == 2, "both rows")
        greatest_key, tasks = ChunkReader._greatest_key, []

        async def after_alter(*arguments: Any) -> Any:
            tasks.append(asyncio.create_task(harness.write(REWRITE)))
            await asyncio.sleep(0.5)
            return await greatest_key(*arguments)

        monkeypatch.setattr(ChunkReader, "_greatest_key", after_alter)
        count = len(incremental(running.sink))
        await harness.source().request_snapshot("public.t")
        await running.until(lambda: tasks and not running.positions.saved[-1]["pending"], "the chunk was read")
        await running.until(lambda: len(incremental(running.sink)) == count + 2, "its rows")
        await asyncio.gather(*tasks)


async def test_a_table_that_is_altered_between_description_and_chunk_is_described_again(postgres_dsn: str) -> None:
    async with PostgresHarness(postgres_dsn) as harness, Running(harness) as running:
        await harness.write("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        await running.until(lambda: len(running.sink.fold()) == 2, "both rows")
        capture, left = PostgresSource._capture, ["ALTER TABLE t RENAME v TO w"]

        async def before_alter(*arguments: Any) -> Any:
            captured = await capture(*arguments)
            if left:
                await harness.write(left.pop())
            return captured

        running.sources[-1]._snapshots._describe = before_alter.__get__(running.sources[-1])  # type: ignore[attr-defined]
        await harness.source().request_snapshot("public.t")
        await running.until(lambda: len(incremental(running.sink)) == 2 and not left, "the rows of the chunk")
        assert running.sink.fold()['{"id":1}'] == {"id": 1, "w": "a"}


def incremental(sink: MemorySink) -> list[SourceRecord]:
    return [record for record in sink.records if b'"snapshot":"incremental"' in (record.value or b"")]
