"""The near cache on a real Redis: while bundles change hundreds of times a second and everything on the way to Redis
breaks, no answer is older than the positions that it is labelled with."""

from __future__ import annotations

import asyncio
import contextlib
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from deploy.local.redis import RedisServer
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.stores.near_cache import NearCache
from pipeline.stores.near_reader import NearReader
from pipeline.stores.redis_bundles import RedisBundles
from pipeline.stores.redis_client import RedisClient, RedisSettings
from pipeline.stores.redis_marks import partition_text
from pipeline.stores.redis_store import open_stores
from pipeline.stores.redis_tracking import RedisTracking
from pipeline.stores.store import AppliedPosition, Fetched
from schemas.bundle import UnitKey
from tests.support.eventually import eventually
from tests.support.link import Link
from tests.support.near import PARTITION, PLANES, ROOTS, Label, stored

pytestmark = pytest.mark.servers

# Positions are written only where the writes before them are: on the process that took those.
_WRITE_APPLIED = """
if string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
"""


class Writer:
    """Changes bundles and fragments, each write one position further; after any doubt it writes all of them again."""

    def __init__(self, bundles: RedisBundles, seed: int) -> None:
        self.bundles, self.random = bundles, random.Random(seed)
        self.position = 0
        self.counters = dict.fromkeys([*ROOTS, *PLANES], 0)
        self.written: dict[UnitKey, tuple[list[int], list[int]]] = {name: ([], []) for name in self.counters}
        self.run_id = b""

    async def run(self) -> None:
        while True:
            names = self.random.sample(list(self.counters), k=self.random.randint(1, 3))
            await self.write(names)
            await asyncio.sleep(0.002)

    async def write(self, names: list[UnitKey]) -> None:
        self.position += 1
        for name in names:
            self.counters[name] += 1
            positions, counters = self.written[name]
            positions.append(self.position)
            counters.append(self.counters[name])
        with contextlib.suppress(CtxpipeError):
            if self.run_id and await self._put(names, self.run_id):
                return
        self.run_id = b""
        with contextlib.suppress(CtxpipeError):
            self.run_id = await self._write_all()

    async def _write_all(self) -> bytes:
        """On one process, whose run id it gives; empty when it was not one all the time."""
        info = await self.bundles.client.run("INFO", "server")
        run_id = next(line[7:] for line in info.split(b"\r\n") if line.startswith(b"run_id:"))
        everything = [(name, stored(name, counter)) for name, counter in self.counters.items()]
        await self.bundles.put(everything)  # by itself: a new process has no store functions at first
        return run_id if await self._put(list(self.counters), run_id) else b""

    async def _put(self, names: list[UnitKey], run_id: bytes) -> bool:
        """In one packet, so that both go to one server."""
        position = msgspec.json.encode(AppliedPosition("nyc", self.position, "", self.position))
        where = (self.bundles.applied_key, run_id, partition_text(PARTITION), position)
        _, written = await asyncio.gather(
            self.bundles.put([(name, stored(name, self.counters[name])) for name in names]),
            self.bundles.client.run("EVAL", _WRITE_APPLIED, 1, *where),
        )
        return bool(written)

    def least(self, name: UnitKey, position: int) -> int:
        """The counter that an answer has at least which holds everything up to this position."""
        positions, counters = self.written[name]
        count = bisect_right(positions, position)
        return counters[count - 1] if count else 0


