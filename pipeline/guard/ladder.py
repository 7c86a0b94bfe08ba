"""In which order a call goes down, how long each rung may take, and what a rate limit changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.guard.config import Endpoint, Route
from pipeline.guard.values import Rung

SHARE_KEPT = 0.15
"""Of the time that is left, for each endpoint further down that has no `reserve_s`."""
SHARE_KEPT_MAX = 0.5
LAST_S_MAX, LAST_SHARE = 0.06, 0.05
"""Of a deadline, what models leave: for the application's function, the escalation, and the way back to the caller."""
FUNCTION_SHARE, ESCALATION_SHARE = 0.5, 0.8
"""Of that time, until when each of them may take."""
ATTEMPT_S_MIN = 0.002
"""With less, nothing is asked."""


@dataclass(frozen=True, slots=True)
class Step:
    """One endpoint on the way down."""

    rung: Rung
    endpoint: Endpoint


def steps_of(route: Route, endpoints: Mapping[str, Endpoint]) -> list[Step]:
    return [
        Step("primary", endpoints[route.primary]),
        *(Step("other", endpoints[name]) for name in route.others),
        *(Step("local", endpoints[name]) for name in route.local),
    ]


def local_first(steps: Sequence[Step]) -> list[Step]:
    """What is left to be asked after a rate limit: the local models at once, whoever else is there after them."""
    return sorted(steps, key=lambda step: step.rung != "local")


def end_s(began_s: float, deadline_s: float) -> float:
    """Until when models may work: a little is kept for what answers without one."""
    return began_s + deadline_s - min(LAST_S_MAX, LAST_SHARE * deadline_s)


def last_until_s(call_ends_s: float, deadline_s: float, share: float) -> float:
    """Until when a rung without a model may work; `call_ends_s` as `end_s` gives it, both on the clock."""
    return call_ends_s + share * (deadline_s - call_ends_s)


def until_s(now_s: float, ends_s: float, endpoint: Endpoint, later: Sequence[Step]) -> float:
    """Until when this endpoint may work: what those further down need stays, at most half of what is left."""
    left_s = ends_s - now_s
    kept_s = sum(_kept_s(step.endpoint, left_s) for step in later)
    return now_s + min(endpoint.timeout_s, left_s - min(kept_s, SHARE_KEPT_MAX * left_s))


def retry_delay_s(route: Route, number: int, chance: float) -> float:
    """Before retry `number`, from 1: anything up to twice what the one before could be, so that retries don't meet."""
    return chance * float(route.retry_delay_s * 2 ** (number - 1))


def _kept_s(endpoint: Endpoint, left_s: float) -> float:
    return SHARE_KEPT * left_s if endpoint.reserve_s is None else float(endpoint.reserve_s)
