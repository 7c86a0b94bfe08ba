"""How long after its commit at the source a change got how far: what each stage of the path tells of its batches.

All stages measure from the one clock that travels with a change, the source's commit time, so that they can be
compared. A batch is told of as a whole, its times sorted into the histogram by bisection: a thousand changes cost about
what ten single observations would. Rows of snapshots, and whatever a version or a space does before it serves, are no
updates and are not told of: nobody waited for them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pipeline.core import metrics
from schemas.context import Stage

if TYPE_CHECKING:
    from schemas.context import Serving

STAGES: tuple[Stage, ...] = get_args(Stage)
SHARES: Mapping[Stage, float] = {
    "captured": 0.25,
    "in_kafka": 0.35,
    "applied": 0.7,
    "assembled": 0.85,
    "in_redis": 1.0,
    "embedded": 2.0,
    "in_faiss": 2.5,
}
"""Of `max_age_ms`, from the commit to the stage's end. The objective is the bundle's; its vector comes behind it."""
AT_ONCE_MAX = 8
"""So few times are observed one by one, which is cheaper than sorting them in."""


def budgets_s(serving: Serving) -> dict[Stage, float]:
    """By stage, from the commit to its end: what the spec says, else its share of the objective."""
    return {
        stage: serving.stage_budgets_ms.get(stage, serving.max_age_ms * share) / 1000 for stage, share in SHARES.items()
    }


class Freshness:
    """Of one context, for the stages of one role. Its series are there, at zero, from the start."""

    def __init__(self, context: str, serving: Serving, stages: Iterable[Stage]) -> None:
        budgets = budgets_s(serving)
        self._stages = {stage: _Stage(context, stage, budgets[stage]) for stage in stages}

    def note(self, stage: Stage, commit_times_us: Sequence[int], at_us: int) -> None:
        """Changes that were committed at these times, in any order, all got through the stage at `at_us`. One whose
        commit seems to come later, because clocks differ, took no time."""
        if commit_times_us:
            self._stages[stage].note(commit_times_us, at_us)

    def note_ages(self, stage: Stage, ages_us: Sequence[int]) -> None:
        """As `note`, of changes of which each got through at a time of its own."""
        if ages_us:
            self._stages[stage].note([-age_us for age_us in ages_us], 0)

    def note_alike(self, stage: Stage, commit_time_us: int, count: int, at_us: int) -> None:
        """So many changes, the oldest of which was committed then, and the others not much later."""
        if count:
            self._stages[stage].note_alike(max(0, at_us - commit_time_us) / 1e6, count)


class _Stage:
    def __init__(self, context: str, stage: Stage, budget_s: float) -> None:
        self._budget_s = budget_s
        metrics.freshness_budget_seconds.labels(context, stage).set(budget_s)
        self._updates = metrics.freshness_updates.labels(context, stage)
        self._late = metrics.freshness_late.labels(context, stage)
        histogram: Any = metrics.freshness_seconds.labels(context, stage)
        self._observe = histogram.observe
        # prometheus_client observes single values only; these are the counters that it would raise one by one.
        self._buckets, self._sum = histogram._buckets, histogram._sum
        self._bounds = [float(bound) for bound in histogram._upper_bounds]

    def note(self, times_us: Sequence[int], at_us: int) -> None:
        count = len(times_us)
        if count <= AT_ONCE_MAX:
            late = 0
            for time_us in times_us:
                age_s = (at_us - time_us) / 1e6 if time_us < at_us else 0.0
                late += age_s > self._budget_s
                self._observe(age_s)
        else:
            late = self._sort_in([at_us - time_us if time_us < at_us else 0 for time_us in times_us])
        self._updates.inc(count)
        if late:
            self._late.inc(late)

    def note_alike(self, age_s: float, count: int) -> None:
        self._buckets[bisect_left(self._bounds, age_s)].inc(count)
        self._sum.inc(age_s * count)
        self._updates.inc(count)
        if age_s > self._budget_s:
            self._late.inc(count)

    def _sort_in(self, ages_us: list[int]) -> int:
        """How many are late. Neighbours in a batch are of about one age: most bounds are passed in one step."""
        ages_us.sort()
        done, total = 0, len(ages_us)
        number = bisect_left(self._bounds, ages_us[0] / 1e6)
        while done < total:
            upto = bisect_right(ages_us, self._bounds[number] * 1e6, done)
            if upto > done:
                self._buckets[number].inc(upto - done)
                done = upto
            number += 1
        self._sum.inc(sum(ages_us) / 1e6)
        return total - bisect_right(ages_us, self._budget_s * 1e6)
