"""The gate: which run is a regression, which says nothing, and that no silence counts as passing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from pipeline.evaluation.baseline import Baseline, blessed
from pipeline.evaluation.gate import Judgement, judged, stopped
from pipeline.evaluation.statistics.lower import lower_than_baseline
from pipeline.evaluation.values import CaseResult, Run
from tests.support.eval_results import result, run_of, sha

NAMES = ("a", "b", "c")


def baseline_of(run: Run) -> Baseline:
    return blessed(run, sha("suite"), None, reason="first", by="Ada", date="2026-11-30")


BASE = baseline_of(run_of([result(name) for name in NAMES]))


def judge(
    results: Sequence[CaseResult], baseline: Baseline | None = BASE, names: Sequence[str] = NAMES, **options: Any
) -> Judgement:
    run = run_of(results, **{name: options.pop(name) for name in ("fixtures", "harness", "models") if name in options})
    whys = {name: f"why {name}" for name in names}
    options.setdefault("lower", _never)
    return judged(run, whys, sha("suite"), baseline, **options)


def _never(*_: object) -> Literal["lower", "same", "unknown"]:
    raise AssertionError("nothing graded is lower")


def test_nothing_flipped_passes() -> None:
    found = judge([result(name) for name in NAMES])
    assert (found.verdict, found.exit_code) == ("pass", 0)
    assert (found.cases, found.passed, found.failed, found.flips) == (3, 3, 0, ())


def test_a_case_that_passed_and_fails_is_a_regression() -> None:
    found = judge([result("a"), result("b", passed=False), result("c")])
    assert (found.verdict, found.exit_code) == ("regression", 1)
    assert found.of("regressed") == ("b",)
    flip = found.flips[0]
    assert flip.why == "why b"
    assert flip.before is not None and flip.before.passed
    assert flip.now is not None and not flip.now.passed
    assert found.reasons == ("passed before, failing now: 1 case (b)",)


def test_a_missing_case_is_a_regression() -> None:
    found = judge([result("a"), result("b")], names=("a", "b"))
    assert (found.verdict, found.of("missing")) == ("regression", ("c",))
    assert found.flips[0].now is None


def test_new_cases_have_to_pass() -> None:
    passing = judge([*(result(name) for name in NAMES), result("d")], names=(*NAMES, "d"))
    assert (passing.verdict, passing.new) == ("pass", ("d",))
    assert any("not in the baseline yet: 1 case (d)" in note for note in passing.notes)
    failing = judge([*(result(name) for name in NAMES), result("d", passed=False)], names=(*NAMES, "d"))
    assert (failing.verdict, failing.new, failing.of("failed")) == ("regression", ("d",), ("d",))


def test_an_accepted_failure_stays_accepted_and_its_end_is_told() -> None:
    base = baseline_of(run_of([result("a"), result("b", passed=False), result("c", passed=False)]))
    found = judge([result("a"), result("b", passed=False), result("c")], base)
    assert found.verdict == "pass"
    assert (found.accepted, found.of("improved")) == (("b",), ("c",))
    assert (found.passed, found.failed) == (2, 1)


def test_another_output_of_a_passing_case_is_no_flip() -> None:
    found = judge([result("a", output=1), result("b"), result("c")])
    assert (found.verdict, found.other_output, found.flips) == ("pass", ("a",), ())


@pytest.mark.parametrize(
    ("fixtures", "named"),
    [
        ({"events/a.jsonl": sha("other")}, "events/a.jsonl (changed)"),
        ({}, "events/a.jsonl (gone)"),
    ],
)
def test_changed_fixtures_decide_nothing(fixtures: dict[str, str], named: str) -> None:
    found = judge([result("a", passed=False), result("b"), result("c")], fixtures=fixtures)
    assert (found.verdict, found.exit_code) == ("harness_error", 3)
    assert named in found.reasons[0]
    assert "ctxpipe eval bless" in found.reasons[0]
    assert found.of("regressed") == ("a",), "what flipped is told all the same"


def test_a_new_fixture_is_told_and_harmless() -> None:
    both = {"events/a.jsonl": sha("a"), "events/b.jsonl": sha("b")}
    found = judge([result(name) for name in NAMES], fixtures=both)
    assert found.verdict == "pass"
    assert "new fixtures: events/b.jsonl" in found.notes


def test_a_swapped_model_is_what_is_judged_and_is_told() -> None:
    found = judge([result(name) for name in NAMES], models={"rebook": "small tiny"})
    assert found.verdict == "pass"
    assert found.notes == ("model of task 'rebook': was large gpt-4o 2026-01, is small tiny",)


def test_a_rewritten_case_decides_nothing_before_it_is_blessed() -> None:
    found = judge([result("a", case="with another expectation"), result("b"), result("c")])
    assert found.verdict == "harness_error"
    assert "rewritten since they were blessed: 1 case (a)" in found.reasons[0]


def test_harness_errors_come_before_regressions() -> None:
    found = judge([result("a", passed=False)], harness=["b: no recording", "c: no recording"])
    assert (found.verdict, found.reasons) == ("harness_error", ("b: no recording", "c: no recording"))


def test_silence_is_no_pass() -> None:
    assert judge([]).reasons == ("no case was run",)
    assert judge([], None, (), against_baseline=False).verdict == "harness_error"
    lost = judge([result("a"), result("b")])
    assert (lost.verdict, lost.reasons) == ("harness_error", ("no result came of 1 case (c)",))


def test_without_a_baseline_nothing_is_decided_unless_asked_so() -> None:
    results = [result("a"), result("b"), result("c", passed=False)]
    assert judge(results, None).verdict == "harness_error"
    assert "bless" in judge(results, None).reasons[0]
    found = judge(results, None, against_baseline=False)
    assert (found.verdict, found.of("failed"), found.new) == ("regression", ("c",), ())
    assert judge(results[:2], None, NAMES[:2], against_baseline=False).verdict == "pass"


def test_the_baseline_is_ignored_where_asked() -> None:
    results = [result("a"), result("b", case="rewritten")]
    assert judge(results, names=("a", "b"), against_baseline=False).verdict == "pass"


def test_a_baseline_of_another_suite_decides_nothing() -> None:
    other = BASE.model_copy(update={"suite": "movies"})
    assert "the baseline is of suite 'movies'" in judge([result(name) for name in NAMES], other).reasons[0]


def test_a_part_never_passes_for_the_whole() -> None:
    found = judge([result("a")], whole=False)
    assert (found.verdict, found.exit_code) == ("partial", 0)
    assert "1 of 3 cases" in found.reasons[0]
    assert judge([result("a", passed=False)], whole=False).verdict == "regression"
    assert judge([result(name) for name in NAMES], whole=False).verdict == "pass"


GRADED = baseline_of(run_of([result(name, scores={"recall": 0.9, "ndcg": 0.8}) for name in NAMES]))


def asked(answer: Literal["lower", "same", "unknown"], seen: list[Any]) -> Any:
    def lower(old: Sequence[float], new: Sequence[float], groups: Sequence[str]) -> Literal["lower", "same", "unknown"]:
        seen.append((list(old), list(new), list(groups)))
        return answer

    return lower


@pytest.mark.parametrize(
    ("answer", "verdict", "code"), [("lower", "regression", 1), ("unknown", "inconclusive", 2), ("same", "pass", 0)]
)
def test_lower_scores_are_for_statistics_to_judge(answer: Any, verdict: str, code: int) -> None:
    seen: list[Any] = []
    results = [result(name, scores={"recall": 0.9 if name == "a" else 0.7, "ndcg": 0.8}) for name in NAMES]
    found = judge(results, GRADED, lower=asked(answer, seen))
    assert (found.verdict, found.exit_code) == (verdict, code)
    assert seen == [([0.9] * 3, [0.9, 0.7, 0.7], ["acme"] * 3)], "ndcg did not move"
    recall = next(one for one in found.graded if one.check == "recall")
    assert (recall.fell, recall.rose, recall.judged) == (("b", "c"), (), answer)
    assert "0.9000 → 0.7667 (2 fell, 0 rose)" in " ".join((*found.reasons, *found.notes))


def test_scores_that_rise_as_much_as_they_fall_need_no_statistics() -> None:
    scores = {"a": 0.8, "b": 1.0, "c": 0.9}
    results = [result(name, scores={"recall": scores[name], "ndcg": 0.8}) for name in NAMES]
    assert judge(results, GRADED).verdict == "pass"


@pytest.mark.parametrize(("less", "verdict"), [(1e-6, "inconclusive"), (1e-15, "pass")])
def test_the_smallest_loss_counts_and_no_rounding(less: float, verdict: str) -> None:
    results = [result(name, scores={"recall": 0.9 - less if name == "a" else 0.9, "ndcg": 0.8}) for name in NAMES]
    found = judge(results, GRADED, lower=asked("unknown", []))
    assert found.verdict == verdict
    assert next(one for one in found.graded if one.check == "recall").fell == (("a",) if less > 1e-9 else ())


@pytest.mark.parametrize(("fallen", "verdict"), [(40, "regression"), (1, "inconclusive"), (0, "pass")])
def test_many_losses_are_no_chance_and_one_may_be(fallen: int, verdict: str) -> None:
    names = [f"query/{number:02}" for number in range(40)]
    base = baseline_of(run_of([result(name, group=name, scores={"ndcg": 0.9}) for name in names]))
    scores = [0.85 if number < fallen else 0.9 for number in range(40)]
    now = [result(name, group=name, scores={"ndcg": score}) for name, score in zip(names, scores, strict=True)]
    assert judge(now, base, names, lower=lower_than_baseline).verdict == verdict


def test_queries_of_one_tenant_are_one_witness() -> None:
    names = [f"query/{number:02}" for number in range(40)]
    base = baseline_of(run_of([result(name, scores={"ndcg": 0.9}) for name in names]))
    now = [result(name, scores={"ndcg": 0.85}) for name in names]
    assert judge(now, base, names, lower=lower_than_baseline).verdict == "inconclusive"


def test_a_regression_comes_before_an_open_question() -> None:
    results = [result(name, passed=name != "c", scores={"recall": 0.7, "ndcg": 0.8}) for name in NAMES]
    assert judge(results, GRADED, lower=asked("unknown", [])).verdict == "regression"


def test_many_flips_are_all_kept_and_few_are_said() -> None:
    names = [f"case-{number:03}" for number in range(100)]
    base = baseline_of(run_of([result(name) for name in names]))
    found = judge([result(name, passed=False) for name in names], base, names)
    assert len(found.flips) == 100
    assert found.reasons[0].endswith("case-009 and 90 more)")


def test_a_suite_that_can_not_be_run_has_a_judgement_too() -> None:
    found = stopped("flights", ["suite.yaml:3: unknown key 'flwo'"])
    assert (found.verdict, found.exit_code, found.cases) == ("harness_error", 3, 0)
