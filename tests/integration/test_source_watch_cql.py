"""What a real Cassandra tells of a source with its sidecar, and a log as Scylla keeps it of how long it still lasts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.publisher import KafkaSettings
from connectors.registry import Configured
from connectors.scylla.plugin import PLUGIN
from connectors.watching import SourceHealth, Watching, look, open_watches
from deploy.local.cassandra import CassandraServer
from tests.support.cassandra import cql_session, fresh_keyspace
from tests.support.cassandra_source import configured, running, sidecar_of
from tests.support.eventually import eventually
from tests.support.scylla import ScyllaTable, now_us, scylla_table
from tests.support.streams import new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


@asynccontextmanager
async def watched(source: Configured, kafka: str) -> AsyncIterator[Watching]:
    watch = open_watches([source], KafkaSettings(bootstrap_servers=kafka))[source.name]
    try:
        yield watch
    finally:
        await watch.close()


def of(health: SourceHealth, subject: str) -> str:
    """The words of the finding on a subject, and how bad it is."""
    return next((f"{one.severity}: {one.message} {one.mend}" for one in health.findings if subject in one.subject), "")


async def test_what_a_node_tells_of_its_change_log(
    cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    narrow = tmp_path / "cassandra.yaml"  # the node's own, but with room for two segments
    node = json.loads(cassandra_server.config_file.read_text())
    narrow.write_text(json.dumps({**node, "cdc_total_space": "2MiB"}))
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        await session.execute(f"CREATE TABLE {keyspace}.t (id int PRIMARY KEY, v text) WITH cdc = true")
        source = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path / "data")
        async with watched(source, kafka_bootstrap) as watch:
            before = await watch.look()
            assert before.up and before.floor_s == pytest.approx(1.1) and before.sidecar_healthy is None
            assert "warning: has not run here: nobody reads the change log" in of(before, "sidecar")
            async with running(source, kafka_bootstrap) as (runtime, _):
                await eventually(lambda: sidecar_of(runtime) is not None and sidecar_of(runtime).healthy, timeout_s=90)
                for number in range(20):
                    await session.execute(f"INSERT INTO {keyspace}.t (id, v) VALUES ({number}, '{'x' * 5000}')")

                async def read() -> SourceHealth:
                    return await watch.look()

                alive = await eventually(read, lambda health: health.sidecar_healthy is True, timeout_s=60)
                (log,) = alive.nodes
                assert log.cdc_raw_limit_bytes > log.cdc_raw_bytes > 0 and "ok" in of(alive, "change log")
            await eventually(read, lambda health: "does not answer on port" in of(health, "sidecar"), timeout_s=30)
            await session.execute(f"ALTER TABLE {keyspace}.t WITH cdc = false")
            off = await watch.look()
            assert "unfit: the node keeps none (CDC)" in of(off, "change log") and "cdc = true" in of(off, "change log")

        sidecar = {"cassandra_yaml": str(narrow)}
        full = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path / "data", sidecar=sidecar)
        async with watched(full, kafka_bootstrap) as watch:
            health = await watch.look()
            assert health.headroom_s == 0 and "unfit" in of(health, "cdc_raw") and "refuses writes" in of(health, "raw")
        sidecar = {"cassandra_yaml": str(tmp_path / "of-another-machine.yaml")}
        remote = configured(cassandra_server, keyspace, keyspace, ["t"], tmp_path / "data", sidecar=sidecar)
        async with watched(remote, kafka_bootstrap) as watch:
            health = await watch.look()
            assert health.up and not health.nodes and "note: can't be seen from this machine" in of(health, "cdc_raw")


def configured_log(made: ScyllaTable, name: str, **settings: Any) -> Configured:
    return Configured(PLUGIN, made.configured(name=name, **settings))


async def test_how_long_a_log_that_is_not_read_still_lasts(
    cassandra_server: CassandraServer, kafka_bootstrap: str
) -> None:
    name = new_name("s").replace("-", "_")
    async with scylla_table(cassandra_server, "k int PRIMARY KEY, v text") as made:
        source = configured_log(made, name)
        async with watched(source, kafka_bootstrap) as watch:

            async def seen() -> SourceHealth:
                return await watch.look()

            new = await seen()
            assert new.up and new.headroom_s is None and "warning: the connector has not begun" in of(new, "log of")
            assert new.generation_s == made.generations[0].time_ms / 1000 and new.floor_s == 0.4
            async with running(source, kafka_bootstrap):
                read = await eventually(seen, lambda health: (health.unread_s or 1e9) < 60, timeout_s=60)
                assert read.headroom_s is not None and 3600 - 60 - 60 <= read.headroom_s <= 3600 - 60
                assert read.log_ttl_s == 3600 and read.severity == "ok"
            stopped = await seen()
            coming = (now_us() // 1000) + 3_600_000
            await made.generation(coming)
            later = await seen()
            assert later.generation_s == coming / 1000
            assert later.headroom_s is not None and stopped.headroom_s is not None
            assert later.headroom_s < stopped.headroom_s

        async with watched(configured_log(made, name, log_ttl_s=1), kafka_bootstrap) as watch:
            expired = await eventually(seen, lambda health: health.severity == "unfit")
            assert expired.headroom_s == 0 and f"ctxpipe connect {name} --reset" in of(expired, "log of")
        # its own position is another one than that of the process which read all
        shared = configured_log(made, name, shard={"number": 0, "of": 2})
        async with watched(shared, kafka_bootstrap) as watch:
            assert "has not begun" in of(await watch.look(), "log of")
        await made.session.execute(f"DROP TABLE {made.name}_scylla_cdc_log")
        async with watched(source, kafka_bootstrap) as watch:
            assert "unfit: CDC is not enabled" in of(await watch.look(), "log of")
        away = configured_log(made, name, port=1)
        async with watched(away, kafka_bootstrap) as watch:
            health = await asyncio.wait_for(look(name, watch), 60)
            assert health.up is False and "can't be reached" in of(health, "away")
