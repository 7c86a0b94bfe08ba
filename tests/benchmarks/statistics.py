"""Whether the statistics of comparisons keep what they promise: simulated from models whose truth is known.

`python -m tests.benchmarks.statistics` [--repeats N] [--seed N] [--only PART] [--report FILE] prints a line a
scenario and writes the figures; those of the last full run are in statistics.json. Everything goes through the code
that `ctxpipe eval compare` runs. A share is given with its own 95% interval, because a simulation is a sample, too.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipeline.evaluation.statistics.judging import ALPHA, bounded, judge, method_of
from pipeline.evaluation.statistics.pairs import Pairs, paired
from pipeline.evaluation.statistics.planning import Assumed, plan
from pipeline.evaluation.statistics.sequence import Watch

RESAMPLES = 499
PEEKED_PAIRS = 1_000
POWER_POINTS = 5.0
Random = np.random.Generator
Draw = Callable[[Random], Pairs]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`part`: fixed, peeking, power, coverage, limit. `run` gives how often it happened, of so many, and what else is
    worth knowing. `aim`: share that may not be exceeded, or that has to be met."""

    part: str
    name: str
    aim: float
    run: Callable[[Random, int], tuple[int, dict[str, Any]]]


def pairs_of(differences: Floats, groups: Sequence[str]) -> Pairs:
    """Any two numbers from 0 to 1 with these differences; pass or fail where they are -1, 0 and 1."""
    whole = bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())
    active = np.where(differences < 0, 1.0, 0.0) if whole else 0.5 - differences / 2
    return paired(active.tolist(), (active + differences).tolist(), groups)


def names(sizes: Iterable[int]) -> list[str]:
    return [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]


def passes(sizes: Sequence[int], discordant: float, gain: float, likeness: float) -> Draw:
    """Pass or fail. Two pairs of a group correlate by `likeness`: each takes the group's own draw with its root."""
    chances = [(discordant - gain) / 2, 1 - discordant, (discordant + gain) / 2]
    groups = names(sizes)

    def draw(random: Random) -> Pairs:
        whole = np.repeat(random.choice([-1.0, 0.0, 1.0], len(sizes), p=chances), sizes)
        own = random.choice([-1.0, 0.0, 1.0], len(groups), p=chances)
        return pairs_of(np.where(random.random(len(groups)) < np.sqrt(likeness), whole, own), groups)

    return draw


def scores(sizes: Sequence[int], deviation: float, gain: float, likeness: float) -> Draw:
    groups = names(sizes)

    def draw(random: Random) -> Pairs:
        whole = np.repeat(random.normal(size=len(sizes)), sizes)
        own = random.normal(size=len(groups))
        mixed = np.sqrt(likeness) * whole + np.sqrt(1 - likeness) * own
        return pairs_of(np.clip(gain + deviation * mixed, -1, 1), groups)

    return draw


def skewed(groups: int, size: int, lose: float) -> Draw:
    """A share `lose` of groups loses much, all others gain a little; nothing is gained altogether."""
    listed = names([size] * groups)

    def draw(random: Random) -> Pairs:
        lost = random.random(groups) < lose
        mean = np.where(lost, -0.5 * (1 - lose), 0.5 * lose)
        return pairs_of(np.clip(np.repeat(mean, size) + random.normal(0, 0.02, groups * size), -1, 1), listed)

    return draw


def tenants(random: Random, groups: int) -> list[int]:
    """Sizes as tenants have them: most are small, some are large."""
    return [int(size) for size in np.clip(random.lognormal(1.2, 1.0, groups), 1, 40)]


def claimed(draw: Draw, claim: float, worth: str = "better") -> Callable[[Random, int], tuple[int, dict[str, Any]]]:
    """How often a verdict comes."""

    def run(random: Random, repeats: int) -> tuple[int, dict[str, Any]]:
        said = 0
        for _ in range(repeats):
            pairs = draw(random)
            method = method_of(pairs, pairs.grouped(), claim)
            said += judge(pairs, claim, method, resamples=RESAMPLES).verdict == worth
        return said, {"method": method}

    return run


def peeked(draw: Draw, claim: float, group_pairs_max: int) -> Callable[[Random, int], tuple[int, dict[str, Any]]]:
    """A look after each pair, in mixed order; and for contrast, an exact test for one look, looked at as often."""

    def run(random: Random, repeats: int) -> tuple[int, dict[str, Any]]:
        said, naive, stops = 0, 0, []
        for _ in range(repeats):
            pairs = draw(random)
            order = random.permutation(len(pairs.groups))
            watch, differences = Watch(claim, group_pairs_max=group_pairs_max), pairs.differences
            for number, place in enumerate(order, 1):
                watch.add(pairs.groups[place], float(differences[place]))
                if watch.verdict != "inconclusive":
                    stops.append(number)
                    break
            said += watch.verdict == "better"
            naive += _naive(differences[order])
        found: dict[str, Any] = {"stopped_after_pairs_median": float(np.median(stops)) if stops else None}
        return said, {**found, "one_look_test_peeked_at": round(naive / repeats, 4)} if claim == 0 else found

    return run


