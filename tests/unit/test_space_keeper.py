"""Searches follow the serving space: first one, promotion, return, retirement, a new version, engines that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from pipeline.core import metrics
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.embedding.hashing import HashEngine
from pipeline.embedding.space import SpaceDefinition, canary_vectors, encode_definition, space_id
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.lookup.spaces import SpaceKeeper
from pipeline.stores.memory_spaces import MemorySpaces, MemoryVectorStates
from pipeline.stores.spaces import SpaceRecord
from schemas.context import Embedding
from tests.support.eventually import eventually
from tests.support.search_world import Bundles, StillReplica, plane_spec
from tests.support.space_records import DIMENSION

LOOKS = 3


class World:
    """One context, its spaces, and what was opened."""

    def __init__(self) -> None:
        from pipeline.core.clock import SystemClock

        self.clock, self.spaces = SystemClock(), MemorySpaces()
        self.bundles = Bundles(self.clock)
        self.served = ServedContext(plane_spec(), self.bundles, {}, spaces=self.spaces, states=MemoryVectorStates())
        self.lookups = LookupService({"plane": self.served}, self.clock)
        self.replicas: dict[str, StillReplica] = {}
        self.engines: list[HashEngine] = []
        self.engine_error: Exception | None = None
        self.replica_error: Exception | None = None
        self.keeper = SpaceKeeper(self.lookups, self._open_replica, self._open_engine)

    def _open_replica(self, definition: SpaceDefinition, record: SpaceRecord) -> StillReplica:
        if self.replica_error is not None:
            raise self.replica_error
        self.replicas[record.space] = StillReplica()
        return self.replicas[record.space]

    def _open_engine(self, definition: SpaceDefinition) -> HashEngine:
        if self.engine_error is not None:
            raise self.engine_error
        assert definition.embedding.dimension is not None
        self.engines.append(HashEngine(definition.embedding.dimension))
        return self.engines[-1]

    async def register(self, template: str, dimension: int = DIMENSION, **more: Any) -> str:
        """A candidate whose text is this."""
        engine = HashEngine(dimension)
        embedding = Embedding(engine="hash", dimension=dimension, template=template)
        definition = SpaceDefinition("plane", 3, embedding, template, engine.identity)
        record = SpaceRecord(
            space=space_id(definition),
            state="candidate",
            definition=encode_definition(definition),
            canaries=canary_vectors(engine),
            dimension=dimension,
            created_us=len(self.spaces.records),
        )
        for name, value in more.items():
            record = SpaceRecord(**{**{f: getattr(record, f) for f in record.__struct_fields__}, name: value})
        await self.spaces.register(record)
        return record.space

    async def look(self) -> None:
        for _ in range(LOOKS):
            await self.keeper.look()
            await asyncio.sleep(0.02)

    @property
    def space(self) -> str | None:
        serving = self.keeper.serving("plane")
        return None if serving is None else serving.space.space


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.keeper.close()


def shown() -> set[str]:
    return {labels[1] for labels in metrics.active_space._metrics if labels[0] == "plane"}


async def test_the_first_space_answers_as_soon_as_it_is_promoted(world: World) -> None:
    first = await world.register("a")
    await world.look()
    assert world.space is None and world.replicas[first].started, "a candidate is fed already"
    await world.spaces.promote(first, None, b"")
    await world.look()
    serving = world.keeper.serving("plane")
    assert serving is not None and serving.space.space == first and shown() == {first}
    await eventually(lambda: serving.space.embedder is not None)


async def test_searches_go_over_when_the_new_space_is_ready_and_come_back(world: World) -> None:
    first = await world.register("a")
    await world.spaces.promote(first, None, b"")
    second = await world.register("b")
    await world.look()
    world.replicas[second].vectors_loaded = False
    await world.spaces.promote(second, first, b"")
    await world.look()
    assert world.space == first, "it has not been read to the end"
    world.replicas[second].vectors_loaded = True
    await world.look()
    assert world.space == second and shown() == {second} and not world.replicas[first].closed
    await world.spaces.promote(first, second, b"")
    await world.look()
    assert world.space == first and shown() == {first}


async def test_an_old_space_stays_open_while_a_search_uses_it(world: World) -> None:
    first = await world.register("a")
    await world.spaces.promote(first, None, b"")
    await world.look()
    serving = world.keeper.serving("plane")
    assert serving is not None
    serving.space.searches += 1
    second = await world.register("b")
    await world.spaces.promote(second, first, b"")
    await world.look()
    await world.spaces.retire(first)
    await world.look()
    assert world.space == second and not world.replicas[first].closed
    serving.space.searches -= 1
    await world.look()
    assert world.replicas[first].closed and not world.replicas[second].closed


async def test_a_space_whose_engine_fails_does_not_take_over(world: World) -> None:
    first = await world.register("a")
    await world.spaces.promote(first, None, b"")
    await world.look()
    await eventually(lambda: len(world.engines) == 1)
    world.engine_error = EnvironmentProblem("torch is missing")
    second = await world.register("b")
    await world.spaces.promote(second, first, b"")
    await world.look()
    assert world.space == first


@pytest.mark.parametrize("broken", ["canaries", "identity"])
async def test_another_model_under_the_same_name_is_not_asked(
    world: World, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    more = {"canaries": canary_vectors(HashEngine(DIMENSION, "other "))} if broken == "canaries" else {}
    first = await world.register("a", **more)
    if broken == "identity":
        world.keeper.open_engine = lambda definition: Other(DIMENSION)
    await world.spaces.promote(first, None, b"")
    await world.look()
    serving = world.keeper.serving("plane")
    assert serving is not None and serving.space.embedder is None
    assert serving.space.engine_problem == "the embedding engine cannot be opened; see the server's log"
    said = "answers its canary texts differently" if broken == "canaries" else "not the one of this space"
    assert said in caplog.text


class Other(HashEngine):
    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.identity = type(self.identity)(**{**_fields(self.identity), "model": "another"})


def _fields(identity: Any) -> dict[str, Any]:
    return {name: getattr(identity, name) for name in identity.__struct_fields__}


async def test_trouble_is_told_once_and_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.replica_error = EnvironmentProblem("faiss is missing")
    first = await world.register("a")
    await world.spaces.promote(first, None, b"")
    await world.look()
    assert world.space is None and caplog.text.count("faiss is missing") == 1
    world.replica_error = None
    await world.look()
    assert world.space == first

    async def away() -> list[SpaceRecord]:
        raise Retryable("Redis is away")

    world.spaces.all = away  # type: ignore[method-assign]
    await world.look()
    assert world.space == first and not world.replicas[first].closed and caplog.text.count("Redis is away") == 1


async def test_a_new_version_takes_over_with_its_space_and_its_bundles(world: World) -> None:
    first = await world.register("a")
    await world.spaces.promote(first, None, b"")
    await world.look()
    newer = MemorySpaces()
    served = ServedContext(plane_spec(version=4), world.bundles, {}, spaces=newer, states=MemoryVectorStates())
    world.lookups.use("plane", served)
    await world.look()
    serving = world.keeper.serving("plane")
    assert serving is not None and serving.served is world.served and world.served.queries == 1
    newer.records = {first: world.spaces.records[first]}
    await world.look()
    serving = world.keeper.serving("plane")
    assert serving is not None and serving.served is served and world.served.queries == 0
    assert len(world.replicas) == 1 and serving.space.searches == 0


async def test_a_version_that_embeds_nothing_ends_searches(world: World) -> None:
    first = await world.register("a")
    await world.spaces.promote(first, None, b"")
    await world.look()
    world.lookups.use("plane", replace(world.served, spec=plane_spec(embedding=None), queries=0))
    await world.look()
    assert world.space is None and world.replicas[first].closed and shown() == set()
