"""What a look at live models means: steady, worse, not to be told, or nothing decided; and what is shown of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pipeline.evaluation.drift import Drift, answer_ms, judged, other_answers, other_models
from pipeline.evaluation.models import Recording, Recordings, recording_of
from pipeline.evaluation.values import CaseResult, CheckResult
from pipeline.guard.config import Endpoint
from pipeline.guard.faults.answers import completion
from pipeline.guard.values import RawAnswer

ENDPOINT = Endpoint(name="large", url="http://h/v1", model="gpt-4o")


def result(name: str, score: float = 1.0, group: str | None = None, **measures: Any) -> CaseResult:
    told = "" if score == 1.0 else f"expected 1, came {score:g}"
    return CaseResult(
        id=name,
        kind="trace",
        group=group or name,
        tags=(),
        digest="d" + name,
        passed=score == 1.0,
        checks=(CheckResult(check="equals", passed=score == 1.0, told=told, score=score),),
        output=None,
        output_digest="o",
        measures={"score": score, "latency_ms": 100.0, "cost": 0.001, "malformed": 0.0, **measures},
    )


def results(scores: Sequence[float], **more: Any) -> dict[str, CaseResult]:
    return {f"c{number:03}": result(f"c{number:03}", score, **more) for number, score in enumerate(scores)}


def drift(past: Mapping[str, CaseResult], *draws: Mapping[str, CaseResult], **more: Any) -> Drift:
    given = {"cases": len(past), "lost": {}, "metric": "score", "margin_points": 5.0, **more}
    return judged("s", past, draws, **given)


def test_the_same_everywhere_is_steady_even_of_few() -> None:
    found = drift(results([1, 1, 0.5]), results([1, 1, 0.5]))
    assert (found.verdict, found.exit_code, found.pairs, found.difference) == ("steady", 0, 3, 0.0)


def test_many_that_fell_are_worse_and_named_with_what_failed() -> None:
    found = drift(results([1] * 100), results([0] * 12 + [1] * 88))
    assert (found.verdict, found.exit_code) == ("worse", 1)
    assert found.difference == pytest.approx(-12) and found.p_worse is not None and found.p_worse < 0.001
    assert [one.id for one in found.fell] == [f"c{number:03}" for number in range(12)] and found.rose == ()
    assert found.fell[0].told == "expected 1, came 0"


def test_little_of_much_is_steady_within_the_margin_and_little_of_few_can_not_be_told() -> None:
    many = [0, 0, 0] + [1] * 397
    assert drift(results([1] * 400), results(many)).verdict == "steady"
    found = drift(results([1] * 20), results([0, 0, 0] + [1] * 17))
    assert (found.verdict, found.exit_code) == ("inconclusive", 2)
    assert "which may be chance" in found.why
    assert drift(results([1] * 400), results(many), margin_points=0.1).verdict == "inconclusive"
    slow = drift(results([1] * 60), results([0.9] * 4 + [1] * 56))
    assert slow.verdict == "steady" and slow.low is not None and slow.low < -5, "and the bound is told all the same"


def test_better_is_no_drift_to_be_woken_for() -> None:
    found = drift(results([0] * 30 + [1] * 70), results([1] * 100))
    assert found.verdict == "steady" and len(found.rose) == 30 and found.difference == pytest.approx(30)


def test_draws_are_averaged_before_they_are_compared() -> None:
    """A model that is right every other time is half as good, not right or wrong by the draw."""
    chance = random.Random(8)
    draws = [results([float(chance.random() < 0.5) for _ in range(60)]) for _ in range(8)]
    found = drift(results([1] * 60), *draws)
    assert found.verdict == "worse" and found.draws == 8
    assert found.now_mean is not None and 35 < found.now_mean < 65
    assert {one.now for one in found.fell} <= {number / 8 for number in range(8)}


def test_cases_of_one_group_are_not_taken_as_independent() -> None:
    """Twelve that fell for one reason, all of one tenant: one thing happened, not twelve."""
    alone = drift(results([1] * 60), results([0] * 12 + [1] * 48))
    groups = {f"c{number:03}": "acme" if number < 12 else f"t{number}" for number in range(60)}
    past = {name: result(name, 1.0, group) for name, group in groups.items()}
    now = {name: result(name, 0.0 if group == "acme" else 1.0, group) for name, group in groups.items()}
    together = drift(past, now)
    assert alone.verdict == "worse" and together.verdict == "inconclusive"


def test_other_metrics_and_what_they_cost() -> None:
    past = results([1] * 50)
    now = results([1] * 50, latency_ms=150.0, cost=None, malformed=1.0)
    found = drift(past, now, metric="check:equals")
    assert found.verdict == "steady" and found.measures["latency_ms"] == (100.0, 150.0)
    assert found.measures["malformed"] == (0.0, 1.0)
    assert found.measures["cost"] == (pytest.approx(0.001), None), "unknown is never 0"
    assert drift(past, results([0.5] * 50), metric="passed").now_mean == 0.0


def test_too_many_lost_decide_nothing() -> None:
    lost = {f"c{number:03}": "the endpoint large gave no answer" for number in range(11)}
    found = drift(results([1] * 89), results([1] * 89), cases=100, lost=lost)
    assert (found.verdict, found.exit_code) == ("undecided", 3)
    assert "11 of 100 cases could not be compared; the first is c000: the endpoint large" in found.why
    few = dict(list(lost.items())[:10])
    assert drift(results([1] * 90), results([1] * 90), cases=100, lost=few).verdict == "steady"
    assert drift({}, {}, cases=1, lost={}).verdict == "undecided"


def said(question: str, text: str, model: str = "gpt-4o-2024-08-06") -> Recording:
    body = completion(text).replace(b'"scripted"', f'"{model}"'.encode())
    return recording_of({"messages": [question]}, ENDPOINT, RawAnswer(status=200, body=body), task="t")


def test_other_words_and_another_model_under_the_same_name_are_told() -> None:
    past = Recordings([said("a", "yes"), said("b", "no"), said("old", "never asked now", "gone")])
    same = [said("a", "yes"), said("b", "no")]
    assert other_answers(past, same) == 0.0 and other_models(past, same) == ()
    now = [said("a", "yes", "gpt-4o-2026-01-01"), said("b", "perhaps"), said("new", "was not asked then")]
    assert other_answers(past, now) == 0.5
    (other,) = other_models(past, now)
    assert (other.endpoint, other.past) == ("large", ("gpt-4o-2024-08-06",))
    assert other.now == ("gpt-4o-2024-08-06", "gpt-4o-2026-01-01")
    assert other_answers(past, [said("new", "x")]) is None


def test_how_long_answers_took_is_told_of_those_that_came_both_times() -> None:
    def took(question: str, seconds: float, **more: Any) -> Recording:
        one = said(question, "yes")
        return replace(one, answer=replace(one.answer, took_s=seconds, **more))

    past = Recordings([took("a", 0.5), took("b", 1.5), took("c", 9.0, failure="reset")])
    now = [took("a", 1.0), took("b", 2.0), took("c", 1.0), took("new", 9.0)]
    assert answer_ms(past, now) == (1000.0, 1500.0)
    assert answer_ms(past, []) == (None, None)
