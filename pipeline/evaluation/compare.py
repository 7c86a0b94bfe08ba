"""Two runs of one suite, pair by pair: whether the candidate is better, and keeps its limits.

results of A + results of B → pairs → judged → comparison → evidence of a swap
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.statistics.bootstrap import GROUPS_MIN
from pipeline.evaluation.statistics.exact import holm, sign_flip
from pipeline.evaluation.statistics.judging import ALPHA, SEED, Judged, Method, judge, method_of, two_sided
from pipeline.evaluation.statistics.limits import AskedLimit, limits_kept
from pipeline.evaluation.statistics.matching import (
    UNPAIRED_SHARE_MAX,
    Both,
    CompareError,
    matched,
    metric_values,
    some,
    with_metric,
)
from pipeline.evaluation.statistics.pairs import Groups, Pairs, paired
from pipeline.evaluation.statistics.planning import Assumed, smallest_effect
from pipeline.evaluation.statistics.sequence import Verdict
from pipeline.evaluation.values import CaseResult
from pipeline.guard.evidence import Compared, Evidence, Limit

_POINTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A kind of cases on its own, in points. `low`, `high`: the two-sided 95%; None with too few groups. `p_worse` is
    Holm's, over all kinds; `worse`: at 5%."""

    kind: str
    pairs: int
    groups: int
    difference: float
    low: float | None
    high: float | None
    p_worse: float
    worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A case whose metric differs, worst first."""

    id: str
    kind: str
    group: str
    active: float
    candidate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Means, difference and bounds in points of 100, candidate less active; `low` one-sided 95%, `high` the upper bound
    of the two-sided 95%. `better`, `worse`, `ties`: pairs. `shown_points`: the smallest gain that as many pairs like
    these show with 80% power. `unpaired`: ids in one run only. `passed`: verdict better, and every limit kept."""

    metric: str
    claim_points: float
    method: Method
    pairs: int
    groups: int
    better: int
    worse: int
    ties: int
    active_mean: float
    candidate_mean: float
    difference: float
    low: float
    high: float
    p_value: float
    p_worse: float
    design_effect: float
    shown_points: float | None
    verdict: Verdict
    limits: tuple[Limit, ...]
    broken: tuple[str, ...]
    passed: bool
    why: str
    slices: tuple[Slice, ...]
    changed: tuple[Changed, ...]
    unpaired: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 the claim holds, 1 it does not or a limit is broken, 2 inconclusive."""
        if self.passed:
            return 0
        return 1 if self.verdict == "not_better" or self.broken else 2


def compare_paired(
    active: Sequence[CaseResult],
    candidate: Sequence[CaseResult],
    *,
    metric: str = "score",
    claim_points: float = 0.0,
    limits: Sequence[AskedLimit] = (),
    method: Method | Literal["auto"] = "auto",
    group: Callable[[CaseResult], str] | None = None,
    worth_points: float | None = None,
    arriving: int | None = None,
    unpaired_share_max: float = UNPAIRED_SHARE_MAX,
) -> Comparison:
    """Whether `candidate` is better than `active` by `metric`: `passed`, `score`, another measure between 0 and 1 where
    more is better, or `check:NAME`, the mean score of checks of that name in the cases that have one. `group`: what is
    drawn, the results' own where None. `worth_points`: the smallest gain that counts. `arriving`: of sequences whose
    pairs are still coming, in the order of ids: so many pairs of a group count.

    Raises CompareError with all that is wrong with the two runs: ids twice, other cases, values that are no numbers.
    """
    group = group or (lambda result: result.group)
    all_pairs, unpaired = matched(active, candidate, unpaired_share_max)
    both = with_metric(all_pairs, metric)
    values = metric_values(both, metric)
    groups = [group(first) for first, _ in both]
    pairs = paired([one for one, _ in values], [two for _, two in values], groups)
    claim = claim_points / _POINTS
    chosen = _method(pairs, claim, method)
    judged = judge(pairs, claim, chosen, worth=_share(worth_points), arriving=arriving)
    kept, broken, notes = limits_kept(both, groups, limits)
    why = _why(judged, pairs, claim_points, metric, kept)
    grouped = pairs.grouped()
    slices = _slices(both, pairs)
    return Comparison(
        metric=metric,
        claim_points=claim_points,
        method=judged.method,
        pairs=len(both),
        groups=len(grouped.names),
        better=int((pairs.differences > 0).sum()),
        worse=int((pairs.differences < 0).sum()),
        ties=int((pairs.differences == 0).sum()),
        active_mean=_POINTS * float(pairs.active.mean()),
        candidate_mean=_POINTS * float(pairs.candidate.mean()),
        difference=_POINTS * judged.difference,
        low=_POINTS * judged.low,
        high=_POINTS * judged.high,
        p_value=judged.p_value,
        p_worse=judged.p_worse,
        design_effect=judged.design_effect,
        shown_points=_shown(judged, pairs, claim),
        verdict=judged.verdict,
        limits=kept,
        broken=broken,
        passed=judged.verdict == "better" and all(limit.passed for limit in kept),
        why=why,
        slices=slices,
        changed=tuple(_changed(both, values, groups)),
        unpaired=unpaired,
        notes=(*_told(unpaired, slices), *notes),
    )


def evidence_of(
    comparison: Comparison,
    *,
    task: str,
    suite: str,
    suite_digest: str,
    active: Compared,
    candidate: Compared,
    made_on: str,
) -> Evidence:
    """What the routing file's loader demands. `made_on`: a day, YYYY-MM-DD."""
    return Evidence(
        made_on=made_on,
        task=task,
        suite=suite,
        suite_digest=suite_digest,
        active=active,
        candidate=candidate,
        metric=comparison.metric,
        claim_points=comparison.claim_points,
        method=comparison.method,
        pairs=comparison.pairs,
        groups=comparison.groups,
        difference=comparison.difference,
        low=comparison.low,
        high=comparison.high,
        p_value=comparison.p_value,
        verdict=comparison.verdict,
        limits=comparison.limits,
        passed=comparison.passed,
        why=comparison.why,
    )


