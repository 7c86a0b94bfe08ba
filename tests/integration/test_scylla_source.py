"""The Scylla source on a real Cassandra whose logs are written as Scylla writes them: positions, late writes,
generations, several processes, live changes of the schema, and what is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from connectors.cql.session import CqlServer
from connectors.scylla.checks import check_position, check_scylla
from connectors.scylla.config import LOG_SUFFIX, Shard
from connectors.scylla.log_statements import Overwrite, Write
from connectors.scylla.log_tables import forget_generation, log_ddl, value_columns
from connectors.scylla.source import ScyllaSource
from connectors.source import Batch
from deploy.local.cassandra import CassandraServer
from pipeline.core.clock import SystemClock
from pipeline.core.errors import EnvironmentProblem, Fatal, PositionLost, Retryable
from tests.support.scylla import (
    CONFIDENCE_S,
    ScyllaTable,
    beaten,
    changes,
    last_position,
    now_us,
    position_order,
    read_until,
    records_of,
    scylla_table,
)

pytestmark = pytest.mark.servers
COLUMNS = "p int, c int, v text, PRIMARY KEY (p, c)"


def put(p: int, c: int, v: str, ts: int | None = None) -> Write:
    return Write(kind="insert", key={"p": p, "c": c}, ts=now_us() if ts is None else ts, edits={"v": Overwrite(v)})


async def write_rows(made: ScyllaTable, *rows: tuple[int, int, str]) -> list[Write]:
    """For a source that reads already. Each is stamped as it is written: one that comes later than the confidence
    window is rightly not read."""
    written = []
    for p, c, v in rows:
        written.append(put(p, c, v))
        await made.writer.write(written[-1])
    return written


async def read_from(made: ScyllaTable, position: object, until: Write, **settings: object) -> list[Batch]:
    source = made.source(**settings)
    await source.open(position)  # type: ignore[arg-type]
    try:
        return await read_until(source, until)
    finally:
        await source.close()


def values(batches: list[Batch]) -> list[str]:
    return [event["after"]["v"]["value"] for event in changes(records_of(batches)) if event["op"] != "d"]


async def test_resumes_from_every_position(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS, page_rows=2) as made:
        writes = [put(number % 5, number, f"row {number}") for number in range(40)]
        await made.writer.write(*writes)
        batches = await read_from(made, None, writes[-1])
        everything = Counter(values(batches))
        assert everything == Counter(f"row {number}" for number in range(40)), "each once"
        seen: Counter[str] = Counter()
        partial = 0
        for batch in batches:
            seen += Counter(values([batch]))
            if batch.position is None:
                continue
            partial += bool(batch.position["tables"]["t"]["partial"])
            assert msgspec.json.decode(msgspec.json.encode(batch.position)) == batch.position
            rest = Counter(values(await read_from(made, batch.position, writes[-1])))
            assert not everything - seen - rest, "something is missing"
            assert not rest - everything, "nothing comes twice in one reading"
        assert partial, "some position lies within a window"
        orders = [position_order(batch.position) for batch in batches if batch.position is not None]
        assert all(before < after for before, after in pairwise(orders))


async def test_late_writes_within_the_confidence_window_are_read(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS, confidence_window_s=3.0) as made:
        source = made.source()
        await source.open(None)
        late = put(1, 1, "late")
        await made.writer.write(late, late=True)
        last = await write_rows(made, *((1, number, f"in time {number}") for number in range(2, 12)))
        await made.writer.catch_up()
        try:
            batches = await read_until(source, last[-1])
        finally:
            await source.close()
        assert sorted(values(batches)) == sorted(["late", *(f"in time {number}" for number in range(2, 12))])
        assert now_us() - last[-1].ts > 3_000_000, "nothing is read before it is old enough"


class WrongClock(SystemClock):
    def __init__(self, ahead_s: int) -> None:
        self._ahead_us = ahead_s * 1_000_000

    def now_us(self) -> int:
        return super().now_us() + self._ahead_us


@pytest.mark.parametrize("ahead_s", [3600, -3600])
async def test_a_wrong_clock_is_told_and_loses_nothing(ahead_s: int, cassandra_server: CassandraServer) -> None:
    """One that is fast would read times for which writes are still to come, if it were trusted."""
    async with scylla_table(cassandra_server, COLUMNS, confidence_window_s=1.0) as made:
        clock = WrongClock(ahead_s)
        (told,) = [one for one in await check_scylla(made.config, clock) if one.subject == "clock"]
        assert told.severity == "warning" and f"clock is {ahead_s:+}.0 s from the server's" in told.message
        source = ScyllaSource(made.config, clock=clock)
        await source.open(None)
        reading = asyncio.create_task(read_until(source, put(0, 0, "", ts=now_us() + 2_000_000)))
        try:
            late = put(1, 1, "late", ts=now_us() - 500_000)
            await made.writer.write(late, late=True)
            await asyncio.sleep(0.3)  # a reader that trusts a fast clock is past it by now
            await made.writer.catch_up()
            assert values(await reading) == ["late"]
        finally:
            reading.cancel()
            await source.close()


async def test_a_generation_follows_another(cassandra_server: CassandraServer) -> None:
    """Writes choose their streams by their own time; those of the old generation that come late are read, too."""
    async with scylla_table(cassandra_server, COLUMNS, confidence_window_s=2.0) as made:
        source = made.source()
        await source.open(None)
        at_ms = now_us() // 1000 + 500
        await made.generation(at_ms)
        late = put(1, 0, "old, late", at_ms * 1000 - 1)
        await made.writer.write(late, late=True)
        written = []
        while now_us() < (at_ms + 500) * 1000:
            written.append(put(len(written) % 7, len(written), f"row {len(written)}"))
            await made.writer.write(written[-1])
        await made.writer.catch_up()
        edge = put(9, 9, "the first of the new", at_ms * 1000)
        await made.writer.write(edge)
        try:
            batches = await read_until(source, written[-1])
        finally:
            await source.close()
        assert Counter(values(batches)) == Counter(
            ["old, late", "the first of the new", *(f"row {number}" for number in range(len(written)))]
        )
        assert {write.ts < at_ms * 1000 for write in written} == {True, False}, "the writes ran across the switch"
        assert last_position(batches)["tables"]["t"]["generation_ms"] == at_ms
        switched = next(
            b.position for b in batches if b.position and b.position["tables"]["t"]["generation_ms"] == at_ms
        )
        assert switched["tables"]["t"]["until_us"] == at_ms * 1000 - 1
        rest = Counter(values(await read_from(made, switched, written[-1])))
        assert rest == Counter(write.edits["v"].value for write in [*written, edge] if write.ts >= at_ms * 1000)  # type: ignore[union-attr]


async def test_tablets(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS, generations="tablets") as made:
        writes = [put(number, number, f"row {number}") for number in range(30)]
        await made.writer.write(*writes[:15])
        await made.generation(now_us() // 1000 + 50)
        await asyncio.sleep(0.1)
        writes[15:] = [put(number, number, f"row {number}") for number in range(15, 30)]
        await made.writer.write(*writes[15:])
        batches = await read_from(made, None, writes[-1])
        assert sorted(values(batches)) == sorted(f"row {number}" for number in range(30))
        assert last_position(batches)["tables"]["t"]["generation_ms"] == made.generations[-1].time_ms


async def test_two_processes_share_a_table(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS) as made:
        writes = [put(number, number, f"row {number}") for number in range(60)]
        await made.writer.write(*writes)
        parts = []
        for number in range(2):
            source = made.source(shard={"number": number, "of": 2})
            await source.open(None)
            batches = []
            try:
                async with asyncio.timeout(30):
                    while not batches or batches[-1].position["tables"]["t"]["until_us"] < writes[-1].ts:  # type: ignore[index]
                        batches.append(await source.read())
                        await source.acknowledge(batches[-1].position)  # type: ignore[arg-type]
            finally:
                await source.close()
            parts.append(batches)
        first, second = (values(batches) for batches in parts)
        assert sorted(first + second) == sorted(f"row {number}" for number in range(60))
        assert first and second and not set(first) & set(second)
        assert not beaten(records_of(parts[0])) and not beaten(records_of(parts[1])), "neither knows of the other"
        positions = [last_position(batches) for batches in parts]
        with pytest.raises(PositionLost, match=r"process 0 of 2, and the streams are shared otherwise now.*--reset"):
            await read_from(made, positions[0], writes[-1], shard={"number": 0, "of": 3})


async def test_columns_come_and_go_live(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS, confidence_window_s=1.5) as made:
        source = made.source()
        await source.open(None)
        try:
            (first,) = await write_rows(made, (1, 1, "before"))
            batches = await read_until(source, first)
            await made.session.execute(f"ALTER TABLE {made.name} ADD w map<text, int>")
            await made.look_again()
            column = made.table.column("w")
            assert column is not None
            for part in value_columns(column):
                await made.session.execute(f"ALTER TABLE {made.name}{LOG_SUFFIX} ADD {part}")
            edits = {"v": Overwrite("with"), "w": Overwrite({"a": 1})}
            second = Write(kind="insert", key={"p": 1, "c": 2}, ts=now_us(), edits=edits)
            await made.writer.write(second)
            batches += await read_until(source, second)
            await made.session.execute(f"ALTER TABLE {made.name} DROP v")
            await made.look_again()
            third = Write(kind="update", key={"p": 1, "c": 3}, ts=now_us(), edits={"w": Overwrite({"b": 2})})
            await made.writer.write(third)
            batches += await read_until(source, third)
        finally:
            await source.close()
        found = changes(records_of(batches))
        assert [set(event["after"]) - {"p", "c"} for event in found] == [{"v"}, {"v", "w"}, {"w"}]
        assert found[1]["after"]["w"]["elements"][0][:2] == ["a", 1]


async def test_a_dropped_keyspace_ends_it_with_one_message(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS) as made:
        first = put(1, 1, "x")
        await made.writer.write(first)
        source = made.source()
        await source.open(None)
        try:
            await read_until(source, first)
            await made.session.execute(f"DROP KEYSPACE {made.table.keyspace}")
            with pytest.raises((Fatal, EnvironmentProblem), match=made.table.keyspace) as told:
                await _read_on(source.read)
            assert "\n" not in str(told.value)
        finally:
            await source.close()
        with pytest.raises(EnvironmentProblem, match=f"has no table {made.name}"):
            await made.source().open(None)


async def test_a_dropped_table_ends_it_with_one_message(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS) as made:
        first = put(1, 1, "x")
        await made.writer.write(first)
        source = made.source()
        await source.open(None)
        try:
            batches = await read_until(source, first)
            await made.session.execute(f"DROP TABLE {made.name}{LOG_SUFFIX}")
            with pytest.raises(Fatal, match=rf"{made.name} was dropped, or its CDC log was"):
                await _read_on(source.read)
        finally:
            await source.close()
        with pytest.raises(EnvironmentProblem, match=r"CDC is not enabled on .*ALTER TABLE"):
            await made.source().open(None)
        await made.session.execute(log_ddl(made.table))
        with pytest.raises(PositionLost, match=r"dropped and made anew.*--reset"):
            await read_from(made, last_position(batches), first)


async def test_what_has_left_the_log_is_lost(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS) as made:
        first = put(1, 1, "x")
        await made.writer.write(first)
        position = last_position(await read_from(made, None, first))
        old = msgspec.json.decode(msgspec.json.encode(position))
        old["tables"]["t"]["until_us"] -= 7200 * 1_000_000
        with pytest.raises(PositionLost, match=r"kept for a time only.*ended \d+ s ago.*--reset"):
            await read_from(made, old, first)
        assert [one.severity for one in await check_position(made.config, position)] == ["ok"]
        assert [one.severity for one in await check_position(made.config, old)] == ["unfit"]
        await made.generation(now_us() // 1000 + 3_600_000)
        await forget_generation(made.session, made.config.metadata, made.generations[0].time_ms)
        with pytest.raises(PositionLost, match=r"is not told any more.*--reset"):
            await read_from(made, position, first)
        other = {**position, "keyspace": "elsewhere"}
        with pytest.raises(PositionLost, match=r"of the keyspace elsewhere.*--reset"):
            await read_from(made, other, first)


async def test_no_generation_yet(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS) as made:
        await forget_generation(made.session, made.config.metadata, made.generations[0].time_ms)
        with pytest.raises(Retryable, match="no CDC generation yet"):
            await made.source().open(None)


async def test_an_expiring_log_ends_a_reader_that_is_too_slow(cassandra_server: CassandraServer) -> None:
    """It was fit when it began; while it waits, what it wanted to read leaves the log."""
    async with scylla_table(cassandra_server, COLUMNS, log_ttl_s=4, window_s=0.5) as made:
        source = made.source()
        await source.open(None)
        try:
            batch = await source.read()
            reader = next(task for task in asyncio.all_tasks() if task.get_name().startswith("scylla-src"))
            assert not reader.done()
            await asyncio.sleep(5)  # nobody acknowledges: it may not begin
            await source.acknowledge(batch.position or {})
            with pytest.raises(PositionLost, match="kept for a time only"):
                await _read_on(source.read)
        finally:
            await source.close()


async def test_rows_that_are_older_than_the_log_come_first(cassandra_server: CassandraServer) -> None:
    initial = {"snapshot": "initial", "snapshot_ranges": 4, "page_rows": 10}
    async with scylla_table(cassandra_server, COLUMNS, confidence_window_s=1.5, **initial) as made:
        for number in range(50):
            key = f"({number}, {number}, 'old {number}')"
            await made.session.execute(f"INSERT INTO {made.name} (p, c, v) VALUES {key}")
        source = made.source()
        await source.open(None)
        try:
            batch = await source.read()
            assert not batch.records and batch.position is not None and batch.position["snapshot"]["tables"] == ["t"]
            await source.acknowledge(batch.position)
            await write_rows(made, *((number, number, "new") for number in range(10)))
            gone = Write(kind="delete row", key={"p": 20, "c": 20}, ts=now_us())
            await made.writer.write(gone)
            batches = await read_until(source, gone)
        finally:
            await source.close()
        assert made.folded(records_of(batches)) == await made.rows()
        assert last_position(batches)["snapshot"] is None
        half = next(
            b.position for b in batches if b.position and b.position["snapshot"] and b.position["snapshot"]["progress"]
        )
        again = await read_from(made, half, gone, snapshot="initial")
        assert made.folded(records_of([*batches[: _place(batches, half)], *again])) == await made.rows()
        assert not any(beaten(batch.records) for batch in batches if batch.position and batch.position["snapshot"])


def _place(batches: list[Batch], position: object) -> int:
    return next(number for number, batch in enumerate(batches) if batch.position is position) + 1


async def test_check(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, "p int, c int, s text static, l list<int>, PRIMARY KEY (p, c)") as made:
        found = await check_scylla(made.configured(snapshot="initial"))
        assert [(one.severity, one.subject) for one in found] == [
            ("note", "server"),
            ("ok", made.name),
            ("note", made.name),
            ("note", made.name),
        ]
        assert "static columns are not captured: s" in found[2].message and "l" in found[3].message
        await made.session.execute(f"CREATE TABLE {made.table.keyspace}.plain (k int PRIMARY KEY)")
        found = await check_scylla(made.configured(tables=["plain", "missing"]))
        assert [(one.severity, one.subject.partition(".")[2]) for one in found if one.severity == "unfit"] == [
            ("unfit", "plain"),
            ("unfit", "missing"),
        ]
        assert "cdc = {'enabled': true}" in found[1].mend
        with pytest.raises(EnvironmentProblem, match="no datacenter 'nowhere'"):
            await check_scylla(made.configured(local_datacenter="nowhere"))


async def test_discovery_and_sharing_names(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS) as made:
        await made.session.execute(f"CREATE TABLE {made.table.keyspace}.without_log (k int PRIMARY KEY)")
        described = await made.source().discover()
        assert [(one.name, one.key, one.columns) for one in described] == [
            (made.name, ["p", "c"], {"p": "int", "c": "int", "v": "text"})
        ]
        assert made.config.position_name == "src"
        assert made.configured(shard=Shard(number=1, of=2).model_dump()).position_name == "src.1of2"
        assert issubclass(type(made.config), CqlServer)


async def test_latency_is_the_confidence_window(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS) as made:
        source = made.source()
        await source.open(None)
        write = put(1, 1, "x")
        await made.writer.write(write)
        try:
            batches = await read_until(source, write)
        finally:
            await source.close()
        assert values(batches) == ["x"] and now_us() - write.ts >= CONFIDENCE_S * 1_000_000


async def _read_on(read: object) -> None:
    async with asyncio.timeout(30):
        while True:
            await read()  # type: ignore[operator]
