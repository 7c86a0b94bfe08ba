"""The way to a bundle inside a budget: near cache → store → its replica, hedged → what was last known.

A rung is gone down when the one above has nothing, is known to be away, or has used up what the ones below need not.
Whatever comes of it carries what its rung had seen of the sources when it was read, so that ages stay true on each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from pipeline.core import metrics
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.lookup.answer import Rung
from pipeline.lookup.applied_watch import AppliedWatch, Seen
from pipeline.lookup.hedging import Hedging
from pipeline.lookup.rung_state import RungState
from pipeline.stores.near_cache import NearBundle, NearCache
from pipeline.stores.near_reader import NearReader
from pipeline.stores.store import BundleReader, Fetched

RUNGS: tuple[Rung, ...] = ("near", "store", "replica", "last_known", "default")
APPLIED_KEPT_S = 0.1
"""Applied positions may be so old: they say less than is true, never more."""
LOWER_RUNGS_SHARE, LOWER_RUNGS_S_MAX = 0.25, 0.02
"""What of a budget is kept for the rungs below the store, which need no waiting, and for timers that come late."""
PATIENT_S = 0.2
"""Who has as much time waits for a rung that has been silent for some milliseconds: it is mostly a moment's trouble."""
CONNECTIONS_MAX = 2
LATELY_S = 0.1
"""What has just changed is answered as it was, and as old as it was, until the new one is here."""
NEAR_MEASURED_EVERY = 16
FIRST_SHARE = 0.6
"""Of the stores' time, where there is a replica to be asked after the store."""
FRAGMENTS_SHARE = 0.8
"""Of the store's time: what has not come then is left out of its bundle, so that there is time to join the rest."""


class Read(msgspec.Struct, frozen=True, gc=False):
    """What a rung has of one key. `near` is the cache's own place for it, which keeps what is made of it."""

    fetched: Fetched
    seen: Seen
    rung: Rung
    near: NearBundle | None = None


class KnownBundles(Protocol):
    """What this process saw last, from memory (last_known)."""

    def note(self, key: str, fetched: Fetched, seen: Seen, now_us: int) -> None: ...

    def forget(self, key: str) -> None:
        """The store says that there is no such bundle."""

    def get(self, key: str, now_us: int) -> tuple[Fetched, Seen, int] | None:
        """With the time at which it was noted."""


@dataclass
class Rungs:
    """The ways to a bundle beside the store itself, each of which may be missing. `near_watch` is what the near cache
    is told of applied positions, by its tracking alone; `near_age_s_max`: so old may its last confirmation be."""

    near: NearCache | None = None
    near_reader: NearReader | None = None
    near_watch: AppliedWatch | None = None
    near_age_s_max: float = 1.0
    replica: BundleReader | NearReader | None = None
    replica_applied: BundleReader | None = None
    last_known: KnownBundles | None = None
    connections: Callable[[], int] = lambda: 0
    """How many connections the store's reader has had, one after the other."""
    replica_connections: Callable[[], int] = lambda: 0
    shedding: Callable[[], bool] = lambda: False
    """Whether requests are being refused: then nothing is asked twice."""

    def near_seen(self, now_s: float) -> Seen | None:
        """What all that the near cache knows holds; None where it was confirmed too long ago, or there is none."""
        near, watch = self.near, self.near_watch
        if near is None or watch is None or near.confirmed_at_s is None:
            return None
        return watch.seen if now_s - near.confirmed_at_s <= self.near_age_s_max else None


