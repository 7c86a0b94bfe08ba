"""A real slot through all that can become of it, seen by a login that may do nothing but look, and by the connector."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from connectors import watching
from connectors.publisher import KafkaSettings
from connectors.registry import configure
from connectors.watching import SourceHealth, Watching, look, open_watches
from deploy.local.postgres import PostgresServer
from deploy.local.roles import Role
from tests.support.eventually import eventually
from tests.support.running_pipeline import free_port
from tests.support.streams import new_name

pytestmark = pytest.mark.servers

LIMITED = {"max_slot_wal_keep_size": "1MB"}


class Connector:
    """`ctxpipe connect` of one source, with a metrics page, on a Postgres and a Kafka."""

    def __init__(self, folder: Path, kafka: str, postgres: PostgresServer) -> None:
        self.source, self.port, self.log = new_name("s").replace("-", "_"), free_port(), folder / "connect.log"
        self.section = {"connector": "postgres", "dsn": postgres.address, "tables": ["public.t"]}
        self.path = folder / "ctxpipe.yaml"
        kafka_section = {"bootstrap_servers": kafka, "partitions": 1}
        redis = {"url": "redis://127.0.0.1:1/0"}
        body = {"kafka": kafka_section, "redis": redis, "sources": {self.source: self.section}}
        self.path.write_text(yaml.safe_dump(body))
        self.roles: list[Role] = []

    def start(self) -> Role:
        words = ["connect", self.source, "--config", str(self.path), "--metrics-port", str(self.port)]
        self.roles.append(Role(words, self.log, {"PYTHONPATH": os.getcwd()}))
        return self.roles[-1].start()

    async def page(self) -> dict[str, float]:
        """What its metrics page says of the source: metric (and second label) → value; {} while it does not answer."""
        return await asyncio.to_thread(self._page)

    def _page(self) -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("source") == self.source:
                    found[" ".join([sample.name, sample.labels.get("status", "")]).strip()] = sample.value
        return found


@pytest.fixture
def postgres(make_postgres: Callable[..., PostgresServer]) -> PostgresServer:
    """With a table, and a login without any right of its own."""
    server = make_postgres(settings=LIMITED)
    run(server, "CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE ROLE looker LOGIN")
    return server


@pytest.fixture
def connector(tmp_path: Path, kafka_bootstrap: str, postgres: PostgresServer) -> Iterator[Connector]:
    made = Connector(tmp_path, kafka_bootstrap, postgres)
    yield made
    for role in made.roles:
        role.kill()


def run(server: PostgresServer, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(server.address, autocommit=True) as connection:
        cursor = connection.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
async def watch(connector: Connector, postgres: PostgresServer, kafka_bootstrap: str) -> AsyncIterator[Watching]:
    """By the login that has no rights."""
    section = {**connector.section, "dsn": postgres.address.replace("postgres@", "looker@")}
    opened = open_watches(configure({connector.source: section}), KafkaSettings(bootstrap_servers=kafka_bootstrap))
    yield opened[connector.source]
    await opened[connector.source].close()
    if postgres.running():
        await eventually(lambda: run(postgres, _LOOKERS), lambda rows: not rows, what="no connection is left")


def words(health: SourceHealth) -> str:
    return " ".join([health.findings[0].severity, health.findings[0].message, health.findings[0].mend])


async def test_a_slot_that_is_read_left_lost_and_dropped_is_told_at_each_step(
    connector: Connector, postgres: PostgresServer, watch: Watching
) -> None:
    name = connector.source

    async def seen() -> SourceHealth:
        return await watch.look()

    new = await seen()
    assert new.wal_status == "missing" and "warning" in words(new) and "has not begun" in words(new)
    role = connector.start()
    await eventually(seen, lambda health: health.slot_active is True, timeout_s=60)
    run(postgres, "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 1000) i")
    active = await eventually(
        seen, lambda health: health.unconfirmed_bytes is not None and health.unconfirmed_bytes < 100_000, timeout_s=60
    )
    assert active.up and active.wal_status == "reserved" and active.floor_s == 0 and active.severity == "ok"
    assert active.safe_wal_bytes is not None and active.safe_wal_bytes > 0 and active.inactive_since_s is None
    page = await eventually(connector.page, lambda page: page.get("ctxpipe_source_slot_active") == 1)
    assert page["ctxpipe_source_up"] == 1 and page["ctxpipe_source_wal_status reserved"] == 1

    role.kill()
    left_s = time.time()
    run(postgres, "UPDATE t SET v = repeat('y', 1000)")
    left = await eventually(seen, lambda health: health.slot_active is False)
    assert (left.unconfirmed_bytes or 0) > 1_000_000 and (left.retained_bytes or 0) >= left.unconfirmed_bytes
    assert left.headroom_s is not None and active.headroom_s is None, "only what nobody reads runs out"
    assert left.inactive_since_s is not None and abs(left.inactive_since_s - left_s) < 30
    assert "nobody reads it since" in words(left) and f"ctxpipe connect {name}" in words(left)

    for number in range(4):
        run(postgres, f"UPDATE t SET v = 'z{number}'")
        run(postgres, "SELECT pg_switch_wal()")
    pressed = await seen()
    assert pressed.wal_status == "unreserved" and "at its next checkpoint" in words(pressed)
    run(postgres, "CHECKPOINT")
    lost = await eventually(seen, lambda health: health.wal_status == "lost")
    assert lost.headroom_s == 0 and lost.retained_bytes == 0 and (lost.unconfirmed_bytes or 0) > 1_000_000
    assert "unfit" in words(lost) and f"ctxpipe connect {name} --reset" in words(lost)

    run(postgres, "SELECT pg_drop_replication_slot(%s)", f"ctxpipe_{name}")
    gone = await seen()
    assert gone.wal_status == "missing" and gone.slot_active is False and (gone.unconfirmed_bytes or 0) > 1_000_000
    assert gone.headroom_s == 0 and "changes since our position" in words(gone) and "--reset" in words(gone)


async def test_a_source_that_is_away_or_frozen_is_told_and_nothing_old_is_shown(
    connector: Connector, postgres: PostgresServer, watch: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = connector.source

    async def seen() -> SourceHealth:
        return await look(name, watch)

    role = connector.start()
    up = await eventually(connector.page, lambda page: page.get("ctxpipe_source_slot_active") == 1, timeout_s=60)
    assert up["ctxpipe_source_up"] == 1
    assert (await seen()).up is True
    run(postgres, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'looker'")
    assert (await seen()).up is True, "a server that ended an idle connection is not away"

    monkeypatch.setattr(watching, "LOOK_TIMEOUT_S", 2.0)
    (served_by,) = run(postgres, _LOOKERS)[0]
    os.kill(served_by, signal.SIGSTOP)
    try:
        frozen = await seen()
    finally:
        os.kill(served_by, signal.SIGCONT)
    assert frozen.up is False and "did not answer within" in words(frozen) and frozen.retained_bytes is None
    await eventually(seen, lambda health: health.up is True)

    monkeypatch.undo()
    await asyncio.to_thread(postgres.stop)
    down = await seen()
    assert down.up is False and down.wal_status is None and "can't be reached" in words(down)
    page = await eventually(connector.page, lambda page: page.get("ctxpipe_source_up") == 0, timeout_s=60)
    assert not any(key.startswith("ctxpipe_source_") for key in page.keys() - {"ctxpipe_source_up"})
    await asyncio.to_thread(postgres.start)
    assert (await eventually(seen, lambda health: health.up is True)).wal_status == "reserved"
    await eventually(
        connector.page,
        lambda page: page.get("ctxpipe_source_up") == 1 and page.get("ctxpipe_source_slot_active") == 1,
        timeout_s=90,
    )
    assert await asyncio.to_thread(role.stop) == 0 and "Traceback" not in connector.log.read_text()


_LOOKERS = "SELECT pid FROM pg_stat_activity WHERE usename = 'looker'"
