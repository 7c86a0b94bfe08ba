"""Which keys lookups ask for: a few very often, as people do; the same ones in every process of a measurement."""

from __future__ import annotations

import random
from bisect import bisect
from itertools import accumulate

EXPONENT = 1.0
_PLACES_SEED = 20130101


class ZipfKeys:
    """Flight ids 1 to `count`: the one at place r comes 1/r**exponent as often as the first. Who stands where is the
    same for every `seed`, which draws the order of asking. `hottest`: only so many, the most wanted of them all."""

    def __init__(self, count: int, seed: int, hottest: int | None = None, exponent: float = EXPONENT) -> None:
        self._ids = hot_ids(count)[:hottest]
        self._sums = list(accumulate(1 / place**exponent for place in range(1, len(self._ids) + 1)))
        self._random = random.Random(seed)

    def draw(self, how_many: int) -> list[int]:
        ids, sums, total, chance = self._ids, self._sums, self._sums[-1], self._random.random
        return [ids[bisect(sums, chance() * total)] for _ in range(how_many)]


def hot_ids(count: int) -> list[int]:
    """The ids, the most wanted one first."""
    ids = list(range(1, count + 1))
    random.Random(_PLACES_SEED).shuffle(ids)
    return ids
