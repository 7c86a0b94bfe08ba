"""Every store does what the in-memory reference does: the same random calls, answer for answer.

On Redis, on a Redis Cluster of three local nodes, and on the reference itself (which keeps the suite honest about it).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.core.errors import Retryable
from pipeline.stores.memory import MemoryBundles, MemoryCells, MemoryMarks, MemoryRelations, MemoryRows
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import open_stores
from pipeline.stores.store import (
    AppliedPosition,
    CellPlace,
    CellWrite,
    Contribution,
    Look,
    Membership,
    RelationRead,
    RowWrite,
    ShardChanged,
)
from schemas.bundle import FragmentReference, Meta, SourceState, Stored, UnitKey
from schemas.event import version_of


@dataclass
class Suite:
    """The stores under test beside a reference."""

    rows: Any
    cells: Any
    relations: Any
    bundles: Any
    marks: Any
    kind: str


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.servers),
        pytest.param("cluster", marks=pytest.mark.servers),
    ]
)
async def suite(request: pytest.FixtureRequest) -> AsyncIterator[Suite]:
    if request.param == "memory":
        rows = MemoryRows()
        yield Suite(rows, MemoryCells(rows), MemoryRelations(), MemoryBundles(), MemoryMarks(), "memory")
        return
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "redis_cluster_url")
    settings = RedisSettings(url, f"suite{uuid.uuid4().hex[:8]}", 1, cluster=request.param == "cluster", buckets=8)
    stores = await open_stores(settings)
    yield Suite(stores.rows, stores.cells, stores.relations, stores.bundles, stores.marks, request.param)
    await stores.close()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.servers),
        pytest.param("cluster", marks=pytest.mark.servers),
    ]
)
async def history(request: pytest.FixtureRequest) -> AsyncIterator[Suite]:
    """Stores that keep former bundles."""
    rows = MemoryRows()
    if request.param == "memory":
        bundles = MemoryBundles(keeps_history=True)
        yield Suite(rows, MemoryCells(rows), MemoryRelations(), bundles, MemoryMarks(), "memory")
        return
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "redis_cluster_url")
    name, cluster = f"history{uuid.uuid4().hex[:8]}", request.param == "cluster"
    stores = await open_stores(RedisSettings(url, name, 1, cluster=cluster, buckets=8, retention_s=600))
    yield Suite(stores.rows, stores.cells, stores.relations, stores.bundles, stores.marks, request.param)
    await stores.close()


async def test_cells_answer_like_the_reference(suite: Suite) -> None:
    """Tokens are each store's own: a write goes by the one that its store gave, or by an old one that must lose."""
    random, rows = Random(11), MemoryRows()
    reference = MemoryCells(rows)
    places = [CellPlace("s.t", f"{p}|{c}", p) for p in ("1", "ü%7C") for c in ("a", "b", "")] + [CellPlace("s.u", "x")]
    old: dict[str, Any] = {}
    for step in range(120):
        chosen = random.sample(places, random.randint(1, 4))
        ours, theirs = await suite.cells.read(chosen), await reference.read(chosen)
        assert [_without_token(row) for row in ours] == [_without_token(row) for row in theirs]
        late = random.random() < 0.2 and all(place.key in old for place in chosen)
        if late:
            ours = [old[place.key][0] for place in chosen]
            theirs = [old[place.key][1] for place in chosen]
        made = [_cell_write(random, place, step) for place in chosen]
        results = []
        for store, found in ((suite.cells, ours), (reference, theirs)):
            writes = [replace(write, token=row.token) for write, row in zip(made, found, strict=True)]
            results.append(await store.write(writes))
        assert results[0] == results[1]
        for place, mine, other in zip(chosen, ours, theirs, strict=True):
            old.setdefault(place.key, (mine, other))
        if random.random() < 0.3:
            burial = ("s.t", random.choice(["1", "ü%7C", "empty"]), b"%d" % random.randint(0, 5))
            assert sorted(await suite.cells.bury(*burial)) == sorted(await reference.bury(*burial))
        now_us = random.randint(0, 200)
        next_us = random.choice([None, random.randint(0, 200)])
        looks = [Look("s.t", place.key, random.randint(0, 200), next_us) for place in places if random.random() < 0.3]
        looks += [
            Look(*name, time_us, next_us) for name, time_us in reference.expiries.items() if random.random() < 0.2
        ]
        assert sorted(await suite.cells.due(now_us, 1000, looks)) == sorted(await reference.due(now_us, 1000, looks))
        keys = [(place.table, place.key) for place in places]
        assert await suite.rows.read(keys) == await rows.read(keys)


