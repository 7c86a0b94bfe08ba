"""The checks of suites as the measure of shadow traffic."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.core.errors import ConfigError
from pipeline.evaluation.shadow_scores import measured_by
from pipeline.guard.values import ModelRequest, Result, ToolCall

GATE = {"type": "object", "properties": {"gate": {"type": "string"}}, "required": ["gate"]}
EXPECT = [
    {"check": "schema", "value": "gate"},
    {"check": "fields_allowed", "value": ["/gate", "/why"]},
    {"check": "citations", "path": "/why"},
]
FLIGHT = {"flight/1": {"gate": "B12", "note": "moved to B12 at noon"}}


def request(**data: Any) -> ModelRequest:
    return ModelRequest(task="gate", messages=[], data=data)


def result(output: Any, **more: Any) -> Result:
    return Result(**{"output": output, "rung": "primary", "reason": "", "attempts": (), **more})


MEASURE = measured_by(EXPECT, {"gate": GATE}, seen=lambda asked: asked.data["context"])


@pytest.mark.parametrize(
    ("output", "scores"),
    [
        ({"gate": "B12", "why": ["moved to B12"]}, {"schema": 1, "fields_allowed": 1, "citations": 1}),
        ({"gate": "B12", "why": ["moved to C3"]}, {"schema": 1, "fields_allowed": 1, "citations": 0}),
        ({"gate": 12, "why": ["noon"], "price": 3}, {"schema": 0, "fields_allowed": 0, "citations": 1}),
        ("B12", {"schema": 0, "fields_allowed": 0, "citations": 0}),
    ],
)
def test_each_check_has_its_score(output: Any, scores: dict[str, float]) -> None:
    found = dict(MEASURE(request(context=FLIGHT), result(output)))
    assert {name: found[name] for name in scores} == scores
    assert found["score"] == pytest.approx(sum(scores.values()) / 3)
    assert found["passed"] == float(all(scores.values()))


def test_an_answer_that_does_not_hold_has_nothing() -> None:
    found = MEASURE(request(context=FLIGHT), result(None, rung="escalated", reason="invalid_output"))
    assert dict(found) == {"schema": 0, "fields_allowed": 0, "citations": 0, "passed": 0, "score": 0}


def test_models_and_tool_calls_are_judged_as_json() -> None:
    class Gate(BaseModel):
        gate: str

    measure = measured_by([{"check": "equals", "path": "/gate", "value": "B12"}])
    assert measure(request(), result(Gate(gate="B12")))["passed"] == 1
    called = [{"check": "equals", "path": "/0/arguments/flight", "value": 1}]
    calls = (ToolCall("1", "move", {"flight": 1}),)
    assert measured_by(called)(request(), result(None, tool_calls=calls))["passed"] == 1


def test_two_checks_of_one_name_are_as_good_as_the_worse() -> None:
    twice = [{"check": "contains", "value": "a"}, {"check": "contains", "value": "b"}]
    found = measured_by(twice)(request(), result("only a"))
    assert (found["contains"], found["score"], found["passed"]) == (0, 0.5, 0)


def test_the_tasks_own_measure_stands_beside_them_and_goes_first() -> None:
    def own(asked: ModelRequest, came: Result) -> dict[str, float]:
        return {"score": 0.25, "own": 1.0}

    found = measured_by([{"check": "contains", "value": "a"}], also=own)(request(), result("a"))
    assert (found["score"], found["own"], found["contains"]) == (0.25, 1.0, 1.0)


@pytest.mark.parametrize(
    ("expect", "told"),
    [
        ([{"check": "contain", "value": "a"}], "there is no check 'contain'; did you mean contains?"),
        ([{"check": "schema", "value": "gaet"}], "gate"),
        ([{"check": "recall", "value": ["a"], "k": 1}], "recall"),
        ([{"chek": "equals"}], "expect.0"),
        ([], "expect"),
    ],
)
def test_what_is_wrong_with_the_checks_is_told_when_they_are_named(expect: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ConfigError, match="measure of a task: ") as caught:
        measured_by(expect, {"gate": GATE})
    assert told in str(caught.value)


def test_a_schema_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="measure of a task: schema 'gate'"):
        measured_by([{"check": "schema", "value": "gate"}], {"gate": {"type": "nothing"}})
