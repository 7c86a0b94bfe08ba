"""What goes wrong around a Cassandra source: a node killed, a full cdc_raw by both policies, a process killed.

The shared node is restarted with other settings and gets its own back: two nodes at once are too much for a machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.cassandra import segments
from connectors.cassandra.companion import Companion
from connectors.cassandra.node import enable_cdc, read_node
from connectors.cql.session import CqlSession
from connectors.publisher import KafkaSettings, ensure_topics
from connectors.source import Finding
from deploy.local import install
from deploy.local.cassandra import CassandraServer
from deploy.local.processes import ProcessMark
from pipeline.core.clock import SystemClock
from pipeline.core.errors import CtxpipeError, EnvironmentProblem, PositionLost
from tests.support.cassandra import cql_session, fresh_keyspace
from tests.support.cassandra_source import configured, merged_rows, running, sidecar_of, table_rows
from tests.support.cli import ROOT
from tests.support.eventually import eventually, eventually_sync
from tests.support.servers import LocalRoot
from tests.support.sidecar_log import write_jar

COLUMNS = ["id", "v"]
pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


@contextmanager
def changed(server: CassandraServer, **settings: Any) -> Iterator[None]:
    """The node runs with other settings meanwhile."""
    before = dict(server.settings)
    server.settings |= settings
    server.restart()
    try:
        yield
    finally:
        server.settings = before
        server.restart()


@asynccontextmanager
async def table_of(server: CassandraServer) -> AsyncIterator[tuple[CqlSession, str]]:
    async with cql_session(server) as session, fresh_keyspace(session) as keyspace:
        await session.execute(f"CREATE TABLE {keyspace}.t (id int PRIMARY KEY, v text) WITH cdc = true")
        yield session, keyspace


async def write(session: CqlSession, keyspace: str, numbers: range, size: int = 10) -> int:
    """Returns how many the node took."""
    for number in numbers:
        try:
            await session.execute(f"INSERT INTO {keyspace}.t (id, v) VALUES ({number}, '{'x' * size}')")
        except CtxpipeError:
            return number - numbers.start
    return len(numbers)


async def converged(session: CqlSession, keyspace: str, bootstrap: str, source: Any) -> None:
    async def same() -> bool:
        expected = await table_rows(session, f"{keyspace}.t", COLUMNS, ["id"])
        return await merged_rows(bootstrap, source, COLUMNS) == expected

    await eventually(same, timeout_s=90, what="the topics make the table's rows")


async def cdc_finding(source: Any) -> Finding:
    findings = await source.source().check()
    return next(one for one in findings if one.subject == "cdc_raw")


async def test_statements_prepared_before_the_change_log_was_switched_on(cassandra_server: CassandraServer) -> None:
    """With `cdc = true` alone Cassandra executes them as before: changes that no log has."""
    cassandra_server.restart()  # a segment of its own, for which nobody else has an index written
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        await session.execute(f"CREATE TABLE {keyspace}.t (id int PRIMARY KEY, v text)")
        insert = f"INSERT INTO {keyspace}.t (id, v) VALUES (?, ?)"
        await session.execute(insert, (1, "before"))
        before = {path.name for path in cassandra_server.cdc_raw_dir.glob("*_cdc.idx")}
        for statement in enable_cdc(keyspace, "t").rstrip(";").split(";"):
            await session.execute(statement)
        await session.execute(insert, (2, "after"))

        async def noted() -> bool:
            return bool({path.name for path in cassandra_server.cdc_raw_dir.glob("*_cdc.idx")} - before)

        await eventually(noted, timeout_s=15, what="the change log has it")


async def test_a_killed_node_comes_back_and_its_unfinished_segment_is_read(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    async with table_of(cassandra_server) as (session, keyspace):
        source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
        async with running(source, kafka_bootstrap) as (runtime, task):
            await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=60)
            assert await write(session, keyspace, range(50)) == 50
            await asyncio.to_thread(cassandra_server.kill)
            await asyncio.to_thread(cassandra_server.start)
            assert not task.done()

            async def writes_again() -> bool:
                return await write(session, keyspace, range(50, 51)) == 1

            await eventually(writes_again, timeout_s=60)
            assert await write(session, keyspace, range(51, 100)) == 49
            await converged(session, keyspace, kafka_bootstrap, source)
            assert not task.done()


async def test_a_full_cdc_raw_refuses_writes_until_it_is_read(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    with changed(cassandra_server, cdc_total_space="4MiB", cdc_block_writes=True):
        async with table_of(cassandra_server) as (session, keyspace):
            source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
            taken = await write(session, keyspace, range(400), size=50_000)
            assert 0 < taken < 400
            finding = await cdc_finding(source)
            assert finding.severity == "unfit" and "refuses writes to these tables now" in finding.message
            async with running(source, kafka_bootstrap):

                async def writes_again() -> bool:
                    return await write(session, keyspace, range(1000, 1001)) == 1

                await eventually(writes_again, timeout_s=90, what="the node takes writes again")
                await converged(session, keyspace, kafka_bootstrap, source)


async def test_changes_that_the_node_deleted_unread_stop_the_source(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    with changed(cassandra_server, cdc_total_space="4MiB", cdc_block_writes=False):
        async with table_of(cassandra_server) as (session, keyspace):
            source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
            await write(session, keyspace, range(20))
            files = segments.node_files(cassandra_server.config_file)
            await eventually(lambda: segments.look(files).segments)
            async with running(source, kafka_bootstrap) as _:
                await eventually(lambda: (tmp_path / "segments.json").exists(), timeout_s=60)
            first = segments.look(files).segments[0].name

            async def deleted() -> bool:
                await write(session, keyspace, range(40), size=50_000)
                return first not in [one.name for one in segments.look(files).segments]

            await eventually(deleted, timeout_s=90, what="the node deletes the oldest segment")
            finding = next(one for one in await source.source().check() if "deleted unread" in one.message)
            assert finding.severity == "unfit" and finding.mend.endswith("--reset")
            with pytest.raises(PositionLost, match="deleted unread"):
                async with running(source, kafka_bootstrap) as (_, task):
                    await asyncio.wait_for(task, 60)
            anew = source.source()
            anew.use_kafka(KafkaSettings(bootstrap_servers=kafka_bootstrap))
            await anew.open(anew.reset_position())
            try:
                assert (await anew.read()).position["left"]
            finally:
                await anew.close()
            assert "deleted unread" not in " ".join(one.message for one in await source.source().check())


async def test_another_table_that_would_break_the_sidecar_is_told_before_anything_is_lost(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    async with table_of(cassandra_server) as (session, keyspace):
        source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path)
        async with running(source, kafka_bootstrap) as (runtime, task):
            await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=60)
            await session.execute(f"CREATE TYPE {keyspace}.place (x int, y int)")
            await session.execute(f"CREATE TABLE {keyspace}.other (id int PRIMARY KEY, p place) WITH cdc = true")
            with pytest.raises(EnvironmentProblem, match=r"other has columns of types .* \(p place\)"):
                await asyncio.wait_for(task, 60)
        findings = await source.source().check()
        assert any(one.severity == "unfit" and one.subject == f"{keyspace}.other" for one in findings)


async def test_a_vector_in_the_keyspace_is_refused_and_one_elsewhere_does_no_harm(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    """The driver in the sidecar forgets the whole schema at a vector, and captures nothing, without a word."""
    async with table_of(cassandra_server) as (session, keyspace), fresh_keyspace(session) as elsewhere:
        await session.execute(f"CREATE TABLE {elsewhere}.v (id int PRIMARY KEY, e vector<float, 3>) WITH cdc = true")
        source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, snapshot="never")
        async with running(source, kafka_bootstrap):
            await write(session, keyspace, range(5))
            await session.execute(f"INSERT INTO {elsewhere}.v (id, e) VALUES (1, [1, 2, 3])")
            await converged(session, keyspace, kafka_bootstrap, source)
        await session.execute(f"CREATE TABLE {keyspace}.v (id int PRIMARY KEY, e vector<float, 3>)")
        with pytest.raises(EnvironmentProblem, match=r"does not know vectors.*v\.e"):
            async with running(source, kafka_bootstrap) as (_, task):
                await task
        assert any(one.severity == "unfit" and "vectors" in one.message for one in await source.source().check())


async def test_a_login_without_grants_is_told_and_one_with_them_streams(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    login = {"authenticator": "PasswordAuthenticator", "authorizer": "CassandraAuthorizer"}
    admin = {"user": "cassandra", "password": "cassandra"}
    with changed(cassandra_server, **login):
        await eventually(lambda: logs_in(cassandra_server, admin), timeout_s=90, what="the first role is made")
        async with cql_session(cassandra_server, **admin) as session, fresh_keyspace(session) as keyspace:
            await session.execute(f"CREATE TABLE {keyspace}.t (id int PRIMARY KEY, v text) WITH cdc = true")
            await session.execute(f"CREATE ROLE {keyspace} WITH PASSWORD = 'it''s \"so\"' AND LOGIN = true")
            reader = {"user": keyspace, "password": 'it\'s "so"'}
            source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, **reader)
            refused = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, **{**reader, "password": "x"})
            with pytest.raises(EnvironmentProblem, match="refuses the login"):
                await refused.source().check()
            with pytest.raises(EnvironmentProblem, match=r"no permission"):
                async with running(source, kafka_bootstrap) as (_, task):
                    await task
            grants = [one.mend for one in await source.source().check() if one.severity == "unfit"]
            assert grants == [f'GRANT SELECT ON TABLE "{keyspace}"."t" TO {keyspace};']
            await session.execute(grants[0].rstrip(";"))

            async def fit() -> bool:
                return all(one.severity != "unfit" for one in await source.source().check())

            await eventually(fit, timeout_s=30, what="the node has taken notice of the grant")
            async with running(source, kafka_bootstrap):
                await write(session, keyspace, range(5))
                await converged(session, keyspace, kafka_bootstrap, source)


async def logs_in(server: CassandraServer, login: dict[str, str]) -> bool:
    try:
        async with cql_session(server, **login):
            return True
    except CtxpipeError:
        return False


async def test_a_change_that_the_sidecar_can_not_read_loses_nothing(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    """The connector gives the segment up and goes on; ours is stopped before that, and the segment comes back."""
    async with table_of(cassandra_server) as (session, keyspace):
        await session.execute(f"CREATE TYPE {keyspace}.place (x int, y int)")
        await session.execute(f"CREATE TABLE {keyspace}.other (id int PRIMARY KEY, p place) WITH cdc = true")
        await session.execute(f"INSERT INTO {keyspace}.other (id, p) VALUES (1, {{x: 1, y: 2}})")
        await write(session, keyspace, range(10))
        settings = {"snapshot": "never", "sidecar": {"deaths_max": 2}}
        source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, **settings)
        config = source.config
        files = segments.node_files(cassandra_server.config_file)
        await eventually(lambda: segments.look(files).segments)
        kafka = KafkaSettings(bootstrap_servers=kafka_bootstrap)
        await ensure_topics(kafka, [f"{keyspace}.{keyspace}.other", *source.topics()], {})
        companion = Companion(config, config.sidecar, SystemClock())
        await companion.start(await read_node(session), kafka_bootstrap)
        assert companion.running is not None
        with pytest.raises(EnvironmentProblem, match=r"died 2 times: ClassCastException"):
            while True:
                await asyncio.wait([companion.running], timeout=0.1)
                if companion.running.done():
                    companion.running.result()
                companion.look()
        await companion.close()
        await session.execute(f"DROP TABLE {keyspace}.other")
        async with running(source, kafka_bootstrap):
            await converged(session, keyspace, kafka_bootstrap, source)


async def test_a_segment_that_was_read_is_kept_until_kafka_has_its_changes(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debezium's connector for Cassandra 5 moves it aside at once; a producer that lingers shows what that means."""
    looks: list[int] = []
    look = Companion.look

    def counted(self: Companion) -> None:
        look(self)
        looks.append(1)

    monkeypatch.setattr(Companion, "look", counted)
    relocated = tmp_path / "relocated"
    async with table_of(cassandra_server) as (session, keyspace):
        await session.execute(f"CREATE TABLE {keyspace}.noise (id int PRIMARY KEY, v text)")

        async def moved() -> list[str]:
            noise = f"INSERT INTO {keyspace}.noise (id, v) VALUES (1, '{'x' * 100_000}')"
            for _ in range(11):  # a segment of the commit log, and no change for Kafka
                await session.execute(noise)
            return segments.relocated_names(relocated)

        lingering = {"producer": {"linger.ms": "3600000"}}
        settings: dict[str, Any] = {"snapshot": "never"}
        slow = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, **settings, sidecar=lingering)
        async with running(slow, kafka_bootstrap) as (runtime, task):
            await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=60)
            await write(session, keyspace, range(3))
            kept = await eventually(moved, timeout_s=60, what="the sidecar moves the segment aside")
            seen = len(looks)
            await eventually(lambda: len(looks) > seen + 4, timeout_s=30)
            assert set(kept) <= set(segments.relocated_names(relocated)) and not task.done()
            assert await merged_rows(kafka_bootstrap, slow, COLUMNS) == {}
        source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path, **settings)
        async with running(source, kafka_bootstrap):
            await converged(session, keyspace, kafka_bootstrap, source)

            async def deleted() -> bool:
                await moved()
                here = [one.name for one in segments.look(segments.node_files(cassandra_server.config_file)).segments]
                return not set(kept) & {*here, *segments.relocated_names(relocated)}

            await eventually(deleted, timeout_s=60, what="the segment is deleted once Kafka has it")


