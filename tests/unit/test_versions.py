"""A rebuilt version takes over between two queries; nothing that is away or broken takes the old one from lookups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from pipeline.core.clock import SystemClock
from pipeline.core.errors import ConfigError, Retryable
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.lookup.versions import VersionKeeper
from pipeline.stores.store import AppliedPosition, Fetched, Partition
from schemas.bundle import Meta, Stored
from schemas.context import ContextSpec


class Reader:
    """Answers with its version's number; waits for `gate`."""

    def __init__(self, version: int) -> None:
        self.version, self.gate, self.asked = version, asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        self.asked.set()
        await self.gate.wait()
        return [Fetched(Stored(1, Meta("h", self.version), b"%d" % self.version), {}) for _ in keys]

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        return {}


class Version:
    """One version; `world.serving` is the pointer."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.reader, self.closed = world, Reader(number), False
        entities = {"thing": {"source": "shop", "table": "public.things", "key": ["id"]}}
        spec = {"context": "thing", "version": number, "root": "thing", "entities": entities, "fields": ["id"]}
        spec["serving"] = {"budget_ms": 10_000}
        self.served = ServedContext(ContextSpec.model_validate(spec), self.reader, {})

    async def serving(self) -> int | None:
        if self.world.error is not None:
            raise self.world.error
        return self.world.serving

    async def close(self) -> None:
        self.closed = True


class World:
    def __init__(self) -> None:
        self.serving: int | None = None
        self.error: Exception | None = None
        self.open_error: Exception | None = None
        self.opened: dict[int, Version] = {}
        self.open(1)
        self.service = LookupService({"thing": self.opened[1].served}, SystemClock())
        self.keeper = VersionKeeper(self.service, {"thing": self.opened[1]}, self.open_version)

    def open(self, number: int) -> Version:
        self.opened[number] = Version(self, number)
        return self.opened[number]

    async def open_version(self, context: str, number: int) -> Version:
        if self.open_error is not None:
            raise self.open_error
        return self.open(number)

    async def answer(self) -> tuple[bytes | None, int]:
        answer = await self.service.get("thing", "1")
        return answer.bundle, answer.spec_version


async def test_queries_change_over_with_the_pointer() -> None:
    world = World()
    for serving, expected in ((None, 1), (1, 1), (2, 2), (2, 2), (None, 2), (5, 5)):
        world.serving = serving
        await world.keeper.look()
        assert await world.answer() == (b"%d" % expected, expected)
    assert [number for number, version in world.opened.items() if version.closed] == [1, 2]
    assert [spec.version for spec in world.service.specs] == [5]


async def test_a_query_in_flight_keeps_its_version_and_its_connection() -> None:
    world = World()
    old = world.opened[1]
    old.reader.gate.clear()
    query = asyncio.ensure_future(world.service.get_many("thing", ["1", "2"]))
    await old.reader.asked.wait()
    world.serving = 2
    await world.keeper.look()
    assert await world.answer() == (b"2", 2)
    assert not old.closed
    old.reader.gate.set()
    assert [answer.bundle for answer in await query] == [b"1", b"1"]
    await world.keeper.look()
    assert old.closed and not world.opened[2].closed


async def test_trouble_leaves_the_version_at_hand_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.serving = 2
    world.error = Retryable("Redis does not answer")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await world.keeper.look()
        world.error, world.open_error = None, ConfigError(["version 2 is unknown"])
        for _ in range(3):
            await world.keeper.look()
    assert await world.answer() == (b"1", 1) and not world.opened[1].closed
    assert [record.getMessage().rsplit(": ", 1)[1] for record in caplog.records] == [
        "Redis does not answer",
        "version 2 is unknown",
    ]
    world.open_error = None
    await world.keeper.look()
    assert await world.answer() == (b"2", 2)


async def test_a_version_whose_store_is_away_does_not_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.serving = 2

    async def away(self: Reader) -> dict[Partition, AppliedPosition]:
        raise Retryable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read_applied", away)
        await world.keeper.look()
    assert await world.answer() == (b"1", 1) and world.opened[2].closed


async def test_close_closes_what_is_open() -> None:
    world = World()
    world.opened[1].served.queries = 1
    world.serving = 2
    await world.keeper.look()
    await world.keeper.close()
    assert world.opened[1].closed and world.opened[2].closed
