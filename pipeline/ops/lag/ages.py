"""Lag in seconds and headroom before records are lost, from what was read around a committed offset; never guessed."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.ops.lag.model import Place, Retention

CLOCKS_S = 1.0
"""Clocks of hosts that are kept by NTP differ by less; a record of the future is no basis for an age."""


@dataclass(frozen=True, slots=True)
class Age:
    """`lag_s` None: unknown, and `problem` says why. `waiting_s`: of the first record that was not applied."""

    lag_s: float | None
    basis: str = ""
    problem: str = ""
    waiting_s: float | None = None
    clock_ahead_s: float = 0.0


def age(at_us: int, lag_records: int, place: Place | None) -> Age:
    """At `at_us`, of a partition with so many records before it. 0 where nothing waits."""
    if lag_records <= 0 or (place is not None and place.nothing_waits):
        return Age(0.0)
    if place is None:
        return Age(None, problem="the record was not read in this sample")
    if place.problem:
        return Age(None, problem=place.problem)
    suffix = "" if place.applied else " (waiting)"
    commit_s = _age_s(at_us, place.commit_time_us)
    written_s = _age_s(at_us, place.written_time_us)
    waiting_s = _age_s(at_us, place.waiting_time_us)
    waiting_s = None if waiting_s is None or waiting_s < -CLOCKS_S else max(0.0, waiting_s)
    ahead_s = max(0.0, -(commit_s or 0.0)) if place.from_source else 0.0
    if commit_s is not None and place.from_source and commit_s >= -CLOCKS_S:
        return Age(max(0.0, commit_s), f"source{suffix}", waiting_s=waiting_s, clock_ahead_s=ahead_s)
    if written_s is not None and written_s >= -CLOCKS_S:
        return Age(max(0.0, written_s), f"record{suffix}", waiting_s=waiting_s, clock_ahead_s=ahead_s)
    ahead_s = max(ahead_s, -(written_s or 0.0))
    if ahead_s > 0:
        return Age(None, problem=f"its clock is {ahead_s:.0f} s ahead of ours", clock_ahead_s=ahead_s)
    return Age(None, problem="the record has no time")


def headroom(
    at_us: int, committed: int, start: int, end: int, place: Place | None, retention: Retention | None
) -> float | None:
    """Share of the log, or of its time, that is left before records are removed that were not read: 1 all, 0 they are
    being lost. None where nothing is removed, or nobody knows when."""
    if retention is not None and retention.compacted:
        return None
    if end - max(committed, start) <= 0:
        return 1.0
    if committed < start:
        return 0.0
    written_s = None if place is None else _age_s(at_us, place.written_time_us)
    if retention is not None and retention.retention_s is not None and written_s is not None:
        return min(1.0, max(0.0, 1.0 - written_s / retention.retention_s))
    if start > 0:  # something was removed already, so more will be
        return (committed - start) / (end - start)
    return None


def _age_s(at_us: int, time_us: int | None) -> float | None:
    return None if time_us is None or time_us <= 0 else (at_us - time_us) / 1_000_000
