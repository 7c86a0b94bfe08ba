"""Heartbeats of a Cassandra source: a real Cassandra 5, a real Kafka, the real sidecar, lookups of what comes out."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.conformance.memory import HEARTBEAT_KEY
from connectors.cql.session import CqlSession, connect
from connectors.source import Finding
from deploy.local.cassandra import CassandraServer
from pipeline.core.clock import SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.flow import Flow
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.merging import Merging
from pipeline.plan import compile_plan
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import open_stores
from schemas.context import ContextSpec
from schemas.envelope import decode_record
from schemas.record import Record
from tests.support.cassandra import cql_server, cql_session, fresh_keyspace, start_cassandra
from tests.support.cassandra_source import configured, running, sidecar_of
from tests.support.eventually import eventually
from tests.support.kafka_records import read_all
from tests.support.servers import LocalRoot

PARTITIONS = 3
MAX_AGE_MS = 4000
BEAT_TABLE = "CREATE TABLE {}.beat (source text PRIMARY KEY, beat_us bigint) WITH cdc = true"
LOGIN = {
    "authenticator": "PasswordAuthenticator",
    "authorizer": "CassandraAuthorizer",
    "permissions_validity": "0ms",  # a grant counts at once
}
ADMIN = {"user": "cassandra", "password": "cassandra"}
pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


@pytest.fixture
async def session(cassandra_server: CassandraServer) -> AsyncIterator[CqlSession]:
    async with cql_session(cassandra_server) as connected:
        yield connected


@pytest.fixture
async def keyspace(session: CqlSession) -> AsyncIterator[str]:
    """With a captured table of one row."""
    async with fresh_keyspace(session) as name:
        await session.execute(f"CREATE TABLE {name}.t (id int PRIMARY KEY, v text) WITH cdc = true")
        await session.execute(f"INSERT INTO {name}.t (id, v) VALUES (1, 'one')")
        yield name


def beating(server: CassandraServer, keyspace: str, directory: Path, **settings: Any) -> Any:
    known = {"heartbeat_table": "beat", "heartbeat_interval_s": 0.3, **settings}
    return configured(server, keyspace, keyspace, ["t"], directory, **known)


async def records(bootstrap: str, source: Any) -> list[Record]:
    found = await read_all(bootstrap, source.topics())
    return [Record(one.topic, one.partition, one.offset, one.key, one.value) for one in found]


async def claimed_us(bootstrap: str, source: Any) -> int:
    """Up to when all partitions know everything; 0: nothing is known of one."""
    newest = dict.fromkeys(range(PARTITIONS), 0)
    for record in await records(bootstrap, source):
        if record.key == HEARTBEAT_KEY and (event := decode_record(record)) is not None:
            newest[record.partition] = max(newest[record.partition], event.commit_time_us)
    return min(newest.values())


async def status_of(redis_url: str, keyspace: str, found: list[Record], key: str) -> tuple[str, Any]:
    """(label, bundle) of a lookup, after these records."""
    entities = {"thing": {"source": keyspace, "table": f"{keyspace}.t", "key": ["id"]}}
    spec = ContextSpec.model_validate(
        {
            "context": keyspace,
            "version": 1,
            "root": "thing",
            "entities": entities,
            "fields": ["id", "v"],
            "serving": {"max_age_ms": MAX_AGE_MS, "budget_ms": 2000},
        }
    )
    stores = await open_stores(RedisSettings(url=redis_url, context=keyspace, version=1))
    try:
        plan = compile_plan(spec)
        merging = Merging(plan, stores.cells, SystemClock().now_us)
        flow = Flow(plan, stores.rows, stores.relations, stores.bundles, in_order=stores.in_order, merging=merging)
        report = await flow.process(found)
        assert not report.dead_letters
        await stores.marks.write_applied(report.applied)
        served = ServedContext(spec, stores.reader, {})
        answer = await LookupService({keyspace: served}, SystemClock()).get(keyspace, key)
        return answer.status, answer.bundle
    finally:
        await stores.close()


async def test_an_idle_table_is_fresh_until_the_sidecar_stands_still(
    cassandra_server: CassandraServer,
    session: CqlSession,
    keyspace: str,
    kafka_bootstrap: str,
    redis_url: str,
    tmp_path: Path,
) -> None:
    await session.execute(BEAT_TABLE.format(keyspace))
    source = beating(cassandra_server, keyspace, tmp_path)

    async def label() -> str:
        return (await status_of(redis_url, keyspace, await records(kafka_bootstrap, source), "1"))[0]

    async def is_fresh() -> bool:
        return await label() == "fresh"

    async def is_stale() -> bool:
        return await label() == "stale"

    async with running(source, kafka_bootstrap) as (runtime, task):
        await eventually(is_fresh, timeout_s=60, what="a lookup of an idle table is fresh")
        first_us = await claimed_us(kafka_bootstrap, source)
        assert 0 < first_us < time.time_ns() // 1000

        async def moved() -> bool:
            return await claimed_us(kafka_bootstrap, source) > first_us + 3_000_000

        await eventually(moved, timeout_s=30, what="the applied time advances")
        os.kill(sidecar_of(runtime).pid, signal.SIGSTOP)
        stopped_us = time.time_ns() // 1000
        try:
            await eventually(is_stale, timeout_s=30, what="without the sidecar the table's age grows")
            assert await claimed_us(kafka_bootstrap, source) <= stopped_us
        finally:
            os.kill(sidecar_of(runtime).pid, signal.SIGCONT)
        await eventually(is_fresh, timeout_s=60, what="fresh again")
        assert not task.done()


async def test_what_a_heartbeat_speaks_for_is_there_before_it_although_the_sidecar_dies(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    """Each write that was answered before a heartbeat's time lies before the first such heartbeat of its partition."""
    await session.execute(BEAT_TABLE.format(keyspace))
    source = beating(cassandra_server, keyspace, tmp_path, heartbeat_interval_s=0.1)
    answered: dict[int, int] = {}
    async with running(source, kafka_bootstrap) as (runtime, task):
        await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=60)
        killed: set[int] = set()
        for number in range(1000, 1600):
            await session.execute(f"INSERT INTO {keyspace}.t (id, v) VALUES ({number}, '{'x' * (number % 400)}')")
            answered[number] = time.time_ns() // 1000
            if number % 200 == 150:
                await eventually(lambda: sidecar_of(runtime).pid not in killed, timeout_s=30)
                killed.add(sidecar_of(runtime).pid)
                os.kill(sidecar_of(runtime).pid, signal.SIGKILL)
            await asyncio.sleep(0.02)

        async def past() -> bool:
            return await claimed_us(kafka_bootstrap, source) > max(answered.values())

        await eventually(past, timeout_s=90, what="heartbeats past the last write")
        assert not task.done() and sidecar_of(runtime).starts == 4
    first: dict[int, int] = {}
    beats: list[tuple[int, int, int]] = []
    place: dict[int, int] = {}
    for record in await records(kafka_bootstrap, source):
        event = decode_record(record)
        assert event is not None
        if record.key == HEARTBEAT_KEY:
            beats.append((record.partition, record.offset, event.commit_time_us))
        else:
            assert event.key is not None
            place[event.key["id"]] = record.partition
            first.setdefault(event.key["id"], record.offset)
    assert set(answered) <= set(first)
    for number, at_us in answered.items():
        told = [offset for partition, offset, until_us in beats if partition == place[number] and until_us >= at_us]
        assert told and first[number] < min(told), f"a heartbeat spoke for {number} before it was there"


