"""What the Postgres source makes of each kind of change, on a real server, into a sink in memory."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest

from connectors.conformance.memory import MemorySink
from connectors.conformance.running import Running
from connectors.source import EVERY_PARTITION, SourceRecord
from pipeline.core.errors import EnvironmentProblem
from tests.support.eventually import eventually
from tests.support.postgres_source import PostgresHarness

pytestmark = pytest.mark.servers

PLACEHOLDER = "__debezium_unavailable_value"
Start = Callable[..., AbstractAsyncContextManager[tuple[PostgresHarness, Running]]]


@pytest.fixture
def start(postgres_dsn: str) -> Start:
    """start(ddl, **settings) → a harness and a runtime that has reached the stream."""

    @asynccontextmanager
    async def starting(
        ddl: str = "", before: str = "", **settings: Any
    ) -> AsyncIterator[tuple[PostgresHarness, Running]]:
        options = {"ddl": ddl} if ddl else {}
        async with PostgresHarness(postgres_dsn, **options, **settings) as harness:
            if before:
                await harness.write(before)
            async with Running(harness) as running:
                await running.until(lambda: heartbeats(running.sink), "the first heartbeat")
                yield harness, running

    return starting


def heartbeats(sink: MemorySink) -> list[SourceRecord]:
    return [record for record in sink.records if record.key == b'{"__ctxpipe":"heartbeat"}']


def events(sink: MemorySink) -> list[tuple[str, Any, Any, Any]]:
    """(operation, key, before, after) without heartbeats; a tombstone is ("tombstone", key, None, None)."""
    found = []
    for record in sink.records:
        if record in heartbeats(sink):
            continue
        key = msgspec.json.decode(record.key)
        if record.value is None:
            found.append(("tombstone", key, None, None))
        else:
            event = msgspec.json.decode(record.value)
            found.append((event["op"], key, event.get("before"), event.get("after")))
    return found


async def settled(harness: PostgresHarness, running: Running) -> list[tuple[str, Any, Any, Any]]:
    """The events so far, after everything written until now has come through."""
    count = len(heartbeats(running.sink))
    await running.until(lambda: len(heartbeats(running.sink)) > count + 1, "two more heartbeats")
    return events(running.sink)


async def test_insert_update_delete(start: Start) -> None:
    async with start() as (harness, running):
        await harness.write("INSERT INTO {table} VALUES (1, 'a'); UPDATE {table} SET v = NULL; DELETE FROM {table}")
        assert await settled(harness, running) == [
            ("c", {"id": 1}, None, {"id": 1, "v": "a"}),
            ("u", {"id": 1}, None, {"id": 1, "v": None}),
            ("d", {"id": 1}, {"id": 1}, None),
            ("tombstone", {"id": 1}, None, None),
        ]
        source = msgspec.json.decode(running.sink.records[-1].value or b"")["source"]
        assert source["name"] == "src" and source["connector"] == "postgresql"


async def test_key_change_is_three_records_with_headers(start: Start) -> None:
    ddl = "CREATE TABLE {table} (a int, b text, v text, PRIMARY KEY (a, b))"
    async with start(ddl) as (harness, running):
        await harness.write("INSERT INTO {table} VALUES (1, 'x', 'v'); UPDATE {table} SET b = 'y'")
        found = (await settled(harness, running))[1:]
        assert found == [
            ("d", {"a": 1, "b": "x"}, {"a": 1, "b": "x"}, None),
            ("tombstone", {"a": 1, "b": "x"}, None, None),
            ("c", {"a": 1, "b": "y"}, None, {"a": 1, "b": "y", "v": "v"}),
        ]
        headers = [record.headers for record in running.sink.records if record.headers]
        new, old = (("__debezium.newkey", b'{"a":1,"b":"y"}'),), (("__debezium.oldkey", b'{"a":1,"b":"x"}'),)
        assert headers == [new, new, old]


BIG = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)"


async def test_unchanged_toast(start: Start) -> None:
    async with start("CREATE TABLE {table} (id int PRIMARY KEY, n int, big text)") as (harness, running):
        await harness.write("INSERT INTO {table} VALUES (1, 0, " + BIG + "); UPDATE {table} SET n = 1")
        big = (await harness.query("SELECT big FROM t"))[0][0]
        await harness.write(
            "BEGIN; UPDATE {table} SET id = 2; ALTER TABLE {table} REPLICA IDENTITY FULL;"
            "UPDATE {table} SET n = 2; UPDATE {table} SET id = 3; DELETE FROM {table}; COMMIT"
        )
        found = [event for event in await settled(harness, running) if event[0] != "tombstone"]
        assert found == [
            ("c", {"id": 1}, None, {"id": 1, "n": 0, "big": big}),
            ("u", {"id": 1}, None, {"id": 1, "n": 1, "big": PLACEHOLDER}),
            ("d", {"id": 1}, {"id": 1}, None),
            ("c", {"id": 2}, None, {"id": 2, "n": 1, "big": PLACEHOLDER}),
            ("u", {"id": 2}, {"id": 2, "n": 1, "big": big}, {"id": 2, "n": 2, "big": big}),
            ("d", {"id": 2}, {"id": 2, "n": 2, "big": big}, None),
            ("c", {"id": 3}, None, {"id": 3, "n": 2, "big": big}),
            ("d", {"id": 3}, {"id": 3, "n": 2, "big": big}, None),
        ], "the row was gone when its big column was asked for again: it is the one under the old key"


async def test_toast_is_read_again_after_a_key_change(start: Start) -> None:
    async with start("CREATE TABLE {table} (id int PRIMARY KEY, n int, big text)") as (harness, running):
        await harness.write("INSERT INTO {table} VALUES (1, 0, " + BIG + "); UPDATE {table} SET id = 2")
        big = (await harness.query("SELECT big FROM t"))[0][0]
        assert (await settled(harness, running))[-1] == ("c", {"id": 2}, None, {"id": 2, "n": 0, "big": big})


async def test_replica_identity_index(start: Start) -> None:
    ddl = (
        "CREATE TABLE {table} (v text, code text NOT NULL UNIQUE);"
        "ALTER TABLE {table} REPLICA IDENTITY USING INDEX t_code_key"
    )
    async with start(ddl, "INSERT INTO {table} VALUES ('s', 'k0')") as (harness, running):
        await harness.write("INSERT INTO {table} VALUES ('a', 'k1'); DELETE FROM {table} WHERE code = 'k1'")
        assert await settled(harness, running) == [
            ("r", {"code": "k0"}, None, {"v": "s", "code": "k0"}),
            ("c", {"code": "k1"}, None, {"v": "a", "code": "k1"}),
            ("d", {"code": "k1"}, {"code": "k1"}, None),
            ("tombstone", {"code": "k1"}, None, None),
        ]


async def test_truncate_and_messages(start: Start) -> None:
    async with start() as (harness, running):
        await harness.write(
            "INSERT INTO {table} VALUES (1, 'a'); TRUNCATE {table}; INSERT INTO {table} VALUES (2, 'b')"
        )
        await harness.query("SELECT pg_logical_emit_message(true, 'app', 'hello')")
        found = await settled(harness, running)
        assert [(event[0], event[1]) for event in found] == [
            ("c", {"id": 1}), ("t", {"__ctxpipe": "truncate"}), ("c", {"id": 2}), ("m", {"prefix": "app"}),
        ]  # fmt: skip
        assert next(r for r in running.sink.records if b"truncate" in r.key).partition == 0
        message = next(r for r in running.sink.records if r.topic == "src.message")
        content = msgspec.json.decode(message.value or b"")["message"]
        assert content == {"prefix": "app", "content": base64.b64encode(b"hello").decode()}
        assert running.sink.fold() == await harness.rows()


async def test_heartbeats_say_what_was_committed_before(start: Start) -> None:
    async with start() as (harness, running):
        await harness.write("INSERT INTO {table} VALUES (1, 'a')")
        after = (await harness.query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"))[0][0]

        def first_later() -> Any:
            times = [msgspec.json.decode(r.value or b"")["source"]["ts_us"] for r in heartbeats(running.sink)]
            return next((place for place, time_us in enumerate(times) if time_us > after), None)

        await running.until(lambda: first_later() is not None, "a heartbeat written after the commit")
        beat = heartbeats(running.sink)[first_later()]
        insert = next(r for r in running.sink.records if r.key == b'{"id":1}')
        assert running.sink.records.index(insert) < running.sink.records.index(beat)
        assert beat.partition == EVERY_PARTITION and beat.topic == "src.public.t"


async def test_alter_table_while_streaming(start: Start) -> None:
    async with start() as (harness, running):
        await harness.write("INSERT INTO {table} VALUES (1, 'a')")
        await harness.write(
            "ALTER TABLE {table} ADD COLUMN extra jsonb; INSERT INTO {table} VALUES (2, 'b', '{\"x\": 1}')"
        )
        await harness.write("ALTER TABLE {table} RENAME COLUMN v TO name; INSERT INTO {table} VALUES (3, 'c', NULL)")
        await harness.write("ALTER TABLE {table} DROP COLUMN extra; INSERT INTO {table} VALUES (4, 'd')")
        await harness.write("CREATE TYPE mood AS ENUM ('glad'); ALTER TABLE {table} ADD COLUMN m mood[]")
        await harness.write("INSERT INTO {table} VALUES (5, 'e', '{glad}')")
        assert [event[3] for event in await settled(harness, running)] == [
            {"id": 1, "v": "a"},
            {"id": 2, "v": "b", "extra": '{"x": 1}'},
            {"id": 3, "name": "c", "extra": None},
            {"id": 4, "name": "d"},
            {"id": 5, "name": "e", "m": ["glad"]},
        ]


async def test_partitioned_table_comes_under_its_root(start: Start) -> None:
    ddl = (
        "CREATE TABLE {table} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF {table} FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE high (v text, id int NOT NULL);"
        "ALTER TABLE {table} ATTACH PARTITION high FOR VALUES FROM (100) TO (200)"
    )
    async with start(ddl, "INSERT INTO {table} VALUES (1, 'a'), (101, 'b')") as (harness, running):
        await harness.write("INSERT INTO {table} VALUES (2, 'c'), (102, 'd'); UPDATE {table} SET id = 150 WHERE id = 2")
        await running.until_equal()
        topics = {r.topic for r in running.sink.records if r.topic != "src.message"}
        assert topics == {"src.public.t"}
        assert await harness.rows() == running.sink.fold()


async def test_row_filter_holds_for_snapshot_and_stream(start: Start) -> None:
    before = "INSERT INTO {table} VALUES (1, 'no'), (11, 'yes')"
    async with start(before=before, row_filters={"public.t": "id > 10"}) as (harness, running):
        await harness.write(
            "INSERT INTO {table} VALUES (2, 'no'), (12, 'yes'); UPDATE {table} SET id = 3 WHERE id = 12"
        )
        await settled(harness, running)
        assert running.sink.fold() == {'{"id":11}': {"id": 11, "v": "yes"}}


async def test_table_without_a_key_is_refused_before_it_is_published(postgres_dsn: str) -> None:
    async with PostgresHarness(postgres_dsn, "CREATE TABLE {table} (id int, v text)") as harness:
        running = Running(harness)
        with pytest.raises(EnvironmentProblem, match="ADD PRIMARY KEY"):
            await asyncio.wait_for(running.runtime.run(), timeout=30)
        assert await harness.query("SELECT * FROM pg_publication") == []
        assert (
            await harness.query("SELECT slot_name FROM pg_replication_slots WHERE slot_name = %s", harness.config.slot)
            == []
        )


ALL_TYPES = """
CREATE EXTENSION IF NOT EXISTS hstore; CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN price AS numeric(10, 2); CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE TABLE {table} (id int PRIMARY KEY, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, b bool, t text, c char(5),
  j json, jb jsonb, ba bytea, d date, ts timestamp, tz timestamptz, tm time(3), tmz timetz, iv interval, u uuid,
  ia int[], ta text[], tza timestamptz[], m mood, ma mood[], p pair, pr price, po positive, h hstore, b1 bit, b3 bit(3),
  vb varbit, pt point, ip inet, r int4range, x xml, mo money, g int GENERATED ALWAYS AS (id + 1) STORED)
