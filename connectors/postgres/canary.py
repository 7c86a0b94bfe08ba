"""Beside the path: the canary's rows in Postgres, all of them in one statement, and so in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from connectors.postgres.catalog import Catalog
from connectors.postgres.errors import Undefined, mapped_errors
from connectors.postgres.server import Server, quote_name, quote_table
from connectors.source import Finding
from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Retryable

if TYPE_CHECKING:
    from connectors.canary import CanaryRow

SUBJECT = "canary table"


class PostgresCanary:
    """A CanaryWriter. `publication` "": another program captures the table."""

    def __init__(self, source: str, dsn: str, table: str, publication: str) -> None:
        self._source, self._table, self._publication = source, table, publication
        self._server = Server(dsn, f"canary {source}")
        self._connection: Any = None

    async def write(self, rows: Sequence[CanaryRow]) -> None:
        columns = [[getattr(row, name) for row in rows] for name in _COLUMNS]
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._server.connect_reader()
            with mapped_errors(self._server.where):
                await self._connection.execute(write_statement(self._table), *columns)
        except Undefined as error:
            raise EnvironmentProblem(f"{error}. `ctxpipe canary --prepare` makes the table.") from error
        except BaseException:
            await self.close()
            raise

    async def prepare(self) -> list[Finding]:
        catalog = Catalog(self._server)
        try:
            return await self._prepared(catalog)
        finally:
            await catalog.close()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _prepared(self, catalog: Catalog) -> list[Finding]:
        where = self._server.where
        found = await catalog.table(self._table)
        if found is None:
            statement = create_statement(self._table)
            try:
                await catalog.rows(statement)
            except Retryable:
                raise
            except CtxpipeError as error:
                mend = f"{statement}; {grant_statement(self._table)}"
                return [Finding("unfit", SUBJECT, f"{self._table} is not there and can't be made: {error}", mend)]
            findings = [Finding("ok", SUBJECT, f"{self._table} was made in {where}")]
        else:
            names = [column.name for column in found.columns]
            if not set(_COLUMNS) <= set(names) or found.key != [_COLUMNS[0]]:
                told = f"has other columns than it must have ({', '.join(names)}; key {', '.join(found.key)})"
                mend = f"DROP TABLE {quote_table(self._table)}; {create_statement(self._table)};"
                return [Finding("unfit", SUBJECT, f"{self._table} {told}", mend)]
            findings = [Finding("ok", SUBJECT, f"{self._table} is there")]
        may_write = await catalog.rows(_MAY_WRITE, quote_table(self._table), quote_table(self._table))
        if not all(may_write[0]):
            message = f"{self._table} can't be written by this login"
            return [*findings, Finding("unfit", SUBJECT, message, grant_statement(self._table))]
        return [*findings, await self._captured(catalog)]

    async def _captured(self, catalog: Catalog) -> Finding:
        if not self._publication:
            mend = f"Debezium has to capture {self._table}: add it to its table.include.list."
            return Finding("note", "publication", "others capture this source", mend)
        if self._table in await catalog.published(self._publication):
            return Finding("ok", "publication", f"{self._publication} publishes {self._table}")
        add = f"ALTER PUBLICATION {quote_name(self._publication)} ADD TABLE {quote_table(self._table)};"
        mend = (
            f"Restart `ctxpipe connect {self._source}`: it adds the table to its publication. Where it may not: {add}"
        )
        return Finding("note", "publication", f"{self._publication} does not publish {self._table} yet", mend)


def create_statement(table: str) -> str:
    """Two, without an end. Stored plain, a value is always in its row: changes of the others bring it along."""
    name = quote_table(table)
    return (
        f"CREATE TABLE {name} (slot int PRIMARY KEY, slots text NOT NULL, kafka_partition int, number bigint NOT NULL, "
        f"written_us bigint NOT NULL); ALTER TABLE {name} ALTER slots SET STORAGE PLAIN"
    )


def grant_statement(table: str) -> str:
    return f"GRANT SELECT, INSERT, UPDATE ON {quote_table(table)} TO the login of the canary;"


def write_statement(table: str) -> str:
    others = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])
    return (
        f"INSERT INTO {quote_table(table)} ({', '.join(_COLUMNS)}) "
        "SELECT * FROM unnest($1::int[], $2::text[], $3::int[], $4::bigint[], $5::bigint[]) "
        f"ON CONFLICT (slot) DO UPDATE SET {others}"
    )


_COLUMNS = ("slot", "slots", "kafka_partition", "number", "written_us")
_MAY_WRITE = "SELECT has_table_privilege(%s, 'INSERT'), has_table_privilege(%s, 'UPDATE')"
