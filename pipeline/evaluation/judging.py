"""What was observed of a case → its result: checks judged, measures taken, one digest over all of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.evaluation.checks import judged
from pipeline.evaluation.digests import digest_of
from pipeline.evaluation.suite import Suite
from pipeline.evaluation.values import Case, CaseResult, Observed, Step

SCORE_DIGITS = 6
"""Of hits, in digests: sums of products end otherwise on another processor."""


def result_of(suite: Suite, case: Case, observed: Observed, *, real_time: bool = False) -> CaseResult:
    """`real_time`: it ran on the machine's clock, so that its times are no part of the digest."""
    try:
        return _result(suite, case, observed, real_time)
    except ValueError as error:
        return _result(suite, case, Observed(raised=f"what came of it {error}"), real_time)


def _result(suite: Suite, case: Case, observed: Observed, real_time: bool) -> CaseResult:
    """Raises ValueError for what JSON can't hold."""
    checks = judged(case, observed, suite)
    output = _shown_output(case, observed)
    steps = tuple(observed.steps)
    told = [[one.check, one.passed, round(one.score, SCORE_DIGITS), "" if real_time else one.told] for one in checks]
    parts = {
        "output": output,
        "raised": observed.raised,
        "steps": [_timeless(step) for step in steps] if real_time else steps,
        "took_ms": None if real_time else observed.took_ms,
        "checks": told,
    }
    return CaseResult(
        id=case.id,
        kind=case.kind,
        group=case.group or case.id,
        tags=case.tags,
        digest=suite.digests[case.id],
        passed=all(one.passed for one in checks),
        checks=checks,
        output=output,
        output_digest=digest_of(parts),
        steps=steps,
        measures={
            "score": sum(one.score for one in checks) / len(checks),
            "latency_ms": observed.took_ms,
            "cost": observed.cost,
            "malformed": float(any(_malformed(step) for step in steps)),
        },
    )


def _shown_output(case: Case, observed: Observed) -> Any:
    """What stands for the output of cases that run no flow."""
    if case.kind == "replay" and not observed.raised:
        return {key: _twins(twins) for key, twins in sorted(observed.digests.items())}
    if case.kind == "retrieval" and not observed.raised:
        return [[key, round(score, SCORE_DIGITS)] for key, score in observed.hits]
    return observed.output


def _twins(twins: Mapping[str, str]) -> Any:
    """One digest where all agree, as they should."""
    return twins.get("", "") if len(set(twins.values())) == 1 else dict(sorted(twins.items()))


def _timeless(step: Step) -> dict[str, Any]:
    came = {name: value for name, value in step.came.items() if name != "age_ms"}
    return {"what": step.what, "name": step.name, "asked": step.asked, "came": came}


def _malformed(step: Step) -> bool:
    attempts = step.came.get("attempts", ())
    return isinstance(attempts, Iterable) and any(isinstance(one, Mapping) and one.get("invalid") for one in attempts)
