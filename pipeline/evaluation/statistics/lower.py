"""For the gate: whether graded scores fell below those of the baseline by more than chance. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.evaluation.statistics.exact import sign_flip
from pipeline.evaluation.statistics.pairs import paired

ALPHA = 0.05
SEED = 8
_SAME = 1e-12


def lower_than_baseline(
    old: Sequence[float], new: Sequence[float], groups: Sequence[str]
) -> Literal["lower", "same", "unknown"]:
    """`old[i]` and `new[i]` are of one case, of the group `groups[i]`. `same`: the mean did not fall. `lower`: it fell,
    and one-sided signs of groups say so at 5%. `unknown`: it fell, but so might have come by chance.

    Raises ValueError for sequences of different lengths, empty ones, and what is no finite number."""
    found = paired(old, new, groups).grouped()
    if found.mean >= -_SAME:
        return "same"
    return "lower" if sign_flip(found.negative(), SEED) <= ALPHA else "unknown"
