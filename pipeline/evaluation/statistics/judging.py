"""What paired differences say to a claim, and to limits that a candidate has to keep. Pure.

| claim | pairs | `method` | p |
| --- | --- | --- | --- |
| better | passed or not, no two of a group | mcnemar | exact |
| better | any other | sign_flip | exact, or of 19,999 ways that are drawn |
| better by at least … points | any | bootstrap | studentised, groups drawn |
| any, looked at again and again | any | sequence | one over the evidence of bets |

"better" takes both: p within 5%, and the one-sided 95% bound of the bootstrap above the claim. So a candidate that
gains a little nearly everywhere and loses much in few groups, which signs alone would let pass, does not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evaluation.statistics import bootstrap
from pipeline.evaluation.statistics.bootstrap import (
    FEW,
    GROUPS_MIN,
    Studentised,
    rare_upper,
    studentised,
    wilson_margin,
)
from pipeline.evaluation.statistics.exact import mcnemar, sign_flip
from pipeline.evaluation.statistics.pairs import Floats, Groups, Pairs, grouped
from pipeline.evaluation.statistics.sequence import Look, Verdict, Watch, watch

ALPHA = 0.05
SEED = 8
SLICE_RESAMPLES = 1_999
Method = Literal["mcnemar", "sign_flip", "bootstrap", "sequence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """`difference`, `low` (one-sided 95%) and `high` (upper of the two-sided 95%) as shares, candidate less active.
    `p_worse`: one-sided, of "not worse". `design_effect`: how many pairs are worth one independent pair."""

    method: Method
    verdict: Verdict
    difference: float
    low: float
    high: float
    p_value: float
    p_worse: float
    design_effect: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Bounded:
    """`bound`: one-sided 95% upper bound of the mean difference; None where there are too few groups for one."""

    observed: float
    bound: float | None


def method_of(pairs: Pairs, groups: Groups, claim: float) -> Method:
    if claim > 0:
        return "bootstrap"
    return "mcnemar" if pairs.binary and groups.single else "sign_flip"


def judge(
    pairs: Pairs,
    claim: float,
    method: Method,
    *,
    worth: float | None = None,
    arriving: int | None = None,
    resamples: int = bootstrap.RESAMPLES,
) -> Judged:
    """`claim` as a share. `worth`: the smallest gain that would be worth a change; where even the upper bound is below
    it, the answer is "not_better" to the claim "better" as well. `arriving`, for sequences: pairs stand in the order in
    which they came and more will come, so many of a group count; None: these are all, taken in an order by chance."""
    groups = pairs.grouped()
    verdict: Verdict = "inconclusive"
    if method == "sequence":
        look = _watched(pairs, claim, arriving)
        low, high, p_value, verdict = look.low, look.high, look.p_value, look.verdict
    else:
        drawn = studentised(groups, SEED, resamples) if len(groups.names) > 1 else None
        low, high = _bounds(groups, drawn, ALPHA, ALPHA / 2)
        p_value = _p_value(pairs, groups, claim, method, drawn)
        if len(groups.names) >= GROUPS_MIN:
            verdict = _verdict(claim, low, high, p_value, worth)
    return Judged(
        method=method,
        verdict=verdict,
        difference=groups.mean,
        low=low,
        high=high,
        p_value=p_value,
        p_worse=sign_flip(groups.negative(), SEED),
        design_effect=bootstrap.design_effect(groups, float(np.square(pairs.differences).sum())),
        standard_error=bootstrap.standard_error(groups),
    )


def bounded(pairs: Pairs, resamples: int = bootstrap.RESAMPLES) -> Bounded:
    """Of a measure of which less is better. Where few groups became worse by pass or fail, the bound is also that of
    rare events: none of 60 groups does not show that there are none among 1,000."""
    groups = pairs.grouped()
    if len(groups.names) < GROUPS_MIN:
        return Bounded(groups.mean, None)
    bound = studentised(groups, SEED, resamples).upper(ALPHA)
    if pairs.binary:
        bound = max(bound, _more_often(pairs, ALPHA), _rare(groups, ALPHA) if _few(groups) else -1.0)
    return Bounded(groups.mean, bound if math.isfinite(bound) else None)


def two_sided(groups: Groups) -> tuple[float | None, float | None]:
    """The 95% interval of the mean difference; None where there are too few groups for one."""
    if len(groups.names) < GROUPS_MIN:
        return None, None
    return _bounds(groups, studentised(groups, SEED, SLICE_RESAMPLES), ALPHA / 2, ALPHA / 2)


def in_chance_order(pairs: Pairs) -> Sequence[tuple[str, float]]:
    """Group by group in the order of hashes of their names, which nobody chose and everybody can repeat."""
    hashes = {name: hashlib.sha256(name.encode(errors="surrogatepass")).digest() for name in set(pairs.groups)}
    found = zip(pairs.groups, pairs.differences, strict=True)
    return [(name, float(value)) for name, value in sorted(found, key=lambda one: hashes[one[0]])]


def _watched(pairs: Pairs, claim: float, arriving: int | None) -> Look:
    """Later looks at more pairs only go on where this one ends: so order and size of groups must not depend on them."""
    if arriving is None:
        most = int(pairs.grouped().counts.max())
        return watch(in_chance_order(pairs), claim, alpha=ALPHA, group_pairs_max=most)
    found = Watch(claim, alpha=ALPHA, group_pairs_max=arriving)
    for name, value in zip(pairs.groups, pairs.differences, strict=True):
        found.add(name, float(value))
    return found.look()


def _bounds(groups: Groups, drawn: Studentised | None, alpha_low: float, alpha_high: float) -> tuple[float, float]:
    """Within -1 … 1, and never narrower than what so few groups that differ allow."""
    if drawn is None or len(groups.names) < GROUPS_MIN:
        return -1.0, 1.0
    low, high = drawn.lower(alpha_low), drawn.upper(alpha_high)
    if _few(groups):
        low, high = min(low, -_rare(groups.negative(), alpha_low)), max(high, _rare(groups, alpha_high))
    return max(-1.0, low), min(1.0, high)


def _rare(groups: Groups, alpha: float) -> float:
    """The most that the share of groups with a gain may be."""
    return rare_upper(int((groups.sums > 0).sum()), len(groups.names), alpha)


def _more_often(pairs: Pairs, alpha: float) -> float:
    """Where what is counted is rare, few were seen just where the bound has to be high: Wilson's bounds of the shares
    that became worse and better, joined as Newcombe does."""
    worse, better = ((side > 0).astype(np.float64) for side in (pairs.differences, -pairs.differences))
    (share, more), (other, less) = (
        (float(side.mean()), wilson_margin(float(side.mean()), _worth(side, pairs.groups), alpha, upper=upper))
        for side, upper in ((worse, True), (better, False))
    )
    return share - other + math.hypot(more, less)


def _worth(events: Floats, groups: Sequence[str]) -> float:
    """How many independent pairs say as much."""
    return len(events) / bootstrap.design_effect(grouped(events, groups), float(events.sum()))


def _few(groups: Groups) -> bool:
    return int((groups.sums != 0).sum()) < FEW


def _p_value(pairs: Pairs, groups: Groups, claim: float, method: Method, drawn: Studentised | None) -> float:
    if method == "mcnemar":
        return mcnemar(int((pairs.differences > 0).sum()), int((pairs.differences < 0).sum()))
    if method == "sign_flip":
        return sign_flip(groups, SEED)
    return drawn.p_above(claim) if drawn is not None else 1.0


def _verdict(claim: float, low: float, high: float, p_value: float, worth: float | None) -> Verdict:
    if p_value <= ALPHA and low > claim:
        return "better"
    beyond = high <= claim or (claim == 0 and worth is not None and high < worth)
    return "not_better" if beyond else "inconclusive"
