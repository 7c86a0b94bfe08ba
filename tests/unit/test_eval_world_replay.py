"""Replay cases: one log in every telling ends with the same bundles; a flow that does not keep its promises is seen."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from pipeline.evaluation.digests import digest_of
from pipeline.evaluation.world import WorldError, forget, replayed
from pipeline.evaluation.world.filled import Filled
from pipeline.evaluation.world.replay import Replayed, straight
from pipeline.evaluation.world.replays import TELLINGS
from pipeline.plan import Plan, compile_plan
from pipeline.stores.memory import MemoryBundles, MemoryRelations, MemoryRows
from pipeline.stores.store import RowOutcome, RowWrite
from schemas.context import ContextSpec
from schemas.mutation import Cell, Marker, Mutation, MutationSource, encode_mutation
from schemas.record import Record
from tests.simulation.specs import random_spec
from tests.simulation.wide import WideSource
from tests.simulation.world import Source
from tests.support.eval_world import Log, SmallSuite, case, order_log, small_suite

TWINS = ("redelivered", "reordered", "restarted")
EXPECTED = {
    "order/1": {
        "id": 1,
        "note": "note 1",
        "owner": "acme",
        "customer": {"id": 7, "name": "Anne"},
        "sums": {"lines": 2, "pieces": 40},
    },
    "order/2": {
        "id": 2,
        "note": "moved",
        "owner": "acme",
        "customer": {"id": 8, "name": "Bob"},
        "sums": {"lines": 1, "pieces": 5},
    },
    "order/3": {
        "id": 3,
        "note": "note 3",
        "owner": "acme",
        "customer": {"id": 8, "name": "Bob"},
        "sums": {"lines": 0, "pieces": None},
    },
}


@pytest.fixture
def suite(tmp_path: Path) -> SmallSuite:
    forget()
    return small_suite(tmp_path)


def replay(suite: SmallSuite, log: Log, **parts: Any) -> Any:
    name = suite.write("events/log.jsonl", log.lines)
    return replayed(suite, case(kind="replay", context={"events": name}, twins=TWINS, **parts))


async def test_every_telling_ends_with_the_bundles_that_plain_reading_of_the_log_gives(suite: SmallSuite) -> None:
    found = await replay(suite, order_log())
    expected = {key: digest_of(value) for key, value in EXPECTED.items()} | {"order/4": ""}
    assert found == {key: dict.fromkeys(("", *TWINS), digest) for key, digest in expected.items()}


async def test_a_log_is_read_up_to_the_cases_end(suite: SmallSuite) -> None:
    name = suite.write("events/log.jsonl", order_log().lines)
    found = await replayed(suite, case(kind="replay", context={"events": name, "until": 4}))
    first = {**EXPECTED["order/3"], "customer": None}
    assert found["order/3"] == {"": digest_of(first)}
    assert set(found["order/4"]) == {""} and found["order/4"][""]


async def test_records_that_are_set_aside_are_told_once_by_their_reason(suite: SmallSuite) -> None:
    log = order_log()
    log.raw("shop.public.orders", {"id": 9}, 1, value_text="{broken")
    log.raw("shop.public.orders", {"id": 9}, 1, value_text="{broken")
    found = await replay(suite, log)
    told = found.pop("order!dead_letters")
    assert len(set(told.values())) == 1 and told[""].startswith("2 × "), told
    assert set(found) == {"order/1", "order/2", "order/3", "order/4"}


async def test_batches_and_crashes_come_from_the_cases_id_alone(
    suite: SmallSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    apply = MemoryRows.apply

    async def noted(self: MemoryRows, writes: list[RowWrite]) -> list[RowOutcome]:
        told[-1].append(" ".join(write.key for write in writes))
        found: list[RowOutcome] = await apply(self, writes)
        return found

    monkeypatch.setattr(MemoryRows, "apply", noted)
    for name in ("again", "again", "other"):
        told.append([])
        await replay(suite, order_log(), id=name)
    assert told[0] == told[1] != told[2]


async def test_a_store_that_goes_backwards_is_seen_in_a_twin(
    suite: SmallSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 2 broken: the last delivery wins."""
    apply = MemoryRows.apply

    async def backwards(self: MemoryRows, writes: list[RowWrite]) -> list[RowOutcome]:
        for write in writes:
            self.tables.get(write.table, {}).pop(write.key, None)
        found: list[RowOutcome] = await apply(self, writes)
        return found

    monkeypatch.setattr(MemoryRows, "apply", backwards)
    found = await replay(suite, order_log())
    assert any(len(set(digests.values())) > 1 for digests in found.values()), found


