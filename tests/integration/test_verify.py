"""verify, get and serve on a real Postgres and a real Redis: every planted difference is found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import psycopg
import pytest

from pipeline.commands.verify import as_object, verify_context
from pipeline.core.clock import SystemClock
from pipeline.core.config import Config
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.lookup.http import make_app
from pipeline.lookup.opened import OpenContext, open_context
from pipeline.lookup.service import LookupService, LookupUnavailable
from pipeline.ops.verify import Settings, Verification
from pipeline.stores.store import AppliedPosition
from schemas.bundle import ROOT_UNIT, FragmentReference, Meta, Stored, UnitKey
from schemas.context import ContextSpec

pytestmark = pytest.mark.servers

TABLES = """
CREATE TABLE flights (id int PRIMARY KEY, carrier text, tail text, delay int, note text);
CREATE TABLE planes (tail text PRIMARY KEY, seats int);
CREATE TABLE airlines (carrier text PRIMARY KEY, name text);
INSERT INTO airlines VALUES ('UA', 'United');
INSERT INTO planes VALUES ('N1', 149);
INSERT INTO flights VALUES (1, 'UA', 'N1', 10, 'private'), (2, 'UA', 'N1', 25, NULL), (3, 'UA', NULL, NULL, NULL);
"""
SPEC = ContextSpec.model_validate(
    {
        "context": "flight",
        "version": 1,
        "root": "flight",
        "entities": {
            "flight": {"source": "nyc", "table": "public.flights", "key": ["id"]},
            "plane": {"source": "nyc", "table": "public.planes", "key": ["tail"]},
            "airline": {"source": "nyc", "table": "public.airlines", "key": ["carrier"]},
        },
        "fields": ["id", "delay"],
        "sections": {
            "airline": {"entity": "airline", "on": {"carrier": "carrier"}, "fields": ["name"], "compose": "copy"},
            "plane": {
                "entity": "plane",
                "on": {"tail": "tail"},
                "fields": ["seats"],
                "compose": "link",
                "sections": {
                    "recent": {
                        "entity": "flight",
                        "kind": "many",
                        "on": {"tail": "tail"},
                        "fields": ["id"],
                        "order_by": ["-delay"],
                    }
                },
            },
            "carrier": {
                "entity": "flight",
                "kind": "many",
                "on": {"carrier": "carrier"},
                "aggregates": {"flights": "count", "average": {"avg": "delay"}},
                "compose": "link",
            },
        },
        "serving": {"budget_ms": 500, "max_age_ms": 60_000},
    }
)
TOPICS = ["nyc.public.airlines", "nyc.public.flights", "nyc.public.planes"]
PLANE = b'{"seats":149,"recent":[{"id":2},{"id":1}]}'
CARRIER = b'{"flights":3,"average":17.5}'


class World:
    """Tables in Postgres, and what the pipeline would have written to Redis."""

    def __init__(self, config: Any, context: OpenContext, dsn: str) -> None:
        self.config, self.context, self.dsn = config, context, dsn
        self.counter = 0

    async def put(self, unit: str, key: str, body: bytes | None, *references: FragmentReference) -> None:
        self.counter += 1
        meta = None if body is None else Meta("h", 1, {}, list(references))
        await self.context.stores.bundles.put([(UnitKey(unit, key), Stored(self.counter, meta, body or b""))])

    async def put_flight(self, number: int, delay: str, tail: str | None, rest: bytes = b"") -> None:
        head = b'{"id":%d,"delay":%b%b,"airline":{"name":"United"},"plane":' % (number, delay.encode(), rest)
        body = head + b',"carrier":}'
        references = (FragmentReference(len(head), "plane", tail), FragmentReference(len(body) - 1, "carrier", "UA"))
        await self.put(ROOT_UNIT, str(number), body, *references)

    async def fill(self) -> None:
        await self.put_flight(1, "10", "N1")
        await self.put_flight(2, "25", "N1")
        await self.put_flight(3, "null", None)
        await self.put("plane", "N1", PLANE)
        await self.put("carrier", "UA", CARRIER)
        await self.apply_all()

    async def apply_all(self) -> None:
        """All partitions have applied everything up to a year from now."""
        time_us = SystemClock().now_us() + 365 * 86_400 * 1_000_000
        await self.context.stores.marks.write_applied(
            {(topic, 0): AppliedPosition("nyc", 1, "", time_us) for topic in TOPICS}
        )

    async def verify(self, **settings: Any) -> Verification:
        return await verify_context(self.config, SPEC, Settings(**{"wait_s": 0, **settings}))

    def sql(self, text: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(text)


def configuration(redis_url: str, dsn: str) -> Config:
    return Config.model_validate(
        {
            "kafka": {"bootstrap_servers": "127.0.0.1:1"},
            "redis": {"url": redis_url},
            "sources": {"nyc": {"connector": "postgres", "dsn": dsn, "tables": ["public.flights"]}},
        }
    )


@pytest.fixture
async def world(postgres_dsn: str, redis_url: str) -> AsyncIterator[World]:
    config = configuration(redis_url, postgres_dsn)
    context = await open_context(cast(Any, config), SPEC)
    made = World(config, context, postgres_dsn)
    made.sql(TABLES)
    await made.fill()
    yield made
    await context.stores.close()


async def test_equal_sides_verify(world: World) -> None:
    assert await world.verify() == Verification(verified=3, version=1)


async def changed_field(world: World) -> None:
    await world.put_flight(1, "11", "N1")


async def missing_bundle(world: World) -> None:
    await world.put(ROOT_UNIT, "2", None)


async def extra_bundle(world: World) -> None:
    await world.put_flight(4, "0", None)


async def unlisted_field(world: World) -> None:
    await world.put_flight(1, "10", "N1", b',"note":"private"')


async def stale_fragment(world: World) -> None:
    world.sql("UPDATE planes SET seats = 150")


async def missing_fragment(world: World) -> None:
    await world.put("plane", "N1", None)


async def wrong_order(world: World) -> None:
    await world.put("plane", "N1", b'{"seats":149,"recent":[{"id":1},{"id":2}]}')


async def off_by_one(world: World) -> None:
    await world.put("carrier", "UA", b'{"flights":2,"average":17.5}')


async def wrong_reference(world: World) -> None:
    await world.put_flight(3, "null", "N1")


async def deleted_row(world: World) -> None:
    world.sql("DELETE FROM flights WHERE id = 3")


SECTIONS = ["plane.recent[0].id", "plane.recent[1].id"]
PLANTED = [
    (changed_field, {"1": ["delay"]}),
    (missing_bundle, {"2": [""]}),
    (extra_bundle, {"4": [""]}),
    (unlisted_field, {"1": ["note"]}),
    (stale_fragment, {"1": ["plane.seats"], "2": ["plane.seats"]}),
    (missing_fragment, {"1": ["plane"], "2": ["plane"]}),
    (wrong_order, {"1": SECTIONS, "2": SECTIONS}),
    (off_by_one, {"1": ["carrier.flights"], "2": ["carrier.flights"], "3": ["carrier.flights"]}),
    (wrong_reference, {"3": ["plane"]}),
    (deleted_row, {"1": ["carrier.flights"], "2": ["carrier.flights"], "3": [""]}),
]


@pytest.mark.parametrize(("plant", "expected"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
async def test_every_planted_difference_is_found(world: World, plant: Any, expected: dict[str, list[str]]) -> None:
    await plant(world)
    result = await world.verify()
    assert {key: [item.path for item in found] for key, found in sorted(result.found)} == expected
    assert result.mismatches == len(expected)
    shown = as_object("flight", result)
    assert shown["mismatches"] == len(expected) and {item["key"] for item in shown["differences"]} == set(expected)


async def test_given_keys_and_samples(world: World) -> None:
    await changed_field(world)
    assert (await world.verify(keys=("1", "2", "9", "no number"))).mismatches == 1
    assert (await world.verify(keys=("2",))).mismatches == 0
    assert (await world.verify(sample=10)).mismatches == 1
    assert (await world.verify(sample=1)).verified == 1


async def test_changes_that_do_not_arrive_end_the_wait(world: World) -> None:
    await world.context.stores.marks.write_applied({(TOPICS[1], 0): AppliedPosition("nyc", 1, "", 1)})
    with pytest.raises(EnvironmentProblem, match=r"nyc\.public\.flights partition 0"):
        await world.verify(wait_s=0.2)


async def test_lookups_answer_from_redis(world: World) -> None:
    service = LookupService({"flight": world.context.served}, SystemClock())
    transport = httpx.ASGITransport(app=make_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as client:
        answer = (await client.get("/v1/contexts/flight/1")).json()
        batch = (await client.post("/v1/contexts/flight:batchGet", json={"keys": ["3", "4"]})).json()
    assert answer["status"] == "fresh"
    assert answer["bundle"] == {
        "id": 1,
        "delay": 10,
        "airline": {"name": "United"},
        "plane": json.loads(PLANE),
        "carrier": json.loads(CARRIER),
    }
    assert [item["status"] for item in batch["answers"]] == ["fresh", "missing"]
    assert batch["answers"][0]["bundle"]["plane"] is None


async def test_lookups_neither_hang_nor_mix_answers_when_redis_stands_still(make_redis: Any, postgres_dsn: str) -> None:
    server = make_redis()
    context = await open_context(cast(Any, configuration(server.address, postgres_dsn)), SPEC)
    world = World(None, context, postgres_dsn)
    await world.fill()
    service = LookupService({"flight": context.served}, SystemClock(), budget_ms=100)
    server.pause()
    for key in ("1", "2", "3"):
        with pytest.raises(LookupUnavailable):
            await service.get("flight", key)
    server.resume()

    async def number_of(key: str) -> int:
        while True:
            try:
                answer = await service.get("flight", key)
            except Retryable:
                continue
            return int(json.loads(answer.bundle or b"")["id"])

    for _ in range(5):
        assert await asyncio.gather(*map(number_of, ["3", "1", "2"])) == [3, 1, 2]
    await context.stores.close()
