"""All that a report may say, gathered once: judgement, results, history, and what a change does to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.evaluation.baseline import Baseline, Blessing
from pipeline.evaluation.gate import Judgement, State
from pipeline.evaluation.values import CaseResult, Run

STATE_TEXTS: Mapping[State, str] = {
    "regressed": "passed before, fails now",
    "failed": "fails, not in the baseline",
    "missing": "missing from the suite",
    "improved": "failed before, passes now",
}
VERDICT_TEXTS = {
    "pass": "pass",
    "partial": "pass, in part",
    "regression": "regression",
    "inconclusive": "inconclusive",
    "harness_error": "nothing decided",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a change does to the baseline itself, seen from the branch that it goes to. `gone` and `now_fail`: cases
    that were demanded there and are so no more, for whatever reason was given."""

    blessings: tuple[Blessing, ...]
    gone: tuple[str, ...] = ()
    now_fail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """`moved` None: the baseline is that of the branch that the change goes to, or it was not given."""

    judgement: Judgement
    results: tuple[CaseResult, ...] = ()
    history: tuple[Blessing, ...] = ()
    blessed_scores: Mapping[str, float] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    moved: Moved | None = None


def reported(judgement: Judgement, run: Run | None, baseline: Baseline | None, base: Baseline | None) -> Reported:
    """`base`: the baseline of the branch that the change goes to."""
    history = baseline.history if baseline else ()
    return Reported(
        judgement=judgement,
        results=run.results if run else (),
        history=history,
        blessed_scores=history[-1].scores if history else {},
        models=run.models if run else {},
        moved=moved_between(base, baseline) if base and baseline else None,
    )


def moved_between(base: Baseline, baseline: Baseline) -> Moved | None:
    """None where both are one."""
    if base == baseline:
        return None
    old, new = base.by_id, baseline.by_id
    demanded = [name for name, case in old.items() if case.passed]
    return Moved(
        blessings=_since(base.history, baseline.history),
        gone=tuple(name for name in demanded if name not in new),
        now_fail=tuple(name for name in demanded if name in new and not new[name].passed),
    )


def _since(old: Sequence[Blessing], new: Sequence[Blessing]) -> tuple[Blessing, ...]:
    """Entries behind the common beginning."""
    shared = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), None)
    return tuple(new[len(old) if shared is None else shared :])
