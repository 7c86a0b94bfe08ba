"""The routing file: per task the active model, what proves it, what it has to keep to, and who is tried in shadow."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from pipeline.core.section import ConfigPart
from pipeline.guard.budgets import EVERYBODY
from pipeline.guard.config import GuardConfig, Route


class Candidate(ConfigPart):
    """The model that is tried in shadow: it gets a copy of `share` of the requests, chosen by their request_id, and
    nobody waits for it. `cost_per_hour_max` in the price table's currency; None: no limit. When `queue_max` wait, or
    `concurrency_max` are on their way, the rest is dropped and counted."""

    endpoint: str
    share: float = Field(gt=0, le=1, allow_inf_nan=False)
    cost_per_hour_max: Decimal | None = Field(default=None, gt=0)
    concurrency_max: int = Field(default=8, ge=1, le=10_000)
    queue_max: int = Field(default=100, ge=1, le=100_000)


class EvidenceFile(ConfigPart):
    """`file` is relative to the routing file; only the one with this digest counts."""

    file: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Limits(ConfigPart):
    """What a new active model's own answers have to keep to; where they don't, the one before it comes back.

    Judged over its last `window_calls`, from `calls_min` on, for `watch_s` after it became active. malformed: an output
    had to be refused, or was not asked for any more because of that; failure: it did not answer, for whatever reason of
    its own. A share counts as broken where one so large would come by chance less often than `chance_max` from a model
    that is just within the limit. `cost_per_call` is the mean of what is known.
    """

    malformed_share_max: float | None = Field(default=None, ge=0, lt=1)
    failure_share_max: float | None = Field(default=None, ge=0, lt=1)
    latency_p95_ms_max: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    cost_per_call_max: Decimal | None = Field(default=None, ge=0)
    window_calls: int = Field(default=200, ge=1, le=100_000)
    calls_min: int = Field(default=20, ge=1, le=100_000)
    chance_max: float = Field(default=0.01, gt=0, lt=1)
    watch_s: float = Field(default=7 * 86_400, gt=0, allow_inf_nan=False)

    @property
    def any(self) -> bool:
        kept = (self.malformed_share_max, self.failure_share_max, self.latency_p95_ms_max, self.cost_per_call_max)
        return any(limit is not None for limit in kept)


class Demands(ConfigPart):
    """What evidence of this file has to be, beside passed. `suite_digest`: of the suite as it is now."""

    suite_digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    claim_points_min: float = Field(default=0, ge=0, le=100)
    pairs_min: int = Field(default=1, ge=1)


class TaskRouting(ConfigPart):
    """One task. What is left out of the ladder (`others` to `deterministic`) is as the guard's own route of the task
    has it. `previous`: who was active before, and is again after a rollback. `override_reason` stands in for evidence,
    in words that people will read."""

    active: str
    previous: str | None = None
    evidence: EvidenceFile | None = None
    override_reason: str | None = Field(default=None, min_length=10)
    limits: Limits = Field(default_factory=Limits)
    candidate: Candidate | None = None
    others: tuple[str, ...] | None = None
    local: tuple[str, ...] | None = None
    retries_max: int | None = Field(default=None, ge=0, le=10)
    retry_delay_s: float | None = Field(default=None, ge=0, le=60)
    repair_turn: bool | None = None
    hedge_after_s: float | None = Field(default=None, gt=0, le=600)
    deterministic: bool | None = None


class RoutingConfig(ConfigPart):
    """The whole file. Tasks that it does not name go as the guard's own routes say."""

    version: Literal[1]
    demands: Demands = Field(default_factory=Demands)
    tasks: dict[str, TaskRouting] = Field(min_length=1)


_LADDER = ("others", "local", "retries_max", "retry_delay_s", "repair_turn", "hedge_after_s", "deterministic")


def route_of(task: TaskRouting, base: Route | None, active: str | None = None) -> Route:
    """The ladder of a task; `base` is the guard's own. Where the file leaves out `others` or `local`, the active
    endpoint is taken out of what the guard says. `active`: instead of the file's."""
    first = active or task.active
    given: dict[str, Any] = {} if base is None else base.model_dump(exclude={"primary"})
    given |= {name: value for name in _LADDER if (value := getattr(task, name)) is not None}
    for name in ("others", "local"):
        given[name] = tuple(endpoint for endpoint in given.get(name, ()) if endpoint != first)
    return Route(primary=first, **given)


def base_route(guard: GuardConfig, task: str) -> Route | None:
    """The guard's own route of a task."""
    return guard.routes.get(task) or guard.routes.get(EVERYBODY)


def routed(guard: GuardConfig, routing: RoutingConfig) -> GuardConfig:
    """The guard's configuration as the file has it, without looking at any evidence: for suites and tools. A running
    service goes by `RoutedGuard`."""
    routes = {name: route_of(task, base_route(guard, name)) for name, task in routing.tasks.items()}
    return with_routes(guard, routes)


def with_routes(guard: GuardConfig, routes: Mapping[str, Route]) -> GuardConfig:
    """Raises pydantic's ValidationError where a route names an endpoint that there is not."""
    return GuardConfig(
        endpoints=guard.endpoints, routes={**guard.routes, **routes}, breaker=guard.breaker, budget=guard.budget
    )
