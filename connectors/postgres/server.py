"""Connections to the source database: one place for addresses, session settings and our name in pg_stat_activity."""

from __future__ import annotations

import os
import socket
from typing import Any
from urllib.parse import urlencode

import asyncpg
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors.postgres.errors import mapped_errors
from connectors.postgres.values import SESSION_SETTINGS
from pipeline.core.errors import ConfigError

CONNECT_TIMEOUT_S = 10
_PATIENT = {"statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0"}
"""A snapshot takes as long as it takes, whatever the login's defaults are; while it is read, its exporter is idle."""
_OF_THE_WAY = ("passfile", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword")
"""Parts of an address that asyncpg takes only as a query."""
Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class Server:
    """One database of one server. `where` is its name in messages; it never holds the password."""

    def __init__(self, dsn: str, source: str) -> None:
        try:
            self._parameters = conninfo_to_dict(dsn)
        except psycopg.ProgrammingError:
            # The driver's words would quote the address, password and all.
            raise ConfigError([f"The dsn of source {source} is no address of a database"]) from None
        host, port = self._parameters.get("host", "localhost"), self._parameters.get("port", 5432)
        self.database = str(self._parameters.get("dbname") or self._parameters.get("user") or "postgres")
        self.where = f"Postgres {host}:{port}/{self.database}"
        self.application_name = application_name(source)

    def address_of(self, database: str) -> str:
        """A dsn of another database of this server; holds the password."""
        parameters: dict[str, Any] = {**self._parameters, "dbname": database}
        return make_conninfo(**parameters)

    async def connect(self) -> Connection:
        """An ordinary connection, each statement its own transaction."""
        return await self._connect()

    async def connect_replication(self) -> Connection:
        """A connection that speaks SQL and the replication protocol."""
        return await self._connect(replication="database")

    async def _connect(self, **extra: Any) -> Connection:
        conninfo = make_conninfo(
            **{
                "connect_timeout": CONNECT_TIMEOUT_S,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                **self._parameters,
                "application_name": self.application_name,
                "options": _options(str(self._parameters.get("options", ""))),
                **extra,
            }
        )
        with mapped_errors(self.where):
            return await psycopg.AsyncConnection.connect(conninfo, autocommit=True)

    async def connect_reader(self) -> Any:
        """An asyncpg connection, for reading whole tables by COPY."""
        names = {"host": "host", "port": "port", "user": "user", "password": "password", "dbname": "database"}
        given = {ours: self._parameters[theirs] for theirs, ours in names.items() if self._parameters.get(theirs)}
        # Without row_security=off a policy would hide rows from the snapshot without a word.
        settings = {**SESSION_SETTINGS, **_PATIENT, "row_security": "off", "application_name": self.application_name}
        del settings["client_encoding"]
        way = {name: self._parameters[name] for name in _OF_THE_WAY if self._parameters.get(name)}
        with mapped_errors(self.where):
            return await asyncpg.connect(
                f"postgresql://?{urlencode(way)}",
                **given,
                timeout=CONNECT_TIMEOUT_S,
                server_settings=settings,
                statement_cache_size=0,
            )


def application_name(source: str) -> str:
    """`ctxpipe <source> <host>/<pid>`, at most 63 bytes: tells later whether the slot's reader still lives."""
    tail = f" {socket.gethostname()[:24]}/{os.getpid()}"
    return f"ctxpipe {source}"[: 63 - len(tail)] + tail


def reader_of(name: str) -> tuple[str, int] | None:
    """Host and process id out of an application name of ours; None when it is somebody else's."""
    if not name.startswith("ctxpipe "):
        return None
    host, _, process = name.rsplit(" ", 1)[-1].rpartition("/")
    return (host, int(process)) if process.isdigit() else None


def _options(given: str) -> str:
    """What the dsn sets comes first: some services find their database by it."""
    ours = {**SESSION_SETTINGS, **_PATIENT}
    return " ".join([given, *(f"-c {name}={value}" for name, value in ours.items())]).strip()


def lsn_text(lsn: int) -> str:
    """50849592 → 0/307E738"""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """0/307E738 → 50849592"""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def quote_name(name: str) -> str:
    """An SQL identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def quote_table(table: str) -> str:
    """public.orders → "public"."orders"; the first dot parts schema and table."""
    schema, _, name = table.partition(".")
    return f"{quote_name(schema)}.{quote_name(name)}"


def quote_text(value: str) -> str:
    """An SQL string literal."""
    escaped = value.replace("'", "''")
    return f"'{escaped}'" if "\\" not in escaped else "E'" + escaped.replace("\\", "\\\\") + "'"
