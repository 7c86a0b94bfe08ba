"""One real Cassandra for the tests: started at its first use, ended with the session."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from connectors.cql.session import CqlServer, CqlSession, connect
from deploy.local import install
from deploy.local.cassandra import CassandraServer
from deploy.local.processes import HOST
from tests.support.servers import LocalRoot

DATACENTER = "datacenter1"
PATIENT = {"connect_timeout_s": 60, "request_timeout_s": 60}
"""Of a source in a test: on a busy machine a change of the schema takes longer than an operator would wait."""
SLOW = dict.fromkeys(
    ("read_request_timeout", "range_request_timeout", "write_request_timeout", "request_timeout"), "30s"
)
"""The node's own, for the same reason."""
_numbers = itertools.count(1)


def start_cassandra(root: LocalRoot, **options: Any) -> CassandraServer:
    """`options` are CassandraServer's; the heap is small, because tests share a machine."""
    install.ensure(["cassandra"])
    settings = SLOW | options.pop("settings", {})
    server = CassandraServer(**root.place("cassandra"), settings=settings, **{"heap_mib": 768, **options})
    server.start()
    return server


def cql_server(server: CassandraServer, **settings: Any) -> CqlServer:
    """How to reach it."""
    return CqlServer.model_validate({"hosts": [HOST], "port": server.port, **PATIENT, **settings})


@asynccontextmanager
async def cql_session(server: CassandraServer, **settings: Any) -> AsyncIterator[CqlSession]:
    session = await connect(cql_server(server, **settings))
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def fresh_keyspace(session: CqlSession) -> AsyncIterator[str]:
    """A keyspace of the test's own, dropped after it."""
    name = f"test_{next(_numbers)}"
    replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
    await session.execute(f"CREATE KEYSPACE {name} WITH replication = {replication}")
    try:
        yield name
    finally:
        await session.execute(f"DROP KEYSPACE IF EXISTS {name}")
