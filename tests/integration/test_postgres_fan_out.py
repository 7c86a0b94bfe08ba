"""The measure behind `compose: auto`, on real rows."""

from __future__ import annotations

import pytest

from connectors.postgres.fan_out import measure_fan_out
from schemas.context import ContextSpec
from tests.support.postgres_source import PostgresHarness

pytestmark = pytest.mark.servers

SPEC = {
    "context": "flight",
    "version": 1,
    "root": "flight",
    "entities": {
        name: {"source": "src", "table": f"public.{name}", "key": ["id"]} for name in ("flight", "airline", "weather")
    },
    "fields": ["id"],
    "sections": {
        "airline": {
            "entity": "airline",
            "on": {"id": "airline_id"},
            "fields": ["id"],
            "sections": {"flights": {"entity": "flight", "kind": "many", "on": {"airline_id": "id"}, "fields": ["id"]}},
        },
        "weather": {"entity": "weather", "on": {"id": "weather_id"}, "fields": ["id"]},
        "fixed": {"entity": "weather", "on": {"id": "weather_id"}, "fields": ["id"], "compose": "copy"},
    },
}


async def test_fan_out_is_the_number_of_parents_per_value(postgres_dsn: str) -> None:
    ddl = "CREATE TABLE flight (id int PRIMARY KEY, airline_id int, weather_id int); CREATE TABLE airline (id int)"
    async with PostgresHarness(postgres_dsn, ddl) as harness:
        await harness.query("INSERT INTO flight SELECT i, i % 3, i / 10 FROM generate_series(0, 299) i")
        await harness.query("INSERT INTO flight VALUES (1000, NULL, NULL)")
        await harness.query("INSERT INTO airline VALUES (0), (1), (2)")
        measured = await measure_fan_out(postgres_dsn, ContextSpec.model_validate(SPEC))
    found = {path: (fan_out.average, fan_out.most) for path, fan_out in measured.items()}
    assert found == {"airline": (100.0, 100), "airline.flights": (1.0, 1), "weather": (10.0, 10)}
