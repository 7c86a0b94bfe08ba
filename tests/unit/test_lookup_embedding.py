"""What a lookup says about a bundle's vector, beside the bundle: current, pending, failing, none, unknown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.core.errors import Retryable
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.stores.memory_spaces import MemorySpaces, MemoryVectorStates
from pipeline.stores.spaces import CUT, SpaceRecord, VectorState
from pipeline.stores.store import Fetched
from schemas.bundle import Meta, Stored
from schemas.context import ContextSpec
from tests.unit.test_lookup import EMPTY, FixedClock, MemoryReader, position, spec


def embedding_spec(**serving: Any) -> ContextSpec:
    made = spec(**serving).model_dump()
    made["embedding"] = {"engine": "hash", "template": "{{ id }}"}
    return ContextSpec.model_validate(made)


class States(MemoryVectorStates):
    """As the reference, and it can fail or hang."""

    error: Exception | None = None
    hangs = False

    async def read_states(self, space: str, keys: Sequence[str]) -> list[VectorState | None]:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return await super().read_states(space, keys)


class World:
    """A context with one space, and a service over it."""

    def __init__(self) -> None:
        self.reader, self.spaces, self.states = MemoryReader(), MemorySpaces(lambda: 0), States()
        self.reader.applied = {("a", 0): position("nyc", 1), ("b", 0): position("fleet", 1)}
        self.reader.bundles["1"] = Fetched(Stored(7, Meta("h7", 3), b'{"id":1}'), {})
        self.clock = FixedClock()

    def service(self, **serving: Any) -> LookupService:
        served = ServedContext(embedding_spec(**serving), self.reader, EMPTY, spaces=self.spaces, states=self.states)
        return LookupService({"flight": served}, self.clock)

    async def promote(self, space: str, instead_of: str | None = None) -> None:
        record = SpaceRecord(space=space, state="candidate", definition=b"", canaries=b"", dimension=8, created_us=1)
        await self.spaces.register(record)
        assert await self.spaces.promote(space, instead_of, b"")


@pytest.fixture
async def world() -> World:
    made = World()
    await made.promote("abc")
    return made


@pytest.mark.parametrize(
    ("state", "label"),
    [
        (None, {"state": "pending"}),
        (VectorState(7, "h7", "t", "t"), {"state": "current"}),
        (VectorState(7, "h7", "t", "older"), {"state": "pending"}),
        (VectorState(6, "h6", "t", "t"), {"state": "pending"}),
        (VectorState(7, "h7", "", ""), {"state": "none"}),
        (VectorState(7, "h7", "t", "t", CUT), {"state": "current", "problem": CUT}),
        (VectorState(7, "h7", "t", "", "throttled"), {"state": "failing", "problem": "throttled"}),
    ],
    ids=["never looked at", "current", "another text", "another bundle", "no text", "too long", "a problem"],
)
async def test_the_state_of_a_vector(world: World, state: VectorState | None, label: dict[str, str]) -> None:
    if state is not None:
        await world.states.write_texts("abc", {"1": state})
        await world.states.write_vectors("abc", {"1": (state.vector_hash, state.problem)})
    answer = await world.service().get("flight", "1")
    assert json.loads(answer.to_json())["embedding"] == {"space": "abc", **label}
    assert answer.to_json().endswith(b',"bundle":{"id":1}}')


async def test_before_a_space_serves_vectors_are_pending() -> None:
    answer = json.loads((await World().service().get("flight", "1")).to_json())
    assert answer["embedding"] == {"space": None, "state": "pending"}


async def test_a_missing_bundle_has_no_vector(world: World) -> None:
    answer = json.loads((await world.service().get("flight", "2")).to_json())
    assert (answer["status"], answer["embedding"]) == ("missing", {"space": "abc", "state": "none"})


async def test_states_that_cannot_be_read_cost_no_bundle(world: World) -> None:
    world.states.error = Retryable("away")
    answer = await world.service().get("flight", "1")
    assert answer.status == "fresh" and answer.embedding is not None and answer.embedding.state == "unknown"
    world.states.error, world.reader.error = None, Retryable("away")
    fallback = await world.service(default={"id": None}).get("flight", "1")
    assert fallback.status == "fallback" and fallback.embedding is not None and fallback.embedding.state == "unknown"


async def test_states_are_asked_for_beside_the_bundles(world: World) -> None:
    service = world.service()
    await service.get("flight", "1")
    order: list[str] = []
    fetch, read_states = world.reader.fetch, world.states.read_states

    async def slow_fetch(keys: Sequence[str]) -> list[Fetched]:
        order.append("bundles asked")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        order.append("bundles there")
        return await fetch(keys)

    async def noted_states(space: str, keys: Sequence[str]) -> list[VectorState | None]:
        order.append("states asked")
        return await read_states(space, keys)

    world.reader.fetch, world.states.read_states = slow_fetch, noted_states  # type: ignore[method-assign]
    await service.get("flight", "1")
    assert order == ["bundles asked", "states asked", "bundles there"]


async def test_answers_follow_a_promotion(world: World) -> None:
    service = world.service()
    before = await service.get("flight", "1")
    await world.promote("def", "abc")
    world.clock.now += 1_000_000
    after = await service.get("flight", "1")
    assert [answer.embedding.space for answer in (before, after) if answer.embedding] == ["abc", "def"]


async def test_a_context_that_embeds_nothing_says_nothing() -> None:
    world = World()
    plain = ServedContext(spec(), world.reader, EMPTY, spaces=world.spaces, states=world.states)
    world.states.hangs = True
    answer = await LookupService({"flight": plain}, world.clock).get("flight", "1")
    assert b"embedding" not in answer.to_json()
