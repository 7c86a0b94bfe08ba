"""Admission to the lookup server: what can't be answered in time is refused at once, before it costs those that can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from pipeline.lookup.admission_estimates import Estimates, Limit, size_of
from pipeline.lookup.tenant_shares import Rate, Tenant, TenantShares

Reason = Literal["overload", "too late", "tenant share"]

LOAD_ALWAYS_TAKEN = 2.0
"""Below it the load is no reason to refuse: what little comes through keeps the estimates true."""
LEFT_OVER_SHARE = 0.6
"""Of the time that is left, a tenant that wants more than its share may count on so much: the rest is for others."""
WAITING_SHARE = 0.1
WAITED_SHARE = 0.5
TURN_SHARE = 0.2
"""Of the time that is left, one turn of the event loop may spend so much on requests. What comes meanwhile waits
unseen until the next one: with turns of a fifth, for less than half of its budget."""
SHEDDING_S = 1.0
LAG_KEPT_S = 0.05
LAG_FALLS_TO = 0.4
RETRY_AFTER_S_MIN, RETRY_AFTER_S_MAX = 0.05, 5.0


class Refusal(msgspec.Struct, frozen=True):
    """`reason`: overload (as many as can be answered in time are on their way), too late (this one would take longer
    than what is left of its budget), tenant share (its tenant has more on its way than its fair share)."""

    reason: Reason
    retry_after_s: float


class Ticket:
    """Of one request that was let in; it is handed back to `done`."""

    __slots__ = ("began_s", "lag_s", "left_s", "load", "over", "size", "tenant", "weight")

    def __init__(
        self, tenant: Tenant, size: int, weight: float, load: float, began_s: float, left_s: float, lag_s: float
    ) -> None:
        self.tenant, self.size, self.weight, self.load = tenant, size, weight, load
        self.began_s, self.left_s, self.lag_s = began_s, left_s, lag_s
        self.over = False


class Admission:
    """Of one event loop. Per request `admit`, and `done` with the ticket, whatever became of it. Both are synchronous
    and take a few microseconds.

    Load is counted in requests for one key: a batch weighs as much as it takes longer. The greatest load adapts, so
    that answers use about half of their budgets; near it, each tenant is sure of its fair share of it.
    """

    def __init__(
        self,
        in_flight_max: int,
        monotonic_s: Callable[[], float],
        call_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`in_flight_max` 0: all are let in. `call_soon` is the event loop's: by it the time is measured that requests
        wait before anybody sees them."""
        self._in_flight_max, self._monotonic_s, self._call_soon = in_flight_max, monotonic_s, call_soon
        self._estimates, self._limit = Estimates(), Limit(max(in_flight_max, 1))
        self._tenants, self._served = TenantShares(), Rate()
        self._marked_at_s: float | None = None
        self._lag_s, self._lag_at_s = 0.0, 0.0
        self._refused_at_s: float | None = None
        self.in_flight = 0

    @property
    def limit(self) -> float:
        """The greatest load that is let in now."""
        return self._limit.value

    @property
    def load(self) -> float:
        return self._tenants.load

    @property
    def lag_s(self) -> float:
        """So long a request waits before it is seen."""
        return self._lag(self._monotonic_s())

    @property
    def shedding(self) -> bool:
        """Whether requests were refused within the last second."""
        return self._refused_at_s is not None and self._monotonic_s() - self._refused_at_s < SHEDDING_S

    def admit(self, tenant: str | None, left_ms: float, keys: int = 1) -> Ticket | Refusal:
        """`left_ms`: of the budget. `tenant` None: all such callers are one."""
        now_s = self._monotonic_s()
        lag_s, left_s, size = self._lag(now_s), left_ms / 1000, size_of(keys)
        self._mark(now_s)
        weight = self._estimates.weight(size, keys)
        load, limit = self._tenants.load, self._limit.value
        asking = self._tenants.asks(tenant or "", weight, now_s, limit, self._time_at_limit_s(now_s))
        reason: Reason | None = None
        if self._in_flight_max and self.in_flight >= self._in_flight_max:
            reason = "overload"
        elif self._in_flight_max and load >= LOAD_ALWAYS_TAKEN:
            reason = self._reason(asking, min(weight, limit / 2), limit, left_s - lag_s, size)
        elif self._in_flight_max and self._turn_s(now_s) > left_s * TURN_SHARE:
            # Answers from memory are never on their way together: only the turn's length tells that they are too many.
            reason = "too late"
        if reason is not None:
            self._refused_at_s = now_s
            return Refusal(reason, self._retry_after_s(load, limit))
        self._tenants.take(asking, weight)
        self.in_flight += 1
        return Ticket(asking, size, weight, load, now_s, left_s, lag_s)

    def late(self, left_ms: float) -> Refusal | None:
        """For an answer that is in memory, and needs no ticket: whether those before it in this turn of the event loop
        have taken too long already. It says nothing of how long those take that wait, so it does not count for them."""
        now_s = self._monotonic_s()
        self._mark(now_s)
        if not self._in_flight_max or self._turn_s(now_s) <= left_ms / 1000 * TURN_SHARE:
            return None
        self._refused_at_s = now_s
        return Refusal("too late", self._retry_after_s(self._tenants.load, self._limit.value))

    def done(self, ticket: Ticket, typical: bool | None = True) -> None:
        """Once; again does nothing. Not `typical`: the time it took says nothing of this server's load, because the
        caller went away or the answer waited for something else. None: the store gave no answer; the time counts
        unless most of the budget was spent on waiting for it."""
        if ticket.over:
            return
        ticket.over = True
        self.in_flight -= 1
        self._tenants.give_back(ticket.tenant, ticket.weight)
        now_s = self._monotonic_s()
        self._served.add(ticket.weight, now_s)
        took_s = now_s - ticket.began_s
        if typical or (typical is None and took_s < ticket.left_s * WAITED_SHARE):
            self._estimates.observe(ticket.size, ticket.load, took_s)
            if ticket.left_s > 0:
                self._limit.observe(ticket.load + ticket.weight, (took_s + ticket.lag_s) / ticket.left_s, now_s)

    def _reason(self, tenant: Tenant, weight: float, limit: float, left_s: float, size: int) -> Reason | None:
        tenants = self._tenants
        if not tenants.has_room(tenant, weight, limit) and not self._can_wait(weight, left_s, size):
            return "tenant share" if tenants.active > 1 else "overload"
        over_share = tenants.active > 1 and not tenant.modest
        if self._estimates.expected_s(size, tenants.load) > left_s * (LEFT_OVER_SHARE if over_share else 1.0):
            return "tenant share" if over_share else "too late"
        return None

    def _can_wait(self, weight: float, left_s: float, size: int) -> bool:
        """The limit is learnt from those in a hurry. Who has ten times as long as it takes now waits, unless others are
        there to be protected from it."""
        tenants = self._tenants
        if tenants.active > 1 or tenants.load + weight > self._in_flight_max:
            return False
        expected_s = max(self._estimates.expected_s(size, tenants.load), self._estimates.latency_s)
        return expected_s < left_s * WAITING_SHARE

    def _time_at_limit_s(self, now_s: float) -> float:
        """How long a request is on its way; by Little's law while all that can be served is served."""
        shedding = self._refused_at_s is not None and now_s - self._refused_at_s < SHEDDING_S
        rate = self._served.at(now_s) if shedding else 0.0
        return self._limit.value / rate if rate > 0 else self._estimates.latency_s

    def _retry_after_s(self, load: float, limit: float) -> float:
        """When what is on its way has been answered, some times over: those that were refused come back together."""
        wait_s = 10 * self._estimates.latency_s * max(1.0, load / limit)
        return min(max(wait_s, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)

    def _mark(self, now_s: float) -> None:
        if self._call_soon is not None and self._marked_at_s is None:
            self._marked_at_s = now_s
            self._call_soon(self._turned)

    def _turned(self) -> None:
        assert self._marked_at_s is not None
        now_s = self._monotonic_s()
        lag_s, self._marked_at_s = now_s - self._marked_at_s, None
        known_s = self._lag_s if now_s - self._lag_at_s < LAG_KEPT_S else 0.0
        self._lag_s = lag_s if lag_s > known_s else LAG_FALLS_TO * known_s + (1 - LAG_FALLS_TO) * lag_s
        self._lag_at_s = now_s

    def _lag(self, now_s: float) -> float:
        known_s = self._lag_s if now_s - self._lag_at_s < LAG_KEPT_S else 0.0
        return max(known_s, self._turn_s(now_s))

    def _turn_s(self, now_s: float) -> float:
        """Since the first request of this turn of the event loop."""
        return 0.0 if self._marked_at_s is None else now_s - self._marked_at_s
