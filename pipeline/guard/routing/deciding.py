"""Whether a change of a task's active model holds: what is in force, what the file says and its evidence → a decision.
Pure.

| what the file's active model is | accepted |
| --- | --- |
| the one in force | always; the rest of the ladder may change freely |
| the one before | always: going back needs no proof |
| one that broke its limits, by the same commit | no: it is held, and the rest of the file counts |
| another | with evidence that it is better than the one in force, or with a reason to do without |
| the first ever | with evidence, with a reason, or where the guard's own route begins with it |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.guard.evidence import Compared, Evidence
from pipeline.guard.routing.config import Demands, TaskRouting
from pipeline.guard.routing.state import Identity, Standing

Accepted = Literal["first", "unchanged", "promoted", "overridden", "returned"]
Refused = Literal[
    "broken_file", "no_evidence", "evidence_missing", "evidence_unreadable", "evidence_digest", "evidence_of_another",
    "not_better", "demands", "taken_back", "no_route", "unpriced",
]  # fmt: skip
"""Why a change is not made; labels of a metric."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`told`: one sentence on what is wrong and how to mend it."""

    reason: Refused
    told: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the file says of a task. `active` and `previous` as the guard's endpoints of these names are now."""

    task: str
    routing: TaskRouting
    active: Identity
    previous: Identity | None
    begins_with: str | None
    """The primary endpoint of the guard's own route."""

    @property
    def fingerprint(self) -> str:
        """The same for the same change, whatever else of the file is different."""
        proof = self.routing.evidence.sha256 if self.routing.evidence is not None else self.routing.override_reason
        parts = [self.task, self.active.endpoint, self.active.model, self.active.revision, proof or ""]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def decide(
    wanted: Wanted, standing: Standing | None, evidence: Evidence | Refusal | None, demands: Demands
) -> Accepted | Refusal:
    """`standing` None: the service never had one. `evidence` None: the file names none."""
    if standing is not None and standing.identity == wanted.active:
        return "unchanged"
    if standing is not None and standing.previous is not None and standing.previous.identity == wanted.active:
        return "returned"
    if isinstance(evidence, Refusal):
        return evidence
    if evidence is not None:
        active = wanted.previous if standing is None else standing.identity
        missing = next(_missing(evidence, wanted, active, demands), None)
        return missing or ("first" if standing is None else "promoted")
    if wanted.routing.override_reason is not None:
        return "first" if standing is None else "overridden"
    if standing is None and wanted.begins_with == wanted.active.endpoint:
        return "first"
    instead = f" in place of {_named(standing.identity)}" if standing is not None else ""
    return Refusal(
        "no_evidence",
        f"nothing proves that {_named(wanted.active)} may answer{instead}: compare the two (`ctxpipe eval compare`), "
        "promote it with the evidence (`ctxpipe route promote`), or write override_reason",
    )


def _missing(evidence: Evidence, wanted: Wanted, active: Identity | None, demands: Demands) -> Iterator[Refusal]:
    """What keeps the evidence from being one of this change, the worst first."""
    if evidence.task != wanted.task:
        yield _of_another(f"is of the task {evidence.task!r}, not of {wanted.task!r}")
    if _identity(evidence.candidate) != wanted.active:
        yield _of_another(f"proves {_named(_identity(evidence.candidate))}, and active is {_named(wanted.active)}")
    if active is not None and _identity(evidence.active) != active:
        yield _of_another(f"compares with {_named(_identity(evidence.active))}, and in force is {_named(active)}")
    if evidence.active.results_sha256 == evidence.candidate.results_sha256:
        yield _of_another("compares a run with itself")
    yield from _not_better(evidence)
    yield from _not_enough(evidence, demands)


def _not_better(evidence: Evidence) -> Iterator[Refusal]:
    broken = ", ".join(limit.measure for limit in evidence.limits if not limit.passed)
    if not evidence.passed or evidence.verdict != "better" or broken:
        more = f"; limits that are not kept: {broken}" if broken else ""
        yield Refusal(
            "not_better",
            f"the evidence says {evidence.verdict!r}: {evidence.why[:300]}{more}. Only a model that is better replaces "
            "another",
        )


def _not_enough(evidence: Evidence, demands: Demands) -> Iterator[Refusal]:
    if demands.suite_digest is not None and evidence.suite_digest != demands.suite_digest:
        told = f"was made on another suite ({evidence.suite_digest[:12]}…, demanded is {demands.suite_digest[:12]}…)"
        yield Refusal("demands", f"the evidence {told}; compare anew on this one")
    if evidence.claim_points < demands.claim_points_min:
        told = f"claims {evidence.claim_points:g} points, at least {demands.claim_points_min:g} are demanded"
        yield Refusal("demands", f"the evidence {told}; compare with --claim points:{demands.claim_points_min:g}")
    if evidence.pairs < demands.pairs_min:
        told = f"is of {evidence.pairs} pairs, at least {demands.pairs_min} are demanded"
        yield Refusal("demands", f"the evidence {told}; compare on more cases")


def _of_another(told: str) -> Refusal:
    return Refusal("evidence_of_another", f"the evidence {told}; name the evidence of this very change")


def _identity(side: Compared) -> Identity:
    return Identity(endpoint=side.endpoint, model=side.model, revision=side.revision)


def _named(identity: Identity) -> str:
    revision = f" at {identity.revision}" if identity.revision else ""
    return f"{identity.endpoint} ({identity.model}{revision})"