def _method(pairs: Pairs, claim: float, method: Method | Literal["auto"]) -> Method:
    groups = pairs.grouped()
    if method == "auto":
        return method_of(pairs, groups, claim)
    mistakes = []
    if method in ("mcnemar", "sign_flip") and claim > 0:
        mistakes.append(f"{method} tests the claim 'better' only; for points take bootstrap or sequence")
    if method == "mcnemar" and not pairs.binary:
        mistakes.append("mcnemar is for passed or not; these are scores: take sign_flip")
    if method == "mcnemar" and not groups.single:
        mistakes.append(
            f"mcnemar takes pairs as independent, and these {groups.pairs} are of {len(groups.names)} groups: take "
            "sign_flip, or --group case if they are"
        )
    if mistakes:
        raise CompareError(mistakes)
    return method


def _slices(both: Sequence[Both], pairs: Pairs) -> tuple[Slice, ...]:
    by_kind: dict[str, list[int]] = {}
    for position, (first, _) in enumerate(both):
        by_kind.setdefault(first.kind, []).append(position)
    found = []
    for kind, positions in sorted(by_kind.items()):
        part = Pairs(pairs.active[positions], pairs.candidate[positions], tuple(pairs.groups[one] for one in positions))
        groups = part.grouped()
        found.append((kind, groups, sign_flip(groups.negative(), SEED)))
    adjusted = holm([p for _, _, p in found])
    return tuple(_slice(kind, groups, p) for (kind, groups, _), p in zip(found, adjusted, strict=True))


def _slice(kind: str, groups: Groups, p_worse: float) -> Slice:
    low, high = two_sided(groups)
    return Slice(
        kind=kind,
        pairs=groups.pairs,
        groups=len(groups.names),
        difference=_POINTS * groups.mean,
        low=None if low is None else _POINTS * low,
        high=None if high is None else _POINTS * high,
        p_worse=p_worse,
        worse=p_worse <= ALPHA,
    )


def _changed(both: Sequence[Both], values: Sequence[tuple[float, float]], groups: Sequence[str]) -> Iterable[Changed]:
    found = [
        Changed(id=first.id, kind=first.kind, group=group, active=one, candidate=two)
        for (first, _), (one, two), group in zip(both, values, groups, strict=True)
        if one != two
    ]
    return sorted(found, key=lambda one: (one.candidate - one.active, one.id))


def _shown(judged: Judged, pairs: Pairs, claim: float) -> float | None:
    """In points; of pairs that are as alike within groups, and differ as much, as these."""
    share = float((pairs.differences != 0).mean())
    if share == 0.0:
        return None
    size = len(pairs.groups) / len(set(pairs.groups))
    likeness = 0.0 if size <= 1 else min(1.0, max(0.0, (judged.design_effect - 1) / (size - 1)))
    deviation = float(pairs.differences.std())
    assumed = (
        Assumed(effect=share, claim=claim, discordant=share, group_size=size, likeness=likeness)
        if pairs.binary
        else Assumed(effect=1.0, claim=claim, deviation=deviation, group_size=size, likeness=likeness)
    )
    if share <= claim or (not pairs.binary and deviation == 0.0):
        return None
    found = smallest_effect(assumed, len(pairs.groups))
    return None if found is None else _POINTS * found


def _share(points: float | None) -> float | None:
    return None if points is None else points / _POINTS


def claim_text(claim_points: float) -> str:
    return "better" if claim_points == 0 else f"better by at least {claim_points:g} points"


_METHODS: Mapping[Method, str] = {
    "mcnemar": "McNemar's exact test",
    "sign_flip": "signs of groups flipped",
    "bootstrap": "groups drawn again",
    "sequence": "evidence of a sequence",
}


def _why(judged: Judged, pairs: Pairs, claim_points: float, metric: str, limits: Sequence[Limit]) -> str:
    groups = len(set(pairs.groups))
    claim = claim_text(claim_points)
    said = {
        "better": f"the candidate is {claim}",
        "not_better": f"the candidate is not {claim}",
        "inconclusive": f"whether the candidate is {claim} can't be told",
    }[judged.verdict]
    if groups < GROUPS_MIN and judged.method != "sequence":
        return f"{said}: {len(pairs.groups)} pairs are of {groups} group(s) only, and at least {GROUPS_MIN} are needed"
    figures = (
        f"{metric} {_POINTS * judged.difference:+.2f} points, at least {_POINTS * judged.low:+.2f} and at most "
        f"{_POINTS * judged.high:+.2f}, p = {judged.p_value:.2g} ({_METHODS[judged.method]}, {len(pairs.groups)} pairs "
        f"in {groups} groups)"
    )
    missed = [limit.measure for limit in limits if not limit.passed]
    kept = f"; not shown to keep its limit of {', '.join(missed)}" if missed else "; every limit kept" if limits else ""
    return f"{said}: {figures}{kept}"


def _told(unpaired: Sequence[str], slices: Sequence[Slice]) -> Iterable[str]:
    if unpaired:
        yield f"{len(unpaired)} cases are in one run only and were left out: {some(unpaired)}"
    for one in slices:
        if one.worse:
            yield f"worse in {one.kind}: {one.difference:+.2f} points in {one.pairs} pairs (p = {one.p_worse:.2g})"
