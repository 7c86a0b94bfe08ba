"""Limits that a candidate has to keep while it is better elsewhere: latency, cost, malformed answers. Pure.

A limit is kept where the one-sided 95% bound of the mean difference is within it: "not seen to be worse" is not enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.statistics.judging import bounded
from pipeline.evaluation.statistics.matching import Both, value_of
from pipeline.evaluation.statistics.pairs import paired
from pipeline.guard.evidence import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedLimit:
    """The mean of `measure` may rise by `limit`, or by so large a share of the active's mean (`relative`)."""

    measure: str
    limit: float
    relative: bool = False


def limits_kept(
    both: Sequence[Both], groups: Sequence[str], asked: Sequence[AskedLimit]
) -> tuple[tuple[Limit, ...], tuple[str, ...], tuple[str, ...]]:
    """(limits with what came of them, measures of those that what was observed breaks, what else is to be told)."""
    kept, broken, notes = [], [], []
    for one in asked:
        values = [(value_of(first, one.measure), value_of(second, one.measure)) for first, second in both]
        known = [(first, second) for first, second in values if _finite(first) and _finite(second)]
        if len(known) < len(values):
            notes.append(
                f"{one.measure} is unknown in {len(values) - len(known)} of {len(values)} pairs: no limit holds"
            )
            kept.append(Limit(measure=one.measure, limit=one.limit, observed=None, bound=None, passed=False))
            continue
        limit, found = _limit(one, [(first or 0.0, second or 0.0) for first, second in known], groups)
        kept.append(found)
        if found.observed is not None and found.observed > limit:
            broken.append(one.measure)
    return tuple(kept), tuple(broken), tuple(notes)


def _limit(asked: AskedLimit, values: Sequence[tuple[float, float]], groups: Sequence[str]) -> tuple[float, Limit]:
    """A relative limit is tested as it is stated: candidate less so many times the active, pair by pair."""
    active = math.fsum(first for first, _ in values) / len(values)
    share = asked.limit if asked.relative else 0.0
    found = bounded(paired([first * (1 + share) for first, _ in values], [second for _, second in values], groups))
    limit = share * active if asked.relative else asked.limit
    allowed = share * active
    bound = None if found.bound is None else found.bound + allowed
    passed = bound is not None and bound <= limit
    observed = found.observed + allowed
    return limit, Limit(measure=asked.measure, limit=limit, observed=observed, bound=bound, passed=passed)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
