"""Intervals of a mean difference by drawing whole groups again and again: the studentised cluster bootstrap. Pure.

Each draw's mean is measured in its own standard error, so skewed groups move the bounds to where they have to be. Of
pass or fail in few groups draws are too sure, and Student's t is not: the wider of both counts. What they cover is
measured by tests/benchmarks/statistics.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from pipeline.evaluation.statistics.pairs import Floats, Groups

RESAMPLES, RESAMPLES_MIN = 9_999, 999
"""The fewer, the more groups there are: of tens of thousands draws say what Student's t says."""
GROUPS_MIN = 5
"""With fewer no interval is honest: the draws repeat each other."""
FEW = 5
"""Groups that differ from the rest: below so many, draws say little and the bound of rare events counts too."""
_AT_ONCE_CELLS, _CELLS_MAX = 4_000_000, 100_000_000
_SAME = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Studentised:
    """`standardised`: sorted; how far each draw's mean lay from `mean`, in the draw's own standard errors. `freedom`:
    of Student's t."""

    mean: float
    standard_error: float
    standardised: Floats
    freedom: int

    def lower(self, alpha: float) -> float:
        """The true mean is above it but for a share `alpha` of all such samples."""
        return self.mean - max(self._at(1 - alpha), self._student(1 - alpha)) * self.standard_error

    def upper(self, alpha: float) -> float:
        return self.mean - min(self._at(alpha), self._student(alpha)) * self.standard_error

    def p_above(self, value: float) -> float:
        """One-sided p that the true mean is not above `value`; at most alpha where `lower(alpha)` is above it."""
        if self.standard_error == 0.0:
            return 1.0 if self.mean <= value else 1.0 / (len(self.standardised) + 1)
        reached = (self.mean - value) / self.standard_error
        beyond = len(self.standardised) - int(np.searchsorted(self.standardised, reached, side="left"))
        drawn = (beyond + 1) / (len(self.standardised) + 1)
        return max(drawn, 1 - float(special.stdtr(self.freedom, reached)))

    def _student(self, share: float) -> float:
        return float(special.stdtrit(self.freedom, share))

    def _at(self, share: float) -> float:
        """The order statistic that errs to the wide side."""
        if self.standard_error == 0.0:
            return 0.0
        size = len(self.standardised)
        place = np.ceil(share * (size + 1)) if share > 0.5 else np.floor(share * (size + 1))
        return float(self.standardised[int(min(max(place, 1), size)) - 1])


def standard_error(groups: Groups) -> float:
    """Of the mean of all pairs, from how far groups lie from it as a whole."""
    size = len(groups.counts)
    if size < 2:
        return 0.0
    left = groups.sums - groups.mean * groups.counts
    squares = float(left @ left)
    return float(np.sqrt(squares * size / (size - 1)) / groups.pairs) if squares > _SAME else 0.0


def design_effect(groups: Groups, squares: float) -> float:
    """How many times fewer pairs these are worth than as many independent ones; at least 1. `squares`: the sum of all
    pairs' squared differences."""
    variance = squares / groups.pairs - groups.mean**2
    if variance <= _SAME:
        return 1.0
    return max(1.0, standard_error(groups) ** 2 * groups.pairs / variance)


def studentised(groups: Groups, seed: int, resamples: int = RESAMPLES) -> Studentised:
    """Needs at least two groups; who decides asks for GROUPS_MIN. The same seed gives the same bounds."""
    mean, error = groups.mean, standard_error(groups)
    if error == 0.0:
        return Studentised(mean, 0.0, np.zeros(resamples), len(groups.counts) - 1)
    random = np.random.default_rng(seed)
    kinds = _kinds(groups)
    resamples = max(min(resamples, RESAMPLES_MIN), min(resamples, _CELLS_MAX // len(kinds.times)))
    at_once = max(1, _AT_ONCE_CELLS // len(kinds.times))
    drawn = [
        _standardised(kinds, mean, random, min(at_once, resamples - begin)) for begin in range(0, resamples, at_once)
    ]
    return Studentised(mean, error, np.sort(np.concatenate(drawn)), len(groups.counts) - 1)


def rare_upper(events: int, groups: int, alpha: float) -> float:
    """The most that the share of groups with an event may be, where `events` of `groups` had one (Clopper-Pearson):
    nought of 300 is not "never", but at most 1%."""
    return 1.0 if events >= groups else float(special.betaincinv(events + 1, groups - events, 1 - alpha))


def wilson_margin(share: float, worth: float, alpha: float, *, upper: bool) -> float:
    """How far Wilson's one-sided bound lies from a share that was seen in pairs worth so many independent ones."""
    at = float(special.ndtri(1 - alpha))
    middle = (share + at**2 / (2 * worth)) / (1 + at**2 / worth)
    spread = at * float(np.sqrt(share * (1 - share) / worth + at**2 / (4 * worth**2))) / (1 + at**2 / worth)
    return middle + spread - share if upper else share - middle + spread


@dataclass(frozen=True, slots=True, eq=False)
class _Kinds:
    """Groups that are the same to the draws, once, with how many there are: of pass or fail these are few."""

    sums: Floats
    counts: Floats
    times: Floats


def _kinds(groups: Groups) -> _Kinds:
    both = np.stack([groups.sums, groups.counts.astype(np.float64)], axis=1)
    unlike, times = np.unique(both, axis=0, return_counts=True)
    return _Kinds(unlike[:, 0], unlike[:, 1], times.astype(np.float64))


def _standardised(kinds: _Kinds, mean: float, random: np.random.Generator, rows: int) -> Floats:
    size = int(kinds.times.sum())
    times = random.multinomial(size, kinds.times / size, size=rows).astype(np.float64)
    sums, counts = kinds.sums, kinds.counts
    pairs = times @ counts
    means = (times @ sums) / pairs
    squares = times @ (sums * sums) - 2 * means * (times @ (sums * counts)) + means**2 * (times @ (counts * counts))
    errors = np.sqrt(np.maximum(squares, 0.0) * size / (size - 1)) / pairs
    away = means - mean
    # A draw in which nothing varies is as far away as can be: it must not make the interval narrow.
    whole = squares > _SAME
    farthest = np.where(np.abs(away) <= _SAME, 0.0, np.copysign(np.inf, away))
    found: Floats = np.where(whole, away / np.where(whole, errors, 1.0), farthest)
    return found
