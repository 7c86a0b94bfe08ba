"""The oracle over Postgres and Cassandra at once: random specs against a naive evaluation in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from connectors.cql.reader import CqlReader
from connectors.cql.session import CqlSession
from connectors.postgres.reader import PostgresReader
from deploy.local.cassandra import CassandraServer
from pipeline.ops.oracle import Oracle
from schemas.context import ContextSpec
from tests.integration.test_oracle import as_values, create_and_fill, random_row
from tests.simulation import oracle as naive
from tests.simulation.specs import TABLES, random_spec
from tests.support.cassandra import cql_server, cql_session, fresh_keyspace

pytestmark = pytest.mark.servers

SPECS = 40
COLUMNS = "n int, m bigint, d decimal, t text, u text, flag boolean, a_id int, b_id int"
KEYS = {"a": "p int, q int, id int PRIMARY KEY", "b": "p int, q int, id int PRIMARY KEY"}
KEYS["c"] = "p int, q int, PRIMARY KEY (p, q)"


async def fill(session: CqlSession, keyspace: str, tables: naive.Tables) -> None:
    """What earlier rounds left goes first; no table is made anew, because that takes its time."""
    for table, key in TABLES.items():
        left = (await session.rows(f"SELECT {', '.join(key)} FROM {keyspace}.{table}")).dicts()
        where = " AND ".join(f"{name} = ?" for name in key)
        gone = await session.prepare(f"DELETE FROM {keyspace}.{table} WHERE {where}")
        await asyncio.gather(*[session.execute(gone, tuple(row[name] for name in key)) for row in left])
        insert = await session.prepare(f"INSERT INTO {keyspace}.{table} JSON ?")
        rows = tables[f"s.public.{table}"].values()
        await asyncio.gather(*[session.execute(insert, (json.dumps(row),)) for row in rows])


def divided(spec: ContextSpec, wide: set[str], keyspace: str) -> ContextSpec:
    """The same spec with some of its tables in Cassandra."""
    document = spec.model_dump(exclude_none=True)
    for name in wide:
        document["entities"][name] |= {"source": "w", "table": f"{keyspace}.{name}"}
    return ContextSpec.model_validate(document)


async def bundles_of(spec: ContextSpec, readers: Mapping[str, Any]) -> dict[str, Any]:
    oracle = await Oracle.create(spec, readers)
    oracle.forget()
    found: dict[str, Any] = {}
    async for chunk in oracle.all_bundles():
        found.update({key: json.loads(bundle, parse_float=Decimal) for key, bundle in chunk.items()})
    again = await oracle.bundles([*found, "no such key", "1|2|3", ""])
    assert {key: json.loads(bundle, parse_float=Decimal) for key, bundle in again.items()} == found
    assert await oracle.existing([*found, "77", "7|7"]) == set(found)
    return found


async def test_random_specs_over_both_databases_agree_with_a_naive_evaluation(
    cassandra_server: CassandraServer, postgres_dsn: str
) -> None:
    seed = Random().randrange(10**9)
    random = Random(seed)
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        for table, key in KEYS.items():
            await session.execute(f"CREATE TABLE {keyspace}.{table} ({COLUMNS}, {key})")
        wide_reader = CqlReader(cql_server(cassandra_server), "w")
        for number in range(SPECS):
            tables: naive.Tables = {}
            for table, key_columns in TABLES.items():
                rows = [random_row(random, table, index) for index in range(random.randint(1, 9))]
                tables[f"s.public.{table}"] = {"|".join(str(row[name]) for name in key_columns): row for row in rows}
            spec = random_spec(random)
            create_and_fill(postgres_dsn, tables)
            await fill(session, keyspace, tables)
            wide = {name for name in TABLES if random.random() < 0.6}
            reader = PostgresReader(postgres_dsn)
            try:
                found = await bundles_of(divided(spec, wide, keyspace), {"s": reader, "w": wide_reader})
            finally:
                await reader.close()
            expected = {key: as_values(bundle) for key, bundle in naive.bundles(spec, tables).items()}
            message = f"seed {seed}, spec {number}, {sorted(wide)} wide: {spec.model_dump_json(exclude_defaults=True)}"
            assert found == expected, message
        await wide_reader.close()
