"""Results and runs as a suite would give them, for tests of what comes after: gate, baseline, reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.values import CaseResult, CheckResult, Kind, Run


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def result(
    name: str,
    *,
    passed: bool = True,
    output: Any = None,
    kind: Kind = "output",
    group: str = "acme",
    case: str = "as written",
    scores: Mapping[str, float] | None = None,
    told: str = "expected another value",
    latency_ms: float = 5.0,
) -> CaseResult:
    """`case`: stands for the line of the suite, `scores`: of graded checks that all keep their floor."""
    value = {"answer": name} if output is None else output
    checks = (
        CheckResult(check="equals", passed=passed, told="" if passed else told, score=float(passed)),
        *(CheckResult(check=check, passed=True, score=score) for check, score in (scores or {}).items()),
    )
    score = sum(check.score for check in checks) / len(checks)
    return CaseResult(
        id=name,
        kind=kind,
        group=group,
        tags=(),
        digest=sha(f"{name} {case}"),
        passed=passed,
        checks=checks,
        output=value,
        output_digest=sha(f"{value!r}{passed}{scores}"),
        measures={"score": score, "latency_ms": latency_ms, "cost": None, "malformed": 0.0},
    )


def run_of(
    results: Sequence[CaseResult],
    *,
    fixtures: Mapping[str, str] | None = None,
    harness: Sequence[str] = (),
    **other: Any,
) -> Run:
    return Run(
        suite="flights",
        digest=sha("".join(one.output_digest for one in results)),
        flow="tests:flow",
        models={"rebook": "large gpt-4o 2026-01"} | other.pop("models", {}),
        fixtures={"events/a.jsonl": sha("a")} if fixtures is None else fixtures,
        results=tuple(results),
        harness=tuple(harness),
        seconds=1.5,
        **other,
    )
