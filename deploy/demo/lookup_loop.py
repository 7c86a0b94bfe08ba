"""Lookups in process, so many in flight all the time: how many a second, and how long each takes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from deploy.demo.lookup_keys import ZipfKeys
from deploy.demo.lookup_samples import AT_HAND, quantiles

DRAWN = 200_000
PATIENCE_MS = 1_000
"""Of lookups that are compared with what has no budget."""


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """`keys` and `hottest` as in ZipfKeys."""

    keys: int
    in_flight: int = 64
    warm_up_s: float = 1.0
    seconds: float = 5.0
    seed: int = 1
    hottest: int | None = None


async def measure_loop(loop: Loop, ask: Callable[[str], Awaitable[str]], of: str | None = None) -> dict[str, Any]:
    """`ask` gives what came of it, to be counted. `of`: only what came so counts in the times."""
    drawn = [str(key) for key in ZipfKeys(loop.keys, loop.seed, loop.hottest).draw(DRAWN)]
    began_s = time.monotonic() + loop.warm_up_s
    end_s = began_s + loop.seconds
    came: Counter[str] = Counter()
    took: list[float] = []

    async def one_after_the_other(place: int) -> None:
        clock = time.perf_counter
        while time.monotonic() < end_s:
            key = drawn[place % DRAWN]
            place += loop.in_flight
            asked = clock()
            result = await ask(key)
            duration = clock() - asked
            if time.monotonic() >= began_s:
                came[result] += 1
                if of is None or result == of:
                    took.append(duration * 1000)

    await asyncio.gather(*(one_after_the_other(place) for place in range(loop.in_flight)))
    return {
        "per_s": round(sum(came.values()) / loop.seconds, 1),
        "looked_up_per_s": round(sum(n for name, n in came.items() if not name.endswith(AT_HAND)) / loop.seconds, 1),
        **{f"{name}_ms": value for name, value in quantiles(took, digits=4).items()},
        "came": dict(sorted(came.items())),
        "in_flight": loop.in_flight,
    }
