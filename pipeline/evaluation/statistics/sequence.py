"""Watching while pairs come in, with a look after each: bets against "not better", which hold whenever one stops.

A bet's capital is multiplied by 1 + stake x (difference of a group, as a share of the most it can be). Where the
candidate is not better, no bet gains on average, so capital of 20 for 1 comes in at most one of 20 watches, however
often one looks and whenever one stops. Bets with seven stakes stand side by side; their mean is the evidence.

A group counts once, when it has `group_pairs_max` pairs or is closed: later pairs of a tenant that did well before
would do well by no merit of the candidate's, and are told as ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evaluation.statistics.pairs import Floats

Verdict = Literal["better", "not_better", "inconclusive"]
STAKES: Floats = np.array([0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9])
STEP = 0.005
GRID: Floats = np.round(np.arange(-0.99, 0.99 + STEP / 2, STEP), 3)
"""Differences that the bounds are sought among, in steps of half a point."""


_EXPONENT_MAX = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Where a watch stands. `evidence`: the most that any look had, 20 and more is "better". `against`: the same for
    "not better than claimed". `low` and `high`: bounds of the mean difference that hold for all looks at once,
    one-sided `alpha` and half of it. `units`: groups that counted; `open_groups` did not yet; `ignored` pairs came
    too late."""

    units: int
    pairs: int
    ignored: int
    open_groups: int
    mean: float
    evidence: float
    against: float
    low: float
    high: float
    verdict: Verdict

    @property
    def p_value(self) -> float:
        return min(1.0, 1.0 / self.evidence) if self.evidence > 0 else 1.0


class Watch:
    """One watch of one claim. `claim`: the difference to be beaten, e.g. 0 or 0.04; differences are in -1 … 1.

    `group_pairs_max` is fixed before the first pair: the more, the more pairs of a group count, and the longer a group
    waits. The mean is that of pairs, each counting the same.
    """

    def __init__(self, claim: float = 0.0, *, alpha: float = 0.05, group_pairs_max: int = 1) -> None:
        if not -0.99 <= claim <= 0.99:
            raise ValueError(f"a claim of {claim} is none; differences are in -1 … 1")
        if group_pairs_max < 1:
            raise ValueError("group_pairs_max is below 1")
        self._claim, self._alpha, self._pairs_max = claim, alpha, group_pairs_max
        self._above, self._below = _Bet(1 + claim), _Bet(1 - claim)
        self._every = _Bets(GRID)
        self._waiting: list[tuple[float, int]] = []
        self._open: dict[str, list[float]] = {}
        self._closed: set[str] = set()
        self._units = self._pairs = self._ignored = 0
        self._sum = 0.0
        self._verdict: Verdict = "inconclusive"

    def add(self, group: str, difference: float) -> None:
        """Raises ValueError for a difference that is none."""
        if not -1.0 <= difference <= 1.0:
            raise ValueError(f"a difference of {difference} is not in -1 … 1; compare scores between 0 and 1")
        if group in self._closed:
            self._ignored += 1
            return
        came = self._open.setdefault(group, [])
        came.append(difference)
        if len(came) >= self._pairs_max:
            self._close(group)

    def close(self) -> None:
        """No more pairs come: groups that are still open count with what they have."""
        for group in sorted(self._open):
            self._close(group)

    def look(self) -> Look:
        low, high = self._bounds()
        return Look(
            units=self._units,
            pairs=self._pairs,
            ignored=self._ignored,
            open_groups=len(self._open),
            mean=self._sum / self._pairs if self._pairs else 0.0,
            evidence=math.exp(min(self._above.most, _EXPONENT_MAX)),
            against=math.exp(min(self._below.most, _EXPONENT_MAX)),
            low=low,
            high=high,
            verdict=self._verdict,
        )

    @property
    def verdict(self) -> Verdict:
        """better, not_better, inconclusive: what was reached first stays."""
        return self._verdict

    def _close(self, group: str) -> None:
        came = self._open.pop(group)
        self._closed.add(group)
        total, count = float(sum(came)), len(came)
        self._units += 1
        self._pairs += count
        self._sum += total
        self._waiting.append((total, count))
        left = (total - self._claim * count) / self._pairs_max
        self._above.settle(left)
        self._below.settle(-left)
        if self._verdict == "inconclusive":
            self._verdict = self._reached()

    def _reached(self) -> Verdict:
        if self._above.most >= math.log(1 / self._alpha):
            return "better"
        return "not_better" if self._below.most >= math.log(2 / self._alpha) else "inconclusive"

    def _bounds(self) -> tuple[float, float]:
        """The grid's values that no bet has ruled out; a step is added, since truth lies between them."""
        for total, count in self._waiting:
            self._every.settle(total / self._pairs_max, count / self._pairs_max)
        self._waiting.clear()
        above = self._every.most_above < np.log(1 / self._alpha)
        below = self._every.most_below < np.log(2 / self._alpha)
        low = float(GRID[above][0]) if above.any() else 1.0
        high = float(GRID[below][-1]) if below.any() else -1.0
        return (-1.0 if low <= GRID[0] else low - STEP), (1.0 if high >= GRID[-1] else high + STEP)


class _Bet:
    """Capitals, as logarithms, of bets on one claim, and the most that their mean ever was. One settles per group of
    live traffic, so it is quick. `unit`: the most that a group can lose."""

    def __init__(self, unit: float) -> None:
        self._stakes = [float(stake) / unit for stake in STAKES]
        self._capitals = [0.0] * len(self._stakes)
        self.most = 0.0

    def settle(self, left: float) -> None:
        capitals = [
            capital + math.log1p(left * stake) for capital, stake in zip(self._capitals, self._stakes, strict=True)
        ]
        self._capitals = capitals
        best = max(capitals)
        mean = best + math.log(sum(math.exp(capital - best) for capital in capitals) / len(capitals))
        self.most = max(self.most, mean)


class _Bets:
    """The same for all values of the grid at once, above and below each."""

    def __init__(self, values: Floats) -> None:
        self._values = values
        self._above = np.zeros((len(values), len(STAKES)))
        self._below = np.zeros_like(self._above)
        self.most_above: Floats = np.zeros(len(values))
        self.most_below: Floats = np.zeros(len(values))

    def settle(self, total: float, count: float) -> None:
        """Of a group, both as shares of the most pairs that one may have: so no stake can lose more than it has."""
        left = (total - self._values * count)[:, None]
        self._above += np.log1p(left / (1 + self._values)[:, None] * STAKES)
        self._below += np.log1p(-left / (1 - self._values)[:, None] * STAKES)
        np.maximum(self.most_above, _mean(self._above), out=self.most_above)
        np.maximum(self.most_below, _mean(self._below), out=self.most_below)


def _mean(capitals: Floats) -> Floats:
    """Of capitals given as logarithms, as one."""
    most = capitals.max(axis=1)
    found: Floats = most + np.log(np.exp(capitals - most[:, None]).mean(axis=1))
    return found


def watch(pairs: Iterable[tuple[str, float]], claim: float = 0.0, *, alpha: float = 0.05, group_pairs_max: int) -> Look:
    """All pairs one after another, groups closed at the end."""
    found = Watch(claim, alpha=alpha, group_pairs_max=group_pairs_max)
    for group, difference in pairs:
        found.add(group, difference)
    found.close()
    return found.look()
