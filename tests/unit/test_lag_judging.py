"""Verdicts on lag, case by case, with a clock that the test turns: Burrow's rules and each of their mended faults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import pytest

from pipeline.ops.lag.judging import HOT_LAG_MIN, Judge, Watched
from pipeline.ops.lag.model import (
    OK,
    REWIND,
    STALL,
    STOP,
    UNKNOWN,
    WARN,
    GroupLag,
    GroupSeen,
    PartitionLag,
    Place,
    Retention,
    Sample,
)
from pipeline.ops.lag.windows import Rules
from pipeline.stores.store import Partition
from tests.support.lag_world import numbers_in

T, P = "orders", ("orders", 0)
BEGAN_US = 1_700_000_000_000_000
READER = frozenset({"one"})


class World:
    """Groups and a log, sampled every 10 s."""

    def __init__(self, rules: Rules | None = None, **watched: object) -> None:
        self.judge = Judge(rules or Rules(), Watched(**watched))  # type: ignore[arg-type]
        self.rounds = 0
        self.places: dict[tuple[str, int, int], Place] = {}
        self.retentions: dict[str, Retention] = {}

    def sample(
        self,
        groups: Mapping[str, GroupSeen],
        ends: Mapping[Partition, int],
        starts: Mapping[Partition, int] | None = None,
        topics: Mapping[str, int] | None = None,
        problems: tuple[str, ...] = (),
        complete: bool = True,
    ) -> dict[str, GroupLag]:
        self.rounds += 1
        at_s = self.rounds * 10.0
        counts: dict[str, int] = {}
        for topic, number in ends:
            counts[topic] = max(counts.get(topic, 0), number + 1)
        begins = starts if starts is not None else dict.fromkeys(ends, 0)
        known = counts if topics is None else topics
        self.judge.take(Sample(self.now_us, at_s, groups, begins, ends, known, problems, complete))
        report = self.judge.report(self.places, self.retentions)
        assert all(math.isfinite(number) for number in numbers_in(msgspec.to_builtins(report)))
        assert all(one.lag_records is None or one.lag_records >= 0 for group in report for one in partitions(group))
        return {group.group: group for group in report}

    @property
    def now_us(self) -> int:
        return BEGAN_US + self.rounds * 10_000_000

    def run(self, offsets: Iterable[tuple[int | None, int]], seen: GroupSeen | None = None) -> GroupLag:
        """(committed, end) of one partition, one sample after the other."""
        found = None
        for committed, end in offsets:
            found = self.sample({"g": reading(committed, seen)}, {P: end})
        assert found is not None
        return found["g"]


def reading(committed: int | None, like: GroupSeen | None = None) -> GroupSeen:
    """A group with one consumer that holds P, or as `like` has it."""
    commits = {} if committed is None else {P: committed}
    like = like or GroupSeen("Stable", READER, frozenset({P}))
    return GroupSeen(like.state, like.members, like.assigned, commits)


def partitions(group: GroupLag) -> list[PartitionLag]:
    return [one for topic in group.topics for one in topic.partitions]


EMPTY = GroupSeen("Empty", frozenset(), frozenset())
NOBODY_KNOWS = GroupSeen("", frozenset(), None)


def moving(start: int, step: int, ends: int, grow: int, count: int) -> list[tuple[int | None, int]]:
    return [(start + step * i, ends + grow * i) for i in range(count)]


CASES: list[tuple[str, list[tuple[int | None, int]], GroupSeen | None, str]] = [
    ("keeps up", moving(0, 100, 0, 100, 12), None, OK),
    ("no commit, nothing there", [(None, 0)], None, OK),
    ("no commit, records wait", [(None, 50)] * 3, None, UNKNOWN),
    ("falls behind", moving(0, 50, 100, 100, 8), None, WARN),
    ("a constant lag is no fault", moving(0, 100, 50, 100, 12), None, OK),
    ("too few samples to warn", moving(0, 50, 100, 100, 3), None, OK),
    ("was done a moment ago", [*moving(0, 100, 0, 100, 4), *moving(350, 50, 400, 100, 4)], None, OK),
    ("frozen: named after 30 s", [*moving(0, 100, 0, 100, 4), (300, 400), (300, 500), (300, 600)], None, STALL),
    ("frozen, and nothing more comes", [(300, 300), (300, 310), (300, 310), (300, 310)], None, STALL),
    ("a slow topic's first record", [*[(300, 300)] * 12, (300, 301)], None, OK),
    ("a slow topic, done in time", [*[(300, 300)] * 12, (300, 301), (301, 301)], None, OK),
    ("nobody is there", [(300, 400), (300, 400)], EMPTY, STOP),
    ("nobody is there, nothing waits", [(400, 400), (400, 400)], EMPTY, OK),
    ("nobody is known, no commit for long", [(300, 400)] * 3, NOBODY_KNOWS, STOP),
    ("nobody is known, commits come", moving(0, 100, 200, 100, 6), NOBODY_KNOWS, OK),
    ("consumers that assign to themselves", moving(0, 100, 200, 100, 6), EMPTY, OK),
    ("those, ended", [*moving(0, 100, 200, 100, 6), *[(500, 900)] * 3], EMPTY, STOP),
    ("set back to the beginning", [*moving(900, 10, 1000, 10, 5), (0, 1050), (30, 1060)], None, REWIND),
    ("was there again", [(900, 1000), (0, 1010), (950, 1020), (1030, 1030)], None, OK),
    ("set beyond the end", [(100, 100), (500, 100), (500, 100)], None, REWIND),
    ("an end that goes back for a moment", [(100, 100), (110, 105), (110, 112)], None, OK),
    ("a log made anew", [(100, 100), (100, 5), (100, 6)], None, REWIND),
]


@pytest.mark.parametrize(("offsets", "seen", "status"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_status(offsets: list[tuple[int | None, int]], seen: GroupSeen | None, status: str) -> None:
    found = World().run(offsets, seen)
    assert partitions(found)[0].status == status, partitions(found)[0].reason
    assert found.status == status, found.reason


def test_commits_in_leaps_that_lose_ground_are_seen() -> None:
    """Lag goes down now and then, as commits come in leaps, so Burrow's rule alone would never warn."""
    lags = [100, 300, 200, 500, 400, 700, 600, 900, 800, 1100]
    offsets = [(1000 * (i + 1), 1000 * (i + 1) + lag) for i, lag in enumerate(lags)]
    assert World().run(offsets).status == WARN