"""
ROWS = [
    "(1)",
    """(2, -32768, 9223372036854775807, 'NaN', '-Infinity', 'NaN', false, E'tab\\t"q" \\\\ \\n é \U0001f600', 'ab',
     '{"a":  1}', '{"a":  1}', '\\x00ff', 'infinity', '-infinity', 'infinity', '24:00', '04:05:06+02',
     '1 year -2 days 3.5s', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{1,NULL}', '{"",NULL,"a,\\"b"}',
     '{2026-01-02 03:04:05+02}',
     'sad', '{glad,sad}', '(1,"x y")', 1.5, 7, 'a=>1,b=>NULL', B'1', B'101', B'1', '(1.5,-2)', '10.0.0.1/8', '[1,5)',
     '<a/>', '12.34')""",
    """(3, 0, 0, 0.1, 1e-300, 1e30, true, '', '', '[]', '[]', '', '0044-03-15 BC', '2026-01-02 03:04:05.6',
     '0044-03-15 00:00:00+00 BC', '00:00:00.125', '00:00+00', '0', '00000000-0000-0000-0000-000000000000', '{}',
     '{{a,b},{c,d}}', '{}', 'glad', '{}', '(,)', 0, 1, '', B'0', B'000', B'', '(0,0)', '::1', 'empty', NULL, '0')""",
]


async def test_snapshot_chunk_and_stream_give_the_same_values(start: Start) -> None:
    inserts = "; ".join(f"INSERT INTO {{table}} VALUES {row}" for row in ROWS)
    async with start(ALL_TYPES, inserts) as (harness, running):
        await running.until(lambda: len(running.sink.fold()) == 3, "the snapshot")
        snapshot = running.sink.fold()
        await harness.write("DELETE FROM {table}; " + inserts)
        await settled(harness, running)
        streamed = running.sink.fold()
        assert streamed == snapshot
        await harness.source().request_snapshot("public.t")
        count = len(events(running.sink))
        await running.until(lambda: len(events(running.sink)) >= count + 3, "the rows of the chunk")
        chunk = events(running.sink)[count:]
        assert {event[0] for event in chunk} == {"r"} and [event[3] for event in chunk] == list(snapshot.values())
    row = snapshot['{"id":2}']
    assert row["tza"] == ["2026-01-02T01:04:05Z"] and row["iv"] == "P1Y-2DT3.5S" and row["b1"] is True
    assert row["h"] == {"a": "1", "b": None} and row["pr"] == "1.50" and row["ta"] == ["", None, 'a,"b']
    assert "g" not in row and snapshot['{"id":3}']["tz"] == "0044-03-15T00:00:00Z BC"


async def test_table_snapshot_beside_changes_never_goes_backwards(start: Start) -> None:
    before = "INSERT INTO {table} SELECT i, 'row' FROM generate_series(1, 1500) i"
    async with start(before=before, chunk_rows=50) as (harness, running):
        await running.until_equal()
        await harness.source().request_snapshot("public.t")
        count = len(running.sink.records)
        for number in range(80):
            await harness.write(f"UPDATE {{table}} SET v = 'changed {number}' WHERE id % 40 = {number % 40}")
            await harness.write(f"DELETE FROM {{table}} WHERE id = {number * 17 + 3}")
        position = running.positions.saved[-1]
        await running.until(lambda: not running.positions.saved[-1]["pending"], "the snapshot's end")
        await running.until_equal()
        latest: dict[bytes, Any] = {}
        for record in running.sink.records[count:]:  # compaction keeps the last record: it must be the newest
            latest[record.key] = record.value and msgspec.json.decode(record.value).get("after")
        table = await harness.rows()
        assert {key.decode(): row for key, row in latest.items() if row} == table
        assert position["pending"], "the changes were written while the snapshot ran"


async def test_new_table_and_interrupted_snapshot_are_finished_beside_the_stream(postgres_dsn: str) -> None:
    async with PostgresHarness(postgres_dsn, chunk_rows=10) as harness:
        async with Running(harness) as running:
            await running.until(lambda: heartbeats(running.sink), "the stream")
        await harness.write("CREATE TABLE later (id bigint PRIMARY KEY, v text)")
        await harness.write("INSERT INTO later SELECT i, 'x' FROM generate_series(1, 205) i")
        wider = PostgresHarness(postgres_dsn, chunk_rows=10, tables=["public.t", "public.later"])
        sink, positions = MemorySink(), running.positions
        async with Running(wider, sink, positions) as again:
            await again.until(lambda: [e for e in events(sink) if e[0] == "r"], "some chunk")
            await again.crash()
        assert positions.saved[-1]["pending"] or len(events(sink)) < 205
        async with Running(wider, sink, positions) as again:
            await again.until(lambda: len(sink.fold()) == 205, "all rows")
            await again.until(lambda: positions.saved[-1]["pending"] == {}, "the snapshot's end")


async def test_large_transaction_is_streamed_and_spilled(start: Start, postgres_dsn: str) -> None:
    settings = {"transaction_memory_bytes_max": 1 << 16}
    database = postgres_dsn.rsplit("/", 1)[-1].split("?")[0]
    async with PostgresHarness(postgres_dsn, "SELECT 1") as setup:
        await setup.query(f"ALTER DATABASE {database} SET logical_decoding_work_mem = '64kB'")
    async with start(**settings) as (harness, running):
        await harness.write(
            "BEGIN; INSERT INTO {table} SELECT i, repeat('x', 200) FROM generate_series(1, 4000) i; SAVEPOINT s;"
            "INSERT INTO {table} SELECT i, 'rolled back' FROM generate_series(5001, 9000) i; ROLLBACK TO s;"
            "UPDATE {table} SET v = 'second' WHERE id % 2 = 0; COMMIT"
        )
        await running.until_equal()
        assert not [r for r in running.sink.records if r.value and b"rolled back" in r.value]
        streamed = await harness.query(
            "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = %s", harness.config.slot
        )
        await eventually(lambda: harness.query(
            "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = %s", harness.config.slot
        ), lambda rows: rows[0][0] >= 1, what=f"a streamed transaction {streamed}")  # fmt: skip


async def test_blocked_sink_keeps_the_connection_and_the_memory(start: Start, postgres_dsn: str) -> None:
    database = postgres_dsn.rsplit("/", 1)[-1].split("?")[0]
    async with PostgresHarness(postgres_dsn, "SELECT 1") as setup:
        await setup.query(f"ALTER DATABASE {database} SET wal_sender_timeout = '1s'")
    async with start(queue_bytes_max=1 << 16) as (harness, running):
        query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"
        pid = await harness.query(query, harness.config.slot)
        running.sink.hold()
        await harness.write("INSERT INTO {table} SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i")
        stream = running.sources[-1]._stream  # type: ignore[attr-defined]
        await running.until(lambda: stream.queue_bytes >= 1 << 16, "the queue is full")
        count = stream.feedback_count
        await running.until(lambda: stream.feedback_count >= count + 6, "feedback for twice the timeout")
        assert stream.queue_bytes < (1 << 16) + 20_000
        running.sink.release()
        await running.until_equal()
        assert await harness.query(query, harness.config.slot) == pid and len(running.sources) == 1
