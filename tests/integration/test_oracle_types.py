"""Every CQL type on both ways: rows that the snapshot reads and merging puts together, against the oracle by CQL."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from connectors.cassandra.rows import RowReader
from connectors.cql.reader import CqlReader
from connectors.cql.schema import read_table
from connectors.cql.session import CqlSession
from deploy.local.cassandra import CassandraServer
from pipeline.core.clock import SystemClock
from pipeline.flow import Flow
from pipeline.merging import Merging
from pipeline.ops.difference import differences
from pipeline.ops.oracle import Oracle
from pipeline.plan import compile_plan
from pipeline.stores.memory import MemoryBundles, MemoryCells, MemoryRelations, MemoryRows
from schemas.context import ContextSpec
from schemas.mutation import MutationSource, encode_mutation
from schemas.record import Record
from tests.simulation.compare import composed
from tests.support.cassandra import cql_server, cql_session, fresh_keyspace

pytestmark = pytest.mark.servers

VALUES: dict[str, list[str]] = {
    "boolean": ["true"],
    "tinyint": ["-128"],
    "bigint": ["9223372036854775807"],
    "varint": ["5", "-123456789012345678901234567890"],
    "decimal": ["1.10", "-0.000000001", "1E+3"],
    "float": ["0.1", "3e38", "NaN", "-Infinity"],
    "double": ["0.1", "1e300", "7.0", "NaN"],
    "text": ["''", "'ä|%'", "'2026-01-02'"],
    "ascii": ["'a'"],
    "blob": ["0x", "0x00ff"],
    "uuid": ["5a0d6b3e-4b4f-41ee-be56-0242ac120002"],
    "timeuuid": ["5a0d6b3e-4b4f-11ee-be56-0242ac120002"],
    "timestamp": ["'2026-01-02T03:04:05.250Z'", "-253402300800001"],
    "date": ["'1960-02-29'"],
    "time": ["'08:00:00.000000001'"],
    "duration": ["P1Y2M3DT4H5M6S", "-5d12h"],
    "inet": ["'127.0.0.1'", "'::1'"],
    "tuple<int, text>": ["(1, null)"],
    "frozen<list<int>>": ["[]", "[3, 1, 2]"],
    "frozen<set<decimal>>": ["{10, 9, 1.5}"],
    "frozen<map<int, text>>": ["{10: 'a', 2: 'b'}"],
    "frozen<address>": ["{street: 'Elm'}"],
    "vector<float, 3>": ["[0.1, 2, 3]"],
    "list<text>": ["['b', 'a', 'b']", "[]"],
    "set<text>": ["{'b', 'ä', 'Z'}", "{}"],
    "set<int>": ["{10, 9, -1}"],
    "set<decimal>": ["{10, 9, 1.5}"],
    "set<varint>": ["{10, 9, 123456789012345678901234567890}"],
    "set<double>": ["{10.5, 9, -1}"],
    "set<boolean>": ["{true, false}"],
    "set<timeuuid>": ["{5a0d6b3e-4b4f-11ee-be56-0242ac120002, 4a0d6b3e-4b4f-11ef-be56-0242ac120002}"],
    "set<timestamp>": ["{'2026-01-02T03:04:05Z', '2026-01-02T03:04:05.250Z'}"],
    "set<inet>": ["{'127.0.0.1', '9.0.0.1', '::1'}"],
    "set<blob>": ["{0x00ff, 0xff, 0x01}"],
    "set<frozen<list<int>>>": ["{[10], [9], [1, 2]}"],
    "map<int, text>": ["{10: 'a', 2: 'b'}"],
    "map<text, frozen<set<int>>>": ["{'y': {2, 1}, 'x': {}}"],
    "map<timestamp, int>": ["{'2026-01-02T03:04:05Z': 1, '2026-01-02T03:04:05.250Z': 2}"],
    "address": ["{city: 'Rome', street: 'Elm'}", "{street: 'Elm'}", "{city: null}"],
}
KINDS = list(VALUES)


async def fill(session: CqlSession, keyspace: str) -> None:
    await session.execute(f"CREATE TYPE {keyspace}.address (street text, city text, zip int)")
    columns = ", ".join(f"v{number} {kind}" for number, kind in enumerate(KINDS))
    await session.execute(f"CREATE TABLE {keyspace}.t (k int PRIMARY KEY, {columns})")
    await session.execute(f"INSERT INTO {keyspace}.t (k) VALUES (0)")
    keys = itertools.count(1)
    for number, kind in enumerate(KINDS):
        for literal in VALUES[kind]:
            await session.execute(f"INSERT INTO {keyspace}.t (k, v{number}) VALUES ({next(keys)}, {literal})")


async def merged_bundles(spec: ContextSpec, session: CqlSession, keyspace: str) -> dict[str, bytes]:
    plan, bundles, rows = compile_plan(spec), MemoryBundles(), MemoryRows()
    merging = Merging(plan, MemoryCells(rows), SystemClock().now_us)
    flow = Flow(plan, rows, MemoryRelations(), bundles, merging=merging)
    table = await read_table(session, keyspace, "t")
    assert table is not None
    reader, source = RowReader(table), MutationSource("cassandra", "ring", keyspace, "t", snapshot=True)
    answer = await session.rows(await session.prepare(reader.query()), (-(1 << 63), (1 << 63) - 1))
    found: list[Any] = [reader.mutation(row) for row in answer.rows]
    topic = f"ring.{keyspace}.t"
    records = [Record(topic, 0, at, *encode_mutation(source, *pair, 1)) for at, pair in enumerate(found)]
    report = await flow.process(records)
    assert not report.dead_letters, report.dead_letters[0].reason
    return {unit.key: composed(plan, bundles, value) for unit, value in bundles.values.items() if not value.deleted}


async def test_both_ways_show_every_type_alike(cassandra_server: CassandraServer) -> None:
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        await fill(session, keyspace)
        document = {
            "context": "types",
            "version": 1,
            "root": "row",
            "entities": {"row": {"source": "ring", "table": f"{keyspace}.t", "key": ["k"]}},
            "fields": [f"v{number}" for number in range(len(KINDS))],
        }
        spec = ContextSpec.model_validate(document)
        stored = await merged_bundles(spec, session, keyspace)
        reader = CqlReader(cql_server(cassandra_server), "ring")
        oracle = await Oracle.create(spec, {"ring": reader})
        expected = {key: bundle async for chunk in oracle.all_bundles() for key, bundle in chunk.items()}
        await reader.close()
        assert len(expected) == 1 + sum(map(len, VALUES.values()))
        assert stored.keys() == expected.keys()
        wrong = [
            (KINDS[int(item.path[1:].partition("[")[0].partition(".")[0])], item)
            for key in expected
            for item in differences(expected[key], stored[key])
        ]
        assert wrong == []
