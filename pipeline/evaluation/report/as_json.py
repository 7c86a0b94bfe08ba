"""The judgement as one JSON object, the last line of `--json`: what a program decides by, and what flipped."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation.gate import Flip
from pipeline.evaluation.report.reported import Reported
from pipeline.evaluation.report.visible import output_texts

FLIPS_MAX = 100
OUTPUT_CHARACTERS_MAX = 4000


def as_object(found: Reported) -> dict[str, Any]:
    """`flipped`: ids that pass no more; `failed` counts accepted failures too. `flips`: the first 100, with both
    outputs as text, cut."""
    one = found.judgement
    told: dict[str, Any] = {
        "suite": one.suite,
        "verdict": one.verdict,
        "cases": one.cases,
        "passed": one.passed,
        "failed": one.failed,
        "flipped": list(one.of("regressed")),
        "missing": list(one.of("missing")),
        "new": list(one.new),
        "new_failed": list(one.of("failed")),
        "improved": list(one.of("improved")),
        "accepted": list(one.accepted),
        "other_output": len(one.other_output),
        "digest": one.digest,
        "suite_digest": one.suite_digest,
        "reasons": list(one.reasons),
        "notes": list(one.notes),
        "graded": [
            {
                "check": graded.check,
                "cases": graded.cases,
                "before": graded.before,
                "now": graded.now,
                "fell": len(graded.fell),
                "rose": len(graded.rose),
                "judged": graded.judged,
            }
            for graded in one.graded
        ],
        "flips": [_flip(flip) for flip in one.flips[:FLIPS_MAX]],
        "seconds": round(one.seconds, 3),
    }
    if found.moved is not None:
        told["baseline_moved"] = {
            "reasons": [entry.reason for entry in found.moved.blessings],
            "gone": list(found.moved.gone),
            "now_fail": list(found.moved.now_fail),
        }
    return told


def _flip(flip: Flip) -> dict[str, Any]:
    before, now = output_texts(flip.before, flip.now, OUTPUT_CHARACTERS_MAX)
    return {
        "id": flip.id,
        "state": flip.state,
        "kind": flip.kind,
        "why": flip.why,
        "told": [f"{check.check}: {check.told}" for check in flip.now.checks if not check.passed] if flip.now else [],
        "before": before,
        "now": now,
    }
