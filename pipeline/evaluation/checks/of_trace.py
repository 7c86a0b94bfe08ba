"""Checks of what the flow did on its way: contexts fetched, tools called, models asked, rungs, time, metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluation.checks.check import FLOW_KINDS, Check, Named, failed, passed, verdict
from pipeline.evaluation.checks.json_values import includes, is_list, shown
from pipeline.evaluation.values import KINDS, CheckResult, Expectation, Observed, Step
from pipeline.guard.values import RUNGS
from schemas.yaml_file import suggestion

_WHATS = ("context", "search", "model", "tool")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def context_fetched(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    steps = [step for step in observed.steps if step.what in ("context", "search")]
    return _sequence(expected, steps, expected.value, _fetched)


def tools_called(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    steps = [step for step in observed.steps if step.what == "tool"]
    return _sequence(expected, steps, expected.value, _called)


def calls_max(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    for what, most in sorted(expected.value.items()):
        count = sum(step.what == what for step in observed.steps)
        if count > most:
            return failed(expected, f"{count} steps of {what}, at most {most} are expected")
    return passed(expected)


def rung(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    return _came(expected, observed, "model", "rung")


def reason(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    return _came(expected, observed, "model", "reason")


def status(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    return _came(expected, observed, "context", "status")


def escalated(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    came = any(step.what == "model" and step.came.get("rung") == "escalated" for step in observed.steps)
    if came is expected.value:
        return passed(expected)
    return failed(expected, "a person was asked" if came else "no person was asked")


def took_ms_max(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    late = observed.took_ms > expected.value
    return verdict(expected, f"it took {observed.took_ms:g} ms, at most {expected.value:g}" if late else "")


def took_ms_min(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    early = observed.took_ms < expected.value
    return verdict(expected, f"it took {observed.took_ms:g} ms, at least {expected.value:g}" if early else "")


def counted(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    metric, labels = expected.value["metric"], expected.value.get("labels", {})
    by = expected.value.get("by", 1)
    rose = sum(amount for series, amount in observed.counted.items() if _is_of(series, metric, labels))
    if math.isclose(rose, by, rel_tol=1e-9, abs_tol=1e-9):
        return passed(expected)
    return failed(expected, f"{metric} {shown(labels)} rose by {rose:g}, expected {by:g}")


def raised_nothing(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    return verdict(expected, observed.raised)


def _sequence(expected: Expectation, steps: Sequence[Step], wanted: Sequence[Any], fits: Any) -> CheckResult:
    came = [_told(step) for step in steps]
    for position, (want, step) in enumerate(zip(wanted, steps, strict=False), 1):
        if not fits(want, step):
            return failed(expected, f"number {position} is {came[position - 1]}, expected {shown(want)}")
    if len(steps) != len(wanted):
        more = shown(wanted[len(steps)]) if len(steps) < len(wanted) else came[len(wanted)]
        which = "the next expected is" if len(steps) < len(wanted) else "the first too many is"
        return failed(expected, f"{len(steps)} came, expected {len(wanted)}; {which} {more}")
    return passed(expected)


def _fetched(want: Any, step: Step) -> bool:
    if isinstance(want, str):
        name, _, key = want.partition("/")
        return step.name == name and (not key or _part(step, "key") == key)
    return step.name == want["context"] and all(
        includes(_part(step, key), value) for key, value in want.items() if key != "context"
    )


def _called(want: Any, step: Step) -> bool:
    if isinstance(want, str):
        return step.name == want
    return step.name == want["tool"] and includes(step.asked, want.get("arguments", {}))


def _part(step: Step, key: str) -> Any:
    """Of what was asked or came; what an option is called is found among the options, too."""
    for held in (step.asked, step.came):
        if key in held:
            return held[key]
    options = step.asked.get("options")
    return options.get(key) if isinstance(options, Mapping) else None


def _told(step: Step) -> str:
    key = _part(step, "key")
    if step.what == "tool":
        return f"{step.name}({shown(step.asked)})"
    came = {name: step.came[name] for name in ("status", "rung") if name in step.came}
    return f"{step.name}{'' if key is None else f'/{key}'}{f' {shown(came)}' if came else ''}"


def _came(expected: Expectation, observed: Observed, what: str, key: str) -> CheckResult:
    """A text: of the last such step; a list: of all in their order."""
    came = [step.came.get(key) for step in observed.steps if step.what == what]
    held = (came if is_list(expected.value) else came[-1:]) == (
        list(expected.value) if is_list(expected.value) else [expected.value]
    )
    told = f"{key} of {what} steps was {shown(came)}, expected {shown(expected.value)}"
    return verdict(expected, "" if held else told)


def _is_of(series: str, metric: str, labels: Mapping[str, Any]) -> bool:
    name, _, rest = series.partition("{")
    if name != metric:
        return False
    found = dict(_LABEL.findall(rest))
    return all(found.get(label) == str(value) for label, value in labels.items())


def _list_mistakes(expected: Expectation, name: str, example: str, keys: Sequence[str] | None) -> Iterator[str]:
    if not is_list(expected.value):
        yield f"value has to be the list of all in their order, such as {example}; [] for none"
        return
    for one in expected.value:
        if isinstance(one, str):
            continue
        if not isinstance(one, Mapping) or not isinstance(one.get(name), str):
            yield f"{shown(one)} is neither a name nor an object with {name!r}; write {example}"
        elif keys is not None:
            unknown = sorted(one.keys() - set(keys))
            yield from (f"{shown(one)} has the unknown key {key!r}{suggestion(key, keys)}" for key in unknown)


def _fetched_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    example = '["flight/2013-UA-1", {"context": "flight", "key": "…", "status": "stale"}]'
    yield from _list_mistakes(expected, "context", example, None)
    for one in expected.value if is_list(expected.value) else ():
        name = one.partition("/")[0] if isinstance(one, str) else one.get("context") if isinstance(one, Mapping) else ""
        if isinstance(name, str) and name and suite.specs and name not in suite.specs:
            yield f"the suite has no context {name!r}{suggestion(name, suite.specs)}"


def _called_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    example = '["look_up", {"tool": "rebook", "arguments": {"flight": "UA1"}}]'
    yield from _list_mistakes(expected, "tool", example, ("tool", "arguments"))


def _calls_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    if not isinstance(value, Mapping) or not value:
        yield 'value has to say how many of what, such as {"model": 2, "tool": 0}'
        return
    for what, most in value.items():
        if what not in _WHATS:
            yield f"there are no steps of {what!r}{suggestion(what, _WHATS)}"
        if isinstance(most, bool) or not isinstance(most, int) or most < 0:
            yield f"{what} has to be a count, not {shown(most)}"


def _rung_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    yield from _text_mistakes(expected, suite)
    for one in expected.value if is_list(expected.value) else [expected.value]:
        if isinstance(one, str) and one not in RUNGS:
            yield f"there is no rung {one!r}{suggestion(one, RUNGS)}"


def _text_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    if not isinstance(value, str) and not (is_list(value) and all(isinstance(one, str) for one in value)):
        yield f"value has to be that of the last step, or a list of all of them, not {shown(value)}"


def _bool_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    if not isinstance(expected.value, bool):
        yield f"value has to be true or false, not {shown(expected.value)}"


def _ms_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    if isinstance(expected.value, bool) or not isinstance(expected.value, int | float) or expected.value < 0:
        yield f"value has to be milliseconds, not {shown(expected.value)}"


def _counted_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    example = 'such as {"metric": "ctxpipe_guard_attempts_total", "labels": {"reason": "timeout"}, "by": 1}'
    if not isinstance(value, Mapping) or not isinstance(value.get("metric"), str):
        yield f"value has to name a metric, {example}"
        return
    known = ("metric", "labels", "by")
    yield from (f"unknown key {key!r}{suggestion(key, known)}" for key in sorted(value.keys() - set(known)))
    if not isinstance(value.get("labels", {}), Mapping):
        yield f"labels have to be an object, {example}"
    if isinstance(value.get("by", 1), bool) or not isinstance(value.get("by", 1), int | float):
        yield f"by has to be a number, {example}"


CHECKS = (
    Check("context_fetched", FLOW_KINDS, context_fetched, ("value",), ("value",), _fetched_mistakes),
    Check("tools_called", FLOW_KINDS, tools_called, ("value",), ("value",), _called_mistakes),
    Check("calls_max", FLOW_KINDS, calls_max, ("value",), ("value",), _calls_mistakes),
    Check("rung", FLOW_KINDS, rung, ("value",), ("value",), _rung_mistakes),
    Check("reason", FLOW_KINDS, reason, ("value",), ("value",), _text_mistakes),
    Check("status", FLOW_KINDS, status, ("value",), ("value",), _text_mistakes),
    Check("escalated", FLOW_KINDS, escalated, ("value",), ("value",), _bool_mistakes),
    Check("took_ms_max", FLOW_KINDS, took_ms_max, ("value",), ("value",), _ms_mistakes),
    Check("took_ms_min", FLOW_KINDS, took_ms_min, ("value",), ("value",), _ms_mistakes),
    Check("counted", FLOW_KINDS, counted, ("value",), ("value",), _counted_mistakes),
    Check("raised_nothing", KINDS, raised_nothing),
)
