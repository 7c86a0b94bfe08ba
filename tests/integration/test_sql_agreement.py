"""Orders and joins as the database has them: bundles made from changes, against the oracle's and plain SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

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
