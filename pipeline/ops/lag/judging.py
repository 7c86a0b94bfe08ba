"""Turns samples of Kafka into the lag of groups: windows per partition, the freeze during rebalances, sums per topic.

Pure but for what it remembers: times come with the samples. Call `take`, read what `wanted` names, then ask `report`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TypeVar

import msgspec

from pipeline.ops.lag.ages import age, headroom
from pipeline.ops.lag.model import (
    OK,
    SEVERITY,
    STALL,
    UNKNOWN,
    WARN,
    GroupLag,
    GroupSeen,
    PartitionLag,
    Place,
    Retention,
    Sample,
    TopicLag,
    worst,
)
from pipeline.ops.lag.names import role_of
from pipeline.ops.lag.trend import Trend, trend
from pipeline.ops.lag.windows import Rules, Window, look
from pipeline.stores.store import Partition

HISTORY_MAX = 60
HOT_TIMES, HOT_LAG_MIN, HOT_PARTITIONS_MIN = 3.0, 100, 3
"""A partition is hot with so many times the lag of the others' mean. (Of mean and deviation, as others judge, one of
five partitions can never be two deviations away.)"""

Value = TypeVar("Value")
Wanted = tuple[str, int, int]
"""(topic, partition, committed offset) of which the record's time is wanted."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched and how. `expected`: groups that there should be → the topics that they read."""

    groups: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    allowed: Mapping[str, int] = field(default_factory=dict)
    reset: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def has(self, group: str) -> bool:
        return matches(group, self.groups) and not matches(group, self.ignore)

    def has_topic(self, topic: str) -> bool:
        return not matches(topic, self.ignore)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class _Group:
    """What is remembered of one group."""

    def __init__(self) -> None:
        self.windows: dict[Partition, Window] = {}
        self.sums: deque[tuple[float, int]] = deque(maxlen=HISTORY_MAX)
        self.topic_sums: dict[str, deque[tuple[float, int]]] = {}
        self.changes: deque[float] = deque(maxlen=100)
        self.members: frozenset[str] | None = None
        self.was_rebalancing = False
        self.rebalancing_since_s: float | None = None
        self.settled_s = 0.0
        self.grew = 0
        self.committed = 0


