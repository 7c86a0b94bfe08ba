"""Tests and bounds of paired differences: against values counted by hand, each other, and what they claim.

Simulations are small here; the full ones, with their figures committed, are tests/benchmarks/statistics.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from pipeline.evaluation.statistics import exact
from pipeline.evaluation.statistics.bootstrap import design_effect, rare_upper, studentised, wilson_margin
from pipeline.evaluation.statistics.exact import holm, mcnemar, mcnemar_two_sided, sign_flip
from pipeline.evaluation.statistics.judging import bounded, in_chance_order, judge, method_of
from pipeline.evaluation.statistics.lower import lower_than_baseline
from pipeline.evaluation.statistics.pairs import Groups, Pairs, grouped, paired
from pipeline.evaluation.statistics.planning import (
    PAIRS_MAX,
    Assumed,
    connor,
    plan,
    power_exact,
    power_of,
    smallest_effect,
)
from pipeline.evaluation.statistics.sequence import Watch, watch


def single(differences: Sequence[float]) -> Groups:
    return grouped(differences, [f"g{number:05}" for number in range(len(differences))])


def binary(better: int, worse: int, ties: int, group_size: int = 1) -> Pairs:
    """Pass or fail; pairs in a row share a group."""
    active = [0.0] * better + [1.0] * worse + [0.0] * ties
    candidate = [1.0] * better + [0.0] * worse + [0.0] * ties
    return paired(active, candidate, [f"g{number // group_size:05}" for number in range(better + worse + ties)])


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (0, 3), (5, 0), (12, 4), (4, 12), (30, 18), (1, 0)])
def test_mcnemar_is_the_tail_of_a_fair_coin(better: int, worse: int) -> None:
    tosses = better + worse
    by_hand = sum(math.comb(tosses, heads) for heads in range(better, tosses + 1)) / 2**tosses
    assert mcnemar(better, worse) == pytest.approx(by_hand, rel=1e-12)
    assert mcnemar_two_sided(better, worse) == mcnemar_two_sided(worse, better)


@pytest.mark.parametrize(("better", "worse"), [(5, 0), (12, 4), (4, 12), (300, 260)])
def test_signs_of_single_pairs_are_mcnemar(better: int, worse: int) -> None:
    groups = single([1.0] * better + [-1.0] * worse + [0.0] * 40)
    assert sign_flip(groups, seed=1) == pytest.approx(mcnemar(better, worse), rel=1e-9)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_signs_of_whole_groups_are_what_all_ways_give(sums: list[int]) -> None:
    """Each way written out; whole numbers and fractions take different ways through the code to the same share."""
    groups = single([float(one) for one in sums])
    ways = [sum(sign * one for sign, one in zip(signs, sums, strict=True)) for signs in _signs(len(sums))]
    share = sum(way >= sum(sums) for way in ways) / len(ways)
    assert sign_flip(groups, seed=1) == pytest.approx(share)
    assert sign_flip(single([one / 3 for one in sums]), seed=1) == pytest.approx(share)


def _signs(count: int) -> list[tuple[int, ...]]:
    return list(itertools.product((1, -1), repeat=count))


def test_signs_that_are_drawn_come_near_the_exact_share_and_are_the_same_each_time() -> None:
    sums = [1.0] * 26 + [-1.0] * 14
    drawn = sign_flip(single([one * 0.37 for one in sums]), seed=5)
    exactly = mcnemar(26, 14)
    assert drawn == sign_flip(single([one * 0.37 for one in sums]), seed=5)
    spread = math.sqrt(exactly * (1 - exactly) / exact.DRAWN)
    assert abs(drawn - exactly) < 5 * spread


def test_a_group_counts_once_however_many_pairs_it_has() -> None:
    """Ten tenants gained and none lost, with 40 pairs each: 400 better pairs are no more than ten."""
    pairs = binary(better=400, worse=0, ties=0, group_size=40)
    assert sign_flip(pairs.grouped(), seed=1) == pytest.approx(1 / 2**10)
    assert method_of(pairs, pairs.grouped(), 0) == "sign_flip"


def test_holm_is_the_table_of_the_books() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    assert holm([0.9, 0.8]) == (1.0, 1.0)


def test_bounds_are_repeatable_and_lie_around_the_mean() -> None:
    pairs = binary(better=60, worse=20, ties=320, group_size=4)
    first, second = (studentised(pairs.grouped(), seed=3) for _ in range(2))
    assert first.lower(0.05) == second.lower(0.05)
    assert first.lower(0.05) < 0.1 < first.upper(0.05) < first.upper(0.025)
    assert first.p_above(first.lower(0.05) - 1e-9) <= 0.05 < first.p_above(first.lower(0.05) + 1e-3)


def test_more_alike_groups_are_worth_fewer_pairs() -> None:
    alike, mixed = [1.0] * 60 + [-1.0] * 40 + [0.0] * 300, []
    for number in range(100):
        mixed += [alike[number], alike[number + 100], alike[number + 200], alike[number + 300]]
    names = [f"g{number // 4:04}" for number in range(400)]
    together, apart = grouped(alike, names), grouped(mixed, names)
    squares = sum(one * one for one in alike)
    assert design_effect(together, squares) == pytest.approx(4.0, rel=0.05)
    assert design_effect(apart, squares) == pytest.approx(1.0, rel=0.2)
    assert studentised(together, 1).lower(0.05) < studentised(apart, 1).lower(0.05)


def test_nothing_of_300_is_at_most_one_percent() -> None:
    assert rare_upper(0, 299, 0.05) == pytest.approx(0.00997, abs=1e-4)
    assert rare_upper(5, 5, 0.05) == 1.0
    never = binary(better=0, worse=0, ties=60)
    assert bounded(never).bound == pytest.approx(1 - 0.05 ** (1 / 60))
    assert bounded(binary(0, 0, 4)).bound is None


def test_three_malformed_of_300_may_be_two_and_a_half_of_100() -> None:
    """Wilson's bound by hand is 2.48%, the one of rare events a little more; six of 300 go by Wilson's alone."""
    bound = bounded(binary(better=3, worse=0, ties=297)).bound
    assert bound == pytest.approx(rare_upper(3, 300, 0.05))
    assert bound > 0.02476
    assert 0.02 + wilson_margin(0.02, 300, 0.05, upper=True) == pytest.approx(0.03820, abs=1e-4)
    six = bounded(binary(better=6, worse=0, ties=294)).bound
    assert six is not None and six >= 0.0382


def test_a_constant_difference_is_its_own_bound() -> None:
    always = paired([100.0] * 20, [140.0] * 20, [str(number) for number in range(20)])
    assert (bounded(always).observed, bounded(always).bound) == (40.0, 40.0)


@pytest.mark.parametrize(
    ("pairs", "claim", "verdict"),
    [
        (binary(60, 20, 320), 0.0, "better"),
        (binary(60, 20, 320), 0.04, "better"),
        (binary(60, 20, 320), 0.09, "inconclusive"),
        (binary(60, 20, 320), 0.2, "not_better"),
        (binary(20, 60, 320), 0.0, "not_better"),
        (binary(12, 9, 379), 0.0, "inconclusive"),
        (binary(0, 0, 400), 0.0, "inconclusive"),
        (binary(0, 0, 400), 0.04, "not_better"),
        (binary(4, 0, 0), 0.0, "inconclusive"),
        (binary(400, 0, 0, group_size=400), 0.0, "inconclusive"),
        (binary(200, 0, 0, group_size=2), 0.0, "better"),
    ],
)
def test_what_pairs_say_to_a_claim(pairs: Pairs, claim: float, verdict: str) -> None:
    judged = judge(pairs, claim, method_of(pairs, pairs.grouped(), claim))
    assert judged.verdict == verdict
    assert judged.low <= judged.difference <= judged.high


def test_a_gain_too_small_to_be_worth_it_is_not_better() -> None:
    pairs = binary(12, 9, 379)
    assert judge(pairs, 0.0, "mcnemar").verdict == "inconclusive"
    assert judge(pairs, 0.0, "mcnemar", worth=0.05).verdict == "not_better"


def test_many_small_gains_do_not_outweigh_what_few_groups_lost() -> None:
    """Every group of 200 gained 2 points, two lost 60: by signs that is better, and the bound says what it hides."""
    differences = [0.02] * 198 + [-0.6] * 2
    pairs = paired([0.6] * 200, [0.6 + one for one in differences], [f"g{number}" for number in range(200)])
    assert sign_flip(pairs.grouped(), seed=1) < 0.05
    assert judge(pairs, 0.0, "sign_flip").verdict == "inconclusive"


def test_scores_that_fell_are_lower_or_may_be_chance() -> None:
    old = [0.8, 0.9, 0.7, 0.6, 0.95, 0.85, 0.75, 0.65]
    names = [f"g{number}" for number in range(8)]
    assert lower_than_baseline(old, old, names) == "same"
    assert lower_than_baseline(old, [one + 0.01 for one in old], names) == "same"
    assert lower_than_baseline(old, [one - 0.05 for one in old], names) == "lower"
    assert lower_than_baseline(old, [*old[:7], 0.6], names) == "unknown"
    assert lower_than_baseline(old, [one - 0.05 for one in old], ["one"] * 8) == "unknown"
    with pytest.raises(ValueError, match="NaN"):
        lower_than_baseline(old, [*old[:7], math.nan], names)


@pytest.mark.parametrize(
    ("effect", "wanted"),
    [
        (0.02, (926, 1544, 2317, 3090)),
        (0.032, (361, 602, 904, 1206)),
        (0.04, (230, 385, 578, 771)),
        (0.05, (147, 246, 369, 493)),
    ],
)
def test_connor(effect: float, wanted: tuple[int, ...]) -> None:
    assert tuple(connor(discordant, effect) for discordant in (0.06, 0.1, 0.15, 0.2)) == wanted


def test_exact_power_is_the_sum_over_all_outcomes() -> None:
    """Written out for a small number: every count of pairs that differ, every count of better ones."""
    pairs, discordant, effect = 40, 0.3, 0.2
    share, whole = (discordant + effect) / (2 * discordant), 0.0
    for differ in range(pairs + 1):
        chance = math.comb(pairs, differ) * discordant**differ * (1 - discordant) ** (pairs - differ)
        for better in range(differ + 1):
            if mcnemar(better, differ - better) <= 0.05:
                whole += chance * math.comb(differ, better) * share**better * (1 - share) ** (differ - better)
    assert power_exact(pairs, discordant, effect) == pytest.approx(whole, abs=1e-9)


def test_a_plan_is_the_smallest_number_that_reaches_the_power() -> None:
    assumed = Assumed(effect=0.04, discordant=0.15)
    made = plan(assumed)
    assert made.pairs is not None
    assert power_of(assumed, made.pairs) >= 0.8 > power_of(assumed, made.pairs - 1)
    assert made.pairs >= connor(0.15, 0.04), "the exact test needs a little more than the approximation says"
    found = smallest_effect(assumed, made.pairs)
    assert found is not None
    assert found == pytest.approx(0.04, abs=1e-3)


def test_groups_that_are_alike_need_more_pairs() -> None:
    alone = plan(Assumed(effect=0.04, deviation=0.15))
    alike = plan(Assumed(effect=0.04, deviation=0.15, group_size=5, likeness=0.5))
    assert alone.pairs is not None and alike.pairs is not None and alike.groups is not None
    assert 2.9 <= alike.pairs / alone.pairs <= 3.3
    assert alike.groups == math.ceil(alike.pairs / 5)


def test_a_claim_of_points_needs_far_more_than_better() -> None:
    better, points = plan(Assumed(effect=0.06, discordant=0.1)), plan(Assumed(effect=0.06, claim=0.04, discordant=0.1))
    assert better.pairs is not None and points.pairs is not None
    assert points.pairs > 5 * better.pairs
    assert plan(Assumed(effect=0.0401, claim=0.04, discordant=0.9)).pairs is None, f"not even {PAIRS_MAX}"


def test_all_that_a_plan_lacks_is_told_at_once() -> None:
    wrong = Assumed(effect=0.04, claim=0.05, discordant=0.02, deviation=2, group_size=0, likeness=2, power=1)
    with pytest.raises(ValueError, match=r"effect=4 .*either discordant.*sd=2 .*group_size=0 .*icc=2 .*power=1 "):
        plan(wrong)


def test_a_watch_stops_at_the_first_that_is_sure() -> None:
    found = Watch()
    for number in range(200):
        found.add(f"g{number}", 1.0 if number % 3 else -0.2)
        if found.verdict != "inconclusive":
            break
    look = found.look()
    assert (look.verdict, look.units) == ("better", number + 1)
    assert look.evidence >= 20
    assert look.low > 0
    for number in range(1000):
        found.add(f"later{number}", -1.0)
    assert found.verdict == "better", "what was reached first stays"


def test_a_watch_of_what_is_worse_says_so() -> None:
    look = watch([(f"g{number}", -0.3) for number in range(100)], group_pairs_max=1)
    assert look.verdict == "not_better"
    assert look.high < 0


def test_later_pairs_of_a_group_count_nothing() -> None:
    found = Watch(group_pairs_max=2)
    for _ in range(50):
        found.add("tenant", 1.0)
    look = found.look()
    assert (look.units, look.pairs, look.ignored) == (1, 2, 48)
    found.add("another", 1.0)
    assert found.look().open_groups == 1
    found.close()
    assert found.look().units == 2


@pytest.mark.parametrize("difference", [1.5, -2, math.nan])
def test_a_watch_takes_differences_only(difference: float) -> None:
    with pytest.raises(ValueError, match="not in -1"):
        Watch().add("g", difference)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(1, 4))
def test_no_bet_can_lose_more_than_it_has(differences: list[float], most: int) -> None:
    pairs = [(f"g{number // most}", value) for number, value in enumerate(differences)]
    look = watch(pairs, 0.04, group_pairs_max=most)
    assert math.isfinite(look.evidence) and look.evidence >= 0
    assert -1 <= look.low <= look.high <= 1


def test_bets_win_nothing_on_average_where_there_is_nothing() -> None:
    """The property behind the watch, written out over all outcomes of eight fair groups: capital 1 stays 1."""
    stakes = np.array([0.05, 0.3, 0.9])
    capitals = [np.prod([1 + stakes * sign for sign in signs], axis=0) for signs in _signs(8)]
    assert np.mean(capitals, axis=0) == pytest.approx([1.0, 1.0, 1.0])


def test_the_order_of_a_sequence_is_nobodys_choice() -> None:
    pairs = binary(30, 10, 60, group_size=2)
    turned = Pairs(pairs.active[::-1], pairs.candidate[::-1], pairs.groups[::-1])
    assert [name for name, _ in in_chance_order(pairs)] == [name for name, _ in in_chance_order(turned)]


@pytest.mark.parametrize(
    ("active", "candidate", "groups", "told"),
    [([], [], [], "no pairs"), ([1.0], [1.0, 2.0], ["a"], "are no pairs"), ([math.inf], [1.0], ["a"], "infinite")],
)
def test_what_are_no_pairs_is_told(active: list[float], candidate: list[float], groups: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        paired(active, candidate, groups)


REPEATED = 400
"""Simulations a test; the limits below are where a share that is right in truth ends up once in 10,000 such tests."""


def most_by_chance(share: float, repeated: int = REPEATED) -> float:
    return float(special.bdtrik(1 - 1e-4, repeated, share)) / repeated


def clustered(random: np.random.Generator, groups: int, size: int, gain: float, alike: float) -> Pairs:
    """Pass or fail, in groups: what a group is asked is harder or easier for both, and each group has its liking."""
    ease = np.clip(random.normal(0.7, 0.15, groups), 0.05, 0.95)
    liking = random.choice([-alike, alike], groups)
    active = random.random((groups, size)) < np.clip(ease - (liking + gain) / 2, 0, 1)[:, None]
    candidate = random.random((groups, size)) < np.clip(ease + (liking + gain) / 2, 0, 1)[:, None]
    names = [f"g{number}" for number in range(groups) for _ in range(size)]
    return paired(active.ravel().astype(float).tolist(), candidate.ravel().astype(float).tolist(), names)


@pytest.mark.parametrize("alike", [0.0, 0.1])
def test_where_nothing_is_better_at_most_one_of_twenty_is_said_to_be(alike: float) -> None:
    random = np.random.default_rng(11)
    said = 0
    for _ in range(REPEATED):
        pairs = clustered(random, 40, 5, 0.0, alike)
        said += judge(pairs, 0.0, method_of(pairs, pairs.grouped(), 0.0), resamples=499).verdict == "better"
    assert said / REPEATED <= most_by_chance(0.05)


def test_taking_pairs_for_independent_would_not_hold_that() -> None:
    """So that the test above is known to be able to fail: the same pairs, each as a group of its own."""
    random = np.random.default_rng(11)
    said = 0
    for _ in range(REPEATED):
        pairs = clustered(random, 40, 10, 0.0, 0.2)
        said += mcnemar(int((pairs.differences > 0).sum()), int((pairs.differences < 0).sum())) <= 0.05
    assert said / REPEATED > most_by_chance(0.05)


def test_looking_after_each_pair_says_better_at_most_once_in_twenty() -> None:
    random = np.random.default_rng(12)
    said, naive = 0, 0
    for _ in range(REPEATED):
        differences = random.choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.8, 0.1])
        found = Watch()
        for number, value in enumerate(differences):
            found.add(str(number), float(value))
        said += found.verdict == "better"
        naive += _peeked(differences)
    assert said / REPEATED <= most_by_chance(0.05)
    assert naive / REPEATED > most_by_chance(0.05), "a test for one look, looked at again and again, does not hold it"


def _peeked(differences: np.ndarray) -> bool:
    better, worse = np.cumsum(differences > 0), np.cumsum(differences < 0)
    return bool((special.bdtrc(better - 1, better + worse, 0.5)[20:] <= 0.05).any())


@pytest.mark.parametrize("discordant", [0.1, 0.2])
def test_a_gain_that_was_planned_for_is_found_as_often_as_planned(discordant: float) -> None:
    assumed = Assumed(effect=0.06, discordant=discordant)
    made = plan(assumed)
    assert made.pairs is not None
    random = np.random.default_rng(13)
    chances = [(discordant - 0.06) / 2, 1 - discordant, (discordant + 0.06) / 2]
    said = 0
    for _ in range(REPEATED):
        differences = random.choice([-1.0, 0.0, 1.0], made.pairs, p=chances)
        pairs = binary(int((differences > 0).sum()), int((differences < 0).sum()), int((differences == 0).sum()))
        said += judge(pairs, 0.0, "mcnemar", resamples=499).verdict == "better"
    spread = 4 * math.sqrt(0.8 * 0.2 / REPEATED)
    assert abs(said / REPEATED - made.power) < 0.05 + spread


def test_a_watch_finds_a_gain_that_is_there_and_its_bounds_hold_the_truth() -> None:
    random = np.random.default_rng(14)
    found, held = 0, 0
    for _ in range(40):
        differences = random.choice([-1.0, 0.0, 1.0], 500, p=[0.03, 0.84, 0.13])
        look = watch([(str(number), float(value)) for number, value in enumerate(differences)], group_pairs_max=1)
        found += look.verdict == "better"
        held += look.low <= 0.1 <= look.high
    assert found >= 35
    assert 1 - held / 40 <= most_by_chance(0.075, 40)
