"""Pairs of shadow traffic judged by the checks of suites: the same rules for a case in a pull request and live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import ConfigError
from pipeline.evaluation.checks import CHECKS, expectation_mistakes
from pipeline.evaluation.checks.of_output import schema_mistake
from pipeline.evaluation.values import Case, Expectation, Observed
from pipeline.guard.routing.pairs import Score
from pipeline.guard.values import ModelRequest, Result

Seen = Callable[[ModelRequest], Mapping[str, Any]]
"""Of a request, what citations must be in: by `context/key`, as the application put it into the prompt."""


@dataclass(frozen=True)
class _Names:
    schemas: Mapping[str, Any]
    specs: Mapping[str, Any] = field(default_factory=dict)


def measured_by(
    expect: Sequence[Mapping[str, Any]],
    schemas: Mapping[str, Any] | None = None,
    *,
    seen: Seen | None = None,
    also: Score | None = None,
) -> Score:
    """A task's measure of the checks of a case of the kind "output", as they stand under `expect` in a suite: `score`
    is the mean of theirs, `passed` 1 where all hold, and each check has its own by its name. An answer that does not
    hold has 0 in all of them. `schemas`: JSON Schemas by the name that checks use. `also`: the task's own measure;
    its values stand beside these, and where it has a `score`, that one counts.

    Raises ConfigError with everything that is wrong with the checks.
    """
    names = _Names(schemas or {})
    expectations = _read(expect, names)

    def score(request: ModelRequest, result: Result) -> Mapping[str, float]:
        observed = Observed(output=_plain(result), seen={} if seen is None else seen(request))
        judged = [CHECKS[one.check].judge(one, observed, names) for one in expectations] if result.answered else []
        found = {one.check: 0.0 for one in expectations}
        for check in {one.check for one in judged}:
            found[check] = min(one.score for one in judged if one.check == check)
        found["passed"] = float(bool(judged) and all(one.passed for one in judged))
        found["score"] = sum(one.score for one in judged) / len(judged) if judged else 0.0
        return {**found, **(also(request, result) if also is not None else {})}

    return score


def _read(expect: Sequence[Mapping[str, Any]], names: _Names) -> tuple[Expectation, ...]:
    mistakes = [
        f"schema {name!r}: {told}" for name, one in names.schemas.items() if (told := schema_mistake(name, one))
    ]
    try:
        case = Case.model_validate({"id": "shadow", "kind": "output", "expect": list(expect)})
        mistakes += expectation_mistakes(case, names)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        mistakes += [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong]
    if mistakes:
        raise ConfigError([f"measure of a task: {one}" for one in mistakes])
    return case.expect


def _plain(result: Result) -> Any:
    """The output as JSON has it; of tool calls their names and arguments."""
    if result.tool_calls:
        return [{"tool": call.name, "arguments": dict(call.arguments)} for call in result.tool_calls]
    return result.output.model_dump(mode="json") if isinstance(result.output, BaseModel) else result.output