def _cell_write(random: Random, place: CellPlace, step: int) -> CellWrite:
    return CellWrite(
        place,
        b"",
        f"{step:032x}",
        random.choice([[], [1, "x"], [2, None]]),
        random.choice([b"state", b"", bytes(range(256))]),
        random.choice([(), ("p1", None), ("p2", "q")]),
        step if random.random() < 0.5 else 0,
        random.random() < 0.5,
        random.choice([None, random.randint(0, 200)]),
    )


def _without_token(row: Any) -> Any:
    return replace(row, token=b"" if not row.token else b"some")


async def test_rows_answer_like_the_reference(suite: Suite) -> None:
    random, reference = Random(7), MemoryRows()
    keys = [str(number) for number in range(12)] + ["ü|é", "a b%25", ""]
    for _ in range(60):
        writes = [_row_write(random, keys) for _ in range(random.randint(1, 30))]
        assert await suite.rows.apply(writes) == await reference.apply(writes)
        wanted = [(table, key) for table in ("s.t", "s.u") for key in keys]
        assert await suite.rows.read(wanted) == await reference.read(wanted)
        if random.random() < 0.1:
            version = version_of(random.randint(1, 40), 0)
            assert sorted(await suite.rows.truncate("s.t", version)) == sorted(await reference.truncate("s.t", version))


def _row_write(random: Random, keys: list[str]) -> RowWrite:
    version = version_of(random.randint(1, 40), random.randint(0, 2))
    table = random.choice(["s.t", "s.u"])
    if random.random() < 0.2:
        return RowWrite(table, random.choice(keys), version, None, (), 5)
    values = [random.choice([None, 1, 2**53 + 1, -(2**63), 1.5, "é\x00\n", True, [1, {"a": None}]]) for _ in range(3)]
    links = (random.choice([None, "x", "y|z"]), random.choice(["1", None]))
    return RowWrite(table, random.choice(keys), version, values, links, random.randint(0, 10**15))


async def test_relations_answer_like_the_reference(suite: Suite) -> None:
    random, reference = Random(11), MemoryRelations()
    parents = ["1", "2", "p|q", "é"]
    for _ in range(60):
        memberships = [_membership(random, parents) for _ in range(random.randint(1, 25))]
        await suite.relations.relate(memberships)
        await reference.relate(memberships)
        reads = [RelationRead(number, parent, limit=3) for number in (0, 1) for parent in parents]
        reads += [RelationRead(number, parent, tops=2) for number in (0, 1) for parent in parents]
        found, expected = await suite.relations.read(reads), await reference.read(reads)
        assert found == expected
        for limit in (2, 1000):
            ours = await suite.relations.members(0, parents, limit)
            theirs = await reference.members(0, parents, limit)
            assert [_sorted(children) for children in ours] == [_sorted(children) for children in theirs]
        assert sorted(await suite.relations.all_members(1, "1")) == sorted(await reference.all_members(1, "1"))


def _sorted(children: list[str] | None) -> list[str] | None:
    return None if children is None else sorted(children)


def _membership(random: Random, parents: list[str]) -> Membership:
    child = str(random.randint(1, 9))
    version = version_of(random.randint(1, 60), int(child))
    contribution: Contribution | None = None
    roll = random.random()
    if roll < 0.2:
        contribution = Contribution()
    elif roll < 0.8:
        group = random.choice([b'["x"]', b'["y\\u0000"]', b""])
        entries = [
            group + bytes([random.randint(0, 255)]) + child.encode(),
            random.choice([None, group + child.encode()]),
        ]
        amounts = [
            (group + b"\x05\x80\x00", random.choice([1, -999_999_999, 999_999_999])),
            (group + b"\xff\x80\x00", 1),
        ]
        value = bytes([random.randint(0, 2)])
        contribution = Contribution(list(entries), amounts, [(group + b"v" + value, group + b"\x07\x80\x00")])
    return Membership(random.randint(0, 1), random.choice(parents), child, version, contribution)


async def test_counters_never_lose_a_digit(suite: Suite) -> None:
    field = b"\x00\x80\x00"
    memberships = [
        Membership(3, "p", str(number), version_of(1, number), Contribution([], [(field, 999_999_999)], []))
        for number in range(2000)
    ]
    await suite.relations.relate(memberships)
    await suite.relations.relate(memberships)
    assert (await suite.relations.read([RelationRead(3, "p")]))[0].counters == {field: 2000 * 999_999_999}


