"""Waits until a first snapshot of the demo's tables has become bundles, with progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.demo.data import TABLES
from deploy.demo.harness import PARTITIONS, Harness
from deploy.local.roles import Role
from pipeline.core.errors import EnvironmentProblem
from pipeline.stores.redis_store import open_stores
from schemas.topics import table_topic

_QUIET_S = 180.0
_TOPIC = table_topic("nyc", "public.flights")
TABLES_READ = {"flight": len(TABLES), "airport": 3, "plane": 4}


async def wait_until_backfilled(
    harness: Harness,
    contexts: Sequence[str],
    rows: int,
    roles: Sequence[Role],
    advance: Callable[[int], None] = lambda count: None,
    *,
    tables: Mapping[str, int] = TABLES_READ,
    records: Mapping[str, int] | None = None,
) -> None:
    """Returns when every partition of every Postgres table (`tables`: how many a context reads) has applied a heartbeat
    that was written after this call, and as many records of each other topic as `records` says.

    The connector writes heartbeats only once its snapshot is complete. `advance(count)` is told of applied flights,
    all contexts together. Raises EnvironmentProblem when a role ends or nothing moves for three minutes.
    """
    stores = [await open_stores(harness.redis_settings(name)) for name in contexts]
    since_us, shown, moved = int(time.time() * 1e6), 0, time.monotonic()
    try:
        while True:
            applied = [await store.marks.read_applied() for store in stores]
            done = sum(min(rows, _flights(positions)) for positions in applied)
            if done > shown:
                advance(done - shown)
                shown, moved = done, time.monotonic()
            fresh = [_fresh(positions, since_us) for positions in applied]
            if fresh == [PARTITIONS * tables[name] for name in contexts] and all(
                _offsets(applied[0], topic) >= count for topic, count in (records or {}).items()
            ):
                break
            for role in roles:
                role.ensure_running()
            if time.monotonic() - moved > _QUIET_S:
                raise EnvironmentProblem(f"the backfill stands still; see the logs in {harness.root / 'logs'}")
            await asyncio.sleep(0.25)
        advance(rows * len(contexts) - shown)
    finally:
        for store in stores:
            await store.close()


def _flights(applied: Mapping[tuple[str, int], Any]) -> int:
    return _offsets(applied, _TOPIC)


def _offsets(applied: Mapping[tuple[str, int], Any], wanted: str) -> int:
    return sum(position.offset for (topic, _), position in applied.items() if topic == wanted)


def _fresh(applied: Mapping[tuple[str, int], Any], since_us: int) -> int:
    return sum(position.source == "nyc" and position.commit_time_us > since_us for position in applied.values())
