"""Every check: what it lets pass, what it fails and in which words, and which expectations make no sense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pipeline.evaluation.checks import CHECKS, expectation_mistakes, judged
from pipeline.evaluation.checks.json_values import MISSING, at, first_difference, same
from pipeline.evaluation.digests import canonical, digest_of
from pipeline.evaluation.values import Case, CheckResult, Observed, Step


@dataclass
class Named:
    schemas: Mapping[str, Any] = field(default_factory=lambda: {"reply": {"type": "object", "required": ["answer"]}})
    specs: Mapping[str, Any] = field(default_factory=lambda: {"order": object(), "customer": object()})


def check(observed: Observed, kind: str = "output", **expected: Any) -> CheckResult:
    case = Case.model_validate({"id": "c", "kind": kind, "expect": [expected]})
    wrong = list(expectation_mistakes(case, Named()))
    assert not wrong, wrong
    (result,) = judged(case, observed, Named())
    assert bool(result.told) is not result.passed, result
    return result


def wrong(kind: str = "output", **expected: Any) -> str:
    case = Case.model_validate({"id": "c", "kind": kind, "expect": [expected]})
    return "\n".join(expectation_mistakes(case, Named()))


OUTPUT = {
    "answer": "It comes on 5 May.",
    "amount": 40.0,
    "paid": True,
    "none": None,
    "citations": [{"source": "order/1", "quote": "5 May"}],
    "detail": {"a/b": 1, "list": [{"x": 1, "y": 2}, {"x": 3}], "7": "seven", "empty": {}},
}
SEEN = {"order/1": {"delivery": "5 May", "total": 40, "items": [{"name": "pen"}]}, "customer/7": {"name": "Ada"}}


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        ({"check": "equals", "path": "/amount", "value": 40}, ""),
        ({"check": "equals", "path": "/detail/list/1", "value": {"x": 3}}, ""),
        ({"check": "equals", "path": "/detail/a~1b", "value": 1}, ""),
        ({"check": "equals", "path": "/none", "value": None}, ""),
        ({"check": "equals", "value": OUTPUT}, ""),
        ({"check": "equals", "path": "/paid", "value": 1}, "/paid: expected 1, came true"),
        ({"check": "equals", "path": "/amount", "value": "40"}, '/amount: expected "40", came 40.0'),
        ({"check": "equals", "path": "/nowhere", "value": None}, "/nowhere: expected null, came nothing"),
        ({"check": "equals", "path": "/detail/list/2", "value": 1}, "came nothing"),
        ({"check": "equals", "path": "/detail/list/-1", "value": 1}, "came nothing"),
        ({"check": "equals", "path": "/detail/list/01", "value": {"x": 3}}, "came nothing"),
        ({"check": "equals", "path": "/answer/0", "value": "I"}, "came nothing"),
        (
            {"check": "equals", "path": "/detail", "value": {**OUTPUT["detail"], "list": [{"x": 1, "y": 2}, {"x": 4}]}},
            "/detail/list/1/x: expected 4, came 3",
        ),
        ({"check": "contains", "path": "/answer", "value": "5 May"}, ""),
        ({"check": "contains", "path": "/answer", "value": ["It", "May"]}, ""),
        ({"check": "contains", "path": "/answer", "value": ["It", "June"]}, 'does not contain "June"'),
        ({"check": "contains", "path": "/answer", "value": 5}, "does not contain 5"),
        ({"check": "contains", "path": "/detail/list", "value": {"x": 1}}, ""),
        ({"check": "contains", "path": "/detail/list", "value": {"x": 2}}, 'has no element {"x": 2}'),
        ({"check": "contains", "path": "/detail", "value": {"7": "seven"}}, ""),
        ({"check": "contains", "path": "/detail", "value": {"7": "eight"}}, "does not include"),
        ({"check": "contains", "path": "/paid", "value": True}, "does not include"),
        ({"check": "contains", "path": "/nowhere", "value": "x"}, "nothing does not include"),
        ({"check": "absent", "path": "/secret"}, ""),
        ({"check": "absent", "path": "/none"}, "/none should not be there, and is null"),
        ({"check": "absent", "value": ["acme", "4000"]}, ""),
        ({"check": "absent", "value": "citat"}, '["citat"] must not occur'),
        ({"check": "absent", "value": "40.0"}, '["40.0"] must not occur'),
        ({"check": "absent", "path": "/detail", "value": "May"}, ""),
        ({"check": "matches", "path": "/answer", "value": r"^It comes on \d+ \w+\.$"}, ""),
        ({"check": "matches", "path": "/answer", "value": r"^on"}, "does not match"),
        ({"check": "matches", "path": "/amount", "value": "40"}, "/amount is 40.0, no text"),
        ({"check": "number", "path": "/amount", "value": 40}, ""),
        ({"check": "number", "path": "/amount", "value": 41, "tolerance": 1}, ""),
        ({"check": "number", "path": "/amount", "value": 41, "tolerance": 0.5}, "/amount is 40.0, expected 41 ± 0.5"),
        ({"check": "number", "path": "/paid", "value": 1}, "/paid is true, no number"),
        ({"check": "number", "path": "/none", "value": 0}, "no number"),
        ({"check": "schema", "value": "reply"}, ""),
        ({"check": "schema", "path": "/detail", "value": "reply"}, "it does not fit the schema reply"),
        ({"check": "schema", "path": "/nowhere", "value": "reply"}, "there is nothing at /nowhere"),
        (
            {
                "check": "fields_allowed",
                "value": ["/answer", "/amount", "/paid", "/none", "/citations/*", "/detail/**"],
            },
            "",
        ),
        (
            {"check": "fields_allowed", "value": ["/answer", "/citations/source", "/detail/*"]},
            "outside of the allow-list: /amount, /citations/quote, /detail/list/x, /detail/list/y, /none",
        ),
        ({"check": "fields_allowed", "path": "/detail", "value": ["/a~1b", "/7", "/list/x", "/list/y"]}, "/a/b"),
        ({"check": "fields_allowed", "path": "/detail/empty", "value": ["/more"]}, ""),
        ({"check": "fields_allowed", "path": "/citations", "value": ["/source/inner", "/quote"]}, "/source"),
        ({"check": "citations", "path": "/citations"}, ""),
        ({"check": "citations", "path": "/citations", "value": 2}, "it cites 1 times, expected at least 2"),
        ({"check": "citations", "path": "/answer"}, "no list of citations"),
    ],
)
def test_checks_of_an_output(expected: dict[str, Any], told: str) -> None:
    result = check(Observed(output=OUTPUT, seen=SEEN), **expected)
    assert result.passed is (told == ""), result
    assert told in result.told
    assert result.score == float(result.passed)


@pytest.mark.parametrize(
    ("citation", "told"),
    [
        ("5 May", ""),
        ("Ada", ""),
        ("40", ""),
        ({"source": "order/1", "pointer": "/total", "value": 40}, ""),
        ({"source": "order/1", "pointer": "/items", "quote": "pen"}, ""),
        ({"source": "order/1", "pointer": ""}, "has nothing at"),
        ("6 May", '"6 May" is in nothing that was seen'),
        ("  ", "is in nothing that was seen"),
        ("", "is in nothing that was seen"),
        (7, "7 is no citation"),
        ({"quote": "5 May"}, "is no citation"),
        ({"source": "order/2", "quote": "5 May"}, "order/2 was not seen; did you mean order/1?"),
        ({"source": "order/1", "quote": "Ada"}, '"Ada" is not in order/1'),
        ({"source": "order/1", "pointer": "/items/0/name", "quote": "5 May"}, "is not in order/1/items/0/name"),
        ({"source": "order/1", "pointer": "/items/1"}, 'order/1 has nothing at "/items/1"'),
        ({"source": "order/1", "pointer": "/total", "value": 41}, "order/1/total is 40, not 41"),
        ({"source": "order/1"}, "order/1 is cited without a pointer or a quote"),
    ],
)
def test_a_citation_exists_in_what_was_seen(citation: Any, told: str) -> None:
    result = check(Observed(output=[citation], seen=SEEN), check="citations")
    assert result.passed is (told == ""), result
    assert told in result.told


STEPS = (
    Step(what="context", name="order", asked={"key": "1", "options": {"budget_ms": 50}}, came={"status": "stale"}),
    Step(what="model", name="answer", came={"rung": "primary", "reason": ""}),
    Step(what="search", name="customer", asked={"text": "Ada"}, came={"status": "fresh"}),
    Step(what="tool", name="refund", asked={"order": "1", "amount": 40}, came={"value": {"done": True}}),
    Step(what="context", name="customer", asked={"key": "7"}, came={"status": "fresh", "rung": "store"}),
    Step(what="tool", name="mail", asked={"to": {"name": "Ada", "id": 7}}),
    Step(what="model", name="answer", came={"rung": "escalated", "reason": "timeout"}),
)
COUNTED = {
    'ctxpipe_guard_attempts_total{endpoint="large",reason="timeout"}': 2.0,
    'ctxpipe_guard_attempts_total{endpoint="here",reason=""}': 1.0,
    'ctxpipe_guard_attempts_total{endpoint="a\\"b",reason="timeout"}': 1.0,
}


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        ({"check": "context_fetched", "value": ["order/1", "customer", {"context": "customer", "rung": "store"}]}, ""),
        ({"check": "context_fetched", "value": ["order", "customer", {"context": "customer", "key": "7"}]}, ""),
        (
            {"check": "context_fetched", "value": [{"context": "order", "budget_ms": 50}, "customer", "customer/7"]},
            "",
        ),
        (
            {"check": "context_fetched", "value": ["order", "customer"]},
            "3 came, expected 2; the first too many is cust",
        ),
        ({"check": "context_fetched", "value": ["order/2", "customer", "customer"]}, "number 1 is order/1"),
        (
            {"check": "context_fetched", "value": ["order", "customer", "customer", "order/1"]},
            '3 came, expected 4; the next expected is "order/1"',
        ),
        (
            {"check": "context_fetched", "value": [{"context": "order", "status": "fresh"}, "customer", "customer"]},
            "number 1 is order/1",
        ),
        ({"check": "tools_called", "value": ["refund", "mail"]}, ""),
        ({"check": "tools_called", "value": [{"tool": "refund", "arguments": {"amount": 40}}, "mail"]}, ""),
        ({"check": "tools_called", "value": ["refund", {"tool": "mail", "arguments": {"to": {"id": 7}}}]}, ""),
        ({"check": "tools_called", "value": ["mail", "refund"]}, "number 1 is refund("),
        ({"check": "tools_called", "value": [{"tool": "refund", "arguments": {"amount": 41}}, "mail"]}, "number 1 is"),
        ({"check": "tools_called", "value": []}, "2 came, expected 0"),
        ({"check": "calls_max", "value": {"model": 2, "context": 2, "search": 1, "tool": 2}}, ""),
        ({"check": "calls_max", "value": {"model": 1}}, "2 steps of model, at most 1 are expected"),
        ({"check": "rung", "value": "escalated"}, ""),
        ({"check": "rung", "value": ["primary", "escalated"]}, ""),
        ({"check": "rung", "value": "primary"}, 'rung of model steps was ["primary", "escalated"]'),
        ({"check": "rung", "value": ["escalated"]}, "expected"),
        ({"check": "reason", "value": "timeout"}, ""),
        ({"check": "reason", "value": ["", "timeout"]}, ""),
        ({"check": "reason", "value": ""}, "expected"),
        ({"check": "status", "value": "fresh"}, ""),
        ({"check": "status", "value": ["stale", "fresh"]}, ""),
        ({"check": "status", "value": "stale"}, "status of context steps was"),
        ({"check": "escalated", "value": True}, ""),
        ({"check": "escalated", "value": False}, "a person was asked"),
        ({"check": "took_ms_max", "value": 250}, ""),
        ({"check": "took_ms_max", "value": 249.9}, "it took 250 ms, at most 249.9"),
        ({"check": "took_ms_min", "value": 250}, ""),
        ({"check": "took_ms_min", "value": 251}, "at least 251"),
        ({"check": "counted", "value": {"metric": "ctxpipe_guard_attempts_total", "by": 4}}, ""),
        (
            {"check": "counted", "value": {"metric": "ctxpipe_guard_attempts_total", "labels": {"endpoint": "here"}}},
            "",
        ),
        (
            {
                "check": "counted",
                "value": {"metric": "ctxpipe_guard_attempts_total", "labels": {"reason": "timeout"}, "by": 2},
            },
            "rose by 3, expected 2",
        ),
        ({"check": "counted", "value": {"metric": "ctxpipe_guard_attempts", "by": 0}}, ""),
        ({"check": "raised_nothing"}, ""),
    ],
)
def test_checks_of_a_trace(expected: dict[str, Any], told: str) -> None:
    result = check(Observed(output={}, steps=STEPS, counted=COUNTED, took_ms=250.0), "trace", **expected)
    assert result.passed is (told == ""), result
    assert told in result.told


def test_nothing_came_where_something_was_expected() -> None:
    for name in ("rung", "reason", "status"):
        assert not check(Observed(output={}), check=name, value="fresh" if name == "status" else "local").passed
        assert check(Observed(output={}), check=name, value=[]).passed


ONE, OTHER = "1" * 64, "2" * 64
DIGESTS = {
    "order/1": {"": ONE, "redelivered": ONE},
    "order/2": {"": "", "redelivered": ""},
    "order!dead_letters": {"": "1 × bad", "redelivered": "1 × bad"},
}
VALUE = {"order/1": ONE, "order/2": "", "order!dead_letters": "1 × bad"}


@pytest.mark.parametrize(
    ("digests", "value", "told"),
    [
        (DIGESTS, VALUE, ""),
        (DIGESTS, None, ""),
        (DIGESTS, digest_of(VALUE), ""),
        (DIGESTS, OTHER, "all 3 bundles together are"),
        ({**DIGESTS, "order/1": {"": ONE, "restarted": OTHER}}, VALUE, "order/1 differs when restarted: 222222222222…"),
        ({**DIGESTS, "order/2": {"": "", "restarted": OTHER}}, None, "order/2 differs when restarted"),
        (DIGESTS, {**VALUE, "order/1": OTHER}, "order/1 is 111111111111…, expected 222222222222…"),
        (DIGESTS, {**VALUE, "order/2": OTHER}, "order/2 is deleted, expected"),
        (DIGESTS, {**VALUE, "order/3": OTHER}, "order/3 is not there; did you mean"),
        (
            DIGESTS,
            {key: one for key, one in VALUE.items() if key != "order/2"},
            "order/2 is there, and is not expected",
        ),
        ({f"order/{n}": {"": ONE} for n in range(9)}, {}, "; and 6 more"),
    ],
)
def test_bundles_of_a_replay(digests: Any, value: Any, told: str) -> None:
    expected = {"check": "bundles"} if value is None else {"check": "bundles", "value": value}
    result = check(Observed(digests=digests), "replay", **expected)
    assert result.passed is (told == ""), result
    assert told in result.told


HITS = (("b", 0.9), ("a", 0.5), ("c", 0.5), ("d", 0.1))


def test_recall_and_ndcg_are_scores_with_a_floor() -> None:
    observed = Observed(hits=HITS)
    found = check(observed, "retrieval", check="recall", value={"relevant": ["a", "x"], "floor": 0.5}, k=2)
    assert (found.passed, found.score) == (True, 0.5)
    found = check(observed, "retrieval", check="recall", value={"relevant": ["a", "x"], "floor": 0.6}, k=2)
    assert (found.passed, found.score) == (False, 0.5)
    assert found.told == "recall@2 is 0.5000, at least 0.6 is expected"
    found = check(observed, "retrieval", check="ndcg", value={"relevant": {"b": 3, "a": 1}}, k=2)
    assert found.score == 1.0
    found = check(observed, "retrieval", check="ndcg", value={"relevant": {"a": 3, "b": 1}, "floor": 0.9}, k=2)
    best, came = 3 + 1 / math.log2(3), 1 + 3 / math.log2(3)
    assert found.score == pytest.approx(came / best)
    assert not found.passed
    twice = Observed(hits=(("a", 0.9), ("a", 0.9)))
    assert "found twice" in check(twice, "retrieval", check="recall", value={"relevant": ["a"]}).told


def test_the_order_of_hits_is_exact_and_ties_are_by_key() -> None:
    observed = Observed(hits=HITS)
    assert check(observed, "retrieval", check="order", value=["b", "a", "c"]).passed
    assert 'hit 2 is "a", expected "c"' in check(observed, "retrieval", check="order", value=["b", "c", "a"]).told
    assert "hit 5 is nothing" in check(observed, "retrieval", check="order", value=["b", "a", "c", "d", "e"]).told
    tied = Observed(hits=(("c", 0.5), ("a", 0.5)))
    assert "c and a have the same score" in check(tied, "retrieval", check="order", value=["c", "a"]).told
    assert check(observed, "retrieval", check="order", value=[], k=None).passed
    assert not check(observed, "retrieval", check="absent", value=["a"]).passed
    assert check(observed, "retrieval", check="absent", value=["z"]).passed


def test_what_a_flow_raises_fails_a_case_that_does_not_ask() -> None:
    case = Case.model_validate({"id": "c", "kind": "output", "expect": [{"check": "absent", "path": "/a"}]})
    results = judged(case, Observed(raised="ValueError: no"), Named())
    assert [(one.check, one.passed, one.told) for one in results][1] == ("raised_nothing", False, "ValueError: no")
    assert not check(Observed(raised="ValueError: no"), check="raised_nothing").passed


@pytest.mark.parametrize(
    ("kind", "expected", "told"),
    [
        ("output", {"check": "equals"}, "expect.0 (equals): 'value' is missing"),
        ("output", {"check": "equals", "value": 1, "k": 3}, "it takes no 'k', only path, value"),
        ("output", {"check": "equals", "path": "a.b", "value": 1}, "'a.b' is no JSON Pointer; write /a/b"),
        ("output", {"check": "equals", "path": "/a~b", "value": 1}, "a ~ in a name is written ~0"),
        ("output", {"check": "absent"}, "it needs a path where nothing may be"),
        ("output", {"check": "absent", "value": [1]}, "a text or a list of texts"),
        ("output", {"check": "matches", "value": "("}, "'(' is no regular expression"),
        ("output", {"check": "number", "value": True}, "value has to be a number, not true"),
        ("output", {"check": "schema", "value": "repyl"}, 'there is none "repyl"; did you mean reply?'),
        ("output", {"check": "fields_allowed", "value": ["a"]}, "a list of pointers"),
        ("output", {"check": "citations", "value": -1}, "how many citations"),
        ("trace", {"check": "context_fetched", "value": "order"}, "the list of all in their order"),
        ("trace", {"check": "context_fetched", "value": ["ordre/1"]}, "no context 'ordre'; did you mean order?"),
        ("trace", {"check": "context_fetched", "value": [{"key": "1"}]}, "neither a name nor an object with 'context'"),
        (
            "trace",
            {"check": "tools_called", "value": [{"tool": "a", "args": {}}]},
            "unknown key 'args'; did you mean ar",
        ),
        ("trace", {"check": "calls_max", "value": {"models": 1}}, "no steps of 'models'; did you mean model?"),
        ("trace", {"check": "calls_max", "value": {"model": 1.5}}, "model has to be a count"),
        ("trace", {"check": "rung", "value": "locale"}, "there is no rung 'locale'; did you mean local?"),
        ("trace", {"check": "escalated", "value": 1}, "true or false"),
        ("latency", {"check": "took_ms_max", "value": "10"}, "milliseconds"),
        (
            "trace",
            {"check": "counted", "value": {"metric": "m", "label": {}}},
            "unknown key 'label'; did you mean labels?",
        ),
        ("trace", {"check": "counted", "value": "m"}, "value has to name a metric"),
        (
            "replay",
            {"check": "bundles", "value": {"ordre/1": ONE}},
            "names no context of the suite; did you mean order?",
        ),
        ("replay", {"check": "bundles", "value": {"order/1": "abc"}}, "a sha256 of 64 hex digits"),
        ("replay", {"check": "bundles", "value": 5}, "value has to be the digest of all bundles together"),
        ("replay", {"check": "equals", "value": 5}, "a case of the kind replay can't have it"),
        ("retrieval", {"check": "recall", "value": ["a"]}, 'such as {"relevant"'),
        ("retrieval", {"check": "recall", "value": {"relevant": []}}, "nothing is relevant"),
        ("retrieval", {"check": "ndcg", "value": {"relevant": {"a": -1}}}, "not negative"),
        ("retrieval", {"check": "ndcg", "value": {"relevant": ["a"], "floor": 2}}, "between 0 and 1"),
        (
            "retrieval",
            {"check": "ndcg", "value": {"relevant": ["a"], "flor": 1}},
            "unknown key 'flor'; did you mean floor",
        ),
        ("retrieval", {"check": "order", "value": [1]}, "the keys of the first hits"),
    ],
)
def test_expectations_that_make_no_sense_are_told_before_anything_runs(kind: str, expected: Any, told: str) -> None:
    assert told in wrong(kind, **expected)


def test_every_check_is_tried_here() -> None:
    source = Path(__file__).read_text()
    assert [name for name in CHECKS if f'"check": "{name}"' not in source and f'check="{name}"' not in source] == []


json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | some.text(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, json_values)
def test_same_and_the_first_difference_are_of_one_mind(one: Any, other: Any) -> None:
    assert same(one, one)
    assert first_difference(one, one) == ""
    assert same(one, other) is same(other, one)
    assert same(one, other) is (first_difference(one, other) == "")


@given(some.dictionaries(some.text(max_size=5), json_values, max_size=4))
def test_every_part_is_at_its_pointer(value: Any) -> None:
    for key, inner in value.items():
        assert at(value, "/" + key.replace("~", "~0").replace("/", "~1")) is inner
    assert at(value, "/" + "x" * 6) is MISSING


@given(json_values)
def test_canonical_text_is_one_whatever_the_order_of_keys(value: Any) -> None:
    def turned(one: Any) -> Any:
        if isinstance(one, dict):
            return {key: turned(one[key]) for key in reversed(one)}
        return [turned(inner) for inner in one] if isinstance(one, list) else one

    try:
        text = canonical(value)
    except ValueError as error:
        assert "surrogate" in str(error)
        return
    assert canonical(turned(value)) == text


itself: list[Any] = []
itself.append(itself)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": float("nan")}, "/a is nan, which JSON can't hold"),
        ({1: 2}, "it has the key 1, which is no text"),
        ({"a": [object()]}, "/a/0 is a object, which JSON can't hold"),
        ({"a": b"x"}, "/a is a bytes"),
        ("\ud800", "half of a surrogate pair"),
        (itself, "nested deeper than 200 levels, or holds itself"),
    ],
)
def test_what_json_can_not_hold_has_no_canonical_text(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        canonical(value)