def test_lag_that_only_grows_becomes_wrong_although_commits_advance() -> None:
    found = World().run(moving(0, 50, 100, 100, 11))
    assert (found.status, partitions(found)[0].status) == (STALL, WARN) and "grew" in found.reason


def test_so_much_lag_is_allowed() -> None:
    world = World(allowed={"g*": 200})
    assert world.run([(300, 400)] * 5, EMPTY).status == OK
    assert world.run([(300, 600)] * 2, EMPTY).status == STOP


def test_lag_goes_on_growing_when_the_consumer_is_gone() -> None:
    """Burrow takes lag when a commit comes: it froze with the consumer."""
    world = World()
    lags = [world.run([(100, end)], EMPTY).lag_records for end in (100, 200, 500)]
    assert lags == [0, 100, 400]


def test_long_pauses_of_a_consumer_are_learned() -> None:
    """One that commits every 50 s stands for no longer than it always does; twice as long is a stall."""
    world, held = World(), []
    for leap in range(4):
        held += [(100 * leap, 100 * leap + 150)] * 5
    statuses = [world.run([one]).status for one in held]
    assert statuses[-5:] == [OK] * 5, statuses
    assert [world.run([(300, 900)]).status for _ in range(8)][-1] == STALL


def test_a_rebalance_freezes_the_verdict_for_a_while() -> None:
    world = World()
    busy = GroupSeen("PreparingRebalance", READER, None)
    assert world.run([(300, 300), *[(300, 400)] * 3]).status == STALL
    found = world.run([(300, 500)], busy)
    assert (found.status, found.rebalancing, found.lag_records) == (STALL, True, 200), "frozen, but lag is current"
    world = World()
    assert world.run([(300, 400), (350, 450)]).status == OK
    assert world.run([(350, 800)] * 5, busy).status == OK, "nothing moves, as is right"
    assert world.run([(350, 800)]).status == OK, "and after it the time begins anew"
    assert world.run([(350, 900)] * 12, busy).status == STOP, "one that lasts for ever hides nothing"


def test_what_stood_before_a_rebalance_stands_until_it_moves() -> None:
    world = World()
    assert world.run([(300, 400)] * 2, EMPTY).status == STOP
    world.run([(300, 400)], GroupSeen("PreparingRebalance", READER, None))
    assert world.run([(300, 400)]).status == STOP, "a consumer has come and has done nothing yet"
    assert world.run([(350, 400)]).status == OK


