"""What a sample of Kafka sees and what is made of it: the values between sampling, judging, publishing and showing.

The report is also the answer of `/lag` and of `ctxpipe lag --json`; reading it back gives the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.stores.store import Partition

OK, UNKNOWN, WARN, STOP, STALL, REWIND = "OK", "UNKNOWN", "WARN", "STOP", "STALL", "REWIND"
STATUSES = (OK, UNKNOWN, WARN, STOP, STALL, REWIND)
"""From good to bad, in Burrow's order; a group has the worst of its partitions. UNKNOWN: no commit yet, or what would
tell does not answer. STOP: nobody consumes what waits. STALL: somebody is there, and nothing moves."""
WRONG = (STOP, STALL, REWIND)
"""What nobody waits out."""
SEVERITY: Mapping[str, int] = {status: number for number, status in enumerate(STATUSES)}


def worst(statuses: list[str]) -> str:
    """Of a group with these partitions; OK without any."""
    return max(statuses, key=SEVERITY.__getitem__, default=OK)


# What is seen.


@dataclass(frozen=True, slots=True)
class GroupSeen:
    """A group as its coordinator tells. `committed` None: that did not come, and `problem` says why. `assigned` None:
    not known who reads what, as with consumers that assign partitions to themselves."""

    state: str
    members: frozenset[str] = frozenset()
    assigned: frozenset[Partition] | None = None
    committed: Mapping[Partition, int] | None = None
    problem: str = ""

    @property
    def rebalancing(self) -> bool:
        return self.state in ("PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at Kafka. Commits were read at `at_us`, ends after them. `topics`: how many partitions each has; None
    when that is not known. `problems`: what did not answer or refused us, a sentence each; `complete` False: so that
    groups may be there that nobody named."""

    at_us: int
    at_s: float
    """The same on a clock that never goes back."""
    groups: Mapping[str, GroupSeen]
    starts: Mapping[Partition, int]
    ends: Mapping[Partition, int]
    topics: Mapping[str, int] | None
    problems: tuple[str, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """What lies around an offset. Times are microseconds since 1970 UTC. `applied`: of the record before the offset;
    False: that one is gone, and the times are those of the first record after it. `nothing_waits`: what follows are
    marks of transactions only."""

    commit_time_us: int | None
    written_time_us: int | None
    applied: bool = True
    from_source: bool = False
    """The commit time is the source's own, not the one at which the record was written to Kafka."""
    waiting_time_us: int | None = None
    """Commit time of the first record after the offset."""
    nothing_waits: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Retention:
    """What removes records of a topic; None: nothing by that rule, or not known."""

    compacted: bool = False
    retention_s: float | None = None
    known: bool = False


# What is made of it.


class PartitionLag(msgspec.Struct, frozen=True):
    """One partition for one group. `lag_s` None: unknown, and `lag_problem` says why."""

    partition: int
    status: str
    reason: str = ""
    committed: int | None = None
    start: int | None = None
    end: int | None = None
    lag_records: int | None = None
    lag_s: float | None = None
    lag_problem: str = ""
    lag_basis: str = ""
    """Where `lag_s` comes from: `source` its own commit time, `record` that of Kafka, each of the last record that was
    applied; with ` (waiting)` of the first one that was not, where the last one is gone."""
    waiting_s: float | None = None
    """Age of the first record that was not applied."""
    velocity: float | None = None
    unmoved_s: float = 0.0
    stuck: bool = False
    hot: bool = False
    headroom: float | None = None
    lost_records: int = 0
    clock_ahead_s: float = 0.0


class TopicLag(msgspec.Struct, frozen=True):
    """A topic's partitions for one group, together."""

    topic: str
    status: str
    lag_records: int = 0
    lag_s: float | None = None
    lag_problem: str = ""
    velocity: float | None = None
    trend: str = ""
    """growing, shrinking, steady; empty: not known yet."""
    catch_up_s: float | None = None
    headroom: float | None = None
    produced_per_s: float | None = None
    consumed_per_s: float | None = None
    partitions: list[PartitionLag] = []


class GroupLag(msgspec.Struct, frozen=True):
    """A group with its topics. `role`, `context`, `version`, `space` are those of groups of ctxpipe, else empty."""

    group: str
    status: str
    reason: str = ""
    state: str = ""
    members: int | None = None
    role: str = ""
    context: str = ""
    version: int = 0
    space: str = ""
    lag_records: int = 0
    lag_s: float | None = None
    lag_problem: str = ""
    velocity: float | None = None
    trend: str = ""
    catch_up_s: float | None = None
    headroom: float | None = None
    complete: float = 1.0
    """Share of the samples that a verdict looks back on."""
    changes: int = 0
    """Rebalances within the time that counts."""
    unsettled: bool = False
    """More of them than a group that is well has."""
    rebalancing: bool = False
    topics: list[TopicLag] = []
    history: list[int] = []
    """Lag in records of the last samples, for sparklines."""


class PartHealth(msgspec.Struct, frozen=True):
    """One part of a collection, R12."""

    part: str
    up: bool
    problem: str = ""
    duration_s: float = 0.0
    cpu_s: float = 0.0
    success_at: float | None = None


class Stage(msgspec.Struct, frozen=True):
    """A stage of a context's path between the last two looks at its pages; seconds since the source's commit."""

    context: str
    stage: str
    updates: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    budget_s: float | None = None
    late: int = 0


class Replica(msgspec.Struct, frozen=True):
    """A metrics page and the process behind it. `role`: serve, worker, embedder, connector, canary, empty unknown."""

    url: str
    status: str
    reason: str = ""
    role: str = ""
    context: str = ""
    space: str = ""
    lag_records: int | None = None
    unmoved_s: float = 0.0


class CollectorState(msgspec.Struct, frozen=True):
    """Of the collector itself, and the floors that nobody need chase (R11)."""

    interval_s: float
    samples: int = 0
    parts: list[PartHealth] = []
    floors: list[str] = []


class Finding(msgspec.Struct, frozen=True):
    """Something to know, in words. `severity`: wrong (see to it), warning, note. `runbook`: the heading there."""

    severity: str
    where: str
    what: str
    why: str = ""
    outlook: str = ""
    mend: str = ""
    runbook: str = ""


class Report(msgspec.Struct, frozen=True):
    """Everything at `at`, Unix time in seconds. Sources, canaries and dead letters are as their parts tell; `findings`
    say it in words, the worst first."""

    at: float
    groups: list[GroupLag] = []
    sources: list[dict[str, Any]] = []
    canaries: list[dict[str, Any]] = []
    dead_letters: list[dict[str, Any]] = []
    replicas: list[Replica] = []
    stages: list[Stage] = []
    collector: CollectorState = msgspec.field(default_factory=lambda: CollectorState(0.0))
    findings: list[Finding] = []
