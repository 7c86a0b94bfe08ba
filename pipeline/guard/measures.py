"""What a call leaves behind in the metrics."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.core import metrics
from pipeline.guard.breaker import STATES, State
from pipeline.guard.values import Attempt, ModelRequest, Result


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


def attempted(request: ModelRequest, attempt: Attempt) -> None:
    endpoint, task = attempt.endpoint, request.task
    metrics.guard_attempts.labels(endpoint, attempt.rung, attempt.reason or "answered").inc()
    if not attempt.asked:
        return
    metrics.guard_attempt_seconds.labels(endpoint).observe(attempt.took_s)
    if attempt.invalid:
        metrics.guard_invalid.labels(endpoint, task, attempt.invalid).inc()
    if attempt.tokens.input is not None:
        metrics.guard_tokens.labels(endpoint, task, "input").inc(attempt.tokens.input)
    if attempt.tokens.output is not None:
        metrics.guard_tokens.labels(endpoint, task, "output").inc(attempt.tokens.output)
    if attempt.cost is None:
        metrics.guard_cost_unknown.labels(endpoint, task).inc()
    elif attempt.cost:
        metrics.guard_cost.labels(endpoint, task).inc(float(attempt.cost))


def answered(request: ModelRequest, result: Result) -> None:
    metrics.guard_answers.labels(request.task, result.rung, result.reason or "answered").inc()
    metrics.guard_seconds.labels(request.task, result.rung).observe(result.took_s)
    if result.took_s > request.deadline_s:
        metrics.guard_late.labels(request.task).inc()
    if result.repaired:
        metrics.guard_repaired.labels(request.task, result.repaired).inc()
    if result.escalation:
        metrics.guard_escalations.labels(request.task, result.escalation).inc()
