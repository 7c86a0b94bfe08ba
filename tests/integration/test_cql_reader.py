"""The reader behind verify on a real Cassandra: whatever way CQL takes, it finds the rows that are there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import pytest

from connectors.cql.reader import CqlReader
from connectors.cql.session import CqlSession
from deploy.local.cassandra import CassandraServer
from pipeline.core.errors import ConfigError, EnvironmentProblem
from schemas.keys import key_part, split_key_text
from tests.support.cassandra import cql_server, cql_session, fresh_keyspace

pytestmark = pytest.mark.servers

KEYS: dict[str, list[Any]] = {
    "int": [0, -1, 2147483647],
    "tinyint": [-128, 127],
    "bigint": [1 << 60, -(1 << 60)],
    "varint": [5, -7, "123456789012345678901234567890"],
    "text": ["a", "ä|%", "x" * 500, " "],
    "ascii": ["a", "~"],
    "boolean": [True, False],
    "uuid": ["5a0d6b3e-4b4f-41ee-be56-0242ac120002"],
    "timeuuid": ["5a0d6b3e-4b4f-11ee-be56-0242ac120002"],
    "timestamp": ["2026-01-02T03:04:05Z", "1969-12-31T23:59:59.999Z"],
    "date": ["2026-01-02", "1960-02-29"],
    "time": ["08:00:00", "08:00:00.000000001"],
    "double": [0.5, 7.0, 1e300],
    "decimal": ["1.50", "-0.001"],
    "inet": ["127.0.0.1", "::1"],
    "blob": ["0x00ff", "0x"],
    "duration": [],
}


@pytest.fixture
async def place(cassandra_server: CassandraServer) -> AsyncIterator[tuple[CassandraServer, CqlSession, str]]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(cql_session(cassandra_server))
        yield cassandra_server, session, await stack.enter_async_context(fresh_keyspace(session))


def make_reader(server: CassandraServer, **options: Any) -> CqlReader:
    return CqlReader(cql_server(server, page_rows=50), "ring", **options)


async def found(reader: CqlReader, table: str, *question: Any) -> list[tuple[Any, ...]]:
    return [row async for rows in reader.rows(table, *question) for row in rows]


async def test_a_row_is_found_by_its_key_whatever_its_type(place: tuple[CassandraServer, CqlSession, str]) -> None:
    server, session, keyspace = place
    reader = make_reader(server)
    for kind in [kind for kind, values in KEYS.items() if values]:
        table = f"{keyspace}.of_{kind}"
        await session.execute(f"CREATE TABLE {table} (k {kind}, c {kind}, v int, PRIMARY KEY (k, c))")
        insert = await session.prepare(f"INSERT INTO {table} JSON ?")
        for number, value in enumerate(KEYS[kind]):
            if value == "0x":
                continue  # a partition key is not empty
            await session.execute(insert, (json.dumps({"k": value, "c": KEYS[kind][0], "v": number}),))
        everything = sorted(await found(reader, table, ["k", "c", "v"], None, (), None), key=lambda row: row[2])
        assert len(everything) == len([value for value in KEYS[kind] if value != "0x"]), kind
        for row in everything:
            for names in (["k"], ["k", "c"], ["c", "k"]):
                match = {name: split_key_text(key_part(row["kcv".index(name)])) for name in names}
                assert await found(reader, table, ["k", "c", "v"], match, (), None) == [row], (kind, match)
        nothing = {"k": ["no such", "\x00", "9" * 70_000, "\ud800", "", "-1.5"]}
        assert await found(reader, table, ["k", "c", "v"], nothing, (), None) == [], kind
    await reader.close()


async def test_every_way_finds_the_same_rows_in_the_same_order(place: tuple[CassandraServer, CqlSession, str]) -> None:
    server, session, keyspace = place
    random, table = Random(7), f"{keyspace}.t"
    await session.execute(
        f"CREATE TABLE {table} (p int, q text, c timestamp, a int, b text, d decimal, s text static, "
        "PRIMARY KEY ((p, q), c)) WITH CLUSTERING ORDER BY (c DESC)"
    )
    await session.execute(f"CREATE INDEX ON {table} (a)")
    await session.execute(f"CREATE INDEX ON {table} (b) USING 'sai'")
    await session.execute(f"INSERT INTO {table} (p, q, s) VALUES (99, 'static only', 'x')")
    insert = await session.prepare(f"INSERT INTO {table} JSON ?")
    pick = random.choice
    rows = [
        {
            "p": pick([1, 2, 3]),
            "q": pick(["x", "y"]),
            "c": f"2026-01-02T{number // 60:02}:{number % 60:02}:00Z",
            "a": pick([None, 1, 2, 3]),
            "b": pick([None, "u", "U", "v"]),
            "d": pick([None, "1.5", "1.50", "2"]),
        }
        for number in range(400)
    ]
    await asyncio.gather(*[session.execute(insert, (json.dumps(row),)) for row in rows])
    columns, order = ["p", "q", "c", "a", "b", "d"], ("-d", "b", "p", "q", "c")
    readers = [make_reader(server), make_reader(server, held_bytes_max=0), make_reader(server)]
    assert await readers[0].columns(table) == {
        "p": "integer",
        "q": "text",
        "c": "timestamp with time zone",
        "a": "integer",
        "b": "text",
        "d": "numeric",
    }
    matches: list[dict[str, list[str]]] = [
        {"p": ["1", "2", "1"], "q": ["x", "y", "y"]},
        {"p": ["1", "2"], "q": ["x", "y"], "c": [rows[0]["c"], rows[1]["c"]]},
        {"q": ["x", "x"], "a": ["1", "2"], "p": ["1", "2"]},
        {"a": ["1", "2", "9"]},
        {"b": ["U", "v"]},
        {"b": ["u"] * 300, "a": [str(number) for number in range(300)]},
        {"d": ["1.5", "2"]},
        {"p": ["1", "3"]},
        {"c": [row["c"] for row in rows[:200]]},
    ]
    for match in matches:
        expected = expected_rows(rows, match, 3)
        for reader in readers:
            answer = await found(reader, table, columns, match, order, 3)
            assert sorted(map(repr, answer)) == sorted(map(repr, expected)), match
            assert len(await found(reader, table, columns, match, (), None)) == len(expected_rows(rows, match, 10_000))
    assert len(await found(readers[0], table, columns, None, (), None)) == 400
    for reader in readers:
        await reader.close()


def expected_rows(rows: list[dict[str, Any]], match: dict[str, list[str]], limit: int) -> list[tuple[Any, ...]]:
    """What the protocol promises, said once more."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    wanted = set(zip(*match.values(), strict=True))
    for row in rows:
        spelt = tuple(text(row[name]) for name in match)
        if spelt in wanted:
            groups.setdefault(spelt, []).append(row)
    kept = []
    for group in groups.values():
        group.sort(key=lambda row: (row["b"] is not None, row["b"] or "", row["p"], row["q"], row["c"]))
        group.sort(key=lambda row: (row["d"] is not None, float(row["d"] or 0)), reverse=True)
        kept += group[:limit]
    return [tuple(row.values()) for row in kept]


