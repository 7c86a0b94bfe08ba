"""Two runs' results → the same cases side by side, with the numbers that are compared; all mistakes at once. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pipeline.evaluation.values import CaseResult
from pipeline.guard.errors import HarnessError

UNPAIRED_SHARE_MAX = 0.01
"""So many of the cases may be in one of both runs only; what is missing is rarely missing by chance."""
NAMED_MAX = 10
CHECK = "check:"


class CompareError(HarnessError):
    """What keeps two runs from being compared at all, a sentence each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


Both = tuple[CaseResult, CaseResult]


def matched(
    active: Sequence[CaseResult], candidate: Sequence[CaseResult], share_max: float
) -> tuple[list[Both], tuple[str, ...]]:
    """Pairs by id, in the order of ids, and the ids of the others. Raises CompareError."""
    mistakes = []
    for side, results in (("A", active), ("B", candidate)):
        if not results:
            mistakes.append(f"{side} has no results; run the suite first")
        twice = sorted(name for name, count in Counter(one.id for one in results).items() if count > 1)
        if twice:
            mistakes.append(f"{side} has {some(twice)} more than once; a results file has one line a case")
    first, second = {one.id: one for one in active}, {one.id: one for one in candidate}
    common = sorted(first.keys() & second.keys())
    unpaired = tuple(sorted(first.keys() ^ second.keys()))
    other = [name for name in common if first[name].digest != second[name].digest]
    if other:
        mistakes.append(
            f"{some(other)} are not the same cases in A and B (digests differ); run both on one state of the suite"
        )
    if not mistakes and len(unpaired) > share_max * len(first.keys() | second.keys()):
        mistakes.append(
            f"{len(unpaired)} of {len(first.keys() | second.keys())} cases are in one run only: {some(unpaired)}; run "
            "both on the whole suite (what is missing is rarely missing by chance)"
        )
    if mistakes:
        raise CompareError(mistakes)
    return [(first[name], second[name]) for name in common], unpaired


def with_metric(both: Sequence[Both], metric: str) -> Sequence[Both]:
    """For `check:NAME` those cases that have such a check, which rarely are all; for other metrics all. Raises
    CompareError where none has it."""
    if not metric.startswith(CHECK):
        return both
    found = [pair for pair in both if any(value_of(side, metric) is not None for side in pair)]
    if not found:
        known = sorted({check.check for pair in both for side in pair for check in side.checks})
        raise CompareError([f"no case has a check {metric.removeprefix(CHECK)!r}; there are {', '.join(known)}"])
    return found


def metric_values(both: Sequence[Both], metric: str) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    wrong = []
    for first, second in both:
        values = value_of(first, metric), value_of(second, metric)
        for side, value in zip("AB", values, strict=True):
            if value is None or not 0 <= value <= 1:
                wrong.append(f"{first.id} in {side} ({'none' if value is None else f'{value:g}'})")
        found.append((values[0] or 0.0, values[1] or 0.0))
    if wrong:
        known = sorted({"passed", *both[0][0].measures})
        raise CompareError(
            [
                f"{metric!r} has to be a number from 0 to 1 in every case, and is not in {some(wrong)}; these cases "
                f"have {', '.join(known)}, and check:NAME"
            ]
        )
    return found


def value_of(result: CaseResult, metric: str) -> float | None:
    """None: this result has no such measure, or does not know it."""
    if metric == "passed":
        return float(result.passed)
    if metric.startswith(CHECK):
        scores = [check.score for check in result.checks if check.check == metric.removeprefix(CHECK)]
        return math.fsum(scores) / len(scores) if scores else None
    return result.measures.get(metric)


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
