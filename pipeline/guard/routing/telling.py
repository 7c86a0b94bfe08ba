"""What people hear of the routing: log lines, metrics, and a question in their queue when a model was taken back."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence

from pipeline.core import metrics
from pipeline.guard.escalations import Escalation
from pipeline.guard.routing.deciding import Refused
from pipeline.guard.routing.loading import Decision
from pipeline.guard.routing.state import Standing, TakenBack

QUESTION = "routing"
"""The output that a rollback asks people for: a text."""
_NAMESPACE = uuid.UUID("5f2c9a34-1b0e-5d55-9a3e-6f1f5a0c7d11")
_LOG = logging.getLogger("ctxpipe.routing")


def refused(reasons: Sequence[Refused], told: Sequence[str], tasks: Iterable[str]) -> None:
    """Once for each version of the files. `tasks`: those in force; the file is refused for all of them."""
    for reason in reasons:
        metrics.guard_routing_refused.labels(reason).inc()
    for task in tasks:
        metrics.guard_routing_current.labels(task).set(0)
    _LOG.error("the routing stays as it was: %s", "; ".join(told))


def accepted(decision: Decision, before: Mapping[str, Standing]) -> None:
    metrics.guard_routing_current.clear()
    for task in decision.standings:
        metrics.guard_routing_current.labels(task).set(task not in decision.told)
    for task, told in decision.told.items():
        metrics.guard_routing_refused.labels("taken_back").inc()
        _LOG.error("the task %s stays as it was: %s", task, told)
    for task, outcome in decision.outcomes.items():
        if outcome in ("unchanged", "held") or task not in decision.standings:
            continue
        now, then = decision.standings[task].identity.endpoint, before.get(task)
        metrics.guard_swaps.labels(task, outcome).inc()
        _LOG.info("the task %s is answered by %s%s (%s)", task, now, _instead(then), outcome)


def in_force(standings: Mapping[str, Standing]) -> None:
    """The gauge has one endpoint for each task."""
    metrics.guard_routing.clear()
    for task, standing in standings.items():
        metrics.guard_routing.labels(task, standing.identity.endpoint).set(1)


def taken_back(taken: TakenBack, before: str) -> None:
    metrics.guard_swaps.labels(taken.task, "taken_back").inc()
    metrics.guard_routing_current.labels(taken.task).set(0)
    _LOG.error("the task %s is answered by %s again: of %s, %s", taken.task, before, taken.endpoint, taken.why)


def question(taken: TakenBack, before: str) -> Escalation:
    """The same rollback is the same question, whoever of many processes tells of it."""
    told = (
        f"{taken.endpoint} was taken back as the active model of the task {taken.task}, because {taken.why}. {before} "
        f"answers again. Bring the routing file in line (`ctxpipe route rollback {taken.task}`), or promote it with "
        "new evidence. Answer this with what was done."
    )
    return Escalation(
        id=str(uuid.uuid5(_NAMESPACE, f"{taken.task} {taken.fingerprint}")),
        task=taken.task,
        tenant=None,
        request_id="",
        at_us=taken.at_us,
        messages=[{"role": "system", "content": told}],
        data={"rollback": taken.model_dump(), "active_again": before},
        output_name=QUESTION,
        json_schema=None,
        attempts=(),
        last_output="",
    )


def _instead(then: Standing | None) -> str:
    return "" if then is None else f" in place of {then.identity.endpoint}"
