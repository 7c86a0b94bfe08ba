"""How many questions wait for people, and for how long: what the collector looks at again and again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core import metrics
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.guarding import EscalationsConfig
from pipeline.guard.escalation_records import Standing
from pipeline.streams.escalation_desk import EscalationDesk


@dataclass(frozen=True, slots=True)
class Waiting:
    """Of one task."""

    task: str
    waiting: int
    oldest_age_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def waiting(questions: Iterable[Standing], now_us: int) -> list[Waiting]:
    """By task, also of those that have been answered, so that their numbers go back to 0."""
    ages_s: dict[str, list[float]] = {}
    for one in questions:
        if one.heading is not None:
            found = ages_s.setdefault(one.heading.task, [])
            if one.open:
                found.append(max(0.0, (now_us - one.heading.at_us) / 1_000_000))
    return [Waiting(task, len(ages), max(ages, default=0.0)) for task, ages in sorted(ages_s.items())]


class EscalationWatch:
    """Each look reads what is new only, and sets the metrics. Read-only; it makes no topic. Not for several tasks."""

    def __init__(
        self, bootstrap_servers: str, config: EscalationsConfig, clock: Clock | None = None, **security: Any
    ) -> None:
        self._clock = clock or SystemClock()
        self._desk = EscalationDesk(bootstrap_servers, config, self._clock, **security)
        self._tasks: set[str] = set()

    async def look(self) -> list[Waiting]:
        """Raises Retryable while Kafka is away, EnvironmentProblem where it refuses us."""
        found = waiting((await self._desk.look()).questions, self._clock.now_us())
        for task in self._tasks - {one.task for one in found}:
            metrics.guard_waiting.remove(task)
            metrics.guard_waiting_oldest.remove(task)
        self._tasks = {one.task for one in found}
        for one in found:
            metrics.guard_waiting.labels(one.task).set(one.waiting)
            metrics.guard_waiting_oldest.labels(one.task).set(one.oldest_age_s)
        return found

    async def close(self) -> None:
        """The watch may be used again."""
        await self._desk.close()
