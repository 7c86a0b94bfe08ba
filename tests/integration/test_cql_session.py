"""The driver's bridge against a real Cassandra."""

from __future__ import annotations

import asyncio
import threading

import pytest

from connectors.cql.errors import Undefined
from connectors.cql.schema import fingerprint, read_table, tables_of
from connectors.cql.session import connect
from connectors.cql.values import CqlType, canonical
from deploy.local.cassandra import CassandraServer
from deploy.local.processes import choose_port
from pipeline.core.errors import EnvironmentProblem, Fatal, Retryable
from tests.support.cassandra import DATACENTER, cql_server, cql_session, fresh_keyspace
from tests.support.eventually import eventually

pytestmark = pytest.mark.servers


async def test_rows_come_as_bytes_page_by_page(cassandra_server: CassandraServer) -> None:
    async with cql_session(cassandra_server, page_rows=10) as session, fresh_keyspace(session) as keyspace:
        await session.execute(f"CREATE TABLE {keyspace}.t (a int, b int, v text, PRIMARY KEY (a, b))")
        insert = await session.prepare(f"INSERT INTO {keyspace}.t (a, b, v) VALUES (1, ?, ?)")
        await asyncio.gather(*[session.execute(insert, (number, f"row {number}")) for number in range(35)])
        query = f"SELECT b, v FROM {keyspace}.t WHERE a = ?"
        sizes = [len(page.rows) async for page in session.pages(query, (1,))]
        assert sizes == [10, 10, 10, 5]
        found = await session.rows(query, (1,))
        assert found.rows[3] == (b"\0\0\0\3", b"row 3") and found.dicts()[3] == {"b": 3, "v": "row 3"}
        assert (await session.rows(query, (2,))).dicts() == []


async def test_a_table_as_the_server_describes_it(cassandra_server: CassandraServer) -> None:
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        await session.execute(f"CREATE TYPE {keyspace}.u (x int, y text)")
        await session.execute(
            f"CREATE TABLE {keyspace}.t (p int, c timestamp, d text, s text static, m map<int, text>, "
            "f frozen<set<int>>, u u, fu frozen<u>, w vector<float, 3>, PRIMARY KEY (p, d, c)) "
            "WITH CLUSTERING ORDER BY (d ASC, c DESC)"
        )
        table = await read_table(session, keyspace, "t")
        assert table is not None
        assert [(column.name, column.descending) for column in table.key] == [("p", False), ("d", False), ("c", True)]
        types = {column.name: (column.type, column.multi_cell) for column in table.columns if column.kind == "regular"}
        udt = CqlType("udt", (CqlType("int"), CqlType("text")), ("x", "y"))
        assert types == {
            "m": (CqlType("map", (CqlType("int"), CqlType("text"))), True),
            "f": (CqlType("set", (CqlType("int"),)), False),
            "u": (udt, True),
            "fu": (udt, False),
            "w": (CqlType("vector", (CqlType("float"),), size=3), False),
        }
        assert table.column("s") and table.column("s").kind == "static"  # type: ignore[union-attr]
        assert await tables_of(session, keyspace) == ["t"]
        assert await read_table(session, keyspace, "nothing") is None
        before = await fingerprint(session, keyspace, ["t"])
        assert await fingerprint(session, keyspace, ["t"]) == before
        await session.execute(f"ALTER TYPE {keyspace}.u ADD z int")
        assert await fingerprint(session, keyspace, ["t"]) != before


async def test_values_as_cassandra_writes_them(cassandra_server: CassandraServer) -> None:
    expressions = {
        "P1Y2M3DT4H": ("duration", "P1Y2M3DT4H"),
        "-5d12h": ("duration", "-P5DT12H"),
        "'2026-11-23 08:00:00.5+0000'": ("timestamp", "2026-11-23T08:00:00.5Z"),
        "'08:00:00.000000001'": ("time", "08:00:00.000000001"),
        "{3, 1, 2}": ("frozen<set<int>>", [1, 2, 3]),
        "(1, null)": ("tuple<int, text>", [1, None]),
        "1.10": ("decimal", "1.10"),
        "-253402300800001": ("timestamp", "-6060-01-01T23:59:59.999Z"),
    }
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        for number, (expression, (declared, expected)) in enumerate(expressions.items()):
            await session.execute(f"CREATE TABLE {keyspace}.t{number} (k int PRIMARY KEY, v {declared})")
            await session.execute(f"INSERT INTO {keyspace}.t{number} (k, v) VALUES (1, {expression})")
            found = await session.rows(f"SELECT v FROM {keyspace}.t{number}")
            assert canonical(found.rows[0][0], found.columns[0][1]) == expected, expression


async def test_a_loop_goes_on_while_requests_wait_and_nothing_is_left_behind(cassandra_server: CassandraServer) -> None:
    before = {thread.name for thread in threading.enumerate()}
    async with cql_session(cassandra_server, requests_in_flight_max=2) as session:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        query = "SELECT release_version FROM system.local"
        await asyncio.gather(*[session.rows(query) for _ in range(50)])
        turning.cancel()
        assert turns > 50
    await eventually(
        lambda: [t for t in threading.enumerate() if t.name not in before and not t.daemon and "asyncio" not in t.name],
        lambda left: not left,
        what="the driver's threads end",
    )


async def test_a_wrong_datacenter(cassandra_server: CassandraServer) -> None:
    with pytest.raises(EnvironmentProblem, match=rf"no datacenter 'nowhere'; it has: {DATACENTER}"):
        await connect(cql_server(cassandra_server, local_datacenter="nowhere"))
    async with cql_session(cassandra_server, local_datacenter=DATACENTER) as session:
        assert session.datacenters == [DATACENTER]


async def test_nobody_there(cassandra_server: CassandraServer) -> None:
    with pytest.raises(Retryable, match="can't be reached"):
        await connect(cql_server(cassandra_server).model_copy(update={"port": choose_port()}))
    with pytest.raises(Retryable, match="can be resolved"):
        await connect(cql_server(cassandra_server).model_copy(update={"hosts": ["nowhere.invalid"]}))


async def test_refusals_are_told(cassandra_server: CassandraServer) -> None:
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        with pytest.raises(Undefined, match=r"does not exist|unconfigured table"):
            await session.rows(f"SELECT * FROM {keyspace}.missing")
        with pytest.raises(Fatal, match="line 1"):
            await session.rows("SELEC")
