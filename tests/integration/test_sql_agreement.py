"""Orders and joins as the database has them: bundles made from changes, against the oracle's and plain SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from connectors.postgres.reader import PostgresReader
from schemas.context import ContextSpec
from tests.integration.test_oracle import bundles_of, run_sql
from tests.support.incremental import incremental_bundles

pytestmark = pytest.mark.servers


@pytest.fixture
async def reader(postgres_dsn: str) -> AsyncIterator[PostgresReader]:
    made = PostgresReader(postgres_dsn, "shop")
    yield made
    await made.close()


async def both(spec: ContextSpec, reader: PostgresReader) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the changes come to, and what the oracle says."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for entity in spec.entities.values():
        columns = list(await reader.columns(entity.table))
        batches = [batch async for batch in reader.rows(entity.table, columns, None, (), None)]
        tables[entity.table] = [dict(zip(columns, values, strict=True)) for batch in batches for values in batch]
    return await incremental_bundles(spec, tables), await bundles_of(spec, reader)


def spec_of(root: str, entities: dict[str, Any], sections: dict[str, Any]) -> ContextSpec:
    full = {
        name: {"source": "shop", "table": f"public.{name}", "key": ["id"], **more} for name, more in entities.items()
    }
    base = {"context": "c", "version": 1, "root": root, "entities": full, "fields": ["id"]}
    return ContextSpec.model_validate({**base, "sections": sections})


DECIMALS = """
CREATE TABLE accounts (id numeric PRIMARY KEY, rate numeric(10,4), n int);
CREATE TABLE payments (id int PRIMARY KEY, account int, rate numeric(10,2), exact numeric, approximate float8);
INSERT INTO accounts VALUES (1.00, 0.5000, 1), (2.0, 2, 2), (30, 0, 3);
INSERT INTO payments VALUES (1, 1, 0.50, 1.0, 0.5), (2, 2, 2.00, 1.000, 2), (3, 30, 0, 2, 0);
INSERT INTO payments (id) VALUES (4);
"""


@pytest.mark.parametrize("compose", ["copy", "link"])
@pytest.mark.parametrize(
    ("accounts", "payments"),
    [
        ({"id": "decimal", "rate": "decimal(10,4)"}, {}),
        ({}, {"account": "decimal", "rate": "decimal(10,2)", "exact": "decimal", "approximate": "decimal"}),
    ],
)
async def test_joins_by_decimals_of_any_scale(
    postgres_dsn: str, reader: PostgresReader, accounts: dict[str, str], payments: dict[str, str], compose: str
) -> None:
    run_sql(postgres_dsn, DECIMALS)
    entities = {"accounts": {"types": accounts}, "payments": {"types": payments}}
    ones = {"by_id": {"id": "account"}, "by_rate": {"rate": "rate"}, "by_exact": {"id": "exact"}}
    ones["by_approximate"] = {"rate": "approximate"}
    sections = {
        name: {"entity": "accounts", "on": on, "fields": ["n"], "compose": compose} for name, on in ones.items()
    }
    found, oracle = await both(spec_of("payments", entities, sections), reader)
    assert found == oracle
    numbers = [{name: part and part["n"] for name, part in bundle.items() if name in ones} for bundle in found.values()]
    assert numbers == [
        {"by_id": 1, "by_rate": 1, "by_exact": 1, "by_approximate": 1},
        {"by_id": 2, "by_rate": 2, "by_exact": 1, "by_approximate": 2},
        {"by_id": 3, "by_rate": 3, "by_exact": 2, "by_approximate": 3},
        {"by_id": None, "by_rate": None, "by_exact": None, "by_approximate": None},
    ]  # fmt: skip
    many = {"entity": "payments", "kind": "many", "on": {"exact": "id"}, "compose": compose}
    sections = {
        "newest": {**many, "fields": ["id"], "order_by": ["-id"], "limit": 1},
        "counted": {**many, "aggregates": {"n": "count", "most": {"max": "account"}}},
    }
    found, oracle = await both(spec_of("accounts", entities, sections), reader)
    assert found == oracle
    assert list(found) == (["1", "2", "30"] if accounts else ["1.00", "2.0", "30"])
    assert next(iter(found.values())) == {"id": "1.00", "newest": [{"id": 2}], "counted": {"n": 2, "most": 2}}


async def test_numeric_joins_that_nobody_declared_are_named(postgres_dsn: str, reader: PostgresReader) -> None:
    from pipeline.ops.oracle import Oracle

    run_sql(postgres_dsn, DECIMALS)
    sections = {"account": {"entity": "accounts", "on": {"id": "account"}, "fields": ["n"]}}
    spec = spec_of("payments", {"accounts": {}, "payments": {}}, sections)
    found, oracle = await both(spec, reader)
    assert (found["1"]["account"], oracle["1"]["account"]) == (None, {"n": 1})
    hints = (await Oracle.create(spec, {"shop": reader})).hints
    assert hints == ["public.accounts.id is numeric in the source: declare it under 'types' as decimal"]


MOMENTS = [
    None, "-infinity", "4713-01-02 00:00:00 BC", "0044-03-15 12:00:00.25 BC", "0044-03-15 12:00:00 BC",
    "0043-03-15 12:00:00 BC", "0001-01-01 00:00:00", "2026-01-02 03:04:05", "2026-01-02 03:04:05.5",
    "2026-01-02 03:04:05.50001", "2026-01-02 03:04:05.499999", "2026-01-02 03:04:06", "2026-01-02 00:00:00",
    "9999-12-31 23:59:59.999999", "10000-01-01 00:00:00", "10000-01-01 00:00:00.1", "100000-01-01 00:00:00", "infinity",
]  # fmt: skip
TIMES = """
CREATE TABLE sensors (id int PRIMARY KEY);
CREATE TABLE readings (
  id int, sensor int, zoned timestamptz NOT NULL, plain timestamp, day date, said text, PRIMARY KEY (zoned, id)
);
INSERT INTO sensors VALUES (1), (2);
"""


def fill(dsn: str) -> list[int]:
    """The ids of sensor 1 in the order of their moments, as SQL has it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TIMES)
        for number, moment in enumerate(MOMENTS, 1):
            said = moment.replace(" ", "T", 1) + "Z" if moment and moment.startswith("2026") else None
            day = None if moment is None or moment.startswith("10000") else moment
            connection.execute(
                "INSERT INTO readings VALUES (%s, %s, coalesce(%s::timestamptz, '2020-01-01'), %s::timestamp, "
                "%s::timestamp::date, %s)",
                (number, 1 + number % 7 // 6, moment, moment, day, said),
            )
        query = "SELECT id FROM readings WHERE sensor = 1 ORDER BY zoned, id"
        return [number for (number,) in connection.execute(query).fetchall()]


def sections_of_times(more: dict[str, Any]) -> dict[str, Any]:
    many = {"entity": "readings", "kind": "many", "on": {"sensor": "id"}, **more}
    found: dict[str, Any] = {"by_key": {**many, "fields": ["id"]}}
    for column in ("zoned", "plain", "day"):
        found[f"first_{column}"] = {**many, "fields": ["id", column], "order_by": [column, "id"]}
        found[f"last_{column}"] = {**many, "fields": ["id", column], "order_by": [f"-{column}"], "limit": 3}
        found[f"one_{column}"] = {**found[f"last_{column}"], "kind": "one"}
        del found[f"one_{column}"]["limit"]
        aggregates = {"least": {"min": column}, "most": {"max": column}, "newest": {"latest": "id", "by": column}}
        found[f"sums_{column}"] = {**many, "aggregates": aggregates}
        found[f"groups_{column}"] = {**many, "aggregates": {"n": "count"}, "group_by": [column]}
    aggregates = {"most": {"max": "zoned"}}
    found["by_most"] = {**many, "aggregates": aggregates, "group_by": ["id"], "order_by": ["-most"]}
    return found


@pytest.mark.parametrize("declared", [{}, {"zoned": "timestamptz", "plain": "timestamp"}], ids=["bare", "declared"])
@pytest.mark.parametrize("more", [{}, {"filter": "id > 0"}], ids=["by SQL", "from rows"])
async def test_times_are_ordered_as_in_the_database(
    postgres_dsn: str, reader: PostgresReader, more: dict[str, str], declared: dict[str, str]
) -> None:
    ordered = fill(postgres_dsn)
    entities = {"sensors": {}, "readings": {"key": ["zoned", "id"], "types": declared}}
    found, oracle = await both(spec_of("sensors", entities, sections_of_times(more)), reader)
    assert found == oracle
    assert [item["id"] for item in found["1"]["by_key"]] == ordered
    assert [item["id"] for item in found["1"]["first_zoned"]] == ordered
    assert found["1"]["sums_zoned"] == {"least": "-infinity", "most": "infinity", "newest": ordered[-1]}


@pytest.mark.parametrize("more", [{}, {"filter": "id > 0"}], ids=["by SQL", "from rows"])
async def test_times_in_a_text_column_are_text_where_the_spec_says_so(
    postgres_dsn: str, reader: PostgresReader, more: dict[str, str]
) -> None:
    fill(postgres_dsn)
    many = {"entity": "readings", "kind": "many", "on": {"sensor": "id"}, **more}
    sections = {
        "first": {**many, "fields": ["id"], "order_by": ["said"]},
        "last": {**many, "fields": ["id"], "order_by": ["-said"], "limit": 4},
        "sums": {**many, "aggregates": {"least": {"min": "said"}, "newest": {"latest": "id", "by": "said"}}},
    }
    for declared in ("text", "timestamptz"):
        entities = {"sensors": {}, "readings": {"key": ["zoned", "id"], "types": {"said": declared}}}
        found, oracle = await both(spec_of("sensors", entities, sections), reader)
        assert found == oracle
        places = [item["id"] for item in found["1"]["first"]]
        assert (places.index(9) < places.index(8)) == (declared == "text")
