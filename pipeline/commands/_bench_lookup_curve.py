"""What lookups cost as bundles become more, in `ctxpipe bench lookup --curve`: times, and memory of Redis."""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from deploy.demo.lookup_data import UPDATED_PER_S, Filling
from deploy.demo.lookup_load import CLOSED_CONNECTIONS, Plan
from deploy.demo.lookup_loop import Loop
from deploy.demo.lookup_samples import quantiles, summary
from pipeline.commands._bench_lookup_compare import IN_FLIGHT, OURS_PATIENTLY
from pipeline.commands._bench_lookup_world import NEAR_BYTES, OPEN_CONNECTIONS_MAX, World, open_filling

SIZES = (1_000, 10_000, 100_000, 1_000_000)
RATE_SHARE = 0.5
"""Of the capacity with the fewest bundles: the same rate for all sizes."""
SAMPLED = 1_000


@dataclass(slots=True)
class Curve:
    """Measures at each size that is not above `rows`; `keys` of them, if given, are asked for."""

    world: World
    rows: int
    keys: int | None
    seconds: float
    warm_up_s: float
    _rate_per_s: float = 0.0

    async def run(self) -> dict[str, Any]:
        """Redis is filled up from one size to the next."""
        sizes = [size for size in SIZES if size <= self.rows] or [self.rows]
        filling = await open_filling(self.world)
        empty_bytes, loaded_s, points = self.world.memory_bytes(), 0.0, []
        try:
            for size in sizes:
                loaded_s += await self.world.fill(filling, size)
                memory_bytes = self.world.memory_bytes() - empty_bytes
                point = {
                    "bundles": size,
                    "loaded_s": round(loaded_s, 1),
                    "redis_bytes_per_bundle": round(memory_bytes / size),
                    "bundle_bytes": round(await self._bundle_bytes(filling)),
                }
                self.world.tell(f"{size:,} bundles, {memory_bytes / 2**20:,.0f} MiB of Redis, in {loaded_s:.1f} s")
                points.append({**point, **self._times(size)})
        finally:
            await filling.stores.close()
        p99s = [point["http_without_near"]["p99_ms"] for point in points]
        return {"curve": points, "p99_most_to_least": round(max(p99s) / min(p99s), 2) if min(p99s) else None}

    async def _bundle_bytes(self, filling: Filling) -> float:
        """Of a bundle alone, with its key, as Redis counts; the rest is rows, relations and fragments."""
        chosen = random.Random(3).sample(range(1, filling.flights + 1), min(SAMPLED, filling.flights))
        return fmean([await filling.bundle_bytes(str(key)) for key in chosen])

    def _times(self, size: int) -> dict[str, Any]:
        keys = min(self.keys or size, size)
        loop = Loop(keys=keys, in_flight=IN_FLIGHT, seconds=self.seconds, warm_up_s=self.warm_up_s)
        with self.world.updating(size, UPDATED_PER_S) as told:
            found = {
                "http": self._http(keys, NEAR_BYTES),
                "http_without_near": self._http(keys, 0),
                "direct": self.world.loop("direct", loop),
                "direct_without_near": self.world.loop("direct", loop, near_bytes=0),
            }
        return {**found, "updates": told}

    def _http(self, keys: int, near_bytes: int) -> dict[str, Any]:
        with self.world.serving(near_bytes) as port:
            if not self._rate_per_s:
                _, samples = self.world.load(self._plan(port, keys, None))
                self._rate_per_s = max(1.0, RATE_SHARE * sum(one.looked_up for one in samples) / self.seconds)
            outcome, samples = self.world.load(self._plan(port, keys, self._rate_per_s))
        server_ms = quantiles(sample.server_ms for sample in samples if sample.server_ms >= 0)
        return {"rate_per_s": round(self._rate_per_s, 1), **summary(samples, outcome.seconds), "server_ms": server_ms}

    def _plan(self, port: int, keys: int, rate_per_s: float | None) -> Plan:
        return self.world.plan(
            port,
            keys=keys,
            rate_per_s=rate_per_s,
            connections=CLOSED_CONNECTIONS if rate_per_s is None else OPEN_CONNECTIONS_MAX,
            seconds=self.seconds,
            warm_up_s=self.warm_up_s,
            **OURS_PATIENTLY,
        )
