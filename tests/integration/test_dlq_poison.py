"""Poisoned records among many good ones, of a foreign deployment whose types a spec declares wrongly.

By default a small part; CTXPIPE_POISON_RECORDS=100000 is the full size: one in a hundred is poisoned, half of these are
rows of their own and half are rows that others show.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from aiokafka import AIOKafkaProducer

from deploy.local.roles import Role
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from tests.support.cli import Done, ctxpipe
from tests.support.eventually import eventually
from tests.support.streams import make_topic, new_name

RECORDS = int(os.environ.get("CTXPIPE_POISON_RECORDS", "3000"))
RATE = float(os.environ.get("CTXPIPE_POISON_RATE", "400"))
"""Records a second."""
POISONED_EACH = 100
PROBED_EACH = 25

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400 + RECORDS // 50)]

SPEC = """
context: {context}
version: {version}
root: item
entities:
  item: {{source: {source}, table: public.items, key: [id], types: {{price: "{type}"}}}}
  review: {{source: {source}, table: public.reviews, key: [id], types: {{weight: "{type}"}}}}
fields: [id, name, price]
sections:
  reviews: {{entity: review, kind: many, on: {{item: id}}, order_by: [id], limit: 5, fields: [id, weight]}}
"""
TABLES = """
CREATE TABLE items (id bigint PRIMARY KEY, name text, price numeric);
CREATE TABLE reviews (id bigint PRIMARY KEY, item bigint, weight numeric);
"""


class Poisoned:
    """Items and reviews, alternating, by their numbers; the deployment writes numerics as text."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        self.folder, self.kafka, self.redis_url, self.dsn = folder, kafka, redis_url, dsn
        self.context, self.source = new_name("item"), new_name("foreign")
        config = {
            "kafka": {"bootstrap_servers": kafka, "partitions": 4},
            "redis": {"url": redis_url, "prefix": self.context},
            "sources": {self.source: {"connector": "debezium", "dsn": dsn}},
            "contexts": ["a.yaml"],
        }
        (folder / "ctxpipe.yaml").write_text(yaml.safe_dump(config))
        self.write_spec(1, "decimal(10,2)")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLES)
        self.sent_s: dict[str, float] = {}
        self.seen_s: dict[str, float] = {}

    def write_spec(self, version: int, kind: str) -> None:
        text = SPEC.format(context=self.context, source=self.source, version=version, type=kind)
        (self.folder / "a.yaml").write_text(text)

    def role(self) -> Role:
        environment = {"PYTHONPATH": os.getcwd(), "CTXPIPE_CONFIG": str(self.folder / "ctxpipe.yaml")}
        return Role(["worker"], self.folder / "worker.log", environment).start()

    async def command(self, *words: str, code: int | None = 0) -> Done:
        done = await asyncio.to_thread(ctxpipe, *words, folder=self.folder, timeout_s=300.0)
        assert code is None or done.code == code, (words, done)
        return done

    async def letters(self, *words: str) -> list[dict[str, Any]]:
        return (await self.command("dlq", self.context, "list", "--json", "--limit", "1000000", *words)).lines()

    def row(self, number: int, poisoned: bool) -> tuple[str, dict[str, Any]]:
        """With five digits and no dot, a number looks like base64 that is cut short."""
        value = "12345" if poisoned else f"{number % 900}.50"
        if number % 2 == 0:
            return "items", {"id": number, "name": f"item {number}", "price": value}
        return "reviews", {"id": number, "item": number - 1, "weight": value}

    def envelope(self, number: int, table: str, row: dict[str, Any]) -> tuple[str, bytes, bytes]:
        source = {"version": "3.5.0.Final", "connector": "postgresql", "name": self.source, "schema": "public"}
        source |= {"table": table, "lsn": 1000 + number, "ts_ms": time.time_ns() // 1_000_000}
        value = {"before": None, "after": row, "source": source, "op": "c"}
        return f"{self.source}.public.{table}", b'{"id":%d}' % row["id"], json.dumps(value).encode()

    def insert(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Into Postgres, which is the truth."""
        with psycopg.connect(self.dsn, autocommit=True) as connection, connection.cursor() as cursor:
            parts: dict[str, list[tuple[Any, ...]]] = {"items": [], "reviews": []}
            for table, row in rows:
                parts[table].append(tuple(row.values()))
            for table, values in parts.items():
                with cursor.copy(f"COPY {table} FROM STDIN") as copy:  # type: ignore[arg-type]
                    for value in values:
                        copy.write_row(value)

    async def send(self, numbers: range, poison: set[int]) -> None:
        """At RATE; every so manieth good item is watched until it is served."""
        began_s = time.monotonic()
        rows = [self.row(number, number in poison) for number in numbers]
        await asyncio.to_thread(self.insert, rows)
        async with AIOKafkaProducer(bootstrap_servers=self.kafka, linger_ms=1) as producer:
            for place, (number, (table, row)) in enumerate(zip(numbers, rows, strict=True)):
                ahead_s = place / RATE - (time.monotonic() - began_s)
                if ahead_s > 0.01:
                    await asyncio.sleep(ahead_s)
                topic, key, value = self.envelope(number, table, row)
                if table == "items" and number not in poison and (number // 2) % PROBED_EACH == 0:
                    self.sent_s[str(number)] = time.monotonic()
                await producer.send(topic, value, key=key)
            await producer.flush()

    async def watch(self, stores: Stores) -> None:
        """Until cancelled: when each probe was served first."""
        while True:
            waiting = [key for key in self.sent_s if key not in self.seen_s]
            for key, found in zip(waiting, await stores.reader.fetch(waiting) if waiting else [], strict=True):
                if found.bundle is not None and found.bundle.body:
                    self.seen_s[key] = time.monotonic()
            await asyncio.sleep(0.005)

    async def freshness_ms(self, numbers: range) -> tuple[float, float]:
        """(median, 95th percentile) of the probes among these numbers."""
        keys = [key for key in self.sent_s if int(key) in numbers]
        await eventually(lambda: len([key for key in keys if key in self.seen_s]) == len(keys), timeout_s=120)
        ages = sorted(self.seen_s[key] - self.sent_s[key] for key in keys)
        return round(ages[len(ages) // 2] * 1000, 1), round(ages[int(len(ages) * 0.95)] * 1000, 1)


async def test_the_good_are_served_as_before_and_the_poisoned_come_after_mending(
    tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str
) -> None:
    world = Poisoned(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    for table in ("items", "reviews"):
        topic = f"{world.source}.public.{table}"
        await make_topic(kafka_bootstrap, topic, 4, **{"cleanup.policy": "compact"})
    worker = world.role()
    stores = await open_stores(RedisSettings(redis_url, world.context, 1, prefix=world.context))
    watching = asyncio.create_task(world.watch(stores))
    try:
        await world.send(range(200), set())
        await world.freshness_ms(range(200))
        figures = await served(world)
        worker.stop()
        figures |= await mended(world)
        print(json.dumps({"records": RECORDS, "rate": RATE, **figures}))
    finally:
        watching.cancel()
        worker.kill()
        await stores.close()


async def served(world: Poisoned) -> dict[str, Any]:
    """First a third without poison, then the rest with it, of which every good record is served."""
    middle = 200 + RECORDS // 3 // 2 * 2
    clean, mixed = range(200, middle), range(middle, 200 + RECORDS)
    wanted = RECORDS // POISONED_EACH
    step = len(mixed) // wanted // 2 * 2 - 1  # odd: items and reviews in turn
    poison = set(list(mixed)[step - 1 :: step][:wanted])
    await world.send(clean, set())
    before = await world.freshness_ms(clean)
    await world.send(mixed, poison)
    during = await world.freshness_ms(mixed)
    assert during[1] < 10 * before[1] + 2_000, (before, during)
    letters = await eventually(world.letters, lambda found: len(found) >= wanted, timeout_s=60)
    began_s = time.monotonic()
    assert len(await world.letters()) == len(poison) == wanted
    listed_s = time.monotonic() - began_s
    wrong = {str(number - number % 2) for number in poison}
    assert {key for one in letters for key in one["bundle_keys"]} == wrong, "also those of reviews that are nowhere"
    (verified, *_) = reversed((await world.command("verify", world.context, "--wait", "5", "--json", code=1)).lines())
    assert verified["mismatches"] == len(wrong), verified
    assert {one["key"] for one in verified["differences"]} <= wrong
    figures = {"freshness_ms_without": before, "freshness_ms_with": during}
    return {**figures, "letters": wanted, "wrong_bundles": len(wrong), "list_all_s": round(listed_s, 1)}


async def mended(world: Poisoned) -> dict[str, Any]:
    """The spec says what the wire holds; its new version is built while the letters are redriven into it."""
    wanted = RECORDS // POISONED_EACH
    world.write_spec(2, "decimal")
    refused = await world.command("dlq", world.context, "redrive", "--all", code=3)
    assert "no worker" in refused.err and len(await world.letters()) == wanted
    worker = world.role()
    try:
        began_s = time.monotonic()
        done = await eventually(
            lambda: world.command("dlq", world.context, "redrive", "--all", "--json", code=None),
            lambda done: done.code == 0,
            timeout_s=120,
            what="a worker that has begun",
        )
        redriven_s = time.monotonic() - began_s
        assert done.lines()[0]["redriven"] == wanted and not done.lines()[0]["failed"]
        assert (await world.command("dlq", world.context, "list")).out == "No dead letters.\n"
        assert len(await world.letters("--all-states")) == wanted
        stores = await open_stores(RedisSettings(world.redis_url, world.context, 2, prefix=world.context))
        await eventually(stores.serving.current, lambda version: version == 2, timeout_s=60 + RECORDS / 200)
        await stores.close()
        built_s = time.monotonic() - began_s
        verified = (await world.command("verify", world.context, "--wait", "20", "--json")).lines()[-1]
        assert (verified["version"], verified["mismatches"]) == (2, 0)
        return {"redriven_s": round(redriven_s, 1), "built_s": round(built_s, 1), "verified": verified["verified"]}
    finally:
        assert worker.stop() == 0
