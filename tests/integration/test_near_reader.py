"""The near cache and its reader on a Redis where nothing changes but what the test changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from deploy.local.redis import RedisServer
from pipeline.stores.near_cache import NearCache
from pipeline.stores.near_reader import NearReader
from pipeline.stores.redis_bundles import RedisBundles
from pipeline.stores.redis_client import RedisClient, RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from pipeline.stores.redis_tracking import RedisTracking
from pipeline.stores.store import AppliedPosition, Fetched
from schemas.bundle import Stored, UnitKey
from tests.support.eventually import eventually
from tests.support.near import PARTITION, PLANES, ROOTS, Label, stored

pytestmark = pytest.mark.servers


class Alone:
    """A near cache on a Redis where nothing changes but what the test changes."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.settings = RedisSettings(url, "near", 1, timeout_s=2.0, **settings)

    async def __aenter__(self) -> Alone:
        self.stores: Stores = await open_stores(self.settings)
        self.bundles, self.near, self.label = self.stores.bundles, NearCache(1 << 24), Label()
        self.tracking = RedisTracking(self.bundles, self.near, [self.label])
        self.reader = NearReader(self.bundles, self.near, self.tracking)
        self.running = asyncio.create_task(self.tracking.run())
        await self.write(ROOTS[0], 1)
        await self.write(PLANES[0], 1)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.stores.close()

    async def write(self, name: UnitKey, counter: int) -> None:
        await self.bundles.put([(name, stored(name, counter))])

    async def fetch(self, **options: Any) -> Fetched:
        return (await self.reader.fetch([ROOTS[0].key], **options))[0]

    async def hot(self) -> None:
        await eventually(lambda: self.tracking.wire is not None, timeout_s=30, what="Redis tells of changes")
        await self.fetch()
        assert self.near.bundle(ROOTS[0].key) is not None
        self.was = self.near.bundle(ROOTS[0].key)

    async def gone(self, what: str) -> None:
        """What was hot: nothing, or what is true now, may have come in its place."""
        was = self.was
        await eventually(lambda: self.near.bundle(ROOTS[0].key) is not was, timeout_s=30, what=what)

    def counter(self) -> int | None:
        """Of the bundle that is near."""
        found = self.near.bundle(ROOTS[0].key)
        return None if found is None or found.fetched.bundle is None else found.fetched.bundle.counter

    async def reads(self) -> int:
        """So many times Redis has been asked for bundles."""
        stats = await self.stores.client.run("INFO", "commandstats")
        lines = [line for line in stats.decode().splitlines() if line.startswith("cmdstat_mget:")]
        return int(lines[0].split("calls=")[1].split(",")[0]) if lines else 0


@pytest.fixture
async def alone(redis_url: str) -> AsyncIterator[Alone]:
    async with Alone(redis_url) as made:
        await made.hot()
        yield made


async def test_a_change_a_deletion_and_an_emptied_redis_are_told_of(alone: Alone) -> None:
    await alone.write(ROOTS[0], 2)
    await alone.gone("the changed bundle")
    await alone.hot()
    await alone.write(PLANES[0], 2)
    await alone.gone("the changed fragment")
    await alone.hot()
    await alone.bundles.put([(ROOTS[0], Stored(3, None, b""))])
    await alone.gone("the deleted bundle")
    assert (await alone.fetch()).bundle is None
    await alone.write(ROOTS[0], 4)
    await eventually(lambda: alone.near.fragment("", ROOTS[0].key) is not None, timeout_s=30, what="that it is back")
    await alone.hot()
    await alone.stores.client.run("FLUSHALL")
    await alone.gone("everything")


async def test_rows_counters_and_positions_wake_nobody(alone: Alone) -> None:
    before = alone.near.invalidations
    await alone.bundles.mark_dirty([ROOTS[0]])
    await alone.stores.marks.read_marks([PARTITION])
    await alone.stores.marks.write_applied({PARTITION: AppliedPosition("nyc", 9, "", 9)})
    await eventually(lambda: alone.label.covered == 9, timeout_s=30, what="the position")
    assert alone.near.invalidations == before
    await alone.write(PLANES[2], 1)
    await eventually(lambda: alone.near.invalidations > before, timeout_s=30, what="a bundle does")


async def test_a_bundle_that_has_lived_its_time_goes(redis_url: str) -> None:
    async with Alone(redis_url, time_to_live_s=1) as alone:
        await alone.hot()
        await alone.gone("the bundle, which nobody reads from Redis any more")
        assert (await alone.fetch()).bundle is None


async def test_hot_fragments_are_not_read_again_unless_that_is_asked_for(alone: Alone) -> None:
    await alone.write(ROOTS[3], 1)  # the same plane
    before = await alone.reads()
    (fetched,) = await alone.reader.fetch([ROOTS[3].key])
    assert fetched.fragments[PLANES[0].unit, PLANES[0].key].counter == 1
    assert await alone.reads() == before + 1
    await alone.reader.fetch([ROOTS[0].key, ROOTS[3].key, "none"], near=False)
    assert await alone.reads() == before + 3, "all bundles at once, then all fragments"