async def test_bundles_refuse_older_builds_and_remember_deletions(suite: Suite) -> None:
    key, fragment = UnitKey("", "7|é"), UnitKey("plane", "N1")
    first, _ = await suite.bundles.mark_dirty([key, fragment])
    (second,) = await suite.bundles.mark_dirty([key])
    assert 0 < first < second < 10**16  # 16 digits have room for it
    assert await suite.bundles.put([(key, _stored(2, b'{"a":2}'))]) == [True]
    assert await suite.bundles.put([(key, _stored(1, b'{"a":1}'))]) == [False]
    assert (await suite.bundles.get([key]))[0] == _stored(2, b'{"a":2}')
    assert await suite.bundles.put([(key, _stored(3, b'{"a":2}'))]) == [False], "same content"
    assert await suite.bundles.put([(key, Stored(4, None, b""))]) == [True]
    assert await suite.bundles.put([(key, _stored(3, b'{"a":3}'))]) == [False], "a late build must not resurrect"
    assert await suite.bundles.get([key, fragment]) == [None, None]
    assert await suite.bundles.put([(fragment, Stored(5, None, b""))]) == [False]
    assert await suite.bundles.put([(fragment, _stored(4, b"1"))]) == [False]
    assert await suite.bundles.get([fragment]) == [None]


async def test_fetch_brings_the_fragments(suite: Suite) -> None:
    references = [
        FragmentReference(1, "plane", "N1"),
        FragmentReference(1, "airline", None),
        FragmentReference(2, "plane", "N1"),
        FragmentReference(2, "gone", "x"),
    ]
    meta = Meta("0" * 32, 1, {"s": SourceState(version_of(1, 2), 9)}, references)
    bundle, plane = Stored(1, meta, b"{}"), _stored(1, b'{"seats":2}')
    await suite.bundles.put([(UnitKey("", "1"), bundle), (UnitKey("plane", "N1"), plane)])
    found = await suite.bundles.fetch(["1", "missing"])
    assert found[0].bundle == bundle
    assert found[0].fragments == {("plane", "N1"): plane}
    assert found[1].bundle is None
    assert await suite.bundles.fetch([]) == []


