"""A Postgres table as a harness for source tests."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

from connectors.postgres.config import PostgresConfig
from connectors.postgres.source import PostgresSource
from connectors.source import Position

DEFAULT_DDL = "CREATE TABLE {table} (id bigint PRIMARY KEY, v text)"


class PostgresHarness:
    """What `connectors.conformance.running.Running` needs, and SQL. `settings` go into the source's configuration."""

    def __init__(self, dsn: str, ddl: str = DEFAULT_DDL, table: str = "public.t", **settings: Any) -> None:
        self.dsn = dsn
        self.table = table
        self._ddl = ddl
        database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        self.config = PostgresConfig.model_validate(
            {
                "name": "src",
                "dsn": dsn,
                "tables": [table],
                "slot": f"slot_{database}",
                "heartbeat_interval_s": 0.1,
                "slot_wait_s": 1.5,
                "chunk_rows": 100,
                **settings,
            }
        )
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> PostgresHarness:
        self._connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        await self._connection.execute("SET TimeZone = 'UTC'")
        await self.write(self._ddl)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def write(self, sql: str) -> None:
        await self.query(sql.replace("{table}", self.table))

    async def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        cursor = await self._connection.execute(sql, parameters or None)
        return await cursor.fetchall() if cursor.description else []

    async def rows(self) -> dict[str, dict[str, Any]]:
        """Only for tables of text and numbers: the keys are spelled by the server's own JSON."""
        found = await self.query(f"SELECT to_jsonb(t) FROM {self.table} t")
        key = [name for (name,) in await self.query(_KEY, self.table)]
        return {msgspec.json.encode({name: row[name] for name in key}).decode(): row for (row,) in found}

    def source(self) -> PostgresSource:
        return PostgresSource(self.config)

    async def confirmed(self) -> int:
        query = "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s"
        return int((await self.query(query, self.config.slot))[0][0])

    async def alien_position(self, position: Position) -> Position:
        return {**position, "system": "1"}

    async def skip_ahead(self) -> None:
        await self.query(_END_READER, self.config.slot)
        await self.query("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", self.config.slot)

    async def lose(self) -> None:
        await self.drop_slot(self.config.slot)

    async def drop_slot(self, slot: str) -> None:
        """Even if its reader closed its connection just now: the server lets go of it a moment later."""
        await self.query(_END_READER, slot)
        await self.query("SELECT pg_drop_replication_slot(%s)", slot)


_END_READER = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = %s AND active"
_KEY = """
SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
WHERE i.indrelid = %s::regclass AND i.indisprimary ORDER BY a.attnum
"""
