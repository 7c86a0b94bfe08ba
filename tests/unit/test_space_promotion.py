"""What happens next to the spaces of a version: every situation has one answer."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from pipeline.ops.space_digest import Disagreement, SpaceProof
from pipeline.ops.space_judge import Judgement, Verdict
from pipeline.ops.space_promotion import Step, action_evidence, judged_by, next_step, proof_object
from pipeline.stores.spaces import SpaceRecord, SpaceState
from schemas.context import Gate

COMPLETE = SpaceProof("new", 3, 3, 3)
GAPS = SpaceProof("new", 3, 3, 2, disagreements={"pending": 1}, named=[("k", Disagreement("pending", "no vector"))])


def record(space: str, state: SpaceState, evidence: bytes = b"") -> SpaceRecord:
    return SpaceRecord(
        space=space, state=state, definition=b"", canaries=b"", dimension=8, created_us=1, evidence=evidence
    )


def step(*records: SpaceRecord, wanted: str = "new", promotion: Any = "automatic", **found: Any) -> Step:
    return next_step(records, wanted, promotion, "inputs", 99, **found)


def judged(decision: Any) -> Judgement:
    return Judgement(Verdict(decision, ["because"]), Gate(), None, None)


def test_nothing_to_do() -> None:
    assert step().do == "wait"
    assert step(record("new", "retired")).do == "wait"
    assert step(record("new", "serving"), record("other", "candidate")).do == "wait"


def test_the_first_space_is_promoted_as_soon_as_it_is_complete_even_by_hand() -> None:
    for promotion in ("automatic", "manual"):
        assert step(record("new", "candidate"), promotion=promotion).do == "prove"
        waiting = step(record("new", "candidate"), promotion=promotion, proof=GAPS)
        assert (waiting.do, waiting.reason) == ("wait", "it is not complete: 1 keys: pending")
        done = step(record("new", "candidate"), promotion=promotion, proof=COMPLETE)
        assert (done.do, done.space, done.instead_of) == ("promote", "new", None)
        assert json.loads(done.evidence)["action"] == "promoted"


def test_a_later_one_is_proven_then_judged_then_promoted_or_noted() -> None:
    records = [record("old", "serving"), record("new", "candidate")]
    assert step(*records).do == "prove"
    assert step(*records, proof=GAPS).do == "wait"
    assert step(*records, proof=COMPLETE).do == "judge"
    better = step(*records, proof=COMPLETE, judgement=judged("promote"))
    assert (better.do, better.instead_of) == ("promote", "old")
    assert json.loads(better.evidence)["proof"] == proof_object(COMPLETE)
    for decision in ("refuse", "needs a person"):
        worse = step(*records, proof=COMPLETE, judgement=judged(decision))
        assert (worse.do, worse.reason) == ("note", "because")
        noted = [records[0], replace(records[1], evidence=worse.evidence)]
        assert step(*noted).do == "wait", "judged once"
        assert "because" in step(*noted).reason
        assert next_step(noted, "new", "automatic", "other inputs", 99).do == "prove", "and again when asked otherwise"


def test_promotion_by_hand_waits_for_a_hand() -> None:
    assert step(record("old", "serving"), record("new", "candidate"), promotion="manual").do == "wait"


def test_a_spec_that_was_taken_back_returns_at_once_and_what_a_person_took_back_stays_back() -> None:
    records = [record("now", "serving"), record("new", "previous")]
    assert step(*records).do == "prove"
    back = step(*records, proof=COMPLETE)
    assert (back.do, back.space, back.instead_of) == ("promote", "new", "now")
    by_hand = action_evidence("rolled back", 5, reason="odd answers", instead_of="new")
    held = step(record("now", "serving", by_hand), record("new", "previous"), proof=COMPLETE)
    assert held.do == "wait" and "odd answers" in held.reason
    other = step(record("now", "serving", by_hand), record("third", "candidate"), wanted="third")
    assert other.do == "prove", "another space may follow"


def test_evidence_of_another_release_is_none() -> None:
    odd = record("new", "candidate", b"\xff{")
    assert step(record("old", "serving", b"[1]"), odd, proof=COMPLETE).do == "judge"


def test_a_judgement_goes_by_the_serving_space_the_gate_and_the_queries() -> None:
    one = judged_by("old", Gate(), "d1")
    assert one == judged_by("old", Gate(), "d1")
    assert (
        len({one, judged_by("other", Gate(), "d1"), judged_by("old", Gate(k=5), "d1"), judged_by("old", Gate(), "d2")})
        == 4
    )
