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


async def wait_until_backfilled(
    harness: Harness,
    contexts: Sequence[str],
    rows: int,
    roles: Sequence[Role],
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Returns when every partition of every table has applied a heartbeat that was written after this call.

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
            fresh = [sum(position.commit_time_us > since_us for position in each.values()) for each in applied]
            if fresh == [_partitions_of(name) for name in contexts]:
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
    return sum(position.offset for (topic, _), position in applied.items() if topic == _TOPIC)


def _partitions_of(context: str) -> int:
    """flight reads all five tables, airport three of them."""
    return PARTITIONS * (len(TABLES) if context == "flight" else 3)
