"""The stores of embedding spaces do what the in-memory reference does: the same random calls, answer for answer."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.core.errors import Fatal
from pipeline.stores.memory_spaces import MemorySpaces, MemoryVectorStates
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_spaces import DELETION_REMEMBERED_S, RedisSpaces, RedisVectorStates
from pipeline.stores.redis_store import open_stores
from pipeline.stores.spaces import SpaceRecord, SpaceStore, VectorState, VectorStateStore

KEYS = [str(number) for number in range(12)] + ["ü|é", "a b%25", ""]
HASHES = ["", "t1", "t2", "t3"]


class Now:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.us


@dataclass
class Suite:
    spaces: SpaceStore
    states: VectorStateStore
    now: Now
    client: Any


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.servers),
        pytest.param("cluster", marks=pytest.mark.servers),
    ]
)
async def suite(request: pytest.FixtureRequest) -> AsyncIterator[Suite]:
    now = Now()
    if request.param == "memory":
        yield Suite(MemorySpaces(now), MemoryVectorStates(), now, None)
        return
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "redis_cluster_url")
    settings = RedisSettings(url, f"suite{uuid.uuid4().hex[:8]}", 1, cluster=request.param == "cluster", buckets=8)
    stores = await open_stores(settings)
    yield Suite(RedisSpaces(stores.client, now), RedisVectorStates(stores.client, now), now, stores.client)
    await stores.close()


async def test_states_answer_like_the_reference(suite: Suite) -> None:
    random, reference = Random(5), MemoryVectorStates()
    for step in range(150):
        space = random.choice(["a", "b"])
        chosen = random.sample(KEYS, random.randint(0, len(KEYS)))
        roll = random.random()
        if roll < 0.45:
            states = {key: _state(random) for key in chosen}
            assert await suite.states.write_texts(space, states) == await reference.write_texts(space, states)
        elif roll < 0.95:
            pairs = {key: (random.choice(HASHES), random.choice(["", "no ü", "x" * 300])) for key in chosen}
            name = random.choice(["write_vectors", "write_problems"])
            at = {key: random.randint(0, 20) for key in chosen if random.random() < 0.7}
            more = [at] if name == "write_vectors" else []
            ours, theirs = getattr(suite.states, name), getattr(reference, name)
            found, expected = await ours(space, pairs, *more), await theirs(space, pairs, *more)
            assert name == "write_problems" or found == expected
        elif step > 30:
            assert await suite.states.forget(space) == await reference.forget(space)
        for other in ("a", "b", "never"):
            assert await suite.states.read_states(other, KEYS) == await reference.read_states(other, KEYS)
            scanned = [pair async for pair in suite.states.scan_states(other)]
            assert sorted(scanned) == sorted([pair async for pair in reference.scan_states(other)])


def _state(random: Random) -> VectorState:
    """A bundle without a hash is a deleted one, and has no text."""
    counter = random.choice([random.randint(1, 9), 2**53 - random.randint(0, 3)])
    at = {"asked_at": random.randint(-1, 3), "text_at": random.choice([-1, random.randint(0, 2**53 - 1)])}
    if random.random() < 0.3:
        return VectorState(counter, "", "", **at)
    problem = random.choice(["", "the template fails: ü"])
    given = random.choice(["", "ignored"])
    return VectorState(
        counter, "b" * 32, random.choice(HASHES), given, problem, random.choice(["", "f1"]), vector_at=7, **at
    )


async def test_a_late_writer_changes_nothing_and_a_redelivery_is_taken(suite: Suite) -> None:
    states = suite.states
    first, second = VectorState(3, "b3", "t3"), VectorState(4, "b4", "t4")
    assert await states.write_texts("s", {"k": second}) == [True]
    assert await states.write_texts("s", {"k": first}) == [False]
    assert await states.write_texts("s", {"k": second}) == [True]
    assert await states.write_vectors("s", {"k": ("t3", "old")}) == [False], "another text is wanted"
    assert await states.read_states("s", ["k"]) == [replace(second, vector_hash="t3")]
    await states.write_problems("s", {"k": ("t3", "of the old text"), "other": ("t4", "unknown")})
    assert await states.read_states("s", ["k", "other"]) == [replace(second, vector_hash="t3"), None]
    await states.write_problems("s", {"k": ("t4", "throttled")})
    assert (await states.read_states("s", ["k"]))[0] == replace(second, vector_hash="t3", problem="throttled")
    assert await states.write_vectors("s", {"k": ("t4", "")}) == [True]
    assert await states.read_states("s", ["k"]) == [replace(second, vector_hash="t4")]
    assert await states.write_vectors("s", {"never": ("t1", "")}) == [False]
    assert await states.read_states("s", ["never"]) == [None], "a late vector makes no state"


async def test_a_late_writer_is_known_by_its_offsets(suite: Suite) -> None:
    """Of two looks at the same build of a bundle, that of the newer request counts; of two vectors, the last."""
    states = suite.states
    assert await states.write_texts("s", {"k": VectorState(3, "b3", "t3", asked_at=5, text_at=7)}) == [True]
    assert await states.write_texts("s", {"k": VectorState(3, "b3", "t2", asked_at=4, text_at=8)}) == [False]
    early = VectorState(3, "b3", "t4", asked_at=6, text_at=6)
    assert await states.write_texts("s", {"k": early}) == [False], "another's text lies behind this one"
    assert await states.write_texts("s", {"k": VectorState(3, "b3", "t3", asked_at=6, text_at=7)}) == [True]
    expected = VectorState(3, "b3", "t3", asked_at=6, text_at=7)
    assert await states.read_states("s", ["k"]) == [expected]
    assert await states.write_vectors("s", {"k": ("t3", "")}, {"k": 2}) == [True]
    assert await states.write_vectors("s", {"k": ("t2", "")}, {"k": 1}) == [False], "it lies before"
    assert await states.read_states("s", ["k"]) == [replace(expected, vector_hash="t3", vector_at=2)]
    await states.write_vectors("s", {"k": ("t3", "cut")}, {"k": 2})
    await states.write_vectors("s", {"k": ("t3", "")}, {"k": 2})
    noted = replace(expected, vector_hash="t3", vector_at=2, problem="cut")
    assert await states.read_states("s", ["k"]) == [noted], "who reads it back knows less of it than who wrote it"
    await states.write_texts("s", {"k": VectorState(4, "b4", "t4", asked_at=7, text_at=7)})
    expected = VectorState(4, "b4", "t4", asked_at=7, text_at=7)
    assert await states.write_vectors("s", {"k": ("", "")}, {"k": 3}) == [False]
    assert await states.read_states("s", ["k"]) == [replace(expected, vector_hash="", vector_at=3)]


async def test_a_state_without_bundle_text_and_vector_ends_with_the_memory_of_deletions(suite: Suite) -> None:
    if suite.client is None:
        return
    states, day_us = suite.states, DELETION_REMEMBERED_S * 1_000_000
    gone, live = VectorState(5, "", ""), VectorState(5, "b5", "")
    await states.write_texts("s", {"k": VectorState(4, "b4", "t4"), "empty": live})
    await states.write_vectors("s", {"k": ("t4", "")})
    await states.write_texts("s", {"k": gone})
    suite.now.us += day_us + 1
    await _touch(states, "s")
    assert await states.read_states("s", ["k"]) == [replace(gone, vector_hash="t4")], "its vector is not gone yet"
    await states.write_vectors("s", {"k": ("", "")})
    suite.now.us += day_us - 2_000_000
    await _touch(states, "s")
    assert await states.read_states("s", ["k", "empty"]) == [gone, live]
    assert await states.write_texts("s", {"k": VectorState(4, "b4", "t4")}) == [False], "nothing resurrects"
    suite.now.us += 3_000_000
    await _touch(states, "s")
    assert await states.read_states("s", ["k", "empty"]) == [None, live], "a live bundle's state stays"
    await states.write_texts("s", {"k": gone})
    await states.write_texts("s", {"k": VectorState(6, "b6", "")})
    suite.now.us += 2 * day_us
    await _touch(states, "s")
    assert await states.read_states("s", ["k"]) == [VectorState(6, "b6", "")], "it came back in time"


async def _touch(states: VectorStateStore, space: str) -> None:
    """A write in every bucket."""
    await states.write_vectors(space, {f"touch{number}": ("", "") for number in range(200)})


async def test_spaces_answer_like_the_reference(suite: Suite) -> None:
    random, reference = Random(3), MemorySpaces(suite.now)
    names = ["aaa", "bbb", "ccc", "ddd"]
    for step in range(200):
        suite.now.us += 1
        space, other, roll = random.choice(names), random.choice([*names, None]), random.random()
        evidence = b'{"step":%d}' % step
        if roll < 0.3:
            record = _space(space, created_us=suite.now.us)
            assert await suite.spaces.register(record) == await reference.register(record)
        elif roll < 0.7:
            instead_of = random.choice([other, await reference.serving()])
            found = await suite.spaces.promote(space, instead_of, evidence)
            assert found == await reference.promote(space, instead_of, evidence)
        elif roll < 0.85:
            await suite.spaces.note(space, evidence)
            await reference.note(space, evidence)
        else:
            assert await suite.spaces.retire(space) == await reference.retire(space)
        records = await suite.spaces.all()
        assert records == await reference.all()
        assert await suite.spaces.serving() == await reference.serving()
        for state in ("candidate", "serving", "previous"):
            assert sum(record.state == state for record in records) <= 1


def _space(space: str, created_us: int = 7) -> SpaceRecord:
    return SpaceRecord(
        space=space,
        state="candidate",
        definition=b'{"a":1}',
        canaries=bytes(range(256)),
        dimension=8,
        created_us=created_us,
    )


async def test_a_space_is_built_promoted_taken_back_and_retired(suite: Suite) -> None:
    spaces = suite.spaces
    first = await spaces.register(_space("one"))
    assert (first.state, first.canaries) == ("candidate", bytes(range(256)))
    assert await spaces.serving() is None
    assert await spaces.promote("one", None, b"{}")
    assert not await spaces.promote("one", None, b"again"), "it serves"
    assert await spaces.register(_space("one", created_us=9)) == (await spaces.all())[0], "and stays as it is"
    await spaces.register(_space("two"))
    assert not await spaces.promote("two", None, b""), "another serves meanwhile"
    assert await spaces.promote("two", "one", b'{"better":true}')
    assert [record.state for record in await spaces.all()] == ["previous", "serving"]
    assert await spaces.promote("one", "two", b"{}")
    assert [record.state for record in await spaces.all()] == ["serving", "previous"]
    assert not await spaces.retire("one")
    assert not await spaces.retire("unknown")
    assert await spaces.retire("two")
    assert not await spaces.promote("two", "one", b""), "nobody feeds it"
    anew = await spaces.register(_space("two", created_us=99))
    assert (anew.state, anew.created_us, anew.evidence) == ("candidate", 99, b"")


@pytest.mark.servers
async def test_records_of_another_release_are_refused(redis_url: str) -> None:
    stores = await open_stores(RedisSettings(redis_url, "foreign", 1, buckets=2))
    await stores.spaces.register(_space("one"))
    await stores.client.run("HSET", stores.client.key(0, "spaces"), "r:one", b"\xff")
    with pytest.raises(Fatal, match="another release"):
        await stores.spaces.all()
    await stores.vector_states.write_texts("one", {"k": VectorState(1, "b", "t")})
    name = stores.client.key(stores.client.bucket("k"), "v:one")
    await stores.client.run("HSET", name, "k", b"\xff")
    with pytest.raises(Fatal, match="another release"):
        await stores.vector_states.read_states("one", ["k"])
    await stores.close()


async def test_a_problem_lasts_as_long_as_its_text(suite: Suite) -> None:
    """Whoever looks at the text again meanwhile does not know of it."""
    states = suite.states
    first = VectorState(1, "b1", "t1")
    await states.write_texts("s", {"k": first})
    await states.write_problems("s", {"k": ("t1", "refused: too odd")})
    assert await states.write_texts("s", {"k": replace(first, counter=2, bundle_hash="b2")}) == [True]
    assert (await states.read_states("s", ["k"]))[0] == VectorState(2, "b2", "t1", "", "refused: too odd")
    await states.write_texts("s", {"k": VectorState(3, "b3", "t3")})
    assert (await states.read_states("s", ["k"]))[0] == VectorState(3, "b3", "t3")
    failing = VectorState(4, "b4", "", "", "refused: the template fails")
    await states.write_texts("s", {"k": failing})
    assert await states.write_vectors("s", {"k": ("", "")}) == [True], "its older vector is gone"
    assert (await states.read_states("s", ["k"]))[0] == failing
    await states.write_texts("s", {"k": VectorState(5, "b5", "")})
    assert (await states.read_states("s", ["k"]))[0] == VectorState(5, "b5", ""), "an empty text has no problem"
