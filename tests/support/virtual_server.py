"""A lookup server on a virtual clock: one event loop that does one thing at a time, a store that answers after a while,
and requests that come whether the server keeps up or not (open loop). The same seed gives the same run."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.lookup.admission import Admission, Refusal, Ticket

BEFORE_STORE = 0.3
"""Of a request's work; the rest comes after the store has answered."""
REFUSAL_SHARE = 0.02
"""Of the mean work of a request: what refusing one costs."""
TYPICAL_S, SPREAD = 0.00015, 0.5
SLOW_SHARE, SLOW_S = 0.01, 0.002
STORE_S, STORE_SPREAD = 0.0003, 0.5
STORE_SLOW_SHARE, STORE_SLOW_S = 0.005, 0.003


@dataclass
class Request:
    tenant: str | None
    came_s: float
    work_s: float


@dataclass
class Outcome:
    """Of one tenant."""

    came: int = 0
    admitted: int = 0
    in_budget: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def share_in_budget(self) -> float:
        return self.in_budget / max(len(self.latencies_s), 1)

    @property
    def share_refused(self) -> float:
        return 1 - self.admitted / max(self.came, 1)


class VirtualServer:
    """`run` it; then `outcomes` tells per tenant what became of the requests that came after the warm-up."""

    def __init__(self, seed: int, budget_s: float = 0.01, in_flight_max: int = 256) -> None:
        self.now_s = 1_000.0
        self.outcomes: dict[str | None, Outcome] = {}
        self._chance, self._budget_s = random.Random(seed), budget_s
        self._ready: deque[Callable[[], None]] = deque()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbered = 0
        self._counts_from_s = self._ends_s = 0.0
        self.admission = Admission(in_flight_max, lambda: self.now_s, self._ready.append)
        chance = random.Random(0)
        self.mean_s = sum(_work_s(chance) for _ in range(50_000)) / 50_000

    def run(self, rates: dict[str | None, float], seconds: float, warm_s: float = 1.0) -> None:
        """`rates`: arrivals per tenant, in shares of the server's capacity."""
        self._counts_from_s = self.now_s + warm_s
        self._ends_s = self._counts_from_s + seconds
        self.outcomes = {tenant: Outcome() for tenant in rates}
        for tenant, share in rates.items():
            self._arrive_after(self.now_s, tenant, share / self.mean_s)
        while self._ready or self._later:
            while self._later and (self._later[0][0] <= self.now_s or not self._ready):
                at_s, _, event = heapq.heappop(self._later)
                self.now_s = max(self.now_s, at_s)
                event()
            if self._ready:
                self._ready.popleft()()

    def _arrive_after(self, last_s: float, tenant: str | None, rate: float) -> None:
        at_s = last_s + self._chance.expovariate(rate)
        if at_s >= self._ends_s:
            return
        request = Request(tenant, at_s, _work_s(self._chance))

        def comes() -> None:
            self._ready.append(lambda: self._see(request))
            self._arrive_after(at_s, tenant, rate)

        self._at(at_s, comes)

    def _see(self, request: Request) -> None:
        counts = request.came_s >= self._counts_from_s
        outcome = self.outcomes[request.tenant] if counts else Outcome()
        outcome.came += 1
        ticket = self.admission.admit(request.tenant, self._budget_s * 1000)
        if isinstance(ticket, Refusal):
            outcome.reasons[ticket.reason] = outcome.reasons.get(ticket.reason, 0) + 1
            self.now_s += REFUSAL_SHARE * self.mean_s
            return
        outcome.admitted += 1
        self.now_s += BEFORE_STORE * request.work_s
        store_s = STORE_S * self._chance.lognormvariate(0, STORE_SPREAD)
        store_s += STORE_SLOW_S * (self._chance.random() < STORE_SLOW_SHARE)
        self._at(self.now_s + store_s, lambda: self._ready.append(lambda: self._answer(request, ticket, outcome)))

    def _answer(self, request: Request, ticket: Ticket, outcome: Outcome) -> None:
        self.now_s += (1 - BEFORE_STORE) * request.work_s
        self.admission.done(ticket)
        latency_s = self.now_s - request.came_s
        outcome.latencies_s.append(latency_s)
        outcome.in_budget += latency_s <= self._budget_s

    def _at(self, at_s: float, event: Callable[[], None]) -> None:
        self._numbered += 1
        heapq.heappush(self._later, (at_s, self._numbered, event))


def _work_s(chance: random.Random) -> float:
    return TYPICAL_S * chance.lognormvariate(0, SPREAD) + SLOW_S * (chance.random() < SLOW_SHARE)