def connect_in_a_process(folder: Path, source: Any, bootstrap: str) -> subprocess.Popen[str]:
    section = json.loads(source.config.model_dump_json(exclude={"name", "password"}))
    config = {
        "kafka": {"bootstrap_servers": bootstrap, "partitions": 2},
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "sources": {source.name: section},
    }
    (folder / "ctxpipe.yaml").write_text(json.dumps(config))
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "connect", source.name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def sidecar_mark(process: subprocess.Popen[str]) -> ProcessMark:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(found) == 1
    return ProcessMark.of(int(found[0]))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
async def test_the_sidecar_ends_with_connect_however_that_ends(
    number: int, code: int, cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    async with table_of(cassandra_server) as (_, keyspace):
        source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path / "data")
        process = connect_in_a_process(tmp_path, source, kafka_bootstrap)
        mark = await asyncio.to_thread(
            eventually_sync, lambda: sidecar_mark(process), ignore=(AssertionError,), timeout_s=60
        )
        process.send_signal(number)
        _, told = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == code and "Traceback" not in told
        await asyncio.to_thread(eventually_sync, lambda: not mark.alive(), timeout_s=10)


async def test_a_sidecar_that_keeps_dying_ends_connect_with_its_last_words(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    async with table_of(cassandra_server) as (_, keyspace):
        broken = {"jar": str(write_jar(tmp_path / "empty.jar")), "deaths_max": 2}
        source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path / "data", sidecar=broken)
        process = connect_in_a_process(tmp_path, source, kafka_bootstrap)
        _, told = await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode == 3 and "Traceback" not in told
        assert "died 2 times" in told and "  | " in told


async def test_a_cassandra_4_is_read_by_the_connector_of_its_own(
    cassandra_server: CassandraServer, local_root: LocalRoot, kafka_bootstrap: str, tmp_path: Path
) -> None:
    install.ensure(["cassandra-4"])
    old = CassandraServer(**local_root.place("cassandra-4"), heap_mib=768, major=4)
    cassandra_server.stop()
    try:
        old.start()
        async with table_of(old) as (session, keyspace):
            await write(session, keyspace, range(5))
            source = configured(old, keyspace, keyspace, ["t"], tmp_path)
            async with running(source, kafka_bootstrap) as (runtime, task):
                await eventually(lambda: runtime.statistics.records_delivered == 5, timeout_s=300)
                await session.execute(f"UPDATE {keyspace}.t SET v = 'new' WHERE id = 1")
                await session.execute(f"DELETE FROM {keyspace}.t WHERE id = 2")
                await converged(session, keyspace, kafka_bootstrap, source)
                assert not task.done()
    finally:
        old.kill()
        old.remove_data()
        cassandra_server.start()
