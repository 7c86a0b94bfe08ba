"""What is wrong with one case beside its checks: parts that its kind can't have, unknown endpoints and faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.evaluation.manifest import FILE, Manifest
from pipeline.evaluation.models.answers import mistakes_of as mistakes_of_conditions
from pipeline.evaluation.models.faults import RAW
from pipeline.evaluation.values import Case
from pipeline.guard.config import GuardConfig

GUARD = "guard.yaml"
FLOWLESS = ("replay", "retrieval")
"""Kinds that the pipeline alone answers."""
UNSEEN_OVER_HTTP = ("counted", "rung", "reason", "escalated")


def files_of(case: Case) -> list[str]:
    """Files of the suite that a case names."""
    return [one for one in (case.context.events, case.context.bundles) if one is not None]


def raw_files(case: Case) -> list[str]:
    """Files with answers of endpoints; that they are there is checked with the other conditions."""
    scripts = case.conditions.answers.values()
    return [one.removeprefix(RAW) for script in scripts for one in script if one.startswith(RAW)]


def shape_mistakes(case: Case, manifest: Manifest) -> Iterator[str]:
    context = case.context
    if context.events is not None and context.bundles is not None:
        yield "context: has events and bundles; a case has one of them"
    if context.until is not None and context.events is None:
        yield "context.until: is a number of records of a log, and the case has no events"
    if case.kind == "replay" and context.events is None:
        yield "context.events: a replay needs a log"
    if case.kind != "replay" and case.twins:
        yield "twins: only a replay has them"
    if case.kind == "retrieval" and context.bundles is None and context.events is None:
        yield "context.bundles: a retrieval needs bundles to search in"
    if case.kind not in FLOWLESS and manifest.flow is None:
        yield f"kind: a case of the kind {case.kind} runs the flow, and {FILE} names none under flow:"
    http = manifest.flow is not None and manifest.flow.http is not None
    unseen = sorted({one.check for one in case.expect} & set(UNSEEN_OVER_HTTP)) if http else []
    yield from (
        f"expect: {one} looks at the guard or the metrics of a flow over http, which are not seen" for one in unseen
    )


def condition_mistakes(case: Case, guard: GuardConfig | None, folder: Path) -> list[str]:
    conditions = case.conditions
    if guard is not None:
        return mistakes_of_conditions(conditions, guard, folder)
    if conditions.answers or conditions.delay_ms or conditions.breakers_open:
        return [f"conditions: tell what endpoints do, and the suite has none; write {GUARD}"]
    return []