def test_churn_is_a_warning_until_it_is_over() -> None:
    world = World()
    others = itertools.cycle([frozenset({"a"}), frozenset({"a", "b"})])
    for _ in range(4):
        found = world.run([(100, 100)], GroupSeen("Stable", next(others), frozenset({P})))
    assert (found.status, found.unsettled, found.changes) == (WARN, True, 3)
    assert world.judge.take_rebalances() == {"g": 3} and world.judge.take_rebalances() == {}
    still = GroupSeen("Stable", frozenset({"a"}), frozenset({P}))
    assert world.run([(100, 100)] * 61, still).status == OK


def test_a_partition_that_nobody_holds_is_named() -> None:
    world, two = World(), ("orders", 1)
    for end in (20, 30):
        seen = GroupSeen("Stable", READER, frozenset({P}), {P: end, two: 5})
        found = world.sample({"g": seen}, {P: end, two: end})["g"]
    assert [one.status for one in partitions(found)] == [OK, STOP] and found.status == STOP


def test_a_topic_that_is_deleted_live_is_forgotten() -> None:
    world = World()
    world.run([(100, 200)])
    found = world.sample({"g": reading(100)}, {}, {}, topics={"another": 1})
    assert not found["g"].topics and found["g"].lag_records == 0
    assert found["g"].status == UNKNOWN and "gone" in found["g"].reason, "until Kafka has forgotten its commits, too"
    found = world.sample({"g": GroupSeen("Stable", READER, frozenset({P}), {})}, {}, {}, topics={"another": 1})
    assert found["g"].status == UNKNOWN, "read by a member, but not to be seen by us"
    found = world.sample({"g": GroupSeen("Stable", READER, frozenset(), {})}, {}, {}, topics={"another": 1})
    assert found["g"].status == OK
    assert world.judge.wanted() == []


def test_a_broker_that_is_away_makes_things_unknown_not_zero() -> None:
    world = World()
    world.run([(100, 200)])
    away = ("broker 2 does not answer (TimeoutError)",)
    found = world.sample({"g": reading(100)}, {}, {}, topics={T: 1}, problems=away)["g"]
    assert (found.status, found.lag_s, partitions(found)[0].lag_records) == (UNKNOWN, None, None)
    assert "does not answer" in partitions(found)[0].reason
    found = world.sample({}, {}, {}, topics={T: 1}, problems=away, complete=False)["g"]
    assert (found.status, found.reason, found.lag_s) == (UNKNOWN, away[0], None), "its coordinator is away: kept"
    assert world.run([(150, 200)]).status == OK, "and it is back as it was"
    refused = ("offsets of other: TopicAuthorizationFailedError",)
    assert world.sample({}, {P: 200}, problems=refused) == {}, "all brokers named their groups, and it is gone"


def test_a_group_that_should_be_there_is_told() -> None:
    world = World(expected={"ours": (T,)})
    found = world.sample({}, {P: 40, ("orders", 1): 2}, {P: 10, ("orders", 1): 0})["ours"]
    assert (found.status, found.lag_records, found.state) == (UNKNOWN, 32, "Missing")
    latest = World(expected={"ours": (T,)}, reset={"ours": "latest"})
    assert latest.sample({}, {P: 40})["ours"].lag_records == 0


def test_negative_lag_is_clamped_and_counted() -> None:
    world = World()
    found = world.run([(100, 90)])
    assert (found.lag_records, world.judge.take_clamped()) == (0, {"g": 1})
    assert world.judge.take_clamped() == {}


def test_what_retention_removed_is_no_lag_but_a_loss() -> None:
    world = World()
    found = world.sample({"g": reading(100)}, {P: 1000}, {P: 400})["g"]
    assert (found.lag_records, partitions(found)[0].lost_records, found.headroom) == (600, 300, 0.0)
    world.retentions = {T: Retention(compacted=True, known=True)}
    found = world.sample({"g": reading(100)}, {P: 1000}, {P: 400})["g"]
    assert (partitions(found)[0].lost_records, found.headroom) == (0, None), "compaction loses nothing"


def test_stuck_is_told_after_its_time() -> None:
    world = World()
    assert not partitions(world.run([(100, 200)] * 20))[0].stuck
    assert partitions(world.run([(100, 200)] * 12))[0].stuck


def test_hot_partitions_are_named_among_few() -> None:
    world = World()
    commits: dict[Partition, int] = {("orders", number): 0 for number in range(4)}
    seen = GroupSeen("Stable", READER, frozenset(commits), commits)
    ends = dict.fromkeys(commits, 10) | {("orders", 2): HOT_LAG_MIN + 50}
    assert [one.hot for one in partitions(world.sample({"g": seen}, ends)["g"])] == [False, False, True, False]


