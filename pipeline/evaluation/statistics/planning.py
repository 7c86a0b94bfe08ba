"""How many pairs it takes, told before anybody looks at results. Pure.

Pass or fail: from Connor's formula on to the exact power of McNemar's exact test, and up until that reaches what was
asked. Scores: the t test of paired differences. Pairs that share a group count less by the design effect,
1 + (group size - 1) x likeness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from pipeline.evaluation.statistics.pairs import Counts, Floats
from pipeline.evaluation.statistics.sequence import STAKES

PAIRS_MAX = 200_000
_SPREAD = 8
_SHARED_BY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """`effect`: the true gain that has to be found, 0.04 for 4 points; `claim`: what it has to beat. Of pass or fail:
    `discordant`, the share of pairs that differ. Of scores: `deviation`, the standard deviation of their differences.
    `group_size`: pairs a group on average; `likeness`: the correlation of two pairs of one group, 0 to 1."""

    effect: float
    claim: float = 0.0
    discordant: float | None = None
    deviation: float | None = None
    group_size: float = 1.0
    likeness: float = 0.0
    power: float = 0.8
    alpha: float = 0.05

    @property
    def design_effect(self) -> float:
        return 1 + (self.group_size - 1) * self.likeness

    def mistakes(self) -> list[str]:
        """What can't be planned with, a sentence each."""
        found = []
        if not self.claim < self.effect <= 1:
            found.append(
                f"effect={100 * self.effect:g} has to be above the claim of {100 * self.claim:g} points, at most 100"
            )
        if (self.discordant is None) == (self.deviation is None):
            found.append("give either discordant=SHARE (passed or not) or sd=NUMBER (scores)")
        if self.discordant is not None and not abs(self.effect) <= self.discordant <= 1:
            found.append(
                f"discordant={self.discordant:g} has to be from effect/100 = {self.effect:g} to 1: pairs that differ "
                "make the gain"
            )
        if self.deviation is not None and not 0 < self.deviation <= 1:
            found.append(f"sd={self.deviation:g} has to be above 0 and at most 1")
        if self.group_size < 1:
            found.append(f"group_size={self.group_size:g} has to be 1 or more")
        if not 0 <= self.likeness <= 1:
            found.append(f"icc={self.likeness:g} has to be from 0 to 1")
        if not 0.5 <= self.power < 1:
            found.append(f"power={self.power:g} has to be from 0.5 to below 1")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`pairs` in `groups`; `power` of exactly so many; None where even PAIRS_MAX are too few. `watched_pairs`: about
    when a continuous watch of the same gain stops, if it is there."""

    assumed: Assumed
    pairs: int | None
    groups: int | None
    power: float
    watched_pairs: int | None


def plan(assumed: Assumed) -> Plan:
    """Raises ValueError with all mistakes of what was assumed."""
    mistakes = assumed.mistakes()
    if mistakes:
        raise ValueError("; ".join(mistakes))
    pairs = _enough(assumed)
    groups = None if pairs is None else math.ceil(pairs / assumed.group_size)
    reached = power_of(assumed, pairs if pairs is not None else PAIRS_MAX)
    return Plan(assumed=assumed, pairs=pairs, groups=groups, power=reached, watched_pairs=_watched(assumed))


def power_of(assumed: Assumed, pairs: int) -> float:
    """How likely so many pairs show the gain, if it is there."""
    worth = pairs / assumed.design_effect
    if assumed.discordant is not None and assumed.claim == 0:
        return power_exact(int(worth), assumed.discordant, assumed.effect, assumed.alpha)
    groups = pairs / assumed.group_size
    return _power_of_mean(worth, groups, assumed.effect - assumed.claim, _deviation(assumed), assumed.alpha)


def connor(discordant: float, effect: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Pairs for McNemar's test by Connor's approximation, one-sided."""
    at_alpha, at_power = float(special.ndtri(1 - alpha)), float(special.ndtri(power))
    spread = math.sqrt(max(discordant - effect**2, 0.0))
    return math.ceil(((at_alpha * math.sqrt(discordant) + at_power * spread) / effect) ** 2)


def power_exact(pairs: int, discordant: float, effect: float, alpha: float = 0.05) -> float:
    """Of McNemar's exact one-sided test: over all numbers of pairs that may differ, the chance to be rejected."""
    if pairs < 1:
        return 0.0
    middle, spread = pairs * discordant, _SPREAD * math.sqrt(pairs * discordant * (1 - discordant)) + _SPREAD
    differ: Counts = np.arange(max(0, int(middle - spread)), min(pairs, int(middle + spread)) + 1)
    chance = special.bdtrc(differ - 1, pairs, discordant) - special.bdtrc(differ, pairs, discordant)
    wanted = _critical(np.maximum(differ, 1), alpha)
    better = min(1.0, (discordant + effect) / (2 * discordant))
    shown = np.where(wanted <= differ, special.bdtrc(np.minimum(wanted, differ) - 1, differ, better), 0.0)
    return float((chance * shown).sum())


def _critical(differ: Counts, alpha: float) -> Floats:
    """Of so many that differ, how many have to be better for a p of at most alpha; more than all where none can."""
    about = np.ceil(special.bdtrik(1 - alpha, differ, 0.5)) + 1
    about = np.where(special.bdtrc(about - 2, differ, 0.5) <= alpha, about - 1, about)
    found: Floats = np.where(special.bdtrc(about - 1, differ, 0.5) > alpha, about + 1, about)
    return found


def smallest_effect(assumed: Assumed, pairs: int) -> float | None:
    """The smallest gain that so many pairs show with the power asked for; None: not even the largest."""
    most = assumed.discordant if assumed.discordant is not None else 1.0
    low, high = assumed.claim, most
    if power_of(_with_effect(assumed, high), pairs) < assumed.power:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(_with_effect(assumed, middle), pairs) >= assumed.power else (middle, high)
    return high


def _enough(assumed: Assumed) -> int | None:
    """The smallest number from which on the power stays: exact power goes up like a saw."""
    if power_of(assumed, PAIRS_MAX) < assumed.power:
        return None
    low, high = 1, PAIRS_MAX
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(assumed, middle) >= assumed.power else (middle + 1, high)
    while low > 2 and power_of(assumed, low - 1) >= assumed.power:
        low -= 1
    return low


def _power_of_mean(worth: float, groups: float, gain: float, deviation: float, alpha: float) -> float:
    freedom = groups - 1
    if freedom < 1:
        return 0.0
    if deviation == 0.0:
        return 1.0
    away = gain * math.sqrt(worth) / deviation
    return float(1 - special.nctdtr(freedom, away, special.stdtrit(freedom, 1 - alpha)))


def _deviation(assumed: Assumed) -> float:
    if assumed.deviation is not None:
        return assumed.deviation
    assert assumed.discordant is not None
    return math.sqrt(max(assumed.discordant - assumed.effect**2, 0.0))


def _watched(assumed: Assumed) -> int | None:
    """Capital of the best stake grows by its expected logarithm with each group; those beside it win nearly as much."""
    size, gain = assumed.group_size, assumed.effect - assumed.claim
    deviation = _deviation(assumed) * math.sqrt(assumed.design_effect / size)
    best = max(float(stake * gain - stake**2 * (deviation**2 + gain**2) / 2) for stake in STAKES)
    if best <= 0:
        return None
    return math.ceil(math.log(_SHARED_BY / assumed.alpha) / best * size)


def _with_effect(assumed: Assumed, effect: float) -> Assumed:
    return replace(assumed, effect=effect)
