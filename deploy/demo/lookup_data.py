"""The bundles that lookups are measured on: real flights through the real flow into Redis, without Kafka and Postgres
between. `python -m deploy.demo.lookup_data UPDATES` changes them all the time, in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from deploy.demo.data import FLIGHTS, TABLES
from deploy.demo.events import SOURCE, row_event, table_events, typed_rows
from deploy.demo.harness import CONTEXTS
from pipeline.core.errors import Retryable
from pipeline.flow import Flow
from pipeline.plan import compile_plan
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from pipeline.stores.store import AppliedPosition
from schemas.bundle import ROOT_UNIT
from schemas.context_file import load_context
from schemas.event import version_of
from schemas.record import Record
from schemas.topics import table_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTEXT = "flight"
BARE_PREFIX = "bare:"
"""Under it lie the same bundles with their fragments joined, as a store would keep them that only knows GET."""
REAL_FLIGHTS = 336_776
UPDATED_PER_S = 500.0
_BATCH_RECORDS = 1_000
_EPOCH_US = 1_700_000_000_000_000
"""As row_event reckons: the commit's place in the log is its time since then."""
_POSITIONS_EVERY_S = 0.1
_CHANGED_FLIGHTS_MAX = 20_000
_PAUSE_S = 0.01
_NICE = 10
"""Where it shares a core with Redis or the load: a change has time, an answer has not."""
_AWAY_PAUSE_S = 0.1
_TOPICS = [table_topic(SOURCE, f"public.{table.name}") for table in TABLES]


class Updates(msgspec.Struct, frozen=True, kw_only=True):
    """`flights` have been loaded; of them so many a second leave late, until SIGTERM. Then one line of JSON tells how
    many changes were applied and how late the slowest of them was begun."""

    redis: str
    flights: int
    rate_per_s: float


class Filling:
    """Flights into an empty Redis, first so many and later more."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.flights = 0
        self._flow = flow_of(stores)
        self._events = _flight_events()

    async def fill(self, flights: int, tell: Callable[[int], object] = lambda count: None) -> float:
        """Until there are so many; seconds that it took. `tell` gets the count after each batch."""
        began_s = time.monotonic()
        if self.flights == 0:
            await self._remember()
            small = [event for table in TABLES if table is not FLIGHTS for event in table_events(table)]
            for start in range(0, len(small), _BATCH_RECORDS):
                await self._flow.process(records(small[start : start + _BATCH_RECORDS]))
        while self.flights < flights:
            batch = list(islice(self._events, min(_BATCH_RECORDS, flights - self.flights)))
            await self._flow.process(records(batch))
            self.flights += len(batch)
            tell(self.flights)
        await write_positions(self.stores)
        return time.monotonic() - began_s

    async def bundle_bytes(self, key: str) -> int:
        """What Redis keeps of one bundle, its key and its own book-keeping included."""
        client, prefix = self.stores.client, self.stores.bundles.prefix
        return int(await client.run("MEMORY", "USAGE", f"{prefix}{{{client.bucket(key)}}}:{ROOT_UNIT}:{key}"))

    async def _remember(self) -> None:
        spec = load_context(CONTEXTS / f"{CONTEXT}.yaml")
        await self.stores.serving.remember(spec, {})
        await self.stores.serving.promote(spec.version)


def settings(redis: str) -> RedisSettings:
    return RedisSettings(redis, CONTEXT, load_context(CONTEXTS / f"{CONTEXT}.yaml").version)


def flow_of(stores: Stores) -> Flow:
    plan = compile_plan(load_context(CONTEXTS / f"{CONTEXT}.yaml"))
    return Flow(plan, stores.rows, stores.relations, stores.bundles, in_order=stores.in_order)


def records(events: Sequence[tuple[str, bytes, bytes]]) -> list[Record]:
    return [Record(topic, 0, number, key, value) for number, (topic, key, value) in enumerate(events)]


async def write_positions(stores: Stores) -> None:
    """All sources have told all that they committed up to now, as heartbeats would."""
    now_us = time.time_ns() // 1000
    version = version_of(now_us - _EPOCH_US, 0)
    position = AppliedPosition(SOURCE, now_us - _EPOCH_US, version, now_us)
    await stores.marks.write_applied({(topic, 0): position for topic in _TOPICS})


async def write_bare(stores: Stores, keys: Sequence[str], bundles: Sequence[bytes | None]) -> None:
    pairs = [(f"{BARE_PREFIX}{key}", bundle) for key, bundle in zip(keys, bundles, strict=True) if bundle is not None]
    await stores.client.run("MSET", *(part for pair in pairs for part in pair))


def _flight_events() -> Iterator[tuple[str, bytes, bytes]]:
    """All flights of the year, and then again under new ids."""
    for first in range(0, sys.maxsize, REAL_FLIGHTS):
        for number, row in enumerate(typed_rows(FLIGHTS), start=first):
            row["flight_id"] = number + 1
            yield row_event(FLIGHTS, row, 1000 + (number // 10 + 1) * 1000, 1000 + number * 100)


async def update(wanted: Updates) -> dict[str, Any]:
    """Batches of what is due, as they would come from Kafka; an outage of Redis is waited for."""
    stores = await open_stores(settings(wanted.redis))
    flow, stop = flow_of(stores), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    changes = _departures(wanted.flights)
    began_s = told_s = time.monotonic()
    applied, latest_s = 0, 0.0
    try:
        while not stop.is_set():
            now_s = time.monotonic()
            due = min(_BATCH_RECORDS, int((now_s - began_s) * wanted.rate_per_s) - applied)
            latest_s = max(latest_s, now_s - began_s - applied / wanted.rate_per_s)
            batch = records(list(islice(changes, max(0, due))))
            await _persistently(partial(flow.process, batch), stop)
            applied += len(batch)
            if now_s - told_s > _POSITIONS_EVERY_S:
                await _persistently(partial(write_positions, stores), stop)
                told_s = now_s
            await asyncio.sleep(_PAUSE_S)
    finally:
        await stores.close()
    seconds = time.monotonic() - began_s
    return {"applied": applied, "per_s": round(applied / seconds, 1), "latest_ms": round(latest_s * 1000, 1)}


async def _persistently(step: Callable[[], Any], stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            await step()
            return
        except Retryable:
            await asyncio.sleep(_AWAY_PAUSE_S)


def _departures(flights: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Changes without an end: a flight, any of the loaded ones, turns out to leave and arrive some minutes late."""
    chance = random.Random(7)
    count = min(flights, REAL_FLIGHTS)
    chosen = set(chance.sample(range(count), min(count, _CHANGED_FLIGHTS_MAX)))
    rows = [row for number, row in enumerate(typed_rows(FLIGHTS, count)) if number in chosen]
    chance.shuffle(rows)
    while True:
        for row in rows:
            row["dep_delay"] = chance.randrange(-10, 300)
            row["arr_delay"] = row["dep_delay"] + chance.randrange(-15, 15)
            now = time.time_ns() // 1000 - _EPOCH_US
            yield row_event(FLIGHTS, row, now, now)


def main() -> None:
    wanted = msgspec.json.decode(sys.argv[1], type=Updates)
    os.nice(_NICE)
    print(msgspec.json.encode(asyncio.run(update(wanted))).decode())


if __name__ == "__main__":
    main()
