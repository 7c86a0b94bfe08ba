"""Exact tests of paired differences against "no difference": McNemar's, and signs of whole groups flipped. Pure.

Where active and candidate are the same but for their names, each group's differences are as likely the other way
round. All ways of turning groups round give what could have come; `p` is the share that is at least as good as what
came. It is exact for any sizes of groups and any likeness within them. With one pair a group and pass or fail, it is
McNemar's test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from pipeline.evaluation.statistics.pairs import Floats, Groups

ENUMERATED_MAX = 16
"""Groups that differ: up to so many, all 65,536 ways are looked at; above, so many ways are drawn:"""
DRAWN = 19_999
_AT_ONCE_CELLS = 4_000_000
_WHOLE_STEPS_MAX = 200_000_000
"""Whole numbers are summed exactly as long as that takes no more steps."""
_TIE = 1e-9


def mcnemar(better: int, worse: int) -> float:
    """One-sided: how likely `better` or more of the pairs that differ would be better by a fair coin."""
    return float(special.bdtrc(better - 1, better + worse, 0.5)) if better > 0 else 1.0


def mcnemar_two_sided(better: int, worse: int) -> float:
    return min(1.0, 2 * mcnemar(max(better, worse), min(better, worse)))


def sign_flip(groups: Groups, seed: int) -> float:
    """One-sided p that the sum of differences is not above nought. `seed` counts only where ways are drawn: with more
    than 16 groups that differ, by sums that are no whole numbers."""
    sums = groups.sums[np.abs(groups.sums) > _TIE]
    if not len(sums):
        return 1.0
    if bool((sums == np.rint(sums)).all()) and len(sums) * float(np.abs(sums).sum()) <= _WHOLE_STEPS_MAX:
        return _of_whole(sums)
    if len(sums) <= ENUMERATED_MAX:
        return _of_all(sums)
    return _of_drawn(sums, np.random.default_rng(seed))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted by Holm, in the order given: each may be compared with the same level, whatever their number."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        most = max(most, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = most
    return tuple(adjusted)


def _of_whole(sums: Floats) -> float:
    """The distribution of the sum with all signs by coin, group by group; the size of what came is its tail."""
    sizes = np.sort(np.abs(np.rint(sums)).astype(np.int64))
    total = int(sizes.sum())
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    reach = 0
    for size in sizes:
        low, high = total - reach, total + reach + 1
        middle = chances[low:high].copy()
        chances[low:high] = 0.0
        chances[low - size : high - size] += 0.5 * middle
        chances[low + size : high + size] += 0.5 * middle
        reach += int(size)
    return float(min(1.0, chances[total + int(np.rint(sums.sum())) :].sum()))


def _of_all(sums: Floats) -> float:
    ways = np.zeros(1)
    for size in np.abs(sums):
        ways = np.concatenate([ways + size, ways - size])
    return float((ways >= sums.sum() - _TIE).mean())


def _of_drawn(sums: Floats, random: np.random.Generator) -> float:
    """What came counts as one of the drawn, so that p is never nought and never too small."""
    sizes, reached = np.abs(sums), 0
    # a way's sum is twice what its better groups have, less everything
    wanted = (float(sums.sum()) + float(sizes.sum())) / 2 - _TIE
    octets, at_once = -(-len(sizes) // 8), max(1, _AT_ONCE_CELLS // len(sizes))
    for begin in range(0, DRAWN, at_once):
        rows = min(at_once, DRAWN - begin)
        coins = np.frombuffer(random.bytes(rows * octets), dtype=np.uint8).reshape(rows, octets)
        better = np.unpackbits(coins, axis=1, count=len(sizes)).astype(np.float64)
        reached += int((better @ sizes >= wanted).sum())
    return (reached + 1) / (DRAWN + 1)
