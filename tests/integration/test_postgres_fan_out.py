"""The measure behind `compose: auto`, on real rows."""

from __future__ import annotations

import pytest

from connectors.postgres.fan_out import measure_fan_out
from pipeline.composition import choose, composition_of
from schemas.context import ContextSpec
from schemas.fan_out import FanOut
from tests.support.postgres_source import PostgresHarness

pytestmark = pytest.mark.servers

WEATHER = {"entity": "weather", "on": {"id": "weather_id"}, "fields": ["id"]}
INNER = {"entity": "flight", "kind": "many", "on": {"weather_id": "id"}, "fields": ["id"]}
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
        "weather": WEATHER,
        "fixed": {**WEATHER, "compose": "copy"},
        "around": {**WEATHER, "compose": "copy", "sections": {"inner": INNER}},
        "linked": {**WEATHER, "compose": "link", "sections": {"inner": INNER}},
    },
}


async def test_fan_out_is_the_number_of_parents_per_value(postgres_dsn: str) -> None:
    ddl = (
        "CREATE TABLE flight (id int PRIMARY KEY, airline_id int, weather_id int);"
        " CREATE TABLE airline (id int PRIMARY KEY); CREATE TABLE weather (id int PRIMARY KEY)"
    )
    spec = ContextSpec.model_validate(SPEC)
    async with PostgresHarness(postgres_dsn, ddl) as harness:
        assert {f.most for f in (await measure_fan_out(postgres_dsn, spec)).values()} == {0}
        await harness.query("INSERT INTO flight SELECT i, i % 3, i / 10 FROM generate_series(0, 299) i")
        await harness.query("INSERT INTO flight VALUES (1000, NULL, NULL)")
        await harness.query("INSERT INTO airline VALUES (0), (1), (2)")
        measured = await measure_fan_out(postgres_dsn, spec)
        assert await measure_fan_out(postgres_dsn, spec, "another source") == {}
    assert measured == {
        "airline": FanOut(100.0, 100),
        "airline.flights": FanOut(1.0, 1),
        "weather": FanOut(10.0, 10),
        "around": FanOut(10.0, 10),
        "around.inner": FanOut(0.0, 0),
    }
    assert composition_of(choose(spec, measured)) == {
        "airline": "link",
        "airline.flights": "copy",
        "weather": "copy",
        "fixed": "copy",
        "around": "copy",
        "around.inner": "copy",
        "linked": "link",
        "linked.inner": "copy",
    }