def _naive(differences: Floats) -> bool:
    better, worse = np.cumsum(differences > 0), np.cumsum(differences < 0)
    return bool((special.bdtrc(better - 1, better + worse, 0.5)[20:] <= ALPHA).any())


def missed(draw: Draw, truth: float, side: str) -> Callable[[Random, int], tuple[int, dict[str, Any]]]:
    """How often the truth lies outside the bound."""

    def run(random: Random, repeats: int) -> tuple[int, dict[str, Any]]:
        outside = 0
        for _ in range(repeats):
            judged = judge(draw(random), 0.01, "bootstrap", resamples=RESAMPLES)
            outside += judged.low > truth if side == "low" else judged.high < truth
        return outside, {}

    return run


def limit_missed(draw: Draw, truth: float) -> Callable[[Random, int], tuple[int, dict[str, Any]]]:
    def run(random: Random, repeats: int) -> tuple[int, dict[str, Any]]:
        bounds = [bounded(draw(random), RESAMPLES).bound for _ in range(repeats)]
        return sum(bound is not None and bound < truth for bound in bounds), {}

    return run


def slow(groups: int, size: int, rise: float) -> Draw:
    """Latencies in milliseconds: skewed, and alike within groups."""
    listed = names([size] * groups)

    def draw(random: Random) -> Pairs:
        base = np.repeat(random.lognormal(4, 0.6, groups), size) * random.lognormal(0, 0.3, groups * size)
        more = random.lognormal(0, 0.9, groups * size)
        return paired(base.tolist(), (base + rise * more / np.exp(0.405)).tolist(), listed)

    return draw


def scenarios() -> list[Scenario]:
    ones, eights = [1] * 500, [8] * 60
    uneven = tenants(np.random.default_rng(1), 80)
    fixed = [
        ("passed or not, 500 single pairs, 10% differ", passes(ones, 0.1, 0, 0), 0.0),
        ("passed or not, 60 groups of 8, alike by 0.4", passes(eights, 0.2, 0, 0.4), 0.0),
        ("passed or not, 80 groups of 1 to 40, alike by 0.4", passes(uneven, 0.2, 0, 0.4), 0.0),
        ("passed or not, 8 groups of 30, alike by 0.2", passes([30] * 8, 0.2, 0, 0.2), 0.0),
        ("scores, 60 groups of 8, alike by 0.5", scores(eights, 0.2, 0, 0.5), 0.0),
        ("scores, 80 groups of 1 to 40, alike by 0.5", scores(uneven, 0.2, 0, 0.5), 0.0),
        ("scores, 5 of 100 groups lose much, 200 groups", skewed(200, 2, 0.05), 0.0),
        ("4 points claimed and true, 800 single pairs", passes([1] * 800, 0.15, 0.04, 0), 0.04),
        ("4 points claimed and true, 100 groups of 8, alike by 0.3", passes([8] * 100, 0.15, 0.04, 0.3), 0.04),
        ("4 points claimed and true, scores, 60 groups of 8", scores(eights, 0.2, 0.04, 0.5), 0.04),
    ]
    peeking = [
        ("1,000 single pairs, 20% differ", passes([1] * PEEKED_PAIRS, 0.2, 0, 0), 0.0, 1),
        ("200 groups of 5, alike by 0.4", passes([5] * 200, 0.2, 0, 0.4), 0.0, 5),
        ("scores, 200 groups of 5, alike by 0.5", scores([5] * 200, 0.2, 0, 0.5), 0.0, 5),
        ("first pair of each of 200 groups of 5", passes([5] * 200, 0.2, 0, 0.4), 0.0, 1),
        ("4 points claimed and true", passes([1] * PEEKED_PAIRS, 0.2, 0.04, 0), 0.04, 1),
    ]
    return [
        *(Scenario("fixed", name, ALPHA, claimed(draw, claim)) for name, draw, claim in fixed),
        *(Scenario("peeking", name, ALPHA, peeked(draw, claim, most)) for name, draw, claim, most in peeking),
        *(planned(assumed) for assumed in PLANNED),
        *(watched(assumed) for assumed in PLANNED[:4]),
        *coverages(),
    ]


PLANNED = (
    Assumed(effect=0.04, discordant=0.06),
    Assumed(effect=0.04, discordant=0.1),
    Assumed(effect=0.04, discordant=0.2),
    Assumed(effect=0.04, deviation=0.15),
    Assumed(effect=0.04, deviation=0.3),
    Assumed(effect=0.06, discordant=0.15, group_size=5, likeness=0.3),
    Assumed(effect=0.04, deviation=0.2, group_size=5, likeness=0.5),
    Assumed(effect=0.08, claim=0.04, discordant=0.15),
    Assumed(effect=0.08, claim=0.04, deviation=0.2, group_size=4, likeness=0.4),
)