class StoreRung:
    """The store, or its replica: a reader, what it has been seen to hold, and whether it answers these days."""

    def __init__(
        self,
        name: Rung,
        reader: BundleReader | NearReader,
        watch: AppliedWatch,
        rungs: Rungs,
        connections: Callable[[], int],
    ) -> None:
        """`connections`: how many the reader has had, one after the other."""
        self.name, self.reader, self.watch = name, reader, watch
        self.state = RungState(time.monotonic)
        self.applied_at_s: float | None = None
        self._rungs, self._connections, self._connection = rungs, connections, -1

    async def refresh(self, now_s: float) -> None:
        """Before a fetch, so that bundles hold at least what the positions say (promise 4). Raises Retryable."""
        is_old = self.applied_at_s is None or now_s - self.applied_at_s > APPLIED_KEPT_S
        if is_old or self._connections() != self._connection:
            await self.watch.read()
            self.applied_at_s, self._connection = now_s, self._connections()

    async def fetch(self, keys: Sequence[str], now_s: float, until_s: float, exact: bool) -> tuple[list[Fetched], Seen]:
        """What is read is at least as new as what is seen. Fragments that have not come at `until_s` (of the loop's
        clock) are late. `exact`: all of what this rung's watch knows is in it, so nothing comes from the near cache,
        which is told a little later. Raises Retryable."""
        reader = self.reader
        if isinstance(reader, NearReader) and reader.tracked and not exact:
            seen = self._rungs.near_seen(now_s)
            if seen is not None:
                return await reader.fetch(keys, until_s), seen
        for _ in range(CONNECTIONS_MAX):
            await self.refresh(now_s)
            seen, connection = self.watch.seen, self._connection
            if isinstance(reader, NearReader):
                fetched = await reader.fetch(keys, until_s, near=False)
            else:
                fetched = await reader.fetch(keys)
            if self._connections() == connection:
                return fetched, seen
            # Another server may have answered, which knows less than the one whose positions were read.
        raise Retryable("the connection to the store was lost while bundles were read")