async def test_nothing_is_claimed_while_a_snapshot_goes_on(
    cassandra_server: CassandraServer, session: CqlSession, keyspace: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    await session.execute(BEAT_TABLE.format(keyspace))
    for number in range(100, 300):
        await session.execute(f"INSERT INTO {keyspace}.t (id, v) VALUES ({number}, 'old')")
    source = beating(cassandra_server, keyspace, tmp_path, page_rows=5, rows_per_second=10)
    async with running(source, kafka_bootstrap) as (runtime, task):
        await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=60)
        await asyncio.sleep(5)
        assert await claimed_us(kafka_bootstrap, source) == 0
        assert runtime.statistics.records_delivered < 200 and not task.done()


async def test_without_the_table_everything_is_as_before_and_check_says_what_is_lost(
    cassandra_server: CassandraServer,
    session: CqlSession,
    keyspace: str,
    kafka_bootstrap: str,
    redis_url: str,
    tmp_path: Path,
) -> None:
    source = beating(cassandra_server, keyspace, tmp_path, heartbeat_table="")
    note = await heartbeat_finding(source, "heartbeats")
    assert note.severity == "note" and "label what shows them as stale" in note.message
    statement = note.mend.partition(";")[0]
    assert statement.startswith("CREATE TABLE") and "GRANT MODIFY" in note.mend
    async with running(source, kafka_bootstrap) as (runtime, task):
        await eventually(lambda: runtime.statistics.records_delivered >= 1, timeout_s=60)
        await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=60)
        await session.execute(f"INSERT INTO {keyspace}.t (id, v) VALUES (2, 'two')")

        async def arrived() -> bool:
            return any(one.key == b'{"id":2}' for one in await records(kafka_bootstrap, source))

        await eventually(arrived, timeout_s=30)
        found = await records(kafka_bootstrap, source)
        assert await claimed_us(kafka_bootstrap, source) == 0 and not task.done()
        assert await status_of(redis_url, keyspace, found, "1") == ("stale", b'{"id":1,"v":"one"}')
    await session.execute(statement)
    beat = beating(cassandra_server, keyspace, tmp_path, heartbeat_table=f"{keyspace}.ctxpipe_heartbeat")
    assert (await heartbeat_finding(beat, "heartbeats")).severity == "ok"


