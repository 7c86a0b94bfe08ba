"""What a call leaves behind in the metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from prometheus_client.metrics import MetricWrapperBase

from pipeline.core import metrics
from pipeline.core.breaker import STATES, State
from pipeline.guard.values import Attempt, ModelRequest, Result

Metric = TypeVar("Metric", bound=MetricWrapperBase)


def breaker_told(endpoint: str, part: str) -> Callable[[State], None]:
    """Hears of each change of a breaker's state."""
    gauge = metrics.guard_breaker.labels(endpoint, part)
    opened = metrics.guard_opened.labels(endpoint, part)
    gauge.set(0)

    def told(state: State) -> None:
        gauge.set(STATES.index(state))
        if state == "open":
            opened.inc()

    return told


def entered(endpoint: str, change: int) -> None:
    _of(metrics.guard_in_flight, endpoint).inc(change)


def attempted(request: ModelRequest, attempt: Attempt) -> None:
    endpoint, task = attempt.endpoint, request.task
    _of(metrics.guard_attempts, endpoint, attempt.rung, attempt.reason or "answered").inc()
    if not attempt.asked:
        return
    _of(metrics.guard_attempt_seconds, endpoint).observe(attempt.took_s)
    if attempt.invalid:
        _of(metrics.guard_invalid, endpoint, task, attempt.invalid).inc()
    if attempt.tokens.input is not None:
        _of(metrics.guard_tokens, endpoint, task, "input").inc(attempt.tokens.input)
    if attempt.tokens.output is not None:
        _of(metrics.guard_tokens, endpoint, task, "output").inc(attempt.tokens.output)
    if attempt.cost is None:
        _of(metrics.guard_cost_unknown, endpoint, task).inc()
    elif attempt.cost:
        _of(metrics.guard_cost, endpoint, task).inc(float(attempt.cost))


def answered(request: ModelRequest, result: Result) -> None:
    _of(metrics.guard_answers, request.task, result.rung, result.reason or "answered").inc()
    _of(metrics.guard_seconds, request.task, result.rung).observe(result.took_s)
    if result.took_s > request.deadline_s:
        _of(metrics.guard_late, request.task).inc()
    if result.repaired:
        _of(metrics.guard_repaired, request.task, result.repaired).inc()
    if result.escalation:
        _of(metrics.guard_escalations, request.task, result.escalation).inc()


def lost(task: str) -> None:
    """A question for people that could not be stored, also after its caller had an answer."""
    _of(metrics.guard_escalations_lost, task).inc()


@lru_cache(maxsize=4096)
def _of(metric: Metric, *labels: str) -> Metric:
    """Finding the series of some labels takes longer than counting."""
    return metric.labels(*labels)
