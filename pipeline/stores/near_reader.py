"""Bundles with their fragments for lookups that the near cache cannot answer whole: what it knows comes from it, the
rest from Redis by plain reads, and the near cache learns what was read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from redis import exceptions

from pipeline.core.errors import CtxpipeError
from pipeline.stores.near_cache import UNKNOWN, Name, NearCache
from pipeline.stores.redis_bundles import RedisBundles, live, wanted
from pipeline.stores.redis_client import mapped
from pipeline.stores.redis_tracking import RedisTracking
from pipeline.stores.redis_wire import RedisWire, packed
from pipeline.stores.store import Fetched
from schemas.bundle import ROOT_UNIT, Stored, UnitKey

AGAIN_MAX = 250


class NearReader:
    """Safe for concurrent calls in one event loop. Without `tracking`, or while it tells of nothing, everything is read
    from Redis and nothing is kept."""

    def __init__(self, bundles: RedisBundles, near: NearCache, tracking: RedisTracking | None = None) -> None:
        self._bundles, self._near, self._tracking = bundles, near, tracking
        self._cluster = bundles.client.settings.cluster

        self._wanted: dict[UnitKey, None] = {}
        self._reading_again: asyncio.Task[None] | None = None
        if tracking is not None:
            near.wanted_again = self._want_again

    @property
    def tracked(self) -> bool:
        """Whether what is fetched now comes from the server that the tracking's observers were told of last."""
        return self._tracking is not None and self._tracking.wire is not None

    async def fetch(
        self, keys: Sequence[str], fragments_until_s: float | None = None, near: bool = True
    ) -> list[Fetched]:
        """Bundles by root key text, in order; one round trip where the near cache knows all fragments, else two.

        While `tracked`, they hold what the tracking's observers knew before the call; what these learn meanwhile, a
        fragment from the near cache may not hold. With `near` False, and while not tracked, all is read over the
        connection that RedisBundles reads positions over, and holds what those said before the call.

        After `fragments_until_s`, on the event loop's clock, bundles are given without the fragments that did not come,
        which `late` names. Raises as BundleReader.
        """
        if not keys:
            return []
        wire = self._tracking.wire if near and self._tracking is not None else None
        roots = await self._roots(keys, wire)
        references = [wanted(root) for root in roots]
        if not any(references):
            return [Fetched(root, {}) for root in roots]
        fragments: dict[Name, Stored | None] = {}
        missing: dict[Name, None] = {}
        for name in dict.fromkeys(name for names in references for name in names):
            known = UNKNOWN if wire is None else self._near.fragment(*name)
            if known is UNKNOWN:
                missing[name] = None
            else:
                fragments[name] = known
        if missing:
            fragments |= await self._read_fragments(list(missing), wire, fragments_until_s)
        return [_fetched(root, names, fragments) for root, names in zip(roots, references, strict=True)]

    def _want_again(self, names: list[UnitKey]) -> None:
        """What changed while it was in use is read at once, all together: else a hot fragment would be asked for by
        every lookup that meets it, until one has brought it."""
        self._wanted.update(dict.fromkeys(names))
        if self._reading_again is None or self._reading_again.done():
            self._reading_again = asyncio.create_task(self._read_again(), name="near-again")

    async def _read_again(self) -> None:
        while self._wanted:
            names = list(islice(self._wanted, AGAIN_MAX))
            for name in names:
                del self._wanted[name]
            wire = self._tracking.wire if self._tracking is not None else None
            if wire is None:
                self._wanted.clear()
                return
            try:
                await self._read(names, wire)
            except CtxpipeError:
                return  # whoever wants one of them asks for it

    async def _roots(self, keys: Sequence[str], wire: RedisWire | None) -> list[Stored | None]:
        """From the near cache those whose fragments alone have changed: a hot fragment changes often."""
        if wire is None:
            return await self._read([UnitKey(ROOT_UNIT, key) for key in keys], wire)
        known = [self._near.fragment(ROOT_UNIT, key) for key in keys]
        missing = [UnitKey(ROOT_UNIT, key) for key, one in zip(keys, known, strict=True) if one is UNKNOWN]
        if not missing:
            return [one for one in known if one is not UNKNOWN]
        read = iter(await self._read(missing, wire))
        return [next(read) if one is UNKNOWN else one for one in known]

    async def _read_fragments(
        self, names: list[Name], wire: RedisWire | None, until_s: float | None
    ) -> dict[Name, Stored | None]:
        """Nothing where they have not come in time."""
        keys = [UnitKey(*name) for name in names]
        if until_s is None or self._cluster:
            return dict(zip(names, await self._read(keys, wire), strict=True))
        ticket = self._near.begin()
        asked = self._asked(keys, wire)
        if not await _came(asked, until_s):
            asked.add_done_callback(lambda late: self._late(late, ticket, keys, wire))
            return {}
        try:
            found = self._taken(asked.result(), ticket, keys, wire)
        except (CtxpipeError, exceptions.RedisError, OSError):
            return {}
        return dict(zip(names, found, strict=True))

    def _late(self, asked: asyncio.Future[list[Any]], ticket: int, keys: list[UnitKey], wire: RedisWire | None) -> None:
        """Its bundles have been answered without it; the near cache still learns."""
        if not asked.cancelled() and asked.exception() is None:
            with suppress(CtxpipeError):
                self._taken(asked.result(), ticket, keys, wire)

    async def _read(self, names: list[UnitKey], wire: RedisWire | None) -> list[Stored | None]:
        """Not repeated when the connection is lost: another server may answer by then, which knows less."""
        if self._cluster:
            return [live(value) for value in await self._bundles.values([self._bundles.name(name) for name in names])]
        ticket = self._near.begin()
        try:
            answers = await self._asked(names, wire)
        except (exceptions.RedisError, OSError) as error:
            raise mapped(error) from error
        return self._taken(answers, ticket, names, wire)

    def _asked(self, names: list[UnitKey], wire: RedisWire | None) -> asyncio.Future[list[Any]]:
        """On its way: nobody need wait for it. Raises Retryable after the end."""
        try:
            places = [self._bundles.name(name) for name in names]
            return (wire or self._bundles.client.wire()).ask(packed("MGET", *places), 1)
        except (exceptions.RedisError, OSError) as error:
            raise mapped(error) from error

    def _taken(
        self, answers: list[Any], ticket: int, names: list[UnitKey], wire: RedisWire | None
    ) -> list[Stored | None]:
        (answer,) = answers
        if isinstance(answer, exceptions.RedisError):
            raise mapped(answer) from answer
        found = [live(value) for value in answer]
        if wire is not None:
            self._near.fill(ticket, dict(zip(names, found, strict=True)))
        return found


async def _came(asked: asyncio.Future[list[Any]], until_s: float) -> bool:
    """Whether it is done by then, on the event loop's clock. Without a task of its own: most come at once."""
    if asked.done():
        return True
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def end(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    asked.add_done_callback(end)
    timer = loop.call_at(until_s, end)
    try:
        await waiter
    except asyncio.CancelledError:
        asked.add_done_callback(_forgotten)
        raise
    finally:
        timer.cancel()
        asked.remove_done_callback(end)
    return asked.done()


def _forgotten(asked: asyncio.Future[list[Any]]) -> None:
    if not asked.cancelled():
        asked.exception()


def _fetched(bundle: Stored | None, names: Sequence[Name], fragments: dict[Name, Stored | None]) -> Fetched:
    found = {name: fragment for name in names if (fragment := fragments.get(name)) is not None}
    if len(found) == len(names):
        return Fetched(bundle, found)
    return Fetched(bundle, found, frozenset(name for name in names if name not in fragments))
