"""The store that lookups of a case read from: memory in Redis' place, with what the case says is wrong with it.

The production reader asks it as it asks Redis, so that a late fragment, an outage and a store that is silent are met
where they are met in production. Waiting is done by timers of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from pipeline.core.clock import Clock
from pipeline.evaluation.values import Conditions
from pipeline.evaluation.world.filled import Filled
from pipeline.lookup.applied_watch import AppliedWatch
from pipeline.lookup.ladder import KnownBundles, Rungs
from pipeline.lookup.last_known import LastKnown, name_of
from pipeline.lookup.rung_state import RungState
from pipeline.lookup.served import ServedContext, new_watch
from pipeline.stores.near_cache import NearCache
from pipeline.stores.near_reader import NearReader
from pipeline.stores.redis_bundles import RedisBundles
from pipeline.stores.redis_client import mapped
from pipeline.stores.spaces import VectorState
from pipeline.stores.store import AppliedPosition, Fetched, Partition
from schemas.bundle import ROOT_UNIT, Stored, UnitKey
from schemas.event import version_of

LAST_KNOWN_AGE_S_MAX = 86_400
REFUSED = "connection refused (the case's store is down)"
_UNIT_ENDS = "\x00"


class Store:
    """One context's. Fulfils BundleReader and HistoryReader, and is what NearReader takes for RedisBundles."""

    def __init__(self, filled: Filled, conditions: Conditions, clock: Clock) -> None:
        self.filled, self._conditions, self._clock = filled, conditions, clock

    def name(self, key: UnitKey) -> str:
        return f"{key.unit}{_UNIT_ENDS}{key.key}"

    @property
    def client(self) -> Store:
        return self

    @property
    def settings(self) -> Store:
        return self

    cluster = False

    def wire(self) -> Store:
        return self

    def ask(self, commands: bytes, count: int) -> asyncio.Future[list[Any]]:
        """As RedisWire.ask, of one MGET. Raises ConnectionRefusedError while the store is down."""
        assert count == 1
        if self._conditions.store == "down":
            raise ConnectionRefusedError(REFUSED)
        loop = asyncio.get_running_loop()
        answers: asyncio.Future[list[Any]] = loop.create_future()
        if self._conditions.store == "frozen":
            return answers
        keys = [UnitKey(*name.split(_UNIT_ENDS, 1)) for name in _words(commands)[1:]]
        fragments = any(key.unit != ROOT_UNIT for key in keys)
        # Fragments come in the same round trip as their bundles, on a single Redis.
        delay_ms = self._conditions.fragment_delay_ms if fragments else self._conditions.store_delay_ms
        found = [[self.filled.encoded.get(key) for key in keys]]
        if delay_ms:
            loop.call_later(delay_ms / 1000, _answer, answers, found)
        else:
            answers.set_result(found)
        return answers

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        await self._reached()
        return [self.filled.fetched(key) for key in keys]

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        """Costs no delay of its own. As if every source's connector had said a moment ago that nothing is new."""
        await self._reached()
        return self.positions()

    async def read_states(self, space: str, keys: Sequence[str]) -> list[VectorState | None]:
        """See VectorStateStore: every bundle's vector is of its text."""
        await self._reached()
        found: list[VectorState | None] = []
        for key in keys:
            stored = self.filled.fetched(key).bundle
            meta = None if stored is None else stored.meta
            found.append(None if stored is None or meta is None else _current(stored.counter, meta.hash))
        return found

    async def read_at(self, places: Sequence[tuple[UnitKey, int]]) -> list[Stored | None]:
        """See HistoryReader: what lies here now is all that there ever was."""
        await self._reached()
        found = [self.filled.values.get(key) for key, _ in places]
        return [
            stored if stored is not None and stored.counter == counter and not stored.deleted else None
            for stored, (_, counter) in zip(found, places, strict=True)
        ]

    def positions(self) -> dict[Partition, AppliedPosition]:
        """Of every topic that the context reads: all that its source committed up to so long ago has been applied."""
        filled, now_us = self.filled, self._clock.now_us() - round(self._conditions.age_ms * 1000)
        newest: dict[str, AppliedPosition] = {}
        for one in filled.applied.values():
            known = newest.get(one.source)
            newest[one.source] = one if known is None or one.version > known.version else known
        found: dict[Partition, AppliedPosition] = {}
        for topic, table in filled.plan.topics.items():
            lag_us = filled.lag_us.get(table.source, 0)
            if lag_us is None:
                found[topic, 0] = AppliedPosition(table.source, 0, "", 0)
                continue
            found[topic, 0] = _heard(table.source, newest.get(table.source), now_us - lag_us)
        return found

    async def _reached(self) -> None:
        if self._conditions.store == "down":
            raise mapped(ConnectionRefusedError(REFUSED))
        if self._conditions.store == "frozen":
            await asyncio.get_running_loop().create_future()


def served_context(store: Store, warm: bool, clock: Clock, **spaces: Any) -> ServedContext:
    """The context as lookups of production have it, without near cache and replica. `warm`: see Conditions."""
    filled = store.filled
    rungs = Rungs(last_known=_known(store, warm, clock))
    rungs.near_reader = NearReader(cast(RedisBundles, store), NearCache(0))
    served = ServedContext(filled.spec, store, filled.empty, rungs=rungs, **spaces)
    served.ladder.store.state = RungState(clock.monotonic_s)
    return served


def _known(store: Store, warm: bool, clock: Clock) -> KnownBundles:
    filled = store.filled
    keys = filled.keys if warm else []
    name = name_of(filled.spec.context, filled.spec.version)
    known = LastKnown(None, name, max(1_000, len(keys)), LAST_KNOWN_AGE_S_MAX, clock)
    if keys:
        watch: AppliedWatch = new_watch(filled.spec, store)
        watch.observe(watch.begin(), store.positions())
        for key in keys:
            known.note(key, filled.fetched(key), watch.seen, clock.now_us())
    return known


def _answer(answers: asyncio.Future[list[Any]], found: list[Any]) -> None:
    if not answers.done():  # whoever asked may have gone away
        answers.set_result(found)


def _heard(source: str, newest: AppliedPosition | None, as_of_us: int) -> AppliedPosition:
    """As after a heartbeat. Positions of Postgres go on from the log's last; those of Cassandra and Scylla are times,
    which go with the clock."""
    if newest is None or newest.version == version_of(max(newest.commit_time_us, 0), 0):
        return AppliedPosition(source, 1, version_of(max(as_of_us, 0), 0), as_of_us)
    return AppliedPosition(source, 1, version_of(int(newest.version[:16], 16) + 1, 0), as_of_us, newest.cluster)


def _current(counter: int, bundle_hash: str) -> VectorState:
    return VectorState(counter, bundle_hash, bundle_hash, bundle_hash)


def _words(command: bytes) -> list[str]:
    """Of one command in Redis' protocol: *3 CRLF $4 CRLF MGET CRLF …"""
    words: list[str] = []
    position = command.index(b"\r\n") + 2
    while position < len(command):
        end = command.index(b"\r\n", position)
        length, start = int(command[position + 1 : end]), end + 2
        words.append(command[start : start + length].decode("utf-8", "surrogatepass"))
        position = start + length + 2
    return words