def _drawn(assumed: Assumed, pairs: int) -> Draw:
    size = int(assumed.group_size)
    sizes = [size] * -(-pairs // size)
    if assumed.discordant is not None:
        return passes(sizes, assumed.discordant, assumed.effect, assumed.likeness)
    assert assumed.deviation is not None
    return scores(sizes, assumed.deviation, assumed.effect, assumed.likeness)


def _told(assumed: Assumed) -> str:
    spread = f"{assumed.discordant:.0%} differ" if assumed.discordant is not None else f"sd {assumed.deviation:g}"
    claim = f", {100 * assumed.claim:g} claimed" if assumed.claim else ""
    alike = f", groups of {assumed.group_size:g} alike by {assumed.likeness:g}" if assumed.group_size > 1 else ""
    return f"a gain of {100 * assumed.effect:g} points{claim}, {spread}{alike}"


def planned(assumed: Assumed) -> Scenario:
    """As many pairs as the plan says have to show the gain as often as it says."""
    made = plan(assumed)
    assert made.pairs is not None
    name = f"{_told(assumed)}: {made.pairs} pairs"
    return Scenario("power", name, made.power, claimed(_drawn(assumed, made.pairs), assumed.claim))


def watched(assumed: Assumed) -> Scenario:
    """Twice as many pairs as the plan thinks a watch takes: how often it stops, and when."""
    made = plan(assumed)
    assert made.watched_pairs is not None
    name = f"watched: {_told(assumed)}: about {made.watched_pairs} pairs planned"
    return Scenario("watch", name, made.power, peeked(_drawn(assumed, 2 * made.watched_pairs), assumed.claim, 1))


def coverages() -> list[Scenario]:
    uneven = tenants(np.random.default_rng(2), 80)
    draws = [
        ("scores, 20 groups of 5, alike by 0.5", scores([5] * 20, 0.2, 0.04, 0.5), 0.04),
        ("scores, 80 groups of 1 to 40, alike by 0.5", scores(uneven, 0.2, 0.04, 0.5), 0.04),
        ("passed or not, 60 groups of 8, alike by 0.4", passes([8] * 60, 0.2, 0.04, 0.4), 0.04),
        ("passed or not, 300 single pairs, 10% differ", passes([1] * 300, 0.1, 0.04, 0), 0.04),
        ("scores, 10 of 100 groups lose much, 200 groups", skewed(200, 2, 0.1), 0.0),
    ]
    limits = [
        ("latency, skewed, 60 groups of 5", slow(60, 5, 20.0), 20.0),
        ("malformed, 1 of 100 more, 300 single pairs", passes([1] * 300, 0.01, 0.01, 0), 0.01),
        ("malformed, 3 of 100 more, 100 groups of 5, alike by 0.3", passes([5] * 100, 0.05, 0.03, 0.3), 0.03),
    ]
    return [
        *(Scenario("coverage", f"low: {name}", ALPHA, missed(draw, truth, "low")) for name, draw, truth in draws),
        *(Scenario("coverage", f"high: {name}", ALPHA / 2, missed(draw, truth, "high")) for name, draw, truth in draws),
        *(Scenario("limit", name, ALPHA, limit_missed(draw, truth)) for name, draw, truth in limits),
    ]


def simulate(scenario: Scenario, seed: int, repeats: int) -> dict[str, Any]:
    """Each has its own stream of chance, so that one alone gives what it gives among all. What may never be more
    is repeated twice as often."""
    random = np.random.default_rng([seed, zlib.crc32(scenario.name.encode())])
    repeats *= 2 if scenario.part in ("fixed", "peeking") else 1
    count, more = scenario.run(random, repeats)
    low = float(special.betaincinv(count, repeats - count + 1, 0.025)) if count else 0.0
    high = float(special.betaincinv(count + 1, repeats - count, 0.975)) if count < repeats else 1.0
    share = count / repeats
    return {
        "part": scenario.part,
        "repeats": repeats,
        "scenario": scenario.name,
        "share": round(share, 4),
        "share_95": [round(low, 4), round(high, 4)],
        "aim": round(scenario.aim, 4),
        "kept": kept(scenario.part, share, (low, high), scenario.aim),
        **more,
    }


def kept(part: str, share: float, share_95: tuple[float, float], aim: float) -> bool:
    """Power within 5 points of the plan; of what may not be exceeded: nothing shows that it is. Exact tests are at 5%,
    so that every other simulation of one comes out a little above."""
    low, high = share_95
    if part == "power":
        return abs(share - aim) <= POWER_POINTS / 100
    return high >= aim - POWER_POINTS / 100 if part == "watch" else low <= aim


def overall(found: Sequence[dict[str, Any]], part: str) -> float:
    """The share over all scenarios of a part together."""
    mine = [one for one in found if one["part"] == part]
    return round(sum(one["share"] * one["repeats"] for one in mine) / sum(one["repeats"] for one in mine), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--only", default="", help="fixed, peeking, power, watch, coverage or limit")
    parser.add_argument("--report", type=Path, help="write the figures there")
    asked = parser.parse_args()
    found = []
    for scenario in scenarios():
        if asked.only in ("", scenario.part):
            found.append(simulate(scenario, asked.seed, asked.repeats))
            print(json.dumps(found[-1]), flush=True)
    if asked.report is not None:
        parts = {one["part"]: overall(found, one["part"]) for one in found}
        report = {"seed": asked.seed, "resamples": RESAMPLES, "overall": parts, "scenarios": found}
        asked.report.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