async def test_former_values_are_kept_like_the_references(history: Suite) -> None:
    """Random puts, repeated and late ones among them; every counter that ever was answers as in the reference."""
    random, reference = Random(23), MemoryBundles(keeps_history=True)
    keys = [UnitKey("", "1"), UnitKey("", "a:b:{c}:é%7C"), UnitKey("plane", "1"), UnitKey("plane.x", "h:{3}:1")]
    places = [(key, counter) for key in keys for counter in range(1, 41)]
    for step in range(150):
        chosen = random.sample(keys, random.randint(1, 3))
        counters = [max(1, min(40, step // 4 + random.randint(-2, 2))) for _ in chosen]
        items = [
            (
                key,
                Stored(counter, None, b"")
                if counter % 7 == 0
                else _stored(counter, b"%d%b" % (counter, key.unit.encode())),
            )
            for key, counter in zip(chosen, counters, strict=True)
        ]
        assert await history.bundles.put(items) == await reference.put(items)
        if step % 10 == 0:
            assert await history.bundles.read_at(places) == await reference.read_at(places)
    found = await history.bundles.read_at(places)
    assert found == await reference.read_at(places) and sum(one is not None for one in found) > 60
    assert await history.bundles.read_at([]) == []


@pytest.mark.servers
async def test_without_retention_nothing_former_is_kept(suite: Suite) -> None:
    key = UnitKey("", "1")
    for counter in (1, 2):
        await suite.bundles.put([(key, _stored(counter, b"%d" % counter))])
    assert await suite.bundles.read_at([(key, 1), (key, 2)]) == [None, _stored(2, b"2")]


@pytest.mark.servers
async def test_what_is_kept_ends_after_the_retention(redis_url: str) -> None:
    stores = await open_stores(RedisSettings(redis_url, "ends", 1, buckets=4, retention_s=1))
    key = UnitKey("", "1")
    for counter in (1, 2):
        await stores.bundles.put([(key, _stored(counter, b"%d" % counter))])
    assert await stores.bundles.read_at([(key, 1)]) == [_stored(1, b"1")]
    (name,) = await stores.client.run("KEYS", f"{stores.client.base}h:*")
    assert 0 < await stores.client.run("PTTL", name) <= 1000
    await asyncio.sleep(1.2)
    assert await stores.bundles.read_at([(key, 1), (key, 2)]) == [None, _stored(2, b"2")]
    await stores.close()


@pytest.mark.servers
async def test_a_bundle_that_ends_by_itself_is_kept_for_the_retention_after_that(redis_url: str) -> None:
    stores = await open_stores(RedisSettings(redis_url, "lives", 1, buckets=4, time_to_live_s=1, retention_s=2))
    key = UnitKey("", "1")
    await stores.bundles.put([(key, _stored(1, b"1"))])
    await asyncio.sleep(1.3)
    assert await stores.bundles.get([key]) == [None]
    assert await stores.bundles.read_at([(key, 1)]) == [_stored(1, b"1")]
    (name,) = await stores.client.run("KEYS", f"{stores.client.base}h:*")
    assert 0 < await stores.client.run("PTTL", name) <= 1700
    await stores.bundles.put([(key, _stored(2, b"2")), (UnitKey("", "2"), Stored(3, None, b""))])
    assert len(await stores.client.run("KEYS", f"{stores.client.base}h:*")) == 2, "a deletion has no former value"
    await stores.close()


def _stored(counter: int, body: bytes) -> Stored:
    return Stored(counter, Meta(body.hex().ljust(32, "0"), 1), body)


async def test_marks_and_applied_positions(suite: Suite) -> None:
    one, two = ("s.public.t", 0), ("s.public.t", 11)
    if suite.kind != "memory":
        with pytest.raises(Retryable):
            await suite.marks.write_marks({one: 1})
    assert await suite.marks.read_marks([one, two]) == {one: 0, two: 0}
    await suite.marks.write_marks({one: 17, two: 3})
    assert await suite.marks.read_marks([one, two]) == {one: 17, two: 3}
    position = AppliedPosition("s", 17, version_of(3, 4), 1234)
    await suite.marks.write_applied({one: position})
    await suite.marks.write_applied({})
    nothing = AppliedPosition("", 0, "", 0)
    assert await suite.marks.read_applied() == {one: position, two: nothing}
    await suite.marks.write_applied({one: AppliedPosition("s", 20, "", 0)})
    assert await suite.marks.read_applied() == {one: AppliedPosition("s", 20, version_of(3, 4), 1234), two: nothing}


async def test_an_applied_position_keeps_what_stays_true(suite: Suite) -> None:
    one = ("s.public.t", 0)
    await suite.marks.read_marks([one])
    await suite.marks.write_applied({one: AppliedPosition("s", 17, version_of(3, 4), 1234, "7", {0: 5, 2: 9})})
    # Another worker goes on, with changes that say nothing of time or cluster.
    await suite.marks.read_marks([one])
    await suite.marks.write_applied({one: AppliedPosition("s", 20, "", 0, awaits={2: 11})})
    assert await suite.marks.read_applied() == {
        one: AppliedPosition("s", 20, version_of(3, 4), 1234, "7", {0: 5, 2: 11})
    }
    await suite.marks.write_applied({one: AppliedPosition("s", 21, version_of(4, 4), 1235)})
    assert (await suite.marks.read_applied())[one].cluster == "7"


@pytest.mark.servers
async def test_marks_notice_an_emptied_memory(redis_url: str) -> None:
    stores = await open_stores(RedisSettings(redis_url, "c", 1, buckets=4))
    partition = ("s.public.t", 0)
    await stores.marks.read_marks([partition])
    await stores.marks.write_marks({partition: 5})
    await stores.client.run("FLUSHALL")
    with pytest.raises(ShardChanged, match="emptied"):
        await stores.marks.write_marks({})
    assert await stores.marks.read_marks([partition]) == {partition: 0}
    await stores.marks.write_marks({partition: 9})
    assert await stores.marks.read_marks([partition]) == {partition: 9}
    await stores.close()


@pytest.mark.servers
async def test_marks_notice_another_process(make_redis: Any) -> None:
    server = make_redis(appendonly=True)
    stores = await open_stores(RedisSettings(server.address, "c", 1, buckets=4))
    partition = ("s.public.t", 0)
    await stores.marks.read_marks([partition])
    await stores.marks.write_marks({partition: 5})
    server.restart()
    with pytest.raises(ShardChanged):
        for _ in range(50):
            try:
                await stores.marks.write_marks({partition: 9})
            except ShardChanged:
                raise
            except Retryable:
                continue
    assert await stores.marks.read_marks([partition]) == {partition: 5}, "nothing was written past the change"
    await stores.marks.write_marks({partition: 9})
    await stores.close()
