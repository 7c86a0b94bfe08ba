"""Any history of commits, starts, good and bad days: nobody is ever active whom nothing put there."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.guard.evidence import Evidence
from pipeline.guard.routing.config import RoutingConfig
from pipeline.guard.routing.deciding import Refusal
from pipeline.guard.routing.file import RoutingFile
from pipeline.guard.routing.loading import Decision, Snapshot, decided
from pipeline.guard.routing.state import RoutingState, TakenBack, without
from schemas.yaml_file import Document
from tests.support.routing_world import guard_config, proves

NAMES = ("old", "new", "third")
GUARD = guard_config(*NAMES)
REASON = "a person wants it so"


class History(RuleBasedStateMachine):
    """What is known without looking inside: who is in force, who was before, and which changes were taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.now_us = RoutingState(), 0
        self.active: str | None = None
        self.before: str | None = None
        self.by: tuple[str, str] | None = None
        self.bad: set[tuple[str, str]] = set()

    def take(self, active: str, evidence: Evidence | Refusal | None, named: str, override: str | None) -> Decision:
        self.now_us += 1
        task: dict[str, Any] = {"active": active, "override_reason": override}
        if evidence is not None:
            task["evidence"] = {"file": "e.json", "sha256": named}
        config = RoutingConfig.model_validate({"version": 1, "tasks": {"t": task}})
        found = {} if evidence is None else {"t": evidence}
        snapshot = Snapshot(RoutingFile(config, Document(path=None)), found)  # type: ignore[arg-type]
        decision = decided(snapshot, GUARD, self.state, self.now_us, lambda endpoint: True)
        if not decision.refused:
            self.state = self.state.model_copy(update={"tasks": dict(decision.standings)})
        return decision

    @initialize()
    def first(self) -> None:
        assert not self.take("old", None, "", None).refused
        self.active, self.by = "old", ("old", "")

    @rule(
        active=st.sampled_from(NAMES),
        said_active=st.sampled_from(NAMES),
        said_candidate=st.sampled_from(NAMES),
        better=st.booleans(),
        number=st.integers(0, 2),
    )
    def commit_with_evidence(
        self, active: str, said_active: str, said_candidate: str, better: bool, number: int
    ) -> None:
        more = {} if better else {"verdict": "not_better", "passed": False}
        sha = f"{number}{NAMES.index(said_active)}{NAMES.index(said_candidate)}{int(better)}".ljust(64, "0")
        evidence = proves(said_active, said_candidate, **more)
        holds = better and (said_active, said_candidate) == (self.active, active)
        self.expect(self.take(active, evidence, sha, None), active, sha, holds)

    @rule(active=st.sampled_from(NAMES))
    def commit_without_evidence(self, active: str) -> None:
        self.expect(self.take(active, None, "", None), active, "", False)

    @rule(active=st.sampled_from(NAMES))
    def commit_whose_evidence_is_gone(self, active: str) -> None:
        gone = Refusal("evidence_missing", "gone")
        self.expect(self.take(active, gone, "f" * 64, None), active, "f" * 64, False)

    @rule(active=st.sampled_from(NAMES), number=st.integers(0, 1))
    def commit_with_a_reason(self, active: str, number: int) -> None:
        reason = f"{REASON} {number}"
        self.expect(self.take(active, None, "", reason), active, reason, True)

    @precondition(lambda self: self.before is not None)
    @rule()
    def goes_bad(self) -> None:
        standing = self.state.tasks["t"]
        assert self.by is not None
        self.bad.add(self.by)
        taken = TakenBack(
            task="t", fingerprint=standing.fingerprint, endpoint=standing.identity.endpoint, at_us=0, why="bad"
        )
        self.state = without(self.state, taken, self.now_us)
        self.active, self.before, self.by = self.before, None, None

    @rule()
    def restart(self) -> None:
        self.state = RoutingState.model_validate_json(self.state.model_dump_json())

    def expect(self, decision: Decision, active: str, by: str, holds: bool) -> None:
        if active == self.active:
            assert decision.outcomes["t"] == "unchanged"
            self.by = (active, by)
        elif (active, by) in self.bad:
            assert decision.outcomes["t"] == "held"
        elif active == self.before:
            assert decision.outcomes["t"] == "returned"
            self.active, self.before, self.by = active, None, (active, by)
        elif holds:
            assert decision.outcomes["t"] in ("promoted", "overridden")
            self.active, self.before, self.by = active, self.active, (active, by)
        else:
            assert list(decision.refused) == ["t"]

    @invariant()
    def in_force_is_who_was_put_there(self) -> None:
        if self.active is None:
            return
        standing = self.state.tasks["t"]
        assert standing.identity.endpoint == standing.route.primary == self.active
        before = None if standing.previous is None else standing.previous.identity.endpoint
        assert before == self.before


History.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestHistory = History.TestCase
