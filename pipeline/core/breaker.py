"""When an endpoint, or its output for one schema, is not asked any more, and who finds out that it may be again. Pure.

closed ── failures_max failures in a row ──▶ open ── its time is over ──▶ half_open: one probe, nobody else
  ▲                                           ▲                              │
  └───────────── the probe succeeds ──────────┼──────────────────────────────┤
                                              └──── the probe fails, longer ─┘
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.core.guarding import BreakerConfig

State = Literal["closed", "open", "half_open"]
Mark = Literal["success", "failure", "neutral"]
"""What an attempt says of what was asked."""
STATES: tuple[State, ...] = ("closed", "half_open", "open")
"""As the gauge counts them: 0, 1, 2."""


@dataclass(frozen=True, slots=True, eq=False)
class Permit:
    """To ask once. Hand it back with `success`, `failure` or `neutral`, exactly once; what comes later counts nothing.
    `generation`: which state of the breaker gave it."""

    generation: int
    probe: bool


class Breaker:
    """For one event loop. `now_s` never goes back, `chance` gives 0 ≤ x < 1, `told` hears of each change of state.

    A success or a failure counts only for the generation that its permit is of: whatever was asked before the state
    changed says nothing about the time after it. `neutral` (the caller went away, a rate limit, a request that is
    itself wrong) changes nothing, but makes room for another probe.
    """

    def __init__(
        self,
        config: BreakerConfig,
        now_s: Callable[[], float],
        chance: Callable[[], float],
        told: Callable[[State], None] = lambda _: None,
    ) -> None:
        self._config, self._now_s, self._chance, self._told = config, now_s, chance, told
        self._generation = 0
        self._failures = 0
        self._probe: Permit | None = None
        self._open_until_s: float | None = None
        self._open_s = config.open_s

    @property
    def state(self) -> State:
        if self._open_until_s is None:
            return "closed"
        return "open" if self._now_s() < self._open_until_s else "half_open"

    @property
    def open_left_s(self) -> float:
        """Until somebody may probe; 0 where it is not open."""
        return 0.0 if self._open_until_s is None else max(0.0, self._open_until_s - self._now_s())

    @property
    def generation(self) -> int:
        return self._generation

    def admit(self) -> Permit | None:
        """None: don't ask."""
        if self._open_until_s is None:
            return Permit(self._generation, probe=False)
        if self._now_s() < self._open_until_s or self._probe is not None:
            return None
        self._probe = Permit(self._generation, probe=True)
        self._told("half_open")
        return self._probe

    def settle(self, permit: Permit, mark: Mark) -> None:
        """The one of the three below that the mark names."""
        if mark == "success":
            self.success(permit)
        elif mark == "failure":
            self.failure(permit)
        else:
            self.neutral(permit)

    def success(self, permit: Permit) -> None:
        if not self._counts(permit):
            return
        self._failures = 0
        if permit.probe:
            self._open_until_s, self._open_s = None, self._config.open_s
            self._next_generation("closed")

    def failure(self, permit: Permit) -> None:
        if not self._counts(permit):
            return
        if permit.probe:
            self._open_s = min(2 * self._open_s, self._config.open_s_max)
            self._open()
            return
        self._failures += 1
        if self._failures >= self._config.failures_max:
            self._open()

    def neutral(self, permit: Permit) -> None:
        if self._probe is permit:
            self._probe = None

    def _counts(self, permit: Permit) -> bool:
        return permit.generation == self._generation and (not permit.probe or permit is self._probe)

    def _open(self) -> None:
        self._open_until_s = self._now_s() + self._open_s * (1 + self._config.jitter * self._chance())
        self._next_generation("open")

    def _next_generation(self, state: State) -> None:
        self._generation += 1
        self._failures, self._probe = 0, None
        self._told(state)