def test_what_is_ignored_is_left_out() -> None:
    world = World(groups=("g*",), ignore=("g-test", "_*"))
    seen = GroupSeen("Empty", frozenset(), frozenset(), {P: 1, ("_internal", 0): 1})
    found = world.sample({"g": seen, "g-test": seen, "h": seen}, {P: 5, ("_internal", 0): 9})
    assert list(found) == ["g"] and [topic.topic for topic in found["g"].topics] == [T]


def place(commit_s: float, *, applied: bool = True, written_s: float | None = None, source: bool = True) -> Place:
    """Times in seconds before the world begins."""
    commit_us = BEGAN_US - int(commit_s * 1e6)
    written_us = commit_us if written_s is None else BEGAN_US - int(written_s * 1e6)
    return Place(commit_us, written_us, applied, source)


def test_seconds_come_from_the_record_and_are_never_guessed() -> None:
    world = World()
    assert world.run([(100, 100)]).lag_s == 0.0
    found = world.run([(100, 150)])
    assert found.lag_s is None and found.lag_problem, "not read yet: unknown, not zero"
    assert world.judge.wanted() == [("orders", 0, 100)]
    world.places = {("orders", 0, 100): place(25.0)}
    found = world.run([(100, 150)])
    assert found.lag_s == pytest.approx(25 + world.rounds * 10) and partitions(found)[0].lag_basis == "source"
    world.places = {("orders", 0, 100): place(3.0, applied=False, source=False)}
    found = world.run([(100, 150)])
    assert found.lag_s == pytest.approx(3 + world.rounds * 10)
    assert partitions(found)[0].lag_basis == "record (waiting)", "compaction took the last one that was applied"
    world.places = {("orders", 0, 100): Place(None, None, nothing_waits=True)}
    assert world.run([(100, 150)]).lag_s == 0.0, "only marks of transactions follow"


@pytest.mark.parametrize(
    ("found", "lag_s", "basis"),
    [
        (place(-10.5), 0.0, "source"),
        (place(-3600.0, written_s=2.0), 12.0, "record"),
        (place(-3600.0, written_s=-3600.0), None, ""),
        (Place(None, None), None, ""),
        (Place(0, -1000), None, ""),
    ],
    ids=["half a second ahead", "source an hour ahead", "both ahead", "no time", "no time at all"],
)
def test_clocks_that_differ(found: Place, lag_s: float | None, basis: str) -> None:
    world = World()
    world.places = {("orders", 0, 100): found}
    seen = world.run([(100, 150)])
    assert seen.lag_s == (None if lag_s is None else pytest.approx(lag_s))
    assert partitions(seen)[0].lag_basis == basis
    assert seen.lag_s is not None or seen.lag_problem


def test_a_sum_says_what_part_of_it_is_unknown() -> None:
    world = World()
    commits: dict[Partition, int] = {P: 100, ("orders", 1): 100}
    seen = GroupSeen("Stable", READER, frozenset(commits), commits)
    world.places = {("orders", 0, 100): place(5.0)}
    found = world.sample({"g": seen}, dict.fromkeys(commits, 150))["g"]
    assert found.lag_s == pytest.approx(15) and "1 of 2" in found.lag_problem


@pytest.mark.parametrize(
    ("retention", "age_s", "start", "headroom"),
    [
        (Retention(retention_s=100.0, known=True), 30.0, 0, 0.6),
        (Retention(retention_s=20.0, known=True), 30.0, 0, 0.0),
        (Retention(known=True), 30.0, 0, None),
        (Retention(), 30.0, 50, 0.5),
        (None, None, 0, None),
    ],
    ids=["by time", "over its time", "kept for ever", "by offsets, once something was removed", "not known"],
)
def test_headroom(retention: Retention | None, age_s: float | None, start: int, headroom: float | None) -> None:
    world = World()
    if age_s is not None:
        world.places = {("orders", 0, 100): place(age_s)}
    if retention is not None:
        world.retentions = {T: retention}
    found = world.sample({"g": reading(100)}, {P: 150}, {P: start})["g"]
    assert found.headroom == (None if headroom is None else pytest.approx(headroom))
    assert world.sample({"g": reading(150)}, {P: 150}, {P: start})["g"].headroom == 1.0, "nothing waits"


def test_the_worst_groups_come_first() -> None:
    world = World()
    groups = {"well": reading(100), "gone": reading(50, EMPTY), "later": reading(60, EMPTY)}
    world.places = {("orders", 0, 50): place(5.0), ("orders", 0, 60): place(9.0)}
    order: Sequence[str] = []
    for _ in range(2):
        order = list(world.sample(groups, {P: 100}))
    assert order == ["later", "gone", "well"]