class Answers:
    """Readers of near-cached bundles, and what was wrong with their answers."""

    def __init__(self, near: NearCache, tracking: RedisTracking, reader: NearReader, label: Label, writer: Writer):
        self.near, self.tracking, self.reader, self.label, self.writer = near, tracking, reader, label, writer
        self.from_near = self.from_redis = self.from_former = self.failed = 0
        self.wrong: list[str] = []

    async def run(self, seed: int) -> None:
        chosen = random.Random(seed)
        while True:
            for _ in range(20):
                root = chosen.choice(ROOTS)
                covered = self.label.covered
                found = self.near.bundle(root.key)
                if found is not None:
                    self.from_near += 1
                    self.check("near", root, found.fetched, covered)
                elif (former := self.near.lately(root.key, asyncio.get_running_loop().time() - 0.1)) is not None:
                    bundle, label = former
                    assert isinstance(label, int) and label <= covered
                    self.from_former += 1
                    self.check("former", root, bundle.fetched, label)
                if found is None and chosen.random() < 0.5 and self.tracking.wire is not None:
                    try:
                        (fetched,) = await self.reader.fetch([root.key])
                    except Retryable:
                        self.failed += 1
                    else:
                        self.from_redis += 1
                        self.check("read", root, fetched, covered)
            await asyncio.sleep(0.001)

    def check(self, rung: str, root: UnitKey, fetched: Fetched, covered: int) -> None:
        bundle = fetched.bundle
        self._compare(rung, root, 0 if bundle is None else bundle.counter, covered)
        if bundle is not None and bundle.meta is not None:
            for reference in bundle.meta.fragments:
                assert reference.key is not None
                fragment = fetched.fragments.get((reference.unit, reference.key))
                name = UnitKey(reference.unit, reference.key)
                self._compare(rung, name, 0 if fragment is None else fragment.counter, covered)

    def _compare(self, rung: str, name: UnitKey, counter: int, covered: int) -> None:
        least = self.writer.least(name, covered)
        if counter < least:
            self.wrong.append(f"{rung}: {name} is at {counter}, and at {covered} it was at {least} already")


class World:
    """One Redis with its writer, and a lookup process with a near cache, behind links that can be switched."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    async def connect(self, seed: int, piece_bytes_max: int = 4_096, pause_s: float = 0.01) -> None:
        """Nothing is read and changed by itself yet."""
        self.to_writer = Link(self.server.port)
        self.to_near = Link(self.server.port, random.Random(seed), piece_bytes_max)
        await self.to_writer.start()
        await self.to_near.start()
        self.stores = await open_stores(_settings(self.to_writer.port))
        self.writer = Writer(self.stores.bundles, seed)
        await self.writer.write(list(self.writer.counters))
        self.client = RedisClient(_settings(self.to_near.port))
        bundles, self.near, self.label = RedisBundles(self.client), NearCache(1 << 24), Label()
        self.tracking = RedisTracking(bundles, self.near, [self.label], pause_s)
        self.near.label_now = lambda: self.label.covered
        reader = NearReader(bundles, self.near, self.tracking)
        self.answers = Answers(self.near, self.tracking, reader, self.label, self.writer)
        self.tasks = [asyncio.create_task(self.tracking.run())]
        await eventually(lambda: self.tracking.wire is not None, timeout_s=30, what="Redis tells of changes")

    async def start(self, seed: int) -> None:
        await self.connect(seed)
        running = [self.writer.run(), *(self.answers.run(seed + number) for number in range(4))]
        self.tasks += [asyncio.create_task(one) for one in running]
        await eventually(lambda: self.answers.from_near > 100, timeout_s=30, what="the near cache answers")

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.close()
        await self.stores.close()
        await self.to_near.close()
        await self.to_writer.close()
        failures = [one for one in ended if not isinstance(one, asyncio.CancelledError)]
        assert not failures, failures

    async def go_on(self, answers: int = 2_000, changes: int = 60) -> None:
        """Until so much more has been answered from the near cache, and changed."""
        from_near, position = self.answers.from_near + answers, self.writer.position + changes
        await eventually(
            lambda: self.answers.from_near >= from_near and self.writer.position >= position,
            timeout_s=60,
            what="the near cache answers again",
        )

    async def stutter(self) -> None:
        """What was asked meanwhile is then done in one turn of Redis' event loop."""
        while True:
            self.server.pause()
            await asyncio.sleep(0.004)
            self.server.resume()
            await asyncio.sleep(0.02)


def _settings(port: int) -> RedisSettings:
    return RedisSettings(f"redis://127.0.0.1:{port}/0", "near", 1, timeout_s=2.0)


@pytest.fixture
async def world(make_redis: Callable[..., RedisServer]) -> AsyncIterator[World]:
    made = World(make_redis(appendonly=False))
    await made.start(seed=1)
    yield made
    await made.stop()


@pytest.fixture
async def quiet(make_redis: Callable[..., RedisServer]) -> AsyncIterator[World]:
    """A slow link, and time between two confirmations."""
    made = World(make_redis(appendonly=False))
    await made.connect(seed=1, piece_bytes_max=4, pause_s=0.05)
    yield made
    await made.stop()