class Judge:
    """Keeps the windows. `clamped` counts lags below zero by group, until it is taken away by `take_clamped`."""

    def __init__(self, rules: Rules, watched: Watched) -> None:
        self._rules, self._watched = rules, watched
        self._groups: dict[str, _Group] = {}
        self._sample = Sample(0, 0.0, {}, {}, {}, None)
        self._clamped: dict[str, int] = {}
        self._rebalances: dict[str, int] = {}

    def take(self, sample: Sample) -> None:
        """One more sample; groups and partitions that are gone for sure are forgotten."""
        seen = {name: group for name, group in sample.groups.items() if self._watched.has(name)}
        for name in self._watched.expected:
            if name not in seen and self._watched.has(name) and sample.complete:
                seen[name] = GroupSeen("Missing", frozenset(), frozenset(), {})
        if not sample.complete:  # what is not listed may be on the broker that is away
            for name in self._groups.keys() - seen.keys():
                seen[name] = GroupSeen("", problem=next(iter(sample.problems), ""))
        self._groups = {name: self._groups.get(name) or _Group() for name in seen}
        self._sample = replace(sample, groups=seen)
        for name, group in seen.items():
            if group.committed is not None:
                self._settle(name, self._groups[name], group)
                self._look(name, self._groups[name], group)

    @property
    def at_us(self) -> int:
        """When the commits of the last sample were read."""
        return self._sample.at_us

    def wanted(self) -> list[Wanted]:
        """Of each partition with lag, most of it first."""
        most: dict[Wanted, int] = {}
        for name, group in self._groups.items():
            if self._sample.groups[name].committed is None:
                continue
            for (topic, partition), window in group.windows.items():
                last = window.last
                if last.lag > 0 and last.at_s == self._sample.at_s:
                    key = (topic, partition, last.start if last.committed is None else last.committed)
                    most[key] = max(most.get(key, 0), last.lag)
        return sorted(most, key=most.__getitem__, reverse=True)

    def report(self, places: Mapping[Wanted, Place], retentions: Mapping[str, Retention]) -> list[GroupLag]:
        """The groups of the last sample, the worst first."""
        found = [self._group_lag(name, places, retentions) for name in self._groups]
        shown = [one for one in found if one.topics or one.members or one.status != OK]
        return sorted(shown, key=_by_urgency)

    def take_clamped(self) -> dict[str, int]:
        taken, self._clamped = self._clamped, {}
        return taken

    def take_rebalances(self) -> dict[str, int]:
        """Changes of members or state since the last call, by group."""
        taken, self._rebalances = self._rebalances, {}
        return taken

    # ---- a sample

    def _settle(self, name: str, group: _Group, seen: GroupSeen) -> None:
        """R8: counts changes, and times rebalances."""
        now_s = self._sample.at_s
        known = group.members is not None
        began = seen.rebalancing and not group.was_rebalancing
        others = not seen.rebalancing and not group.was_rebalancing and seen.members != group.members
        if known and (began or others):
            group.changes.append(now_s)
            self._rebalances[name] = self._rebalances.get(name, 0) + 1
            group.settled_s = now_s
        if seen.rebalancing:
            since_s = group.rebalancing_since_s = group.rebalancing_since_s or now_s
            group.settled_s = now_s if self._is_frozen(group) else since_s
        else:
            group.members, group.rebalancing_since_s = seen.members, None
        group.was_rebalancing = seen.rebalancing
        if group.members is None:
            group.members = seen.members

    def _look(self, name: str, group: _Group, seen: GroupSeen) -> None:
        sample = self._sample
        allowed, reset = self._allowed(name), _first(self._watched.reset, name) or "earliest"
        frozen = self._is_frozen(group)
        windows: dict[Partition, Window] = {}
        known = set(group.windows) if seen.rebalancing else set()  # who reads what is not known meanwhile
        for partition in sorted(self._partitions(name, seen) | known):
            if not self._exists(partition):
                continue
            window = group.windows.get(partition) or Window(self._rules, allowed)
            windows[partition] = window
            end, start = sample.ends.get(partition), sample.starts.get(partition)
            if end is None or start is None:
                continue
            new = look(sample.at_s, (seen.committed or {}).get(partition), start, end, reset)
            if new.beyond:
                self._clamped[name] = self._clamped.get(name, 0) + 1
            window.add(new)
            if not frozen:
                assigned = None if seen.assigned is None else partition in seen.assigned
                window.judge(assigned, group.settled_s)
        group.windows = windows
        self._sum_up(group)

    def _sum_up(self, group: _Group) -> None:
        now_s = self._sample.at_s
        sums: dict[str, int] = {}
        committed = 0
        for (topic, _), window in group.windows.items():
            if window.looks:
                sums[topic] = sums.get(topic, 0) + window.last.lag
                committed += window.last.committed or 0
        lag = sum(sums.values())
        before = group.sums[-1][1] if group.sums else lag
        group.grew = group.grew + 1 if lag > before and committed > group.committed else 0
        group.committed = committed
        group.sums.append((now_s, lag))
        group.topic_sums = {topic: group.topic_sums.get(topic) or deque(maxlen=HISTORY_MAX) for topic in sums}
        for topic, records in sums.items():
            group.topic_sums[topic].append((now_s, records))

    def _partitions(self, name: str, seen: GroupSeen) -> set[Partition]:
        found = set(seen.committed or ()) | (seen.assigned or set())
        if not found:
            topics = self._sample.topics or {}
            for topic in self._watched.expected.get(name, ()):
                found |= {(topic, number) for number in range(topics.get(topic, 0))}
        return {partition for partition in found if self._watched.has_topic(partition[0])}

    def _exists(self, partition: Partition) -> bool:
        topics = self._sample.topics
        return topics is None or partition[1] < topics.get(partition[0], 0)

    def _is_frozen(self, group: _Group) -> bool:
        """While it rebalances the verdict rests, but not for ever."""
        since_s = group.rebalancing_since_s
        return since_s is not None and self._sample.at_s - since_s <= self._rules.rebalance_s_max

    def _allowed(self, name: str) -> int:
        return _first(self._watched.allowed, name) or 0

    # ---- a report

    def _group_lag(
        self, name: str, places: Mapping[Wanted, Place], retentions: Mapping[str, Retention]
    ) -> GroupLag:  # fmt: skip
        group, seen = self._groups[name], self._sample.groups[name]
        role = role_of(name)
        if seen.committed is None:
            return GroupLag(
                name, UNKNOWN, seen.problem or "the coordinator does not answer", seen.state,
                **role.labels(), lag_problem="not known in this sample", history=[lag for _, lag in group.sums],
            )  # fmt: skip
        topics = self._topics(name, group, places, retentions)
        status, reason = self._group_status(group, seen, topics)
        sums = trend(list(group.sums), sum(topic.produced_per_s or 0.0 for topic in topics))
        lag_s, problem = _oldest([(topic.lag_records, topic.lag_s, topic.lag_problem) for topic in topics])
        rooms = [topic.headroom for topic in topics if topic.headroom is not None]
        recent = self._recent_changes(group)
        return GroupLag(
            name,
            status,
            reason,
            seen.state,
            len(seen.members) if seen.state else None,
            **role.labels(),
            lag_records=sum(topic.lag_records for topic in topics),
            lag_s=lag_s,
            lag_problem=problem,
            velocity=sums.velocity,
            trend=sums.name,
            catch_up_s=sums.catch_up_s,
            headroom=min(rooms, default=None),
            complete=min((window.complete for window in group.windows.values()), default=0.0),
            changes=recent,
            unsettled=recent >= self._rules.churn_changes,
            rebalancing=seen.rebalancing,
            topics=topics,
            history=[lag for _, lag in group.sums],
        )

    def _group_status(self, group: _Group, seen: GroupSeen, topics: list[TopicLag]) -> tuple[str, str]:
        status = worst([topic.status for topic in topics])
        reason = next((p.reason for t in topics for p in t.partitions if p.status == status and p.reason), "")
        if status in (OK, WARN) and group.grew >= self._rules.samples:
            grew = f"commits advance, but the lag grew at {group.grew} samples in a row"
            return STALL, grew
        if status == OK and self._recent_changes(group) >= self._rules.churn_changes:
            return WARN, f"{self._recent_changes(group)} rebalances within {self._rules.churn_s / 60:.0f} min"
        if status == OK and not topics and (seen.committed or seen.assigned):
            return UNKNOWN, "its topics are gone, or we may not describe them"
        if status == OK and seen.state == "Missing":
            return UNKNOWN, "no process has joined this group yet"
        return status, reason

    def _recent_changes(self, group: _Group) -> int:
        return sum(at_s > self._sample.at_s - self._rules.churn_s for at_s in group.changes)

    def _topics(
        self, name: str, group: _Group, places: Mapping[Wanted, Place], retentions: Mapping[str, Retention]
    ) -> list[TopicLag]:
        allowed = self._allowed(name)
        found: dict[str, list[PartitionLag]] = {}
        for partition, window in group.windows.items():
            shown = self._partition_lag(partition, window, allowed, places, retentions.get(partition[0]))
            found.setdefault(partition[0], []).append(shown)
        return [self._topic_lag(topic, group, _with_hot(parts)) for topic, parts in found.items()]

    def _topic_lag(self, topic: str, group: _Group, partitions: list[PartitionLag]) -> TopicLag:
        windows = [window for (name, _), window in group.windows.items() if name == topic and window.looks]
        produced = sum(window.rate(of_end=True) or 0.0 for window in windows)
        consumed = sum(window.rate(of_end=False) or 0.0 for window in windows)
        sums = trend(list(group.topic_sums.get(topic, ())), produced)
        lag_s, problem = _oldest([(one.lag_records or 0, one.lag_s, one.lag_problem) for one in partitions])
        rooms = [one.headroom for one in partitions if one.headroom is not None]
        return TopicLag(
            topic,
            worst([one.status for one in partitions]),
            sum(one.lag_records or 0 for one in partitions),
            lag_s,
            problem,
            sums.velocity,
            sums.name,
            sums.catch_up_s,
            min(rooms, default=None),
            produced,
            consumed,
            partitions,
        )

    def _partition_lag(
        self,
        partition: Partition,
        window: Window,
        allowed: int,
        places: Mapping[Wanted, Place],
        retention: Retention | None,
    ) -> PartitionLag:
        now_us, number = self._sample.at_us, partition[1]
        if not window.looks or window.last.at_s != self._sample.at_s:
            away = "the broker that leads it does not answer"
            return PartitionLag(number, UNKNOWN, away, lag_problem=away)
        last = window.last
        offset = last.start if last.committed is None else last.committed
        place = places.get((*partition, offset))
        known = age(now_us, last.lag, place)
        room = headroom(now_us, offset, last.start, last.end, place, retention)
        lost = max(0, last.start - offset) if retention is None or not retention.compacted else 0
        standing_s = window.standing_s()
        velocity = self._velocity(window) if last.lag > allowed else Trend(0.0)
        return PartitionLag(
            number,
            window.verdict_now.status,
            window.verdict_now.reason,
            last.committed,
            last.start,
            last.end,
            last.lag,
            known.lag_s,
            known.problem,
            known.basis,
            known.waiting_s,
            velocity.velocity,
            standing_s,
            standing_s >= self._rules.stuck_s,
            headroom=room,
            lost_records=lost,
            clock_ahead_s=known.clock_ahead_s,
        )

    @staticmethod
    def _velocity(window: Window) -> Trend:
        return trend([(one.at_s, one.lag) for one in window.looks], window.rate(of_end=True) or 0.0)


