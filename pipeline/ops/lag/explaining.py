"""Says in words what is slow, where, why, whether it catches up and what usually mends it: the findings of a report.

Each leads to a heading of deploy/runbook.md. First what is wrong, in the order of the path, so that a cause stands
before what only waits behind it; then warnings, then notes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.freshness import SHARES
from pipeline.ops.lag.model import (
    OK,
    REWIND,
    STALL,
    STOP,
    UNKNOWN,
    WARN,
    Finding,
    GroupLag,
    PartitionLag,
    Replica,
    Report,
    Stage,
)
from pipeline.ops.lag.names import EMBEDDER, SERVE, role_of
from pipeline.ops.lag.trend import GROWING, SHRINKING
from pipeline.ops.lag.words import count, duration, records, several

WRONG, WARNING, NOTE = "wrong", "warning", "note"
SEVERITIES = (WRONG, WARNING, NOTE)

STAGE_LATE_SHARE, STAGE_UPDATES_MIN = 0.1, 10
HEADROOM_LOW, HEADROOM_GONE = 0.2, 0.05
PLACES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Objectives:
    """`late_s`: lag above it is a finding; by context what its spec promises."""

    late_s: float = 60.0
    by_context: Mapping[str, float] = field(default_factory=dict)

    def of(self, group: GroupLag) -> float:
        """A vector may come behind its bundle, as far as the budgets of the stages say."""
        promised_s = self.by_context.get(group.context)
        if promised_s is None:
            return self.late_s
        return promised_s * (SHARES["embedded"] if group.role == EMBEDDER else SHARES["in_redis"])


def explain(report: Report, objectives: Objectives) -> list[Finding]:
    """The worst first; empty: all is well."""
    found = [
        *_collector(report),
        *(finding for source in report.sources for finding in _source(source)),
        *(finding for group in report.groups for finding in _group(group, objectives)),
        *(finding for replica in report.replicas for finding in _replica(replica)),
        *(finding for stage in report.stages for finding in _stage(stage)),
        *(finding for canary in report.canaries for finding in _canary(canary)),
        *(finding for letters in report.dead_letters for finding in _dead_letters(letters)),
    ]
    return sorted(found, key=lambda one: SEVERITIES.index(one.severity))


# ---- groups


def _group(group: GroupLag, objectives: Objectives) -> Iterator[Finding]:
    where = role_of(group.group).words(group.group)
    waits = "waits" if group.lag_records == 1 else "wait"
    behind = f"{records(group.lag_records)} {waits}, {_age_of(group)}"
    if group.status == STOP:
        yield _stopped(group, where, behind)
    elif group.status == STALL:
        yield _stalled(group, where, behind)
    elif group.status == REWIND:
        yield Finding(
            WRONG, where, f"went back: {behind}", group.reason, outlook(group),
            "Nothing, if somebody meant it: reading again makes nothing older. Otherwise look who set offsets, whether "
            "Redis lost its memory, or whether the topic was made anew.",
            "A group went back",
        )  # fmt: skip
    elif group.status == UNKNOWN:
        yield Finding(
            WARNING, where, f"is not known: {behind}" if group.lag_records else "is not known", group.reason, "",
            "Start its workers if they never ran; otherwise give the collector the rights to describe and read, or put "
            "a group that does not matter under collector.ignore.",
            "The state of a group is unknown",
        )  # fmt: skip
    elif group.unsettled:
        yield Finding(
            WARNING, where, f"keeps rebalancing: {group.changes} times of late", "its members come and go", "",
            "Look whether workers restart, batches take too long, or processes get no processor for longer than the "
            "session timeout.",
            "A group keeps rebalancing",
        )  # fmt: skip
    elif group.status == WARN or _waits_s(group) > objectives.of(group):
        yield _slow(group, where, behind, objectives.of(group))
    yield from _loss(group, where)
    yield from _clocks(group, where)


def _stopped(group: GroupLag, where: str, behind: str) -> Finding:
    embeds = group.role == EMBEDDER
    what = "is not running" if not group.members else "does not read some of its partitions"
    start = "Start `ctxpipe worker`" if group.role else "Start its consumers"
    return Finding(
        WRONG,
        where,
        f"{what}: {behind}",
        f"{group.reason}{_at(group, STOP)}",
        "It does not catch up: nobody works at it.",
        f"{start}, or see in its log why it ended. Nobody needs this group any more? Delete it, or name it under "
        "collector.ignore.",
        "The embedder has stopped" if embeds else "A group has stopped",
    )


def _stalled(group: GroupLag, where: str, behind: str) -> Finding:
    stuck = [(topic.topic, one) for topic in group.topics for one in topic.partitions if one.status == STALL]
    if not stuck:
        return Finding(
            WRONG, where, f"falls behind: {behind}", group.reason, outlook(group), _more_workers(group),
            "A group falls behind",
        )  # fmt: skip
    total = sum(len(topic.partitions) for topic in group.topics)
    what = "stands still" if len(stuck) == total else f"stands still on {len(stuck)} of {total} partitions"
    return Finding(
        WRONG,
        where,
        f"{what}: {behind}",
        f"{group.reason}{_at(group, STALL)}",
        "It does not catch up by itself.",
        "See in its log what the batch waits for; without a reason there, end the process that holds the partition: "
        "another one takes over where it stood.",
        "The embedder has stopped" if group.role == EMBEDDER else "A group stands still",
    )


def _slow(group: GroupLag, where: str, behind: str, late_s: float) -> Finding:
    late = _waits_s(group) > late_s
    what = "falls behind" if group.status == WARN or group.trend == GROWING else "is late"
    hot = [(topic.topic, one) for topic in group.topics for one in topic.partitions if one.hot]
    why = group.reason or (f"more than the {duration(late_s)} that it may have" if late else "")
    if hot:
        topic, one = hot[0]
        why = f"{why}; most of it waits on one partition, {topic}/{one.partition} ({records(one.lag_records or 0)})"
    quiet = next((text for text in _quiet(group) if text), "")
    return Finding(
        WARNING,
        where,
        f"{what}: {behind}{quiet}",
        why.removeprefix("; "),
        outlook(group),
        "More processes do not help one partition: see what writes its keys so often (`ctxpipe lag --hot-keys`)."
        if hot
        else _more_workers(group),
        "A group falls behind",
    )


def _more_workers(group: GroupLag) -> str:
    partitions = max((len(topic.partitions) for topic in group.topics), default=0)
    most = f" (it has {group.members or 0} members, and at most {partitions} can work)" if partitions else ""
    return f"More worker processes{most}; if batches became slow, the store behind them."


def _waits_s(group: GroupLag) -> float:
    """How long something has waited for the group: after a quiet time, that is less than its lag."""
    waits = [
        min(one.lag_s, one.lag_s if one.waiting_s is None else one.waiting_s)
        for topic in group.topics
        for one in topic.partitions
        if one.lag_s is not None
    ]
    return max(waits, default=group.lag_s or 0.0)


def _quiet(group: GroupLag) -> Iterator[str]:
    """The last record that was applied may be old because nothing came since."""
    for topic in group.topics:
        for one in topic.partitions:
            if one.lag_s is not None and one.waiting_s is not None and one.waiting_s < one.lag_s / 2:
                yield f" (the topic was quiet: what waits came {duration(one.waiting_s)} ago)"


def _loss(group: GroupLag, where: str) -> Iterator[Finding]:
    lost = [(t.topic, one) for t in group.topics for one in t.partitions if one.lost_records]
    snapshot = "If records are lost, read their table again: ctxpipe connect SOURCE --snapshot TABLE."
    if lost:
        topic, one = max(lost, key=lambda pair: pair[1].lost_records)
        yield Finding(
            WRONG, where, f"{records(sum(o.lost_records for _, o in lost))} gone before the group read them",
            f"{topic}/{one.partition} begins at offset {one.start}, and only {one.committed} was reached", "",
            f"Raise the topic's retention. {snapshot}", "Records are about to be lost",
        )  # fmt: skip
    elif group.headroom is not None and group.headroom < HEADROOM_LOW:
        severity = WRONG if group.headroom < HEADROOM_GONE else WARNING
        yield Finding(
            severity, where, f"{group.headroom:.0%} of the retention is left before records are lost",
            "the log is removed from its old end, and the group is near it", outlook(group),
            f"Raise the topic's retention first, then mend the group. {snapshot}", "Records are about to be lost",
        )  # fmt: skip


def _clocks(group: GroupLag, where: str) -> Iterator[Finding]:
    ahead_s = max((one.clock_ahead_s for topic in group.topics for one in topic.partitions), default=0.0)
    if ahead_s > 1.0:
        yield Finding(
            NOTE, where, f"the clock of its source is {duration(ahead_s)} ahead of ours",
            "so the source's commit times say no age", "", "Let both hosts keep their time by NTP.",
            "A stage is late",
        )  # fmt: skip


def outlook(group: GroupLag) -> str:
    """Whether it catches up."""
    if group.catch_up_s is not None and group.lag_records:
        return f"It catches up in about {duration(group.catch_up_s)}, at this pace."
    if group.trend == SHRINKING:
        return "It catches up."
    if group.trend == GROWING:
        return f"It does not catch up: the lag grows by {count(group.velocity)} records/s."
    if group.trend and group.lag_records:
        return "It does not catch up: the lag stays as it is."
    return "Whether it catches up is not known yet." if group.lag_records else ""


def _age_of(group: GroupLag) -> str:
    if group.lag_s is None:
        return f"for how long is unknown ({group.lag_problem})" if group.lag_problem else "for how long is unknown"
    return f"it is {duration(group.lag_s)} behind its source" if group.lag_records else "nothing is late"


def _at(group: GroupLag, status: str) -> str:
    """Where: the partitions that have it, most lag first."""
    found: list[tuple[str, PartitionLag]] = [
        (topic.topic, one) for topic in group.topics for one in topic.partitions if one.status == status
    ]
    found.sort(key=lambda pair: -(pair[1].lag_records or 0))
    named = [f"{topic}/{one.partition} at offset {one.committed}" for topic, one in found[:PLACES_SHOWN]]
    more = f" and {len(found) - PLACES_SHOWN} more" if len(found) > PLACES_SHOWN else ""
    return f" ({', '.join(named)}{more})" if named else ""


# ---- everything else


def _collector(report: Report) -> Iterator[Finding]:
    for part in report.collector.parts:
        if not part.up:
            severity = WRONG if part.part == "kafka" else WARNING
            yield Finding(
                severity, f"the collector, {part.part}", "it sees nothing of this part", part.problem, "",
                "Mend what it names; until then verdicts on this part are old or missing.", "The collector is away",
            )  # fmt: skip


def _source(source: Mapping[str, Any]) -> Iterator[Finding]:
    name, heading = f"source {source.get('source')}", _source_heading(source)
    for number, finding in enumerate(source.get("findings") or ()):
        severity = {"unfit": WRONG, "warning": WARNING, "note": NOTE}.get(finding.get("severity", ""))
        if number == 0 and heading == "A connector has stopped":
            severity = WRONG  # nothing new comes, and every group behind it looks well
        if severity is not None:
            what = f"{finding.get('subject', '')}: {finding.get('message', '')}".removeprefix(": ")
            yield Finding(severity, name, what, "", "", finding.get("mend", ""), heading)


def _source_heading(source: Mapping[str, Any]) -> str:
    if source.get("up") is False:
        return "A source is away"
    if source.get("wal_status") in ("lost", "missing", "unreserved"):
        return "A slot is lost"
    if source.get("slot_active") is False or source.get("sidecar_healthy") is False:
        return "A connector has stopped"
    return "cdc_raw fills" if source.get("nodes") else "The log of a source runs out"


def _replica(replica: Replica) -> Iterator[Finding]:
    if replica.status == OK:
        return
    index = f", index of {replica.context}" if replica.context else ""
    serves = replica.role == SERVE
    what = {STALL: "stands still", STOP: "does not answer"}.get(replica.status, "does not answer (yet)")
    yield Finding(
        WARNING if replica.status == UNKNOWN else WRONG,
        f"the {'serving replica' if serves else replica.role or 'process'} at {replica.url}{index}",
        what,
        replica.reason,
        "",
        "End this process and start it again: it goes on where its work was durable.",
        "A serving replica stands still" if serves and replica.status == STALL else "A role is down",
    )


def _stage(stage: Stage) -> Iterator[Finding]:
    if stage.budget_s is None or stage.updates < STAGE_UPDATES_MIN or stage.late / stage.updates <= STAGE_LATE_SHARE:
        return
    share = stage.late / stage.updates
    yield Finding(
        WARNING,
        f"context {stage.context}, stage {stage.stage}",
        f"{share:.0%} of {count(stage.updates)} updates came later than {duration(stage.budget_s)} after their commit",
        f"half of them took {duration(stage.p50_s)}, one in a hundred {duration(stage.p99_s)}",
        "",
        "Look at the first stage of the path that is late: those behind it only wait.",
        "A stage is late",
    )


def _canary(canary: Mapping[str, Any]) -> Iterator[Finding]:
    if canary.get("up"):
        return
    yield Finding(
        WRONG,
        f"the canary of {canary.get('source')} at {canary.get('url')}",
        f"what is written to {canary.get('source')} does not come out of lookups in its time",
        str(canary.get("reason") or ""),
        "",
        "See which stage of its way is named above; this is what callers see.",
        "The canary is late",
    )


def _dead_letters(letters: Mapping[str, Any]) -> Iterator[Finding]:
    name, waiting = letters.get("name"), letters.get("waiting") or 0
    if waiting:
        expiry_s = letters.get("expiry_s")
        soon = f"; the first expires in {duration(expiry_s)}" if expiry_s is not None else ""
        yield Finding(
            WARNING, f"dead letters of {name}",
            f"{records(waiting)} set aside, {several(letters.get('bundles') or 0, 'bundle')} wrong because of that",
            f"the oldest since {duration(letters.get('oldest_age_s'))}{soon}", "They stay wrong until redriven.",
            f"ctxpipe dlq {name} list says why; mend it, then ctxpipe dlq {name} redrive --all.", "Dead letters wait",
        )  # fmt: skip
