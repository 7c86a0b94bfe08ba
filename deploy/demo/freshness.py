"""Freshness as a user sees it: from the commit in Postgres to the moment a reader finds the change in the bundle."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from pipeline.core.errors import EnvironmentProblem
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import open_stores
from schemas.bundle import ROOT_UNIT, UnitKey

_PAUSE_S = 0.001
_GIVE_UP_S = 30.0
_START_S = 60.0


class FreshnessWatcher:
    """A reader in a process of its own, polling Redis for changes that it was told of; it is looking when this returns.

    `expect` after each commit; `collect` what has been seen since the last call; `close` at the end. Times are of one
    machine's clock: an expectation carries the moment at which the committing client had its answer.
    """

    def __init__(self, settings: RedisSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_watch, args=(settings, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not self._ours.poll(_START_S):
                raise EOFError
            self._ours.recv()
        except EOFError:
            self._process.terminate()
            raise EnvironmentProblem("the process that watches freshness did not start") from None
        self.expected = 0

    def expect(self, key: str, marker: bytes, committed_ns: int) -> None:
        """The bundle of `key` will contain `marker`, bytes that it never held before."""
        self.expected += 1
        self._ours.send((key, marker, committed_ns))

    def collect(self) -> list[float]:
        """Milliseconds from commit to visible of the changes seen since the last call; -1 for one given up on."""
        seen: list[float] = []
        while self._ours.poll():
            seen += self._ours.recv()
        return seen

    def close(self) -> None:
        self._ours.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()


def _watch(settings: RedisSettings, pipe: Connection) -> None:
    import uvloop

    uvloop.run(_poll(settings, pipe))


async def _poll(settings: RedisSettings, pipe: Connection) -> None:
    stores = await open_stores(settings)
    waiting: dict[tuple[str, bytes], int] = {}
    pipe.send([])
    try:
        while True:
            while pipe.poll():
                message = pipe.recv()
                if message is None:
                    return
                waiting[message[0], message[1]] = message[2]
            if waiting:
                seen = await _seen(stores, waiting)
                if seen:
                    pipe.send(seen)
            await asyncio.sleep(_PAUSE_S)
    finally:
        await stores.close()


async def _seen(stores: Any, waiting: dict[tuple[str, bytes], int]) -> list[float]:
    keys = list(waiting)
    values = await stores.bundles.get([UnitKey(ROOT_UNIT, key) for key, _ in keys])
    now_ns, seen = time.time_ns(), []
    for (key, marker), stored in zip(keys, values, strict=True):
        committed_ns = waiting[key, marker]
        if stored is not None and marker in stored.body:
            seen.append(max(0.0, (now_ns - committed_ns) / 1e6))
        elif now_ns - committed_ns > _GIVE_UP_S * 1e9:
            seen.append(-1.0)
        else:
            continue
        del waiting[key, marker]
    return seen


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