async def test_fragments_that_are_late_are_named_and_known_when_they_come(
    make_redis: Callable[..., RedisServer],
) -> None:
    server = make_redis(appendonly=False)
    async with Alone(server.address) as alone:
        await alone.hot()
        alone.near.invalidate([PLANES[0]])
        now_s = asyncio.get_running_loop().time()
        fetched = await alone.fetch(fragments_until_s=now_s - 1.0)
        assert fetched.bundle is not None and fetched.fragments == {}
        assert fetched.late == {(PLANES[0].unit, PLANES[0].key)}
        await eventually(lambda: alone.near.bundle(ROOTS[0].key) is not None, timeout_s=30, what="the fragment comes")
        alone.near.invalidate([PLANES[0]])
        fetched = await alone.fetch(fragments_until_s=now_s + 60.0)
        assert fetched.late == frozenset() and len(fetched.fragments) == 1


@pytest.mark.parametrize("where", ["redis_url", "redis_cluster_url"])
async def test_without_tracking_all_is_read_and_nothing_is_kept(where: str, request: pytest.FixtureRequest) -> None:
    settings = RedisSettings(request.getfixturevalue(where), "near", 1, cluster="cluster" in where)
    stores, near = await open_stores(settings), NearCache(1 << 24)
    try:
        names = [*ROOTS[:4], *PLANES]
        await stores.bundles.put([(name, stored(name, 1)) for name in names])
        keys = [*(root.key for root in ROOTS[:4]), "none"]
        fetched = await NearReader(stores.bundles, near).fetch(keys)
        assert fetched == await stores.bundles.fetch(keys)
        assert [len(one.fragments) for one in fetched] == [1, 1, 1, 1, 0]
        assert len(near) == 0
    finally:
        await stores.close()


async def test_a_server_that_refuses_is_told_of_once_and_lookups_go_on(
    make_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stores.redis_tracking.REFUSED_PAUSE_S", 0.01)
    caplog.set_level(logging.INFO, logger="ctxpipe.near_cache")
    server = make_redis(appendonly=False)
    server.ask("ACL", "SETUSER", "default", "-client|tracking")
    async with Alone(server.address) as alone:
        await eventually(lambda: bool(caplog.records), timeout_s=30, what="it is told")
        for _ in range(5):
            assert (await alone.fetch()).bundle == stored(ROOTS[0], 1)
            await asyncio.sleep(0.02)
        assert alone.tracking.wire is None and alone.near.confirmed_at_s is None and len(alone.near) == 0
        (told,) = caplog.records
        assert "stays off" in told.getMessage() and "+client|tracking" in told.getMessage()
        server.ask("ACL", "SETUSER", "default", "+client|tracking")
        await alone.hot()
        assert "again" in caplog.records[-1].getMessage()


async def test_when_it_ends_nothing_is_answered_from_it_any_more(alone: Alone) -> None:
    alone.running.cancel()
    await asyncio.gather(alone.running, return_exceptions=True)
    assert alone.near.bundle(ROOTS[0].key) is None and alone.near.confirmed_at_s is None
    assert (await alone.fetch()).bundle is not None
    assert len(alone.near) == 0


async def test_a_user_who_may_only_read_and_be_told(make_redis: Callable[..., RedisServer]) -> None:
    """The rights that the documentation names."""
    server = make_redis(appendonly=False)
    rights = "on >secret resetchannels -@all %R~ctxpipe:* +@read -@dangerous +fcall_ro +ping +hello +select"
    server.ask("ACL", "SETUSER", "reader", *rights.split(), "+client|tracking")
    async with Alone(server.address) as writer:
        client = RedisClient(RedisSettings(f"redis://reader:secret@127.0.0.1:{server.port}/0", "near", 1))
        bundles, near = RedisBundles(client), NearCache(1 << 20)
        tracking = RedisTracking(bundles, near)
        running = asyncio.create_task(tracking.run())
        try:
            await eventually(lambda: tracking.wire is not None, timeout_s=30, what="Redis tells of changes")
            await NearReader(bundles, near, tracking).fetch([ROOTS[0].key])
            assert near.bundle(ROOTS[0].key) is not None
            await writer.write(ROOTS[0], 2)
            await eventually(lambda: near.bundle(ROOTS[0].key) is None, timeout_s=30, what="the change")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await client.close()


async def test_what_changed_in_use_is_read_again_before_anybody_asks(alone: Alone) -> None:
    await alone.write(PLANES[0], 2)
    await alone.gone("the changed fragment")

    def new() -> bool:
        found = alone.near.bundle(ROOTS[0].key)
        return found is not None and found.fetched.fragments[PLANES[0].unit, PLANES[0].key].counter == 2

    await eventually(new, timeout_s=30, what="the new one, unasked")
    await eventually(lambda: len(alone.near) == 2, timeout_s=30, what="nothing else")
    await alone.write(PLANES[2], 5)  # nobody has used it
    await alone.write(ROOTS[0], 9)
    await eventually(lambda: alone.counter() == 9, timeout_s=30, what="the bundle")
    assert len(alone.near) == 2