def _oldest(parts: list[tuple[int, float | None, str]]) -> tuple[float | None, str]:
    """(seconds, problem) of parts with (records, seconds, problem): the greatest that is known, and what is not."""
    waiting = [part for part in parts if part[0] > 0 or part[2]]
    known = [seconds for _, seconds, _ in waiting if seconds is not None]
    unknown = [problem for _, seconds, problem in waiting if seconds is None and problem]
    if not known and unknown:
        return None, unknown[0]
    partly = [problem for _, seconds, problem in waiting if seconds is not None and problem]
    if unknown:
        partly = [f"{len(unknown)} of {len(waiting)} are not known: {unknown[0]}"]
    return max(known, default=0.0), next(iter(partly), "")


def _with_hot(partitions: list[PartitionLag]) -> list[PartitionLag]:
    if len(partitions) < HOT_PARTITIONS_MIN:
        return partitions
    total = sum(one.lag_records or 0 for one in partitions)
    found = []
    for one in partitions:
        lag = one.lag_records or 0
        others = (total - lag) / (len(partitions) - 1)
        hot = lag >= HOT_LAG_MIN and lag > HOT_TIMES * others
        found.append(msgspec.structs.replace(one, hot=True) if hot else one)
    return found


def _first(patterns: Mapping[str, Value], name: str) -> Value | None:
    return next((value for pattern, value in patterns.items() if fnmatchcase(name, pattern)), None)


def _by_urgency(group: GroupLag) -> tuple[int, float, str]:
    return -SEVERITY[group.status], -(group.lag_s or 0.0), group.group