async def heartbeat_finding(source: Any, subject: str) -> Finding:
    (found,) = [one for one in await source.source().check() if one.subject == subject]
    assert isinstance(found, Finding)
    return found


@pytest.mark.parametrize(
    ("statement", "words", "mend"),
    [
        ("", "is not there", "CREATE TABLE"),
        (BEAT_TABLE.replace(" WITH cdc = true", ""), "has no change log", "WITH cdc = true;"),
        (
            BEAT_TABLE.replace("bigint", "int"),
            r"has other columns than it must have \(source text, beat_us int\)",
            "DROP",
        ),
    ],
)
async def test_a_table_that_does_not_fit_is_one_clear_message(
    statement: str,
    words: str,
    mend: str,
    cassandra_server: CassandraServer,
    session: CqlSession,
    keyspace: str,
    kafka_bootstrap: str,
    tmp_path: Path,
) -> None:
    if statement:
        await session.execute(statement.format(keyspace))
    source = beating(cassandra_server, keyspace, tmp_path)
    with pytest.raises(EnvironmentProblem, match=f"{keyspace}.beat {words}") as told:
        async with running(source, kafka_bootstrap) as (_, task):
            await task
    assert mend in str(told.value) and "\n" not in str(told.value)
    finding = await heartbeat_finding(source, f"{keyspace}.beat")
    assert finding.severity == "unfit" and mend in finding.mend


@pytest.fixture
def guarded(local_root: LocalRoot) -> Iterator[CassandraServer]:
    server = start_cassandra(local_root, settings=LOGIN)
    yield server
    server.kill()
    server.remove_data()


async def test_a_login_that_may_not_write_is_told_the_grant(
    guarded: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    admin = cql_server(guarded, **ADMIN)

    async def answers() -> bool:
        await (await connect(admin)).close()
        return True

    await eventually(answers, what="the superuser can log in", ignore=(EnvironmentProblem, Retryable), timeout_s=90)
    async with cql_session(guarded, **ADMIN) as session, fresh_keyspace(session) as keyspace:
        await session.execute(f"CREATE TABLE {keyspace}.t (id int PRIMARY KEY, v text) WITH cdc = true")
        await session.execute(BEAT_TABLE.format(keyspace))
        await session.execute("CREATE ROLE reader WITH PASSWORD = 'secret-of-reader' AND LOGIN = true")
        await session.execute(f"GRANT SELECT ON TABLE {keyspace}.t TO reader")
        source = beating(guarded, keyspace, tmp_path, user="reader", password="secret-of-reader")
        with pytest.raises(EnvironmentProblem, match=r"can't be written: .*no MODIFY permission.*GRANT MODIFY") as told:
            async with running(source, kafka_bootstrap) as (_, task):
                await task
        assert "\n" not in str(told.value) and "secret" not in str(told.value)
        finding = await heartbeat_finding(source, f"{keyspace}.beat")
        assert finding.mend == f'GRANT MODIFY ON TABLE "{keyspace}"."beat" TO reader;'
        await session.execute(finding.mend)
        assert (await heartbeat_finding(source, "heartbeats")).severity == "ok"