async def test_a_change_in_the_very_turn_of_the_reading_of_positions(quiet: World) -> None:
    """Redis answers with positions that hold the change before it tells of the change."""
    root = ROOTS[0]
    for _ in range(5):
        await quiet.answers.reader.fetch([root.key])
        assert quiet.near.bundle(root.key) is not None
        await quiet.label.told()
        quiet.server.pause()
        writing = asyncio.create_task(quiet.writer.write([root]))
        await asyncio.sleep(0.1)  # by now the positions have been asked for, behind the change
        quiet.server.resume()
        while quiet.label.covered < quiet.writer.position:
            await quiet.label.told()
        found = quiet.near.bundle(root.key)
        if found is not None:
            quiet.answers.check("near", root, found.fetched, quiet.label.covered)
        assert not quiet.answers.wrong
        await writing


async def test_changes_in_one_turn_with_the_reading_of_positions(world: World) -> None:
    stuttering = asyncio.create_task(world.stutter())
    await world.go_on(answers=20_000, changes=600)
    stuttering.cancel()
    _no_answer_was_too_old(world, losses=0)


async def test_the_connection_is_killed_again_and_again(world: World) -> None:
    for _ in range(25):
        for number in _tracking_clients(world.server):
            world.server.ask("CLIENT", "KILL", "ID", number)
        await world.go_on(answers=500, changes=20)
    _no_answer_was_too_old(world, losses=25)


async def test_a_frozen_redis(world: World) -> None:
    for _ in range(2):
        await eventually(lambda: len(world.near) > len(PLANES), timeout_s=30, what="something is near")
        world.server.pause()
        before = world.answers.from_near
        await asyncio.sleep(1.0)
        confirmed_at_s = world.near.confirmed_at_s
        assert confirmed_at_s is not None, "what was true then still is what was true then"
        assert asyncio.get_running_loop().time() - confirmed_at_s > 0.5, "and it is known how long ago that was"
        assert world.answers.from_near > before, "nobody waits for Redis meanwhile"
        world.server.resume()
        await eventually(lambda: world.tracking.wire is not None, timeout_s=30, what="Redis tells of changes again")
        await world.go_on()
    _no_answer_was_too_old(world, losses=2)


async def test_a_redis_that_comes_back_without_its_memory(world: World) -> None:
    for _ in range(2):
        await asyncio.to_thread(world.server.kill)
        await asyncio.to_thread(world.server.start)
        await world.go_on()
    _no_answer_was_too_old(world, losses=2)


async def test_a_failover_to_a_replica_that_lags_while_the_former_primary_lives(
    world: World, make_redis: Callable[..., RedisServer]
) -> None:
    replica = await asyncio.to_thread(make_redis, appendonly=False, replica_of=("127.0.0.1", world.server.port))
    for primary in (replica, world.server):
        former = world.server if primary is replica else replica
        primary.ask("REPLICAOF", "127.0.0.1", former.port)
        await eventually(
            lambda primary=primary: "master_link_status:up" in primary.ask("INFO", "replication"),
            timeout_s=30,
            what="the replica follows",
        )
        await world.go_on()
        primary.ask("REPLICAOF", "NO", "ONE")
        await world.go_on(changes=100)  # which the replica does not have any more
        world.to_near.switch(primary.port)
        await world.go_on()
        world.to_writer.switch(primary.port)
        await world.go_on()
    _no_answer_was_too_old(world, losses=2)


def _tracking_clients(server: RedisServer) -> list[str]:
    clients = [dict(word.split("=", 1) for word in line.split()) for line in server.ask("CLIENT", "LIST").splitlines()]
    return [one["id"] for one in clients if "t" in one["flags"]]


def _no_answer_was_too_old(world: World, losses: int) -> None:
    answers = world.answers
    assert not answers.wrong, f"{len(answers.wrong)} of {answers.from_near + answers.from_redis}: {answers.wrong[:3]}"
    assert (
        answers.from_near > 1_000
        and answers.from_redis > 10
        and answers.from_former > 10
        and world.near.invalidations > 100
    )
    assert world.tracking.losses >= losses * 0.8, "one may be killed while it connects"
