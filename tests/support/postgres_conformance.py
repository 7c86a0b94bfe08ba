"""A Postgres table as the conformance kit's harness: everything that can be done to it, by SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg

from connectors.conformance.harness import Rows
from connectors.postgres.plugin import PLUGIN
from connectors.source import Position
from deploy.local.postgres import PostgresServer
from schemas.debezium_values import PLACEHOLDER
from tests.support.postgres_source import PostgresHarness

DDL = "CREATE TABLE {table} (id bigint PRIMARY KEY, v text, extra int)"
UPSERT = "INSERT INTO public.t (id, v) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
ALTERATIONS = (
    "ALTER TABLE {table} ADD COLUMN added text DEFAULT 'a default'",
    "ALTER TABLE {table} RENAME COLUMN added TO renamed",
    "ALTER TABLE {table} ALTER COLUMN extra TYPE bigint",
    "ALTER TABLE {table} DROP COLUMN renamed",
)
TYPES_DDL = """
ALTER TABLE {table} ADD COLUMN large bigint, ADD COLUMN amount numeric(30, 6), ADD COLUMN score float8,
  ADD COLUMN day date, ADD COLUMN moment timestamptz, ADD COLUMN local timestamp, ADD COLUMN bytes bytea,
  ADD COLUMN valid bool, ADD COLUMN document jsonb, ADD COLUMN list text[], ADD COLUMN place uuid
"""
TYPES_ROWS = """
INSERT INTO {table} (id, v, large, amount, score, day, moment, local, bytes, valid, document, list, place) VALUES
  (1, '', -9223372036854775808, -0.000001, '-Infinity', '-infinity', '-infinity', 'infinity', '', false, '{}', '{}',
   '00000000-0000-0000-0000-000000000000'),
  (2, E'ünï ☃ 😀 \\\\ " \\n', 9223372036854775807, 123456789012345678901234.567891, 'NaN', '2026-02-28',
   '2026-01-02 03:04:05.678901+02', '1969-12-31 23:59:59.999999', '\\x00ff', true, '{"a": [1, null, "x"]}',
   ARRAY['', NULL, 'a"b'], 'ffffffff-ffff-ffff-ffff-ffffffffffff')
"""


class PostgresConformance(PostgresHarness):
    """`make_postgres` starts a server of the test's own, where one has to be restarted."""

    plugin = PLUGIN

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, DDL)

    def section(self) -> dict[str, Any]:
        taken = ("dsn", "tables", "slot", "heartbeat_interval_s", "slot_wait_s", "chunk_rows")
        section = {name: getattr(self.config, name) for name in taken}
        return {"connector": "postgres", **section, "dsn": self.dsn}

    async def write(self, rows: Mapping[int, str] | str) -> None:  # type: ignore[override]
        if isinstance(rows, str):
            await super().write(rows)
            return
        assert self._connection is not None
        async with self._connection.transaction():
            await self._connection.cursor().executemany(UPSERT, list(rows.items()))

    def order(self, position: Position) -> tuple[int, int, int]:
        streaming = position["state"] == "streaming"
        return (1, position["lsn"], -len(position["pending"])) if streaming else (0, 0, 0)

    def chunk_rows(self) -> int:
        return self.config.chunk_rows

    async def delete(self, ids: Sequence[int]) -> None:
        await self.query("DELETE FROM public.t WHERE id = ANY(%s)", list(ids))

    async def change_key(self, old: int, new: int) -> None:
        await self.query("UPDATE public.t SET id = %s WHERE id = %s", new, old)

    async def write_nulls(self) -> list[dict[str, Any]]:
        """A value of 8 kB that does not compress lies outside the row, and is not sent when it does not change."""
        await self.write("INSERT INTO {table} VALUES (1, NULL, NULL)")
        large = "SELECT string_agg(md5(i::text), '') FROM generate_series(1, 250) i"
        await self.write(f"INSERT INTO {{table}} VALUES (2, ({large}), 1)")
        await self.write("UPDATE {table} SET extra = 2 WHERE id = 2")
        ((text,),) = await self.query(large)
        return [
            {"id": 1, "v": None, "extra": None},
            {"id": 2, "v": text, "extra": 1},
            {"id": 2, "v": PLACEHOLDER, "extra": 2},
        ]

    async def write_types(self) -> Rows:
        await self.write(TYPES_DDL)
        await self.write(TYPES_ROWS)
        least = {"v": "", "large": -(2**63), "amount": "-0.000001", "score": "-Infinity", "day": "-infinity"}
        least |= {"moment": "-infinity", "local": "infinity", "bytes": "", "valid": False, "document": "{}", "list": []}
        most = {"v": 'ünï ☃ 😀 \\ " \n', "large": 2**63 - 1, "amount": "123456789012345678901234.567891"}
        most |= {"score": "NaN", "day": "2026-02-28", "moment": "2026-01-02T01:04:05.678901Z", "bytes": "AP8="}
        most |= {"local": "1969-12-31T23:59:59.999999", "valid": True, "document": '{"a": [1, null, "x"]}'}
        most |= {"list": ["", None, 'a"b'], "place": "ffffffff-ffff-ffff-ffff-ffffffffffff"}
        return {'{"id":1}': {"id": 1, "extra": None, **least}, '{"id":2}': {"id": 2, "extra": None, **most}}

    async def foreign_position(self, position: Position) -> Position:
        return await self.alien_position(position)

    async def bad_sections(self) -> Mapping[str, dict[str, Any]]:
        parts = psycopg.conninfo.conninfo_to_dict(self.dsn)
        nowhere = psycopg.conninfo.make_conninfo(**{**parts, "port": 1})
        stranger = psycopg.conninfo.make_conninfo(**{**parts, "user": "nobody_here"})
        section = self.section()
        return {
            "no server": {**section, "dsn": nowhere},
            "an unknown user": {**section, "dsn": stranger},
            "no such table": {**section, "tables": ["public.no_such_table"]},
        }

    async def alter(self, step: int) -> bool:
        if step >= len(ALTERATIONS):
            return False
        await self.write(ALTERATIONS[step])
        return True

    async def lose(self) -> None:
        await self.drop_slot(self.config.slot)

    def refusal(self) -> str:
        return "two connectors"


class SkippedPostgres(PostgresConformance):
    """Loses changes in another way: somebody moved the slot past them."""

    async def lose(self) -> None:
        await self.skip_ahead()


class RestartedPostgres(PostgresConformance):
    """On a server of its own, which can be restarted."""

    def __init__(self, make_postgres: Callable[..., PostgresServer]) -> None:
        self._server = make_postgres()
        super().__init__(self._server.address)

    async def restart(self) -> None:
        await self.__aexit__()
        self._server.kill()
        self._server.start()
        self._connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
