"""`ctxpipe eval compare` step by step: the plan, both sides, the comparison, then everything that is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._eval_compare_sides import Asked, sides_of, sides_of_file

if TYPE_CHECKING:
    from pipeline.evaluation.compare import Comparison
    from pipeline.evaluation.statistics.limits import AskedLimit
    from pipeline.evaluation.statistics.planning import Assumed, Plan
    from pipeline.evaluation.statistics.sides import Side
    from pipeline.evaluation.values import CaseResult
    from pipeline.guard.evidence import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of one command line, read. `b` None: one suite stands for both."""

    a: Path | None
    b: Path | None
    pairs_file: Path | None
    models: dict[str, str]
    task: str | None
    claim_points: float
    metric: str
    limits: list[AskedLimit]
    worth_points: float | None
    method: Any
    every_s: float | None
    group_pairs: int
    by_case: bool
    jobs: int | None
    evidence_file: Path | None
    html_file: Path | None
    as_json: bool

    @property
    def planned_only(self) -> bool:
        """No second side to compare with."""
        return self.pairs_file is None and (self.a is None or (self.b is None and not self.models))


def compare(options: Options, assumed: Sequence[Assumed]) -> int:
    """The exit code. Raises CtxpipeError for what keeps it from deciding."""
    from pipeline.commands._eval_compare_show import show, show_plans
    from pipeline.evaluation.statistics.planning import plan
    from pipeline.evaluation.statistics.sides import task_of

    plans = [plan(one) for one in assumed]
    if plans:
        show_plans(plans, options.claim_points, err=options.as_json)
    if options.planned_only:
        had = _had(options.a)
        if had is not None:
            click.echo(f"  {options.a} has {had[0]:,} cases in {had[1]:,} groups", err=options.as_json)
        if options.as_json:
            click.echo(json.dumps({"plan": [asdict(one) for one in plans]}))
        return 0
    if options.every_s is not None:
        from pipeline.commands._eval_compare_watch import watch_pairs

        watch_pairs(options, options.every_s, _group(options))
    a, b = _sides(options)
    if options.evidence_file is not None:
        task_of(a, b, options.task)
    found = _compared(options, a, b)
    show(found, a, b, err=options.as_json)
    evidence = _write(options, found, a, b)
    if options.as_json:
        click.echo(json.dumps(_as_object(found, plans, a, b, evidence)))
    return found.exit_code


def _had(a: Path | None) -> tuple[int, int] | None:
    """Cases and groups that there are to compare on."""
    if a is None:
        return None
    if a.is_dir():
        from pipeline.evaluation.suite import read_suite

        cases = read_suite(a).cases
        return len(cases), len({case.group or case.id for case in cases})
    from pipeline.evaluation.results_file import read_results

    results = read_results(a).results
    return len(results), len({result.group for result in results})


def _sides(options: Options) -> tuple[Side, Side]:
    if options.pairs_file is not None:
        return sides_of_file(options.pairs_file, options.task)
    assert options.a is not None
    return sides_of(
        Asked(
            a=options.a,
            b=options.b or options.a,
            models=options.models,
            task=options.task,
            jobs=options.jobs,
            quiet=options.as_json,
        )
    )


def _compared(options: Options, a: Side, b: Side) -> Comparison:
    from pipeline.evaluation.compare import compare_paired

    return compare_paired(
        a.results,
        b.results,
        metric=options.metric,
        claim_points=options.claim_points,
        limits=options.limits,
        method=options.method,
        group=_group(options),
        worth_points=options.worth_points,
        arriving=options.group_pairs if options.pairs_file is not None else None,
    )


def _group(options: Options) -> Callable[[CaseResult], str] | None:
    return (lambda result: result.id) if options.by_case else None


def _write(options: Options, found: Comparison, a: Side, b: Side) -> dict[str, str] | None:
    from pipeline.commands._eval_running import write_whole
    from pipeline.evaluation.digests import sha256

    if options.html_file is not None:
        from pipeline.evaluation.statistics.page import page

        write_whole(options.html_file, page(found, a, b))
    if options.evidence_file is None:
        return None
    text = evidence_text(_evidence(options, found, a, b))
    write_whole(options.evidence_file, text)
    digest = sha256(text.encode())
    outcome = "passed" if found.passed else "NOT passed: no routing file will take it"
    click.echo(f"evidence {options.evidence_file} sha256 {digest} ({outcome})", err=options.as_json)
    return {"file": str(options.evidence_file), "sha256": digest}


def _evidence(options: Options, found: Comparison, a: Side, b: Side) -> Evidence:
    from pipeline.core.clock import SystemClock
    from pipeline.evaluation.compare import evidence_of
    from pipeline.evaluation.statistics.sides import task_of

    task = task_of(a, b, options.task)
    return evidence_of(
        found,
        task=task,
        suite=a.suite,
        suite_digest=a.suite_digest,
        active=a.models[task],
        candidate=b.models[task],
        made_on=_day(SystemClock().now_us()),
    )


def evidence_text(evidence: Evidence) -> str:
    """A key a line, so that a review shows what changed."""
    return json.dumps(evidence.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def _day(now_us: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(now_us / 1_000_000, UTC).date().isoformat()


def _as_object(
    found: Comparison, plans: Sequence[Plan], a: Side, b: Side, evidence: dict[str, str] | None
) -> dict[str, Any]:
    told = asdict(found)
    told["limits"] = [limit.model_dump(mode="json") for limit in found.limits]
    return {
        "suite": a.suite,
        "suite_digest": a.suite_digest,
        "a": _side(a),
        "b": _side(b),
        **told,
        "plan": [asdict(one) for one in plans],
        "evidence": evidence,
        "exit_code": found.exit_code,
    }


def _side(side: Side) -> dict[str, Any]:
    models = {task: one.model_dump(mode="json", exclude={"results_sha256"}) for task, one in side.models.items()}
    return {"label": side.label, "models": models, "results_sha256": side.results_sha256, "cases": len(side.results)}