def text(value: Any) -> str | None:
    return None if value is None else "1.5" if value == "1.50" else str(value)


async def test_a_held_table_is_read_again_when_it_is_forgotten(place: tuple[CassandraServer, CqlSession, str]) -> None:
    server, session, keyspace = place
    await session.execute(f"CREATE TABLE {keyspace}.t (k int PRIMARY KEY, v int)")
    for number in range(120):
        await session.execute(f"INSERT INTO {keyspace}.t (k, v) VALUES ({number}, {number % 2})")
    told: list[tuple[str, int]] = []
    reader = make_reader(server, progress=lambda what, count: told.append((what, count)))
    question = (f"{keyspace}.t", ["k"], {"v": ["1"]}, (), None)
    assert len(await found(reader, *question)) == 60
    assert told[-1] == (f"reading {keyspace}.t", 120)
    await session.execute(f"INSERT INTO {keyspace}.t (k, v) VALUES (500, 1)")
    assert len(await found(reader, *question)) == 60
    reader.forget()
    assert len(await found(reader, *question)) == 61
    await reader.close()


async def test_what_is_not_there_is_said(place: tuple[CassandraServer, CqlSession, str]) -> None:
    server, session, keyspace = place
    await session.execute(f"CREATE TABLE {keyspace}.weather (k int PRIMARY KEY, v int)")
    reader = make_reader(server)
    with pytest.raises(
        EnvironmentProblem, match=rf"source ring: there is no table {keyspace}\.wether .*mean .*\.weather"
    ):
        await reader.columns(f"{keyspace}.wether")
    with pytest.raises(EnvironmentProblem, match=r"there is no table nowhere\.weather"):
        await reader.columns("nowhere.weather")
    with pytest.raises(ConfigError, match=f"table {keyspace}.weather has no column 'w'"):
        await found(reader, f"{keyspace}.weather", ["w"], None, (), None)
    assert await reader.columns(f"{keyspace}.weather") == {"k": "integer", "v": "integer"}
    await session.execute(f"DROP TABLE {keyspace}.weather")
    with pytest.raises(EnvironmentProblem, match="source ring: "):
        await found(reader, f"{keyspace}.weather", ["k"], None, (), None)
    await reader.close()
