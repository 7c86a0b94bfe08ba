"""The comparison behind verify with both sides in memory: what counts, what is forgiven, what is waited for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest

from pipeline.core.errors import EnvironmentProblem
from pipeline.ops.applied import Target, behind, wait_until_applied
from pipeline.ops.oracle import Oracle
from pipeline.ops.reader import Match, Values
from pipeline.ops.verify import Settings, Verification, Verifier
from pipeline.stores.store import AppliedPosition, Partition
from schemas.context import ContextSpec

TOPIC = "shop.public.things"
SPEC = ContextSpec.model_validate(
    {
        "context": "thing",
        "version": 1,
        "root": "thing",
        "entities": {"thing": {"source": "shop", "table": "public.things", "key": ["id"]}},
        "fields": ["id", "a", "b"],
    }
)


class ManualClock:
    """Time passes only by sleeping, and calls `on_sleep` then."""

    def __init__(self) -> None:
        self.time_s = 1_000.0
        self.on_sleep: Callable[[], None] = lambda: None

    def now_us(self) -> int:
        return int(self.time_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        self.time_s += duration_s
        self.on_sleep()


class MemoryReader:
    """A TableReader over a dict of rows; `on_read` is called before each read of rows."""

    def __init__(self, rows: dict[int, dict[str, Any]]) -> None:
        self.table = rows
        self.clock_us_now = 0
        self.on_read: Callable[[], None] = lambda: None

    async def columns(self, table: str) -> dict[str, str]:
        return {"id": "integer", "a": "integer", "b": "text"}

    async def rows(
        self, table: str, columns: Sequence[str], match: Match | None, order: Sequence[str], limit: int | None
    ) -> AsyncIterator[list[Values]]:
        self.on_read()
        wanted = None if match is None else set(match["id"])
        rows = [row for key, row in self.table.items() if wanted is None or str(key) in wanted]
        yield [tuple(row[column] for column in columns) for row in rows]

    async def clock_us(self) -> int:
        return self.clock_us_now


class MemoryAnswers:
    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored = stored
        self.positions: dict[Partition, AppliedPosition] = {(TOPIC, 0): AppliedPosition("shop", 1, "", 10**15)}
        self.on_applied: Callable[[], None] = lambda: None

    async def bundles(self, keys: Sequence[str]) -> list[bytes | None]:
        return [json.dumps(self.stored[key]).encode() if self.stored.get(key) is not None else None for key in keys]

    async def applied(self) -> Mapping[Partition, AppliedPosition]:
        self.on_applied()
        return self.positions

    async def stored_keys(self) -> AsyncIterator[list[str]]:
        yield list(self.stored)


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "a": number * 10, "b": "x", **changes}


class World:
    def __init__(self) -> None:
        self.reader = MemoryReader({number: row(number) for number in range(1, 6)})
        self.answers = MemoryAnswers({str(number): row(number) for number in range(1, 6)})
        self.clock = ManualClock()

    async def verify(self, **settings: Any) -> Verification:
        oracle = await Oracle.create(SPEC, {"shop": self.reader})
        made = Settings(topics={"shop": {TOPIC: 1}}, **settings)
        return await Verifier(oracle, self.answers, {"shop": self.reader}, self.clock, made).run()


async def test_equal_sides_have_no_mismatch() -> None:
    assert await World().verify() == Verification(verified=5)


async def test_each_kind_of_difference_is_found() -> None:
    world = World()
    world.answers.stored["1"]["a"] = 11
    world.answers.stored["2"]["surplus"] = "secret"
    del world.answers.stored["3"]
    world.answers.stored["99"] = row(99)
    world.answers.stored["98"] = None
    result = await world.verify()
    assert (result.verified, result.mismatches, result.missing, result.extra) == (6, 4, 1, 1)
    shown = {key: [tuple(item) for item in found] for key, found in result.found}
    assert shown["1"] == [("a", "10", "11")]
    assert shown["2"] == [("surplus", "(absent)", '"secret"')]
    assert shown["3"][0][2] == "(absent)" and shown["99"][0][1] == "(absent)"


async def test_a_change_on_its_way_is_no_mismatch() -> None:
    world = World()
    world.reader.table[1]["a"] = 11

    def arrive() -> None:
        world.answers.stored["1"]["a"] = 11

    world.clock.on_sleep = arrive
    result = await world.verify()
    assert (result.verified, result.mismatches, result.unsettled) == (5, 0, 0)


async def test_a_field_that_changes_all_the_time_may_show_either_value() -> None:
    world = World()

    def change() -> None:
        world.answers.stored["1"]["a"] = world.reader.table[1]["a"]
        world.reader.table[1]["a"] += 1

    world.reader.on_read = change
    assert (await world.verify()).mismatches == 0


async def test_a_field_that_stands_still_is_found_beside_one_that_moves() -> None:
    world = World()
    world.answers.stored["1"]["b"] = "wrong"

    def change() -> None:
        world.reader.table[1]["a"] += 1

    world.reader.on_read = change
    result = await world.verify()
    assert [(key, [item.path for item in found]) for key, found in result.found] == [("1", ["b"])]


async def test_keys_that_never_settle_are_said_to() -> None:
    world = World()

    def change() -> None:
        world.reader.table[1]["a"] += 1

    world.reader.on_read = change
    result = await world.verify()
    assert (result.mismatches, result.unsettled) == (0, 1)


async def test_slow_progress_is_waited_for() -> None:
    world = World()
    late = [key for key in world.answers.stored if key != "1"]
    for key in late:
        world.answers.stored[key]["a"] = -1

    def arrive() -> None:
        if late:
            key = late.pop(0)
            world.answers.stored[key] = row(int(key))

    world.clock.on_sleep = arrive
    assert (await world.verify()).mismatches == 0


async def test_where_all_is_wrong_the_rest_is_counted_without_another_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ops.verify.SLICE_KEYS", 2)
    world = World()
    world.answers.stored.clear()
    result = await world.verify()
    assert (result.verified, result.mismatches, result.unconfirmed, len(result.found)) == (5, 5, 3, 2)


async def test_given_keys_are_checked_and_unknown_ones_counted() -> None:
    world = World()
    world.answers.stored["1"]["a"] = 11
    result = await world.verify(keys=("2", "1", "77"))
    assert (result.verified, result.mismatches, result.absent) == (2, 1, 1)


async def test_a_sample_is_as_large_as_asked_and_repeats_with_its_seed() -> None:
    world = World()
    world.answers.stored["4"]["a"] = 0
    results = [(await world.verify(sample=3, seed=seed)).mismatches for seed in range(30)]
    assert results == [(await world.verify(sample=3, seed=seed)).mismatches for seed in range(30)]
    assert set(results) == {0, 1}
    assert (await world.verify(sample=3, seed=1)).verified == 3


async def test_nothing_is_compared_before_the_changes_up_to_now_are_applied() -> None:
    world = World()
    world.reader.clock_us_now = 5_000_000
    world.reader.table[1]["a"] = 11
    world.answers.positions[TOPIC, 0] = AppliedPosition("shop", 1, "", 4_999_999)

    def arrive() -> None:
        world.answers.positions[TOPIC, 0] = AppliedPosition("shop", 2, "", 5_000_001)
        world.answers.stored["1"]["a"] = 11

    world.clock.on_sleep = arrive
    reads = []
    world.reader.on_read = lambda: reads.append(world.answers.stored["1"]["a"])
    assert (await world.verify()).mismatches == 0
    assert reads[0] == 11


async def test_changes_that_never_arrive_end_in_a_clear_message() -> None:
    world = World()
    world.reader.clock_us_now = 7_000_000
    world.answers.positions[TOPIC, 0] = AppliedPosition("shop", 1, "", 5_000_000)
    with pytest.raises(EnvironmentProblem, match=r"after 3 s \(shop.public.things partition 0: 2.0 s behind\).*worker"):
        await world.verify(wait_s=3.0)


def test_every_partition_must_have_come_so_far() -> None:
    position = AppliedPosition("shop", 1, "", 10)
    applied = {("t", 0): position, ("t", 2): position}
    assert behind(applied, Target("shop", 10, {"t": 3})) == ["t partition 1: nothing applied yet"]
    assert behind(applied, Target("shop", 11, {"t": 0}))[0].startswith("t partition 0: 0.0 s behind")
    assert behind(applied, Target("shop", 10, {"other": 0})) == ["other partition 0: nothing applied yet"]
    assert behind({**applied, ("t", 1): position}, Target("shop", 10, {"t": 3})) == []


async def test_a_limit_of_zero_asks_once() -> None:
    async def nothing() -> dict[Partition, AppliedPosition]:
        return {}

    with pytest.raises(EnvironmentProblem, match="nothing applied yet"):
        await wait_until_applied(nothing, Target("shop", 1, {"t": 0}), ManualClock(), 0)


async def test_without_heartbeats_a_difference_counts_when_it_has_lasted_for_the_patience() -> None:
    world = World()
    world.reader.table[1]["a"] = 11
    world.answers.stored["2"]["a"] = 21
    began_s = world.clock.time_s

    def arrive() -> None:
        if world.clock.time_s > began_s + 20:
            world.answers.stored["1"]["a"] = 11

    world.clock.on_sleep = arrive
    result = await world.verify(patience_s=30.0)
    assert [key for key, _ in result.found] == ["2"] and result.unsettled == 0
    assert world.clock.time_s >= began_s + 30


async def test_a_row_that_the_source_changes_again_gets_its_patience_again() -> None:
    world = World()
    began_s = world.clock.time_s

    def change() -> None:
        age = int(world.clock.time_s - began_s)
        world.reader.table[1]["a"] = 100 + age // 8
        world.answers.stored["1"]["a"] = 100 + (age - 4) // 8

    world.reader.on_read = change
    result = await world.verify(patience_s=10.0)
    assert result.mismatches == 0
