"""All checks by name: what is wrong with a case's expectations when it is read, and what each says when it has run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from pipeline.evaluation.checks import of_output, of_replay, of_trace
from pipeline.evaluation.checks.check import Check, Named
from pipeline.evaluation.checks.json_values import pointer_mistake
from pipeline.evaluation.values import Case, CheckResult, Expectation, Observed
from schemas.yaml_file import suggestion

CHECKS: Mapping[str, Check] = MappingProxyType(
    {check.name: check for module in (of_output, of_trace, of_replay) for check in module.CHECKS}
)
_KEYS = ("path", "value", "tolerance", "k")
RAISED = "raised_nothing"


def judged(case: Case, observed: Observed, suite: Named) -> tuple[CheckResult, ...]:
    """One result per expectation, in their order. What the flow raised fails a case that does not ask for it, too."""
    results = [CHECKS[one.check].judge(one, observed, suite) for one in case.expect]
    if observed.raised and RAISED not in {one.check for one in case.expect}:
        results.append(CheckResult(check=RAISED, passed=False, told=observed.raised, score=0.0))
    return tuple(results)


def expectation_mistakes(case: Case, suite: Named) -> Iterator[str]:
    """What is wrong with `expect`, each a sentence that begins with the check."""
    for position, expected in enumerate(case.expect):
        check = CHECKS.get(expected.check)
        if check is None:
            yield f"expect.{position}: there is no check {expected.check!r}{suggestion(expected.check, CHECKS)}"
            continue
        yield from (f"expect.{position} ({check.name}): {told}" for told in _mistakes(check, expected, case, suite))


def _mistakes(check: Check, expected: Expectation, case: Case, suite: Named) -> Iterator[str]:
    if case.kind not in check.kinds:
        yield f"a case of the kind {case.kind} can't have it, only {', '.join(check.kinds)}"
    given = expected.model_fields_set
    for key in _KEYS:
        if key in given and key not in check.takes:
            yield f"it takes no {key!r}, only {', '.join(check.takes) or 'its name'}"
    lacking = [key for key in check.needs if key not in given]
    yield from (f"{key!r} is missing" for key in lacking)
    if expected.path is not None and (told := pointer_mistake(expected.path)):
        yield told
    if not lacking:
        yield from check.wrong(expected, suite)
