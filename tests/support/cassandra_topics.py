"""`ctxpipe connect` with its sidecar beside a Cassandra, as the kit's harness of topics.

One connect serves a module: it captures many tables, and each test takes the next one. Its snapshot is off, because the
other kind of the suite judges that (cassandra_conformance.py): all that arrives here came from the commit log.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from connectors.cassandra.heartbeat_table import create_statement
from connectors.cassandra.plugin import PLUGIN
from connectors.cql.session import CqlSession
from deploy.local.cassandra import CassandraServer
from deploy.local.processes import HOST, ProcessMark
from tests.support.cassandra import cql_session
from tests.support.cassandra_table import CREATE, DECLARED, CassandraTable
from tests.support.cli import ROOT
from tests.support.eventually import eventually

TABLES = 24
BEATS = "beats"
PARTITIONS = 2
LATE_US = 3_600_000_000
ALTERATIONS = (
    ("ADD (added text, flag boolean)", ("v", "extra", "added", "flag")),
    ("DROP added", ("v", "extra", "flag")),
)


class Deployment:
    """`connect` as a process, its section and its tables. Started by the first test that asks for it."""

    def __init__(self, server: CassandraServer, kafka: str, folder: Path) -> None:
        self.server, self._kafka, self._folder = server, kafka, folder
        self.name = f"kit{os.getpid()}_{time.time_ns() // 1_000_000 % 10**6}"
        self.tables = [f"t{number}" for number in range(TABLES)]
        self.taken = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def keyspace(self) -> str:
        return self.name

    def section(self) -> dict[str, Any]:
        sidecar = {"cassandra_yaml": str(self.server.config_file), "heap_mib": 384, "poll_interval_ms": 100}
        return {
            "connector": "cassandra",
            "hosts": [HOST],
            "port": self.server.port,
            "user": "ctxpipe",
            "password": "a-secret-that-nobody-may-see",
            "keyspace": self.keyspace,
            "tables": self.tables,
            "data_directory": str(self._folder / "data"),
            "consistency": "ONE",
            "snapshot": "never",
            "heartbeat_table": BEATS,
            "heartbeat_interval_s": 0.2,
            "watch_interval_s": 0.3,
            "sidecar": {**sidecar, "restart_delay_s": 0.2},
        }

    async def prepare(self, session: CqlSession) -> None:
        if self.taken:
            return
        replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
        await session.execute(f"CREATE KEYSPACE {self.keyspace} WITH replication = {replication}")
        await session.execute(create_statement(self.keyspace, BEATS).rstrip(";"))
        for table in self.tables:
            await session.execute(CREATE.format(f"{self.keyspace}.{table}"))
        kafka = {"bootstrap_servers": self._kafka, "partitions": PARTITIONS}
        body = {"kafka": kafka, "redis": {"url": "redis://127.0.0.1:1/0"}, "sources": {self.name: self.section()}}
        (self._folder / "ctxpipe.yaml").write_text(json.dumps(body))

    def start(self) -> None:
        """Where it does not run."""
        if self._process is not None and self._process.poll() is None:
            return
        with (self._folder / "connect.log").open("ab") as log:
            words = [sys.executable, "-m", "pipeline.cli", "connect", self.name]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            self._process = subprocess.Popen(words, cwd=self._folder, stdout=log, stderr=log, env=environment)

    def alive(self) -> None:
        code = None if self._process is None else self._process.poll()
        assert code is None, f"connect ended with {code}: {(self._folder / 'connect.log').read_text()[-1500:]}"

    def processes(self) -> list[int]:
        """connect and its sidecar."""
        if self._process is None:
            return []
        found = [self._process.pid] if self._process.poll() is None else []
        return [*found, *(mark.pid for mark in self._sidecars() if mark.alive())]

    def _sidecars(self) -> list[ProcessMark]:
        """Wherever they hang now: told by their own settings file, which no other process names."""
        settings = str(self._folder / "data" / "sidecar.properties").encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and settings in (entry / "cmdline").read_bytes():
                    found.append(ProcessMark.of(int(entry.name)))
            except OSError:
                continue
        return found

    async def kill_sidecar(self) -> None:
        for mark in await eventually(self._sidecars, what="a sidecar"):
            mark.send(signal.SIGKILL)

    def end(self, number: int) -> None:
        """Sends the signal, and returns when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)


class CassandraTopics(CassandraTable):
    plugin = PLUGIN
    row_bytes_max = 10_000_000
    not_applicable: Mapping[str, str] = {
        "Beginning": "its snapshot is a source of ours, which the other kind of the suite judges: TestCassandra",
        "Examined": "its check is a source's, which the other kind of the suite judges: TestCassandra",
        "Rekeying": "CQL can't change a primary key",
        "Restarting": "the source's kind asks it: TestRestartedCassandra",
        "Truncating": "Cassandra's commit log does not tell TRUNCATE",
    }

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._deployment = deployment
        self._opened: Any = None
        self.keyspace = deployment.keyspace

    async def __aenter__(self) -> CassandraTopics:
        self._opened = cql_session(self._deployment.server)
        self.session = await self._opened.__aenter__()
        await self._deployment.prepare(self.session)
        self.table = self._deployment.tables[self._deployment.taken]
        self._deployment.taken += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.__aexit__(None, None, None)

    # TopicsHarness

    def section(self) -> dict[str, Any]:
        return self._deployment.section()

    def topic(self) -> str:
        return f"{self._deployment.name}.{self.name}"

    def types(self) -> Mapping[str, str]:
        return DECLARED

    async def start(self) -> None:
        self._deployment.start()

    def alive(self) -> None:
        self._deployment.alive()

    # what can be done to it

    async def write_nulls(self) -> list[dict[str, Any]]:
        """A column that a change does not touch is not in the log."""
        await self.execute("INSERT INTO {} (id, v) VALUES (1, NULL)")
        await self.execute("INSERT INTO {} (id, v) VALUES (2, ?)", "x" * 8000)
        await self.execute("UPDATE {} SET extra = 2 WHERE id = 2")
        await self.execute("DELETE v FROM {} WHERE id = 2")
        return [{"id": 1, "v": None}, {"id": 2, "v": "x" * 8000}, {"id": 2, "extra": 2}, {"id": 2, "v": None}]

    async def alter(self, step: int) -> bool:
        if step >= len(ALTERATIONS):
            return False
        await self.session.execute(f"ALTER TABLE {self.name} {ALTERATIONS[step][0]}")
        self.columns = ["id", *ALTERATIONS[step][1]]
        return True

    async def write_late(self, rows: Mapping[int, str]) -> None:
        await self.write_at(rows, time.time_ns() // 1000 - LATE_US)

    # the deployment's processes

    async def kill(self, step: int) -> bool:
        if step == 0:
            await self._deployment.kill_sidecar()
        elif step == 1:
            await asyncio.to_thread(self._deployment.end, signal.SIGKILL)
            self._deployment.start()
        return step < 2

    async def stop(self) -> None:
        await asyncio.to_thread(self._deployment.end, signal.SIGTERM)

    def beat_within_s(self) -> float:
        return 10.0

    def processes(self) -> list[int]:
        return self._deployment.processes()
