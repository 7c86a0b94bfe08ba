"""Addresses and configuration of a Postgres source: what a person wrote reaches every connection."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg
import pytest

from connectors.postgres.config import parse_config
from connectors.postgres.replication import ReplicationStream
from connectors.postgres.server import Server
from pipeline.core.errors import ConfigError, EnvironmentProblem

DSN = "postgresql://u:p%40ss@db.example:5433/shop?sslmode=verify-full&sslrootcert=/etc/ca.pem&options=-c%20a.b%3D1"


async def test_the_reader_of_snapshots_connects_as_the_stream_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    async def connect(dsn: str, **arguments: Any) -> None:
        seen.update(arguments, dsn=dsn)

    monkeypatch.setattr(asyncpg, "connect", connect)
    await Server(DSN, "src").connect_reader()
    assert seen["dsn"] == "postgresql://?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem"
    assert (seen["host"], seen["port"], seen["password"], seen["database"]) == ("db.example", "5433", "p@ss", "shop")
    settings = seen["server_settings"]
    assert settings["row_security"] == "off" and settings["statement_timeout"] == "0"


async def test_options_of_the_address_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    async def connect(conninfo: str, **_: Any) -> None:
        seen.update(psycopg.conninfo.conninfo_to_dict(conninfo))

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", connect)
    await Server(DSN, "src").connect()
    options = seen["options"]
    assert options.startswith("-c a.b=1 -c DateStyle=ISO") and "-c statement_timeout=0" in options


def test_tables_that_would_share_a_topic_are_refused() -> None:
    section = {"dsn": "postgresql://h/d", "tables": ["public.größe", "public.grö_e", "public.t", "public.t"]}
    with pytest.raises(ConfigError, match=r"public\.größe and public\.grö_e would share a topic"):
        parse_config("src", section)


class RefusingLibpq:
    socket = 0

    def consume_input(self) -> None:
        raise psycopg.errors.InsufficientPrivilege("permission denied for function of the row filter")


async def test_a_refusal_in_the_middle_of_the_stream_reaches_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """It came out of a callback of the loop, where nobody hears it, and the reader waited for ever."""
    stream = ReplicationStream(Server("postgresql://h/d", "src"), 1000)
    connection: Any = type("Connection", (), {"pgconn": RefusingLibpq()})()
    monkeypatch.setattr(stream, "_connection", connection)
    stream._on_readable()
    with pytest.raises(EnvironmentProblem, match="permission denied"):
        await stream.read()


async def test_what_arrives_while_it_closes_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop called back for a connection that was given up already."""
    near, far = socket.socketpair()
    heard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context))

    class Connection:
        pgconn = type("Libpq", (), {"socket": near.fileno(), "put_copy_data": lambda *_: 1, "flush": lambda _: 0})()

        async def close(self) -> None:
            near.close()

    async def slow_to_end() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0.01)

    stream = ReplicationStream(Server("postgresql://h/d", "src"), 1000)
    monkeypatch.setattr(stream, "_connection", Connection())
    stream._resume_reading()
    monkeypatch.setattr(stream, "_feedback_task", asyncio.create_task(slow_to_end()))
    await asyncio.sleep(0)
    far.send(b"more")
    await stream.close()
    far.close()
    assert not heard
