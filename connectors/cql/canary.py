"""Beside the path: the canary's rows in Cassandra and Scylla, each a partition of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from connectors.cql.errors import Undefined
from connectors.cql.schema import full_name, read_table
from connectors.cql.session import CqlServer, CqlSession, connect
from connectors.source import Finding
from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Retryable

if TYPE_CHECKING:
    from connectors.canary import CanaryRow

SUBJECT = "canary table"
CLOSE_S = 2.0
_COLUMNS = {"slot": "int", "slots": "text", "kafka_partition": "int", "number": "bigint", "written_us": "bigint"}


class CqlCanary:
    """A CanaryWriter."""

    def __init__(self, source: str, server: CqlServer, table: str, is_scylla: bool) -> None:
        self._source, self._server, self._is_scylla = source, server, is_scylla
        self._keyspace, _, self._name = table.partition(".")
        self._session: CqlSession | None = None

    async def write(self, rows: Sequence[CanaryRow]) -> None:
        session = await self._connected()
        statement = write_statement(self._keyspace, self._name)
        try:
            prepared = await session.prepare(statement)
            async with asyncio.TaskGroup() as tasks:
                for row in rows:
                    tasks.create_task(session.execute(prepared, [getattr(row, name) for name in _COLUMNS]))
        except BaseExceptionGroup as failed:
            session.forget()
            raise _told(failed.exceptions[0]) from None
        except Undefined as error:
            raise _told(error) from error

    async def prepare(self) -> list[Finding]:
        session = await self._connected()
        subject = f"{self._keyspace}.{self._name}"
        statement = create_statement(self._keyspace, self._name, self._is_scylla)
        found = await read_table(session, self._keyspace, self._name)
        if found is None:
            try:
                await session.execute(statement)
            except Retryable:
                raise
            except CtxpipeError as error:
                mend = f"{statement} GRANT MODIFY ON TABLE {full_name(self._keyspace, self._name)} TO USER;"
                return [Finding("unfit", SUBJECT, f"{subject} is not there and can't be made: {error}", mend)]
            message = f"{subject} was made, with its change log"
            return [Finding("ok", SUBJECT, message), self._captured()]
        columns = {column.name: column.declared for column in found.columns}
        if columns != _COLUMNS or [column.name for column in found.key] != ["slot"]:
            listed = ", ".join(f"{name} {declared}" for name, declared in columns.items())
            mend = f"DROP TABLE {full_name(self._keyspace, self._name)}; {statement}"
            return [Finding("unfit", SUBJECT, f"{subject} has other columns than it must have ({listed})", mend)]
        return [Finding("ok", SUBJECT, f"{subject} is there"), self._captured()]

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await session.close()
            except TimeoutError:
                return

    def _captured(self) -> Finding:
        mend = (
            f"Restart `ctxpipe connect {self._source}` where it runs without the table, and let `ctxpipe check` look."
        )
        return Finding("note", "capture", f"{self._name} has to be among sources.{self._source}.tables", mend)

    async def _connected(self) -> CqlSession:
        if self._session is None:
            self._session = await connect(self._server)
        return self._session


def create_statement(keyspace: str, table: str, is_scylla: bool) -> str:
    columns = ", ".join(f"{name} {kind}{' PRIMARY KEY' if name == 'slot' else ''}" for name, kind in _COLUMNS.items())
    log = "cdc = {'enabled': true}" if is_scylla else "cdc = true"
    return f"CREATE TABLE {full_name(keyspace, table)} ({columns}) WITH {log};"


def write_statement(keyspace: str, table: str) -> str:
    marks = ", ".join("?" * len(_COLUMNS))
    return f"INSERT INTO {full_name(keyspace, table)} ({', '.join(_COLUMNS)}) VALUES ({marks})"


def _told(error: BaseException) -> BaseException:
    if isinstance(error, Undefined):
        return EnvironmentProblem(f"{error}. `ctxpipe canary --prepare` makes the table.")
    return error
