"""The ladder over readers in memory: which rung answers, what its answer says, what is left to the rungs below."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from pipeline.core.errors import Retryable
from pipeline.lookup.ladder import PATIENT_S, Rungs
from pipeline.lookup.last_known import LastKnown
from pipeline.lookup.options import LookupOptions
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import AT_ONCE_MAX, LookupService, LookupUnavailable
from pipeline.stores.near_cache import NearCache
from pipeline.stores.store import Fetched
from schemas.bundle import ROOT_UNIT, FragmentReference, UnitKey
from schemas.position import token_of_lsn
from tests.unit.test_lookup import EMPTY, FixedClock, MemoryReader, position, spec, stored

BODY = b'{"id":1,"plane":,"airline":}'
REFERENCES = (FragmentReference(16, "plane", "N1"), FragmentReference(27, "airline", "A"))
PLANE, AIRLINE = stored(b'{"tail":"N1"}'), stored(b'{"name":"Air"}')
WHOLE = Fetched(stored(BODY, *REFERENCES), {("plane", "N1"): PLANE, ("airline", "A"): AIRLINE})


class Reader(MemoryReader):
    """Takes `delay_s` for an answer."""

    def __init__(self, age_ms: int = 10) -> None:
        super().__init__()
        self.bundles["1"] = WHOLE
        self.applied = {("a", 0): position("nyc", age_ms), ("b", 0): position("fleet", age_ms)}
        self.delay_s = 0.0
        self.asked = 0

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        self.asked += 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return await super().fetch(keys)


class World:
    def __init__(self, **serving: object) -> None:
        self.clock, self.store, self.replica = FixedClock(), Reader(), Reader(age_ms=400)
        self.near = NearCache(1_000_000)
        self.last_known = LastKnown(None, "flight.v3", 100, 3600, self.clock)
        self.rungs = Rungs(near=self.near, last_known=self.last_known)
        self.served = ServedContext(spec(**serving), self.store, EMPTY, rungs=self.rungs)
        self.rungs.near_watch = self.served.new_watch(self.store)
        self.service = LookupService({"flight": self.served}, self.clock)

    def with_replica(self) -> World:
        self.rungs.replica = self.rungs.replica_applied = self.replica
        self.served.__post_init__()
        return self

    def fill_near(self, age_ms: int = 50) -> None:
        assert self.rungs.near_watch is not None
        self.near.confirmed_at_s = self.clock.monotonic_s()
        values = {
            UnitKey(ROOT_UNIT, "1"): WHOLE.bundle,
            UnitKey("plane", "N1"): PLANE,
            UnitKey("airline", "A"): AIRLINE,
        }
        self.near.fill(self.near.begin(), values)
        applied = {("a", 0): position("nyc", age_ms), ("b", 0): position("fleet", age_ms)}
        self.rungs.near_watch.observe(self.rungs.near_watch.begin(), applied)

    async def get(self, key: str = "1", **options: object) -> tuple[str, str, float | None]:
        answer = await self.service.get("flight", key, LookupOptions(**options))  # type: ignore[arg-type]
        return answer.rung, answer.status, answer.age_ms["nyc"]


async def test_the_near_cache_answers_first_with_what_it_was_told() -> None:
    world = World()
    assert await world.get() == ("store", "fresh", 10)
    world.fill_near()
    assert await world.get() == ("near", "fresh", 50) and world.store.asked == 1
    first = await world.service.get("flight", "1")
    assert (await world.service.get("flight", "1")).hash == first.hash
    assert first.bundle == b'{"id":1,"plane":{"tail":"N1"},"airline":{"name":"Air"}}'


async def test_what_must_be_newer_than_the_near_cache_says_comes_from_the_store() -> None:
    world = World()
    world.fill_near()
    token = token_of_lsn("nyc", "0/1")
    answer = await world.service.get("flight", "1", LookupOptions(positions=(token,), budget_ms=20))
    assert answer.rung == "store" and [one.position for one in answer.not_reached] == [token]
    world.clock.now += 30_000  # the last confirmation is older than what is asked for
    assert (await world.get(max_age_ms=29))[0] == "store"
    assert (await world.get(max_age_ms=31))[0] == "near"
    world.clock.now += 1_000_000
    assert (await world.get())[0] == "store", "nothing is answered that was confirmed so long ago"


async def test_a_silent_store_leaves_time_for_what_was_last_known() -> None:
    world = World()
    assert await world.get() == ("store", "fresh", 10)
    world.store.hangs = True
    world.clock.now += 2_000_000
    assert await world.get(budget_ms=40) == ("last_known", "stale", 2010)
    with pytest.raises(LookupUnavailable, match="did not answer within 40 ms"):
        await world.get("2", budget_ms=40)


async def test_a_store_that_fails_is_not_asked_any_more_for_a_while() -> None:
    world = World()
    await world.get()
    world.store.error = Retryable("away")
    for _ in range(10):
        assert (await world.get())[0] == "last_known"
    assert world.served.ladder.store.state.passed_over and world.store.asked < 8
    world.store.error = None
    await asyncio.sleep(0.12)  # the probe is let through by the process's own clock
    assert (await world.get())[0] == "store" and not world.served.ladder.store.state.passed_over


async def test_the_replica_answers_with_its_own_ages_and_is_not_remembered() -> None:
    world = World().with_replica()
    world.store.error = Retryable("away")
    assert await world.get() == ("replica", "fresh", 400)
    world.replica.error = Retryable("away too")
    with pytest.raises(LookupUnavailable, match="away"):
        await world.get()


async def test_a_slow_store_is_helped_by_its_replica() -> None:
    world = World(budget_ms=1000).with_replica()
    for _ in range(300):
        await world.get()
    world.store.delay_s = 0.5
    assert (await world.get())[0] == "replica"


async def test_what_the_store_says_is_gone_is_not_remembered() -> None:
    world = World()
    await world.get()
    del world.store.bundles["1"]
    assert (await world.get())[:2] == ("store", "missing")
    world.store.error = Retryable("away")
    with pytest.raises(LookupUnavailable):
        await world.get()


async def test_sections_that_come_too_late_are_left_out_and_named() -> None:
    world = World()
    world.store.bundles["1"] = Fetched(WHOLE.bundle, {("plane", "N1"): PLANE}, frozenset({("airline", "A")}))
    answer = await world.service.get("flight", "1")
    assert answer.status == "partial" and json.loads(answer.bundle or b"") == {"id": 1, "plane": {"tail": "N1"}}
    assert answer.left_out == {"airline": "did not come in time"}
    world.store.error = Retryable("away")
    with pytest.raises(LookupUnavailable):
        await world.get()  # half a bundle is not what was last known


async def test_keys_of_a_batch_come_from_different_rungs() -> None:
    world = World()
    world.fill_near()
    world.store.bundles["2"] = Fetched(stored(b'{"id":2}'), {})
    answers = await world.service.get_many("flight", ["1", "2", "3"])
    assert [(one.rung, one.status) for one in answers] == [("near", "fresh"), ("store", "fresh"), ("store", "missing")]


async def test_the_default_stands_below_all_rungs() -> None:
    world = World(default={"id": 0})
    world.fill_near()
    world.store.error = Retryable("away")
    answers = await world.service.get_many("flight", ["1", "2"])
    assert [(one.rung, one.status) for one in answers] == [("near", "fresh"), ("default", "fallback")]
    assert answers[1].as_of_us == {"fleet": None, "nyc": None}


async def test_what_comes_over_another_connection_is_not_labelled_by_the_one_before() -> None:
    world = World()
    connections = [1]
    world.rungs.connections = lambda: connections[0]
    assert await world.get() == ("store", "fresh", 10)
    fetch, behind = world.store.fetch, {("a", 0): position("nyc", 700), ("b", 0): position("fleet", 700)}

    async def lost_on_the_way(keys: Sequence[str]) -> list[Fetched]:
        connections[0], world.store.applied = 2, behind  # a replica that lags has taken over
        return await fetch(keys)

    world.store.fetch = lost_on_the_way  # type: ignore[method-assign]
    assert await world.get() == ("store", "fresh", 700)
    world.store.fetch, world.store.applied = fetch, {**behind, ("a", 0): position("nyc", 800)}
    connections[0] = 3
    assert await world.get() == ("store", "fresh", 800)


async def test_a_connection_that_is_lost_again_and_again_leaves_it_to_the_rungs_below() -> None:
    world = World()
    await world.get()
    connections, fetch = [1], world.store.fetch
    world.rungs.connections = lambda: connections[0]

    async def lost_each_time(keys: Sequence[str]) -> list[Fetched]:
        connections[0] += 1
        return await fetch(keys)

    world.store.fetch = lost_each_time  # type: ignore[method-assign]
    assert (await world.get())[0] == "last_known"


async def test_lookups_from_memory_give_others_their_turn() -> None:
    world = World()
    await world.get()
    world.fill_near()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    for _ in range(2_000):
        answer = await world.service.get("flight", "1")
        assert answer.rung == "near"
    counting.cancel()
    assert 2_000 / AT_ONCE_MAX - 2 < turns < 200


async def test_what_is_at_hand_says_the_same_as_the_long_way() -> None:
    world = World()
    await world.get()
    world.fill_near()
    long_way = await world.service.get("flight", "1", LookupOptions(budget_ms=50))
    at_hand = await world.service.get("flight", "1")
    assert (at_hand.rung, at_hand.to_json()) == ("near", long_way.to_json())
    world.near.flush()
    assert (await world.service.get("flight", "1")).rung == "store"


async def test_what_was_last_known_is_at_hand_while_the_store_is_passed_over() -> None:
    world = World()
    await world.service.get("flight", "1")
    assert world.service.at_hand("flight", "1") is None, "the store is to be asked"
    world.store.error = Retryable("away")
    for _ in range(10):
        long_way = await world.service.get("flight", "1", LookupOptions(budget_ms=50))
    asked = world.store.asked
    at_hand = world.service.at_hand("flight", "1", 50)
    assert at_hand is not None and (at_hand.rung, at_hand.to_json()) == ("last_known", long_way.to_json())
    assert world.service.at_hand("flight", "1", PATIENT_S * 1000) is None, "who has time asks the store all the same"
    assert world.service.at_hand("flight", "2", 50) is None and world.store.asked == asked
    world.with_replica()
    assert world.service.at_hand("flight", "1", 50) is None, "there is somebody else to ask"
