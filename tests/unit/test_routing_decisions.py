"""Which change of an active model holds, and when a new one has broken its limits: decisions without files or time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.guard.config import Route
from pipeline.guard.routing.config import Demands, Limits, TaskRouting
from pipeline.guard.routing.deciding import Refusal, Wanted, decide
from pipeline.guard.routing.state import Before, Identity, Standing
from pipeline.guard.routing.window import Seen, Window, seen_of, tail
from pipeline.guard.values import Attempt, Result
from tests.support.routing_world import SUITE_DIGEST, proves

OLD, NEW, OLDER = (Identity(endpoint=name, model="m") for name in ("old", "new", "older"))


OTHER_MODEL = {"endpoint": "new", "model": "m2", "results_sha256": "b" * 64}
OTHER_REVISION = {"endpoint": "old", "model": "m", "revision": "2", "results_sha256": "a" * 64}
SAME_RUN = {"endpoint": "new", "model": "m", "results_sha256": "a" * 64}
COST_BROKEN = {"measure": "cost", "limit": 0, "observed": 1, "bound": 2, "passed": False}


def standing(identity: Identity = OLD, previous: Identity | None = None) -> Standing:
    before = None if previous is None else Before(identity=previous, route=Route(primary=previous.endpoint))
    route = Route(primary=identity.endpoint)
    return Standing(identity=identity, route=route, since_us=0, fingerprint="f", previous=before)


def wanted(active: Identity = NEW, previous: Identity | None = None, begins_with: str = "old", **more: Any) -> Wanted:
    return Wanted("t", TaskRouting(active=active.endpoint, **more), active, previous, begins_with)


def refusal(found: object) -> str:
    assert isinstance(found, Refusal), found
    return found.reason


def test_a_change_needs_evidence() -> None:
    assert decide(wanted(), standing(), proves(), Demands()) == "promoted"
    assert refusal(decide(wanted(), standing(), None, Demands())) == "no_evidence"
    assert decide(wanted(override_reason="the old one is gone"), standing(), None, Demands()) == "overridden"
    missing = Refusal("evidence_missing", "gone")
    assert decide(wanted(), standing(), missing, Demands()) is missing


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        ({"task": "other"}, "evidence_of_another"),
        ({"candidate": "third"}, "evidence_of_another"),
        ({"active": "third"}, "evidence_of_another"),
        ({"more": {"candidate": OTHER_MODEL}}, "evidence_of_another"),
        ({"more": {"active": OTHER_REVISION}}, "evidence_of_another"),
        ({"more": {"candidate": SAME_RUN}}, "evidence_of_another"),
        ({"more": {"verdict": "inconclusive", "passed": False}}, "not_better"),
        ({"more": {"verdict": "not_better", "passed": False}}, "not_better"),
        ({"more": {"verdict": "not_better"}}, "not_better"),
        ({"more": {"passed": False}}, "not_better"),
        ({"more": {"limits": [COST_BROKEN]}}, "not_better"),
        ({"more": {"suite_digest": "6" * 64}}, "demands"),
        ({"more": {"claim_points": 1}}, "demands"),
        ({"more": {"claim_points": 4, "pairs": 10}}, "demands"),
    ],
)
def test_evidence_of_something_else_proves_nothing(evidence: Mapping[str, Any], reason: str) -> None:
    """Taken one by one: each of them alone is enough to be refused."""
    demands = Demands(suite_digest=SUITE_DIGEST, claim_points_min=2, pairs_min=100)
    more = {"claim_points": 2, **evidence.get("more", {})}
    given = {name: value for name, value in evidence.items() if name != "more"}
    made = proves(**given)
    made = made.model_validate({**made.model_dump(), **more})
    found = decide(wanted(), standing(), made, demands)
    assert refusal(found) == reason
    assert decide(wanted(), standing(), proves(claim_points=2), demands) == "promoted"


def test_who_was_active_before_may_come_back_without_proof() -> None:
    in_force = standing(NEW, previous=OLD)
    assert decide(wanted(OLD), in_force, None, Demands()) == "returned"
    assert refusal(decide(wanted(OLDER), in_force, None, Demands())) == "no_evidence"
    other_model = Identity(endpoint="old", model="another")
    assert refusal(decide(wanted(other_model), in_force, None, Demands())) == "no_evidence"


def test_another_model_behind_the_same_endpoint_is_a_change() -> None:
    renamed = Identity(endpoint="old", model="m", revision="2")
    assert refusal(decide(wanted(renamed), standing(), None, Demands())) == "no_evidence"
    assert decide(wanted(OLD), standing(), None, Demands()) == "unchanged"


def test_the_first_model_of_a_service() -> None:
    assert decide(wanted(OLD), None, None, Demands()) == "first"
    assert refusal(decide(wanted(NEW), None, None, Demands())) == "no_evidence"
    assert decide(wanted(NEW, override_reason="there was none before"), None, None, Demands()) == "first"
    assert decide(wanted(NEW, previous=OLD), None, proves(), Demands()) == "first"
    assert decide(wanted(NEW), None, proves(), Demands()) == "first"
    assert refusal(decide(wanted(NEW, previous=OLDER), None, proves(), Demands())) == "evidence_of_another"
    assert refusal(decide(wanted(OLD), None, proves(passed=False), Demands())) == "evidence_of_another"


def test_a_fingerprint_is_of_the_change_and_nothing_else() -> None:
    evidence = {"file": "a.json", "sha256": "a" * 64}
    base = wanted(evidence=evidence)
    assert base.fingerprint == wanted(evidence={**evidence, "file": "b.json"}, limits={"calls_min": 5}).fingerprint
    others = [
        wanted(evidence={**evidence, "sha256": "b" * 64}),
        wanted(override_reason="a better reason"),
        wanted(OLD, evidence=evidence),
        replace(base, task="other"),
        replace(base, active=Identity(endpoint="new", model="m", revision="2")),
    ]
    assert len({base.fingerprint, *(one.fingerprint for one in others)}) == 6


FINE = Seen(malformed=False, failed=False, latency_ms=10, cost=Decimal("0.001"))


def broken_after(limits: Limits, seen: list[Seen]) -> tuple[int, str] | None:
    """(calls until then, what is said)."""
    window = Window(limits)
    for number, one in enumerate(seen, start=1):
        told = window.add(one)
        if told is not None:
            return number, told
    return None


@pytest.mark.parametrize(
    ("limits", "bad", "said"),
    [
        ({"malformed_share_max": 0}, replace(FINE, malformed=True), "outputs that had to be refused"),
        ({"failure_share_max": 0}, replace(FINE, failed=True), "were not answered by it"),
        ({"latency_p95_ms_max": 100}, replace(FINE, latency_ms=101), "took longer than 100 ms"),
        ({"cost_per_call_max": "0.002"}, replace(FINE, cost=Decimal(1)), "cost 0.05"),
    ],
)
def test_each_limit_breaks_by_what_it_is_of_and_by_nothing_else(limits: dict[str, Any], bad: Seen, said: str) -> None:
    all_bad = Seen(malformed=True, failed=True, latency_ms=math.inf, cost=Decimal(1))
    held = Limits.model_validate({**limits, "calls_min": 20, "window_calls": 20})
    found = broken_after(held, [FINE] * 19 + [bad] * 10)
    assert found is not None
    assert said in found[1]
    assert broken_after(held, [FINE] * 100) is None
    spared = replace(all_bad, **{name: getattr(FINE, name) for name in vars_of(bad)})
    assert broken_after(held, [spared] * 100) is None


def vars_of(bad: Seen) -> list[str]:
    return [name for name in ("malformed", "failed", "latency_ms", "cost") if getattr(bad, name) != getattr(FINE, name)]


def test_nothing_is_said_before_enough_calls() -> None:
    bad = replace(FINE, malformed=True)
    limits = Limits(malformed_share_max=0.1, calls_min=30, window_calls=40)
    found = broken_after(limits, [bad] * 40)
    assert found is not None
    assert found[0] == 30


def test_a_window_forgets() -> None:
    """Nine early mistakes are gone when the tenth comes: the same share as ever, never too many at once."""
    bad = replace(FINE, malformed=True)
    limits = Limits(malformed_share_max=0.1, calls_min=20, window_calls=20)
    assert broken_after(limits, ([bad] + [FINE] * 9) * 30) is None
    assert broken_after(limits, [FINE] * 300 + [bad] * 8) is not None


def test_chance_alone_does_not_take_a_model_back() -> None:
    """At the limit, 3 of 20 come by chance; 4 of 20 in one of 63 cases, more than chance_max; 5 of 20 are too many."""
    bad = replace(FINE, failed=True)
    limits = Limits(failure_share_max=0.05, calls_min=20, window_calls=20)
    assert broken_after(limits, [FINE] * 16 + [bad] * 4) is None
    assert broken_after(limits, [FINE] * 15 + [bad] * 5) is not None


def test_unknown_costs_are_not_free() -> None:
    limits = Limits(cost_per_call_max=Decimal("0.0005"), calls_min=20, window_calls=100)
    assert broken_after(limits, [replace(FINE, cost=None)] * 80) is None
    found = broken_after(limits, [replace(FINE, cost=None)] * 60 + [FINE] * 20)
    assert found is not None
    assert "its last 20 calls cost 0.001000 each" in found[1]


@given(calls=st.integers(1, 400), share=st.floats(0.001, 0.999), data=st.data())
def test_tails_are_those_of_the_binomial_distribution(calls: int, share: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, calls))
    exact = sum(
        math.comb(calls, k) * Decimal(share) ** k * (1 - Decimal(share)) ** (calls - k) for k in range(count, calls + 1)
    )
    assert tail(count, calls, share) == pytest.approx(float(exact), rel=1e-6, abs=1e-12)


def attempt(reason: Any = "", endpoint: str = "new", **more: Any) -> Attempt:
    return Attempt(rung="primary", endpoint=endpoint, model="m", reason=reason, **{"took_s": 0.5, **more})


def result(*attempts: Attempt, reason: Any = "") -> Result:
    return Result(output=None, rung="primary", reason=reason, attempts=attempts)


@pytest.mark.parametrize(
    ("attempts", "malformed", "failed", "latency_ms"),
    [
        ([attempt()], False, False, 500),
        ([attempt("reset"), attempt()], False, False, 1000),
        ([attempt("invalid_output"), attempt(repair_turn=True)], True, False, 1000),
        ([attempt("invalid_output"), attempt("", "local")], True, True, 500),
        ([attempt("breaker_open", asked=False, took_s=0), attempt("", "local")], False, True, 0),
        ([attempt("rate_limited"), attempt("", "local")], False, True, 500),
        ([attempt("refused"), attempt("", "local")], False, True, 500),
    ],
)
def test_what_a_call_says_of_the_active_model(
    attempts: list[Attempt], malformed: bool, failed: bool, latency_ms: float
) -> None:
    seen = seen_of(result(*attempts), "new")
    assert seen is not None
    assert (seen.malformed, seen.failed, seen.latency_ms) == (malformed, failed, latency_ms)


@pytest.mark.parametrize(
    "reason", ["cancelled", "cost_limit", "tenant_budget", "tenant_too_many", "no_time", "bad_request"]
)
def test_what_is_the_callers_own_says_nothing(reason: Any) -> None:
    assert seen_of(result(attempt(reason), attempt("", "local")), "new") is None


def test_one_that_another_was_faster_than_is_slow_and_has_not_failed() -> None:
    seen = seen_of(result(attempt("cancelled", took_s=0), attempt("", "other"), reason="slow"), "new")
    assert seen is not None
    assert (seen.failed, seen.latency_ms) == (False, math.inf)


def test_costs_of_all_attempts_count_and_one_unknown_makes_all_unknown() -> None:
    one, free, unknown = attempt(cost=Decimal(1)), attempt("reset"), attempt("timeout", cost=None)
    assert seen_of(result(free, one), "new") == Seen(False, False, 1000, Decimal(1))
    seen = seen_of(result(unknown, one), "new")
    assert seen is not None
    assert seen.cost is None
