"""Pairs of numbers of the same cases, and the groups that they are not independent within. Pure.

Groups are what is drawn: everything behind this module works on each group's sum and count, never on single pairs, so
that ten questions about one flight count as one flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Of each group, in the order of names: the sum of its differences and how many pairs it has."""

    names: tuple[str, ...]
    sums: Floats
    counts: Counts

    @property
    def pairs(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Of all pairs, each counting the same."""
        return float(self.sums.sum() / self.pairs)

    @property
    def single(self) -> bool:
        """No two pairs share a group."""
        return bool((self.counts == 1).all())

    def less(self, value: float) -> Groups:
        """The same with `value` taken from each pair's difference."""
        return Groups(self.names, self.sums - value * self.counts, self.counts)

    def negative(self) -> Groups:
        return Groups(self.names, -self.sums, self.counts)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """`active[i]` and `candidate[i]` are of one case; all are finite. `groups[i]` is its group's name."""

    active: Floats
    candidate: Floats
    groups: tuple[str, ...]

    @property
    def differences(self) -> Floats:
        """Candidate less active."""
        difference: Floats = self.candidate - self.active
        return difference

    @property
    def binary(self) -> bool:
        """Passed or not: every value is 0 or 1."""
        return all(bool(np.isin(side, (0.0, 1.0)).all()) for side in (self.active, self.candidate))

    def grouped(self) -> Groups:
        return grouped(self.differences, self.groups)


def paired(active: Sequence[float], candidate: Sequence[float], groups: Sequence[str]) -> Pairs:
    """Raises ValueError for sequences of different lengths, empty ones, and what is no finite number."""
    if not len(active) == len(candidate) == len(groups):
        raise ValueError(f"{len(active)} and {len(candidate)} values with {len(groups)} groups are no pairs")
    if not active:
        raise ValueError("there are no pairs")
    first, second = np.asarray(active, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a value is NaN or infinite")
    return Pairs(first, second, tuple(groups))


def grouped(differences: Any, groups: Sequence[str]) -> Groups:
    """Sums and counts by group; groups sorted by name, so that their order says nothing about who came first."""
    names, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    values = np.asarray(differences, dtype=np.float64)
    sums: Floats = np.bincount(index, weights=values, minlength=len(names)).astype(np.float64)
    counts = np.bincount(index, minlength=len(names)).astype(np.int64)
    return Groups(tuple(str(name) for name in names), sums, counts)
