"""What happens next to the embedding spaces of a context version: one decision, asked again and again by a worker's
background task. Pure.

The space that the stored spec asks for becomes the serving one: the first as soon as it is complete, a later one after
it was judged, one that served before and is asked for again at once. What a person took back stays back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from pipeline.ops.space_digest import SpaceProof
from pipeline.ops.space_judge import Judgement, evidence_of
from pipeline.stores.spaces import SpaceRecord
from schemas.context import Gate

Do: TypeAlias = Literal["wait", "prove", "judge", "promote", "note"]
Action: TypeAlias = Literal["promoted", "overridden", "returned", "rolled back", "judged"]

PROBLEMS_MAX = 20
"""Reasons that evidence and `--json` name, the most frequent first."""


@dataclass(frozen=True, slots=True)
class Step:
    """`do`: nothing for now (`wait`, told in `reason`); prove that `space` is complete and ask again; judge it and ask
    again; `promote` it in place of `instead_of` with `evidence`; `note` the evidence of a refusal."""

    do: Do
    reason: str
    space: str = ""
    instead_of: str | None = None
    evidence: bytes = b""


def next_step(
    records: Sequence[SpaceRecord],
    wanted: str,
    promotion: Literal["automatic", "manual"],
    inputs: str,
    now_us: int,
    proof: SpaceProof | None = None,
    judgement: Judgement | None = None,
) -> Step:
    """`wanted`: the space of the spec that is stored with the version, the same for all workers. `inputs`: judged_by of
    this moment. `proof` and `judgement` are of the wanted space, from this round; None: not asked for yet."""
    record = next((one for one in records if one.space == wanted), None)
    serving = next((one for one in records if one.state == "serving"), None)
    if record is None or record.state == "retired":
        return Step("wait", "the space is not registered", wanted)
    if record.state == "serving":
        return Step("wait", "it serves", wanted)
    waiting = _held_back(record, serving, promotion, inputs)
    if waiting is not None:
        return Step("wait", waiting, wanted)
    if proof is None:
        return Step("prove", "is it complete?", wanted)
    if not proof.complete:
        return Step("wait", f"it is not complete: {'; '.join(proof.reasons)}", wanted)
    if serving is None:
        evidence = action_evidence("promoted", now_us, proof=proof, reason="the first space of the version")
        return Step("promote", "it is complete, and none serves yet", wanted, None, evidence)
    if record.state == "previous":
        evidence = action_evidence("returned", now_us, proof=proof, reason="the spec asks for it again")
        return Step("promote", "it served before, and the spec asks for it again", wanted, serving.space, evidence)
    if judgement is None:
        return Step("judge", "is it better?", wanted, serving.space)
    verdict = judgement.verdict
    about = {"inputs": inputs, "proof": proof_object(proof)}
    if verdict.decision == "promote":
        evidence = evidence_of(judgement, now_us, {"action": "promoted", **about})
        return Step("promote", "; ".join(verdict.reasons), wanted, serving.space, evidence)
    evidence = evidence_of(judgement, now_us, {"action": "judged", **about})
    return Step("note", "; ".join(verdict.reasons), wanted, serving.space, evidence)


def judged_by(serving: str | None, gate: Gate, evaluation_digest: str) -> str:
    """A digest of all that a judgement goes by beside the candidate itself: it is judged again when that changes."""
    parts = [serving, gate.model_dump(mode="json"), evaluation_digest]
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]


def action_evidence(
    action: Action, now_us: int, *, reason: str = "", proof: SpaceProof | None = None, **more: Any
) -> bytes:
    """Evidence of what was done without a judgement, as JSON."""
    shown = None if proof is None else proof_object(proof)
    return msgspec.json.encode({"action": action, "at_us": now_us, "reason": reason, "proof": shown, **more})


def proof_object(proof: SpaceProof) -> dict[str, Any]:
    """What evidence and `--json` hold of a proof."""
    return {
        "complete": proof.complete,
        "bundles": proof.bundles,
        "texts": proof.texts,
        "vectors": proof.vectors,
        "pending": proof.pending,
        "failing": proof.failing,
        "refused": proof.refused,
        "unsettled": proof.unsettled,
        "problems": dict(sorted(proof.problems.items(), key=lambda pair: (-pair[1], pair[0]))[:PROBLEMS_MAX]),
        "digests": proof.digests,
        "disagreements": proof.disagreements,
        "differences": [{"key": key, "kind": one.kind, "told": one.told} for key, one in proof.named],
    }


def read_evidence(record: SpaceRecord) -> dict[str, Any]:
    """The evidence as an object; empty where nobody judged, or where it is of another release."""
    try:
        found = msgspec.json.decode(record.evidence) if record.evidence else {}
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _held_back(
    record: SpaceRecord, serving: SpaceRecord | None, promotion: Literal["automatic", "manual"], inputs: str
) -> str | None:
    """Why nobody looks at it any further for now; None: look."""
    if serving is None:
        return None
    taken_back = read_evidence(serving)
    if taken_back.get("action") == "rolled back" and taken_back.get("instead_of") == record.space:
        return (
            f"it was taken back by hand ({taken_back.get('reason') or 'no reason given'}); `space promote` undoes that"
        )
    if promotion == "manual":
        return "the spec says promotion: manual; compare and promote it by hand"
    found = read_evidence(record)
    if record.state == "candidate" and found.get("action") == "judged" and found.get("inputs") == inputs:
        return f"it was judged: {'; '.join(map(str, found.get('reasons', ())))}"
    return None
