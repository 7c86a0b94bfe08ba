"""Opens the rungs of a context version beside its store: the near cache with what keeps it true, the replica, and what
was last known; and keeps them until they are closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.core import metrics
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.config import LastKnownConfig, NearCacheConfig
from pipeline.core.redis import RedisConfig
from pipeline.lookup.applied_watch import NOTHING_SEEN, Seen
from pipeline.lookup.ladder import Rungs
from pipeline.lookup.last_known import LastKnown, name_of
from pipeline.lookup.served import new_watch
from pipeline.stores.near_cache import NearCache
from pipeline.stores.near_reader import NearReader
from pipeline.stores.redis_bundles import RedisBundles
from pipeline.stores.redis_client import RedisClient
from pipeline.stores.redis_tracking import RedisTracking
from pipeline.stores.store import Fetched
from schemas.bundle import UnitKey
from schemas.context import ContextSpec

MEASURE_EVERY_S = 1.0
NEAR_EVENTS = {
    "hit": "hits",
    "miss": "misses",
    "invalidation": "invalidations",
    "flush": "flushes",
    "eviction": "evictions",
}

_LOG = logging.getLogger("ctxpipe.lookup")


@dataclass(frozen=True)
class RungSettings:
    """Which rungs there are. `folder` keeps what was last known on disk; None: in memory alone."""

    redis: RedisConfig
    near_cache: NearCacheConfig = field(default_factory=NearCacheConfig)
    last_known: LastKnownConfig = field(default_factory=LastKnownConfig)
    folder: Path | None = None
    shedding: Callable[[], bool] = lambda: False
    """Whether the server refuses requests."""


class OpenRungs:
    """Belongs to one event loop. `start` it, and `close` it before its store."""

    def __init__(
        self, spec: ContextSpec, bundles: RedisBundles, topics: Mapping[str, str], settings: RungSettings
    ) -> None:
        self._clock: Clock = SystemClock()
        self._context = spec.context
        self._bundles, self._tasks = bundles, list[asyncio.Task[None]]()
        self._last_known: LastKnown | None = None
        if settings.last_known.bundles_max:
            name, limits = name_of(spec.context, spec.version), settings.last_known
            self._last_known = LastKnown(settings.folder, name, limits.bundles_max, limits.age_s_max, self._clock)
        self._tracking: RedisTracking | None = None
        self._replica: RedisClient | None = None
        self._own, self._own_connection = new_watch(spec, bundles, topics), -1
        near = None
        if settings.near_cache.bytes_max and not bundles.client.settings.cluster:
            near = NearCache(settings.near_cache.bytes_max, self._changed)
        self.rungs = Rungs(near_age_s_max=settings.near_cache.age_ms_max / 1000, last_known=self._last_known)
        self.rungs.shedding = settings.shedding
        self.rungs.connections = lambda: bundles.client.connections
        if near is not None:
            watch = new_watch(spec, bundles, topics)
            self._tracking = RedisTracking(bundles, near, [watch])
            self.rungs.near, self.rungs.near_watch = near, watch
            near.label_now = lambda: watch.seen
            self.rungs.near_reader = NearReader(bundles, near, self._tracking)
        if settings.redis.replica_url is not None:
            self._open_replica(settings.redis.replica_url)

    async def start(self) -> None:
        """Begins with what is kept on disk."""
        self._start(self._measure(), "rungs-metrics")
        if self._last_known is not None:
            await self._last_known.load()
        if self._tracking is not None:
            self._start(self._tracking.run(), "near-cache")
        if self._last_known is not None:
            self._start(self._last_known.run(), "last-known")
            self._start(self._follow(self._last_known), "last-known-follow")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._last_known is not None:
            await self._last_known.close()
        if self._replica is not None:
            await self._replica.close()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_tell_end)
        self._tasks.append(task)

    def _open_replica(self, url: str) -> None:
        """It needs no store functions, which a replica has from its primary anyway."""
        self._replica = RedisClient(msgspec.structs.replace(self._bundles.client.settings, url=url))
        bundles = RedisBundles(self._replica)
        self.rungs.replica, self.rungs.replica_applied = NearReader(bundles, NearCache(0)), bundles
        replica = self._replica
        self.rungs.replica_connections = lambda: replica.connections

    async def _measure(self) -> None:
        """What the near cache counts, as metrics: counting there costs a lookup nothing."""
        told: dict[str, int] = {}
        while True:
            near, known = self.rungs.near, self._last_known
            if near is not None:
                metrics.lookup_near_bytes.labels(self._context).set(near.bytes_used)
                counts = {kind: getattr(near, name) for kind, name in NEAR_EVENTS.items()}
                for kind, count in counts.items():
                    metrics.lookup_near_events.labels(self._context, kind).inc(count - told.get(kind, 0))
                told = counts
            if known is not None:
                metrics.lookup_known.labels(self._context).set(len(known))
            await asyncio.sleep(MEASURE_EVERY_S)

    async def _follow(self, last_known: LastKnown) -> None:
        """All that was kept on disk is looked at once, and whatever Redis says has changed."""
        last_known.refresh(None)
        await last_known.follow(self._read, self._seen_before)

    def _seen_before(self) -> Seen:
        """What bundles hold that are read after this."""
        reader, watch = self.rungs.near_reader, self.rungs.near_watch
        if reader is not None and watch is not None and reader.tracked:
            return watch.seen
        # Positions that were read over another connection say nothing of what this one reads.
        return self._own.seen if self._own_connection == self._bundles.client.connections else NOTHING_SEEN

    async def _read(self, keys: Sequence[str]) -> list[Fetched]:
        reader = self.rungs.near_reader
        if reader is not None and reader.tracked:
            return await reader.fetch(keys)
        fetched = await self._bundles.fetch(keys)
        await self._own.read()  # for the next time
        self._own_connection = self._bundles.client.connections
        return fetched

    def _changed(self, names: Sequence[UnitKey] | None) -> None:
        """A fragment that changed leaves the bundles that show it as they were last seen: nobody knows whose it is."""
        if self._last_known is not None:
            self._last_known.refresh(None if names is None else [name.key for name in names if not name.unit])


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _LOG.error("%s ended, lookups go on without it", task.get_name(), exc_info=task.exception())