class Ladder:
    """Of one context version; belongs to one event loop."""

    def __init__(self, context: str, store: StoreRung, rungs: Rungs, replica_watch: AppliedWatch | None = None) -> None:
        self.store, self._rungs, self._context = store, rungs, context
        self._replica: StoreRung | None = None
        if rungs.replica is not None and replica_watch is not None:
            self._replica = StoreRung("replica", rungs.replica, replica_watch, Rungs(), rungs.replica_connections)
        self._passes: dict[tuple[Rung, str], Any] = {}
        self._asked_near = 0
        self._hedging = Hedging(shedding=lambda: rungs.shedding())
        self._answers = {rung: metrics.lookup_rung_answers.labels(context, rung) for rung in RUNGS}
        self._seconds = {rung: metrics.lookup_rung_seconds.labels(context, rung) for rung in RUNGS}

    def near(self, key: str, limit_ms: float, now_s: float) -> Read | None:
        """From this process's memory alone. Not where it was confirmed longer ago than the caller's greatest age: the
        store may know better."""
        near, seen = self._rungs.near, self._rungs.near_seen(now_s)
        if near is None:
            return None
        if seen is None or near.confirmed_at_s is None or (now_s - near.confirmed_at_s) * 1000 > limit_ms:
            self._passed("near", "old")
            return None
        self._asked_near += 1
        began_s = time.perf_counter() if not self._asked_near % NEAR_MEASURED_EVERY else None
        found = near.lately(key, now_s - LATELY_S)
        if began_s is not None:  # measuring takes as long as what it measures
            self._seconds["near"].observe(time.perf_counter() - began_s)
        if found is None:
            self._passed("near", "unknown")
            return None
        self._answers["near"].inc()
        bundle, label = found
        if label is not None:
            assert isinstance(label, Seen)
            seen = label
        return Read(bundle.fetched, seen, "near", bundle)

    async def read(
        self, keys: Sequence[str], until_s: float, now_us: int, now_s: float, exact: bool = False
    ) -> tuple[list[Read | None], Exception | None]:
        """One per key, None where no rung answers for it, and then why the store did not. `until_s` is of the event
        loop's clock."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        left_s = until_s - began_s
        store_until_s = until_s - min(left_s * LOWER_RUNGS_SHARE, LOWER_RUNGS_S_MAX)
        try:
            rung, fetched, seen = await self._from_stores(keys, store_until_s, now_s, exact)
        except (TimeoutError, CtxpipeError) as error:
            return self._from_last_known(keys, now_us), error
        self._count(rung.name, len(keys), loop.time() - began_s)
        last_known = self._rungs.last_known
        if last_known is not None and rung is self.store:  # a replica may be behind
            for key, one in zip(keys, fetched, strict=True):
                if one.bundle is None:
                    last_known.forget(key)
                elif not one.late:
                    last_known.note(key, one, seen, now_us)
        return [Read(one, seen, rung.name) for one in fetched], None

    def passing_over(self, key: str, left_s: float, now_us: int) -> Read | None:
        """What `read` would give without asking anybody, because the store is passed over; None: ask `read`."""
        if self._replica is not None or left_s >= PATIENT_S or not self.store.state.closed:
            return None
        read = self._from_last_known([key], now_us)[0]
        if read is not None:
            self._passed(self.store.name, "away")
        return read

    async def _from_stores(
        self, keys: Sequence[str], until_s: float, now_s: float, exact: bool
    ) -> tuple[StoreRung, list[Fetched], Seen]:
        store, replica = self.store, self._replica
        if replica is None:
            return await self._ask(store, keys, until_s, now_s, exact)
        hedging = self._hedging
        hedged, won = hedging.hedged, hedging.won
        begun_s = asyncio.get_running_loop().time()
        first_until_s = begun_s + (until_s - begun_s) * FIRST_SHARE
        answer, _ = await hedging.read(
            lambda: self._ask(store, keys, first_until_s, now_s, exact),
            lambda: self._ask(replica, keys, until_s, now_s, exact),
            len(keys),
        )
        if hedging.hedged > hedged:
            metrics.lookup_hedges.labels(self._context).inc(hedging.hedged - hedged)
        if hedging.won > won:
            metrics.lookup_hedges_won.labels(self._context).inc(hedging.won - won)
        return answer

    async def _ask(
        self, rung: StoreRung, keys: Sequence[str], until_s: float, now_s: float, exact: bool
    ) -> tuple[StoreRung, list[Fetched], Seen]:
        state, number = rung.state, rung.state.begin()
        begun_s = asyncio.get_running_loop().time()
        if number is None and until_s - begun_s < PATIENT_S:
            self._passed(rung.name, "away")
            await asyncio.sleep(0)  # a caller that asks again at once must not keep out the answer that ends this
            raise Retryable(f"the {rung.name} has not answered lately: {state.reason}")
        fragments_until_s = begun_s + (until_s - begun_s) * FRAGMENTS_SHARE
        try:
            async with asyncio.timeout_at(until_s):
                fetched, seen = await rung.fetch(keys, now_s, fragments_until_s, exact)
        except TimeoutError:
            if number is not None:
                state.timed_out(number)
            self._passed(rung.name, "late")
            raise
        except CtxpipeError as error:
            if number is not None:
                state.failed(number, str(error))
            self._passed(rung.name, "error")
            raise
        except BaseException:
            if number is not None:
                state.gave_up(number)
            raise
        if number is not None:
            state.succeeded(number)
        return rung, fetched, seen

    def _from_last_known(self, keys: Sequence[str], now_us: int) -> list[Read | None]:
        """Of the near cache, which may be older than it is allowed to be, and else what the store said last."""
        near, watch, last_known = self._rungs.near, self._rungs.near_watch, self._rungs.last_known
        found: list[Read | None] = []
        began_s = time.perf_counter()
        for key in keys:
            bundle = near.bundle(key) if near is not None and near.confirmed_at_s is not None else None
            if bundle is not None and bundle.fetched.bundle is not None and watch is not None:
                # One that was not there may be there meanwhile: nobody knows.
                found.append(Read(bundle.fetched, watch.seen, "last_known", bundle))
                continue
            known = None if last_known is None else last_known.get(key, now_us)
            found.append(None if known is None else Read(known[0], known[1], "last_known"))
        answered = len(keys) - found.count(None)
        if answered:
            self._count("last_known", answered, time.perf_counter() - began_s)
        return found

    def count_defaults(self, answers: int) -> None:
        """Answered by the spec's default bundle, below all rungs."""
        self._answers["default"].inc(answers)

    def _count(self, rung: Rung, answers: int, duration_s: float) -> None:
        self._answers[rung].inc(answers)
        self._seconds[rung].observe(duration_s)

    def _passed(self, rung: Rung, reason: str) -> None:
        count = self._passes.get((rung, reason))
        if count is None:
            count = self._passes[rung, reason] = metrics.lookup_rung_passed.labels(self._context, rung, reason)
        count.inc()
