"""A Cassandra table as the kit's harness of a source: its snapshot is ours, its stream comes by a topic."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connectors.cassandra import segments
from connectors.cassandra.heartbeat_table import create_statement
from connectors.cassandra.plugin import PLUGIN
from connectors.conformance.harness import Rows
from connectors.source import Position, SourceRecord
from deploy.local.cassandra import CassandraServer
from deploy.local.processes import HOST
from pipeline.core.errors import Retryable
from schemas.envelope import decode_record
from schemas.record import Record
from tests.support.cassandra import cql_session, fresh_keyspace
from tests.support.cassandra_table import CREATE, DECLARED, CassandraTable
from tests.support.eventually import eventually

RANGES, ROWS_PER_RANGE = 8, 16
BEATS = "beats"
TOPICS = "a matter of the stream: TestCassandraTopics"
IN_THE_LOG = "a change is told in a topic and by no batch of ours, and cdc_raw says how far it was: TestCassandraTopics"


class CassandraConformance(CassandraTable):
    """On a keyspace of its own."""

    plugin = PLUGIN
    not_applicable: Mapping[str, str] = {
        "Altering": TOPICS,
        "Confirming": "nothing is kept for the source; the log's segments are asked by TestCassandraTopics, kill -9",
        "Late": TOPICS,
        "Rekeying": "CQL can't change a primary key",
        "Restarting": "asked on the same server last: TestRestartedCassandra",
        "test_resumes_from_every_position": IN_THE_LOG,
        "test_what_was_not_acknowledged_comes_again": IN_THE_LOG,
        "test_stores_a_position_only_after_its_records": IN_THE_LOG,
        "test_changes_of_a_key_keep_their_order": IN_THE_LOG,
        "test_null_absent_and_unavailable_are_three_things": IN_THE_LOG,
    }

    def __init__(self, server: CassandraServer, folder: Path) -> None:
        super().__init__()
        self.server, self._folder, self.table = server, folder, "t"

    async def __aenter__(self) -> CassandraConformance:
        self._opened = cql_session(self.server)
        self.session = await self._opened.__aenter__()
        self._made = fresh_keyspace(self.session)
        self.keyspace = await self._made.__aenter__()
        await self.session.execute(CREATE.format(self.name))
        await self.session.execute(create_statement(self.keyspace, BEATS).rstrip(";"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._made.__aexit__(None, None, None)
        await self._opened.__aexit__(None, None, None)

    def section(self) -> dict[str, Any]:
        sidecar = {"cassandra_yaml": str(self.server.config_file), "heap_mib": 384, "poll_interval_ms": 100}
        return {
            "connector": "cassandra",
            "hosts": [HOST],
            "port": self.server.port,
            "user": "ctxpipe",
            "password": "a-secret-that-nobody-may-see",
            "keyspace": self.keyspace,
            "tables": ["t"],
            "data_directory": str(self._folder / "data"),
            "consistency": "ONE",
            "snapshot_ranges": RANGES,
            "page_rows": ROWS_PER_RANGE,
            "watch_interval_s": 0.3,
            "heartbeat_table": BEATS,
            "heartbeat_interval_s": 0.2,
            "sidecar": {**sidecar, "restart_delay_s": 0.2},
        }

    def fold(self, records: Sequence[SourceRecord]) -> Rows:
        types = {self.name: DECLARED}
        told = [Record(one.topic, 0, 0, one.key, one.value, 0, tuple(one.headers)) for one in records]
        events = [decode_record(one, types) for one in told if not one.topic.startswith("ctxpipe.")]
        return self.merge([event for event in events if event is not None])

    def order(self, position: Position) -> int:
        return -sum(last - first + 1 for runs in position["left"].values() for first, last in runs)

    def chunk_rows(self) -> int:
        return ROWS_PER_RANGE

    async def foreign_position(self, position: Position) -> Position:
        return {**position, "ids": {"t": "00000000-0000-0000-0000-000000000000"}}

    async def lose(self) -> None:
        """As the node does when cdc_raw is full and it must not block: the oldest segment is deleted unread."""
        files = segments.node_files(self.server.config_file)
        oldest = segments.look(files).segments[0].name
        for file in self.server.cdc_raw_dir.glob(f"{oldest}*"):
            file.unlink()

    async def bad_sections(self) -> Mapping[str, dict[str, Any]]:
        section = self.section()
        await self.session.execute(f"CREATE TABLE IF NOT EXISTS {self.keyspace}.plain (id int PRIMARY KEY)")
        return {
            "no server": {**section, "port": 1},
            "a wrong datacenter": {**section, "local_datacenter": "nowhere"},
            "no such table": {**section, "tables": ["no_such_table"]},
            "CDC is not enabled": {**section, "tables": ["plain"]},
            "no heartbeat table": {**section, "heartbeat_table": "no_such_table"},
        }

    def refusal(self) -> str:
        return "one at a time"


class RestartedCassandra(CassandraConformance):
    not_applicable: Mapping[str, str] = {}

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)
        await eventually(
            lambda: self.session.rows("SELECT key FROM system.local"),
            lambda found: bool(found.rows),
            what="the test's own session is connected again",
            ignore=(Retryable,),
            timeout_s=90,
        )
