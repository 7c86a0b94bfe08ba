"""Whether a new active model keeps its limits: its own answers of late, one by one, against what may be. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from decimal import Decimal

from pipeline.guard.routing.config import Limits
from pipeline.guard.values import Reason, Result, costs_of

NOT_ITS_OWN: frozenset[Reason] = frozenset(
    {"cancelled", "cost_limit", "tenant_budget", "tenant_too_many", "no_time", "no_route", "bad_request"}
)
"""Reasons that say nothing of a model: the caller, its money or its time."""
MALFORMED: frozenset[Reason] = frozenset({"invalid_output", "output_breaker_open"})
"""A breaker that is open for an output keeps more of the same from coming: it must not end the count."""
_SLOW_SHARE = 0.05
"""What may be slower than a 95th percentile."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one call said of the active model. `cost` None: unknown."""

    malformed: bool
    failed: bool
    latency_ms: float
    cost: Decimal | None


def seen_of(result: Result, endpoint: str) -> Seen | None:
    """None: the call says nothing of this endpoint. One that another was faster than counts as endlessly slow."""
    lost = result.reason == "slow"
    own = [one for one in result.attempts if one.endpoint == endpoint and (lost or one.reason not in NOT_ITS_OWN)]
    if not own:
        return None
    asked = [one for one in own if one.asked]
    return Seen(
        malformed=any(one.reason in MALFORMED for one in own),
        failed=not lost and all(one.reason for one in own),
        latency_ms=math.inf if lost else 1000 * sum(one.took_s for one in asked),
        cost=costs_of(asked)[0] if asked else None,
    )


class Window:
    """The last `window_calls` of them. Counts are kept, so that a call costs the same however long the window is."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._seen: deque[Seen] = deque()
        self._malformed = self._failed = self._slow = self._priced = 0
        self._cost = Decimal(0)

    def add(self, seen: Seen) -> str | None:
        """One sentence on the limit that is broken, None: all are kept, or it is too early to say."""
        self._count(seen, 1)
        self._seen.append(seen)
        if len(self._seen) > self.limits.window_calls:
            self._count(self._seen.popleft(), -1)
        return self._broken() if len(self._seen) >= self.limits.calls_min else None

    def _count(self, seen: Seen, by: int) -> None:
        most_ms = self.limits.latency_p95_ms_max
        self._malformed += by * seen.malformed
        self._failed += by * seen.failed
        self._slow += by * (most_ms is not None and seen.latency_ms > most_ms)
        if seen.cost is not None:
            self._priced += by
            self._cost += by * seen.cost

    def _broken(self) -> str | None:
        limits, calls = self.limits, len(self._seen)
        for count, most, what in (
            (self._malformed, limits.malformed_share_max, "gave outputs that had to be refused"),
            (self._failed, limits.failure_share_max, "were not answered by it"),
        ):
            if most is not None and self._too_many(count, most):
                return f"{count} of its last {calls} calls {what}, at most {most:.1%} may"
        if limits.latency_p95_ms_max is not None and self._too_many(self._slow, _SLOW_SHARE):
            return f"{self._slow} of its last {calls} calls took longer than {limits.latency_p95_ms_max:g} ms"
        most_cost = limits.cost_per_call_max
        if most_cost is not None and self._priced >= limits.calls_min and self._cost / self._priced > most_cost:
            return (
                f"its last {self._priced} calls cost {self._cost / self._priced:.6f} each, at most {most_cost} may be"
            )
        return None

    def _too_many(self, count: int, share_max: float) -> bool:
        calls = len(self._seen)
        return count > share_max * calls and tail(count, calls, share_max) < self.limits.chance_max


def tail(count: int, calls: int, share: float) -> float:
    """How likely `count` or more of `calls` are, where each happens with the probability `share`."""
    if count <= 0:
        return 1.0
    if share <= 0:
        return 0.0
    total = 0.0
    for k in range(count, calls + 1):
        ways = math.lgamma(calls + 1) - math.lgamma(k + 1) - math.lgamma(calls - k + 1)
        term = math.exp(ways + k * math.log(share) + (calls - k) * math.log1p(-share))
        total += term
        if k > share * calls and term < 1e-15 * total:
            break
    return min(1.0, total)
