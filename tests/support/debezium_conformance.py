"""A deployment of Kafka Connect with Debezium's connector for Postgres as the kit's harness of topics.

One Connect serves a module; each test gets a database, a connector in it and topics of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import yaml

from connectors.conformance.harness import NAME, Rows
from connectors.debezium.plugin import PLUGIN
from connectors.source import Finding
from deploy.local.connect import ConnectServer, postgres_connector
from deploy.local.postgres import PostgresServer
from schemas.debezium_values import PLACEHOLDER
from tests.support.cli import ctxpipe

CREATE = """
CREATE TABLE t (id bigint PRIMARY KEY, v text, extra int);
ALTER TABLE t ALTER COLUMN v SET STORAGE EXTERNAL
"""
UPSERT = "INSERT INTO t (id, v) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
ALTERATIONS = (
    "ALTER TABLE t ADD COLUMN added text DEFAULT 'a default'",
    "ALTER TABLE t RENAME COLUMN added TO renamed",
    "ALTER TABLE t ALTER COLUMN extra TYPE bigint",
    "ALTER TABLE t DROP COLUMN renamed",
)
# column, its type, how a context declares it, two values in SQL, both as they must be read
TYPES = (
    ("large", "bigint", "", "-9223372036854775808", "9223372036854775807", -(2**63), 2**63 - 1),
    ("small", "smallint", "", "-32768", "32767", -(2**15), 2**15 - 1),
    ("amount", "numeric(30, 6)", "decimal(30,6)", "-0.000001", "123456789012345678901234.567891",
     "-0.000001", "123456789012345678901234.567891"),
    # Debezium writes null for a numeric NaN, and cuts the zeros at the end of one without a scale
    ("free", "numeric", "decimal", "-12.5", "1e-20", "-12.5", "0.00000000000000000001"),
    ("score", "float8", "", "'-Infinity'", "'NaN'", "-Infinity", "NaN"),
    ("single", "real", "", "-0.1", "3.4028235e38", -0.1, 3.4028235e38),
    ("valid", "bool", "", "false", "true", False, True),
    ("day", "date", "date", "'0001-01-01'", "'9999-12-31'", "0001-01-01", "9999-12-31"),
    ("at", "time", "time_us", "'00:00'", "'23:59:59.999999'", "00:00:00", "23:59:59.999999"),
    ("moment", "timestamptz", "timestamptz", "'-infinity'", "'2026-01-02 03:04:05.678901+02'",
     "-infinity", "2026-01-02T01:04:05.678901Z"),
    ("local", "timestamp", "timestamp_us", "'infinity'", "'1969-12-31 23:59:59.999999'",
     "infinity", "1969-12-31T23:59:59.999999"),
    ("bytes", "bytea", "bytes", "''", "'\\x00ff'", "", "AP8="),
    ("document", "jsonb", "", "'{}'", "'{\"a\": [1, null, \"x\"]}'", "{}", '{"a": [1, null, "x"]}'),
    ("list", "text[]", "", "'{}'", "ARRAY['', NULL, 'a\"b']", [], ["", None, 'a"b']),
    ("place", "uuid", "", "'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
     "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
)  # fmt: skip
LARGE_BYTES = str(32 << 20)
NOTED_S = 2.5
"""Longer than offset.flush.interval.ms."""
_numbers = itertools.count(1)


class DebeziumConformance:
    """On a database of its own in `dsn`, brought by a connector that `start` adds to `connect`."""

    plugin = PLUGIN
    schemas = False
    properties: Mapping[str, str] = {}
    row_bytes_max = 10_000_000
    not_applicable: Mapping[str, str] = {
        "Beating": "Debezium's heartbeats go to a topic of their own, so that nothing tells a partition's age",
        "Duplicating": "one server has one log, and sends a change once; what a kill repeats is asked there",
        "Late": "rows of Postgres have no write times: the order is that of its log",
        "Restarting": "asked on a server of its own: TestRestartedDebezium",
        "Stoppable": "nothing of ours runs: how Kafka Connect ends is its operators' matter",
        "Truncating": "a compacted topic refuses Debezium's truncates, which have no key: TestDebeziumWithSchemas",
    }

    def __init__(self, dsn: str, connect: ConnectServer, folder: Path, kafka: str, redis_url: str) -> None:
        self.dsn, self.prefix = dsn, f"kit{next(_numbers)}"
        self._connect, self._folder = connect, folder
        self._servers = {"kafka": {"bootstrap_servers": kafka}, "redis": {"url": redis_url}}
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> DebeziumConformance:
        self._connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        await self.query(CREATE)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connect.connectors.pop(self.prefix, None) is not None:
            await asyncio.to_thread(self._ask, "DELETE", f"/connectors/{self.prefix}")
        if self._connection is not None:
            await self._connection.close()

    async def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        cursor = await self._connection.execute(sql, parameters or None)  # type: ignore[arg-type]
        return await cursor.fetchall() if cursor.description else []

    # TopicsHarness

    def section(self) -> dict[str, Any]:
        return {"connector": "debezium", "topic_prefix": self.prefix, "dsn": self.dsn}

    def topic(self) -> str:
        return f"{self.prefix}.public.t"

    def types(self) -> Mapping[str, str]:
        """With schemas around the records nothing has to be declared."""
        return {} if self.schemas else {column: declared for column, _, declared, *_ in TYPES if declared}

    async def start(self) -> None:
        made = postgres_connector(self.dsn, self.prefix, ["public.t"], schemas=self.schemas, partitions=2)
        made |= {
            "poll.interval.ms": "20",
            "retriable.restart.connector.wait.ms": "500",
            "producer.override.max.request.size": LARGE_BYTES,
            "topic.creation.default.max.message.bytes": LARGE_BYTES,
        }
        made |= self.properties
        self._connect.connectors[self.prefix] = made  # as one of its files, for its next start
        await asyncio.to_thread(self._ask, "POST", "/connectors", {"name": self.prefix, "config": made})

    def alive(self) -> None:
        assert self._connect.running(), f"Connect ended:\n{self._connect.log_tail()}"

    def _ask(self, method: str, path: str, body: Any = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._connect.address}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()

    async def write(self, rows: Mapping[int, str]) -> None:
        assert self._connection is not None
        async with self._connection.transaction():
            await self._connection.cursor().executemany(UPSERT, list(rows.items()))

    async def rows(self) -> Rows:
        found = await self.query("SELECT to_jsonb(t) FROM t")
        return {msgspec.json.encode({"id": row["id"]}).decode(): row for (row,) in found}

    # what can be done to it

    def many(self) -> int:
        return 3000

    async def delete(self, ids: Sequence[int]) -> None:
        await self.query("DELETE FROM t WHERE id = ANY(%s)", list(ids))

    async def change_key(self, old: int, new: int) -> None:
        await self.query("UPDATE t SET id = %s WHERE id = %s", new, old)

    async def switch(self) -> None:
        await self.query("SELECT pg_switch_wal()")

    async def alter(self, step: int) -> bool:
        if step >= len(ALTERATIONS):
            return False
        await self.query(ALTERATIONS[step])
        return True

    async def write_types(self) -> Rows:
        await self.query("ALTER TABLE t " + ", ".join(f'ADD COLUMN "{name}" {kind}' for name, kind, *_ in TYPES))
        golden: Rows = {}
        for number, (written, read) in enumerate(((3, 5), (4, 6)), start=1):
            values = ", ".join(one[written] for one in TYPES)
            text = "" if number == 1 else 'ünï ☃ 😀 \\ " \n'
            await self.query(f"INSERT INTO t VALUES ({number}, %s, NULL, {values.replace('%', '%%')})", text)
            expected = {one[0]: one[read] for one in TYPES}
            golden[f'{{"id":{number}}}'] = {"id": number, "v": text, "extra": None, **expected}
        return golden

    async def write_nulls(self) -> list[dict[str, Any]]:
        """A value of 8 kB lies outside its row, and is not in the log when it does not change: not even when the key
        does."""
        text = "x" * 8000
        await self.query("INSERT INTO t VALUES (1, NULL, NULL)")
        await self.query("INSERT INTO t VALUES (2, %s, 1)", text)
        await self.query("UPDATE t SET extra = 2 WHERE id = 2")
        await self.query("UPDATE t SET id = 3 WHERE id = 2")
        return [
            {"id": 1, "v": None, "extra": None},
            {"id": 2, "v": text, "extra": 1},
            {"id": 2, "v": PLACEHOLDER, "extra": 2},
            {"id": 3, "v": PLACEHOLDER, "extra": 2},
        ]

    async def kill(self, step: int) -> bool:
        if step:
            return False
        # Before it has noted its position it would begin anew, by a snapshot, which tells the newest rows only.
        await asyncio.sleep(NOTED_S)
        await asyncio.to_thread(self._connect.kill)
        await asyncio.to_thread(self._connect.start)
        return True

    # Examined

    async def check(self, section: dict[str, Any]) -> list[Finding]:
        entity = {"source": NAME, "table": "public.t", "key": ["id"]}
        context = {"context": f"{NAME}_{self.prefix}", "version": 1, "root": "t", "entities": {"t": entity}}
        body = {**self._servers, "sources": {NAME: section}, "contexts": ["t.yaml"]}
        (self._folder / "ctxpipe.yaml").write_text(yaml.safe_dump(body))
        (self._folder / "t.yaml").write_text(yaml.safe_dump({**context, "fields": ["id", "v", "extra"]}))
        done = await asyncio.to_thread(ctxpipe, "check", "--json", folder=self._folder)
        found = json.loads(done.out.splitlines()[-1])["findings"]
        names = ("severity", "subject", "message", "mend")
        return [Finding(**{name: one[name] for name in names if name in one}) for one in found]

    async def bad_sections(self) -> Mapping[str, dict[str, Any]]:
        return {
            "another prefix": {**self.section(), "topic_prefix": f"{self.prefix}x"},
            "rows that are not flattened": {**self.section(), "format": "flattened"},
        }


def _without(ability: str) -> dict[str, str]:
    return {name: why for name, why in DebeziumConformance.not_applicable.items() if name != ability}


class DebeziumWithSchemas(DebeziumConformance):
    """With truncates, too, which Debezium leaves out by default."""

    schemas = True
    properties: Mapping[str, str] = {"skipped.operations": "none", "topic.creation.default.cleanup.policy": "delete"}
    not_applicable: Mapping[str, str] = _without("Truncating")

    async def truncate(self) -> None:
        await self.query("TRUNCATE t")


class RestartedDebezium(DebeziumConformance):
    """On a Postgres that can be restarted."""

    not_applicable: Mapping[str, str] = _without("Restarting")
    server: PostgresServer

    async def restart(self) -> None:
        assert self._connection is not None
        await self._connection.close()
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self.server.start)
        self._connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