async def test_a_relation_counted_twice_is_seen(suite: SmallSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 10 broken: an aggregate adds what is delivered again."""
    relate = MemoryRelations.relate

    async def twice(self: MemoryRelations, memberships: Any) -> None:
        for one in memberships:
            for place in self.places.values():
                place.members.pop(one.child, None)
        await relate(self, memberships)

    monkeypatch.setattr(MemoryRelations, "relate", twice)
    found = await replay(suite, order_log())
    assert any(len(set(digests.values())) > 1 for digests in found.values()), found


async def test_work_that_a_crash_left_undone_is_missed_by_restarts_alone(
    suite: SmallSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redelivered version that no longer counts as changed: whoever died after applying it has related nothing."""
    apply = MemoryRows.apply

    async def forgetful(self: MemoryRows, writes: list[RowWrite]) -> list[RowOutcome]:
        known = [self.tables.get(write.table, {}).get(write.key) for write in writes]
        again = [row is not None and row.version == write.version for row, write in zip(known, writes, strict=True)]
        found: list[RowOutcome] = await apply(self, writes)
        return [RowOutcome(False, []) if same else one for same, one in zip(again, found, strict=True)]

    monkeypatch.setattr(MemoryRows, "apply", forgetful)
    found = await replay(suite, order_log())
    differing = {twin for digests in found.values() for twin, digest in digests.items() if digest != digests[""]}
    assert differing == {"restarted"}


async def test_an_older_build_that_wins_is_seen(suite: SmallSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put that keeps the first bundle that was built."""
    put = MemoryBundles.put

    async def first_wins(self: MemoryBundles, items: Any) -> list[bool]:
        return await put(self, [(key, stored) for key, stored in items if key not in self.values])

    monkeypatch.setattr(MemoryBundles, "put", first_wins)
    found = await replay(suite, order_log())
    assert found["order/2"][""] != digest_of(EXPECTED["order/2"])


async def test_files_that_are_no_logs_are_told_with_their_lines(suite: SmallSuite) -> None:
    log = Log()
    log.order(1, None)
    suite.write(
        "events/log.jsonl",
        [log.lines[0], "{", {**log.lines[0], "topik": 1}, log.lines[0], {"topic": "t", "partition": 0}],
    )
    with pytest.raises(WorldError) as told:
        await replayed(suite, case(kind="replay", context={"events": "events/log.jsonl"}))
    text = str(told.value)
    assert "events/log.jsonl:2: " in text and "events/log.jsonl:5: " in text and "`offset`" in text
    assert "events/log.jsonl:3: 'topik' is no part of such a line; did you mean topic?" in text
    assert "events/log.jsonl:4: offset 0 of shop.public.orders/1 stands behind 0" in text


@pytest.mark.parametrize(
    ("context", "told"),
    [
        ({}, 'c1: a replay needs a log: context: {"events": '),
        ({"events": "events/none.jsonl"}, "events/none.jsonl: can't be read: No such file"),
        (
            {"events": "events/log.jsonl", "until": 99},
            "c1: context: until 99 is behind the end of events/log.jsonl",
        ),
        ({"events": "events/log.jsonl", "bundles": "b.jsonl"}, "c1: context has both 'events' and 'bundles'"),
        ({"events": "events/other.jsonl"}, "no context of the suite reads its topics (a.b.c)"),
    ],
)
async def test_a_case_without_a_usable_log_is_told(suite: SmallSuite, context: dict[str, Any], told: str) -> None:
    suite.write("events/log.jsonl", order_log().lines)
    suite.write("events/other.jsonl", [{"topic": "a.b.c", "partition": 0, "offset": 0, "key": 1, "value": {}}])
    with pytest.raises(WorldError) as error:
        await replayed(suite, case(kind="replay", context=context))
    assert told in str(error.value)


WIDE: dict[str, Any] = {
    "context": "seen",
    "version": 1,
    "root": "seen",
    "entities": {"seen": {"source": "s", "table": "ks.seen", "key": ["id"]}},
    "fields": ["id", "a", "b"],
}


async def test_cells_of_wide_tables_win_by_their_write_time_and_live_their_time(tmp_path: Path) -> None:
    """The newest write comes first, an old delete last; one cell has lived its time when the log ends."""
    forget()
    suite = SmallSuite(tmp_path, {"seen": ContextSpec.model_validate(WIDE)})
    log = Log()
    writes: list[tuple[int, Mutation]] = [
        (1, Mutation(cells={"a": Cell(2_000_000, "new")}, marker=Marker(2_000_000, None))),
        (1, Mutation(cells={"a": Cell(1_000_000, "old"), "b": Cell(1_000_000, "kept")})),
        (2, Mutation(cells={"a": Cell(3_000_000, "short", 4_000_000)}, marker=Marker(3_000_000, None))),
        (3, Mutation(cells={"a": Cell(3_000_000, "gone")}, marker=Marker(3_000_000, None))),
        (1, Mutation(deleted=500_000)),
        (3, Mutation(deleted=3_000_001)),
    ]
    for number, mutation in writes:
        key, value = encode_mutation(MutationSource("scylla", "s", "ks", "seen"), {"id": number}, mutation, 9_000)
        parts = {"timestamp_ms": 9_000, "key_text": key.decode(), "value_text": value.decode()}
        log.raw("s.ks.seen", None, number % 2, **parts)
    found = await replay(suite, log)
    expected = {
        "seen/1": digest_of({"id": 1, "a": "new", "b": "kept"}),
        "seen/2": digest_of({"id": 2, "a": None, "b": None}),
        "seen/3": "",
    }
    assert found == {key: dict.fromkeys(("", *TWINS), digest) for key, digest in expected.items()}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("seed", range(16))
async def test_tellings_of_random_logs_of_random_contexts_end_the_same(seed: int, wide: bool) -> None:
    """Truncations, changed keys, placeholders of large values, hot parents; deletions of ranges, cells for a time."""
    spec = random_spec(Random(seed), None)
    plan = compile_plan(spec)
    source = WideSource(Random(-1 - seed)) if wide else Source(Random(-1 - seed))
    for _ in range(15):
        source.transaction()
        if source.random.random() < 0.2:
            source.duplicate()
    log = _mixed(source.log, Random(seed))
    expected = await straight(plan, log)
    assert expected.values and not expected.letters
    for telling in TELLINGS.values():
        for number in range(3):
            told = await telling(plan, log, Random(f"{seed}/{number}"))
            assert _bodies(plan, told) == _bodies(plan, expected), (telling.__name__, number)


def _mixed(partitions: dict[tuple[str, int], list[Record]], random: Random) -> list[Record]:
    left = {place: list(reversed(records)) for place, records in sorted(partitions.items())}
    log: list[Record] = []
    while left:
        place = random.choice(sorted(left))
        log.append(msgspec.structs.replace(left[place].pop(), timestamp_ms=len(log)))
        if not left[place]:
            del left[place]
    return log


def _bodies(plan: Plan, told: Replayed) -> dict[str, bytes]:
    filled = Filled(plan, told.values)
    return {key: body for key in filled.keys if (body := filled.body(key)) is not None}
