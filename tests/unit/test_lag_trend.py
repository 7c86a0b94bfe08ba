"""How fast lag grows and when nothing waits: least squares, its dead band, turns and changes of pace."""

from __future__ import annotations

import random

import pytest

from pipeline.ops.lag.trend import GROWING, SHRINKING, STEADY, Point, slope, trend
from pipeline.ops.lag.words import count, duration, records


def points(lags: list[float], every_s: float = 10.0) -> list[Point]:
    return [(number * every_s, lag) for number, lag in enumerate(lags)]


@pytest.mark.parametrize(
    ("lags", "name", "velocity", "catch_up_s"),
    [
        ([], "", None, None),
        ([5, 5], "", None, None),
        ([0, 0, 0], STEADY, 0.0, 0.0),
        ([500, 300, 0], STEADY, 0.0, 0.0),
        ([100, 200, 300], GROWING, 10.0, None),
        ([100, 104, 108], STEADY, 0.4, None),
        ([3000, 2000, 1000], SHRINKING, -100.0, 10.0),
        ([250, 150, 50], SHRINKING, -10.0, None),
    ],
    ids=["nothing", "two", "none", "done", "grows", "dead band", "shrinks", "too little to foretell"],
)
def test_trend(lags: list[float], name: str, velocity: float | None, catch_up_s: float | None) -> None:
    found = trend(points(lags), 0.0)
    assert found.name == name and found.catch_up_s == catch_up_s
    assert found.velocity == (None if velocity is None else pytest.approx(velocity))


def test_the_dead_band_widens_with_what_is_produced() -> None:
    lags = points([1000, 1050, 1100, 1150])
    assert trend(lags, 100.0).name == GROWING and trend(lags, 1000.0).name == STEADY


def test_after_a_turn_what_was_before_does_not_count() -> None:
    built = [100.0 * number for number in range(16)]
    drained = [1500.0 - 150 * number for number in range(1, 5)]
    found = trend(points(built + drained), 0.0)
    assert found.name == SHRINKING and found.catch_up_s == pytest.approx(60, rel=0.25)
    assert trend(points([0.0] * 15 + [200, 400, 600, 800]), 0.0).velocity == pytest.approx(20, rel=0.25)


def test_another_pace_is_believed_within_half_the_samples() -> None:
    slow = [10_000.0 - 100 * number for number in range(10)]
    fast = [9_100.0 - 400 * number for number in range(1, 11)]
    found = trend(points(slow + fast), 0.0)
    assert found.velocity == pytest.approx(-40, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_a_noisy_drain_is_foretold_within_a_quarter(seed: int) -> None:
    """Commits come in leaps: each sample is off by up to a batch."""
    chance = random.Random(seed)
    lags = [20_000.0 - 500 * number + chance.uniform(-250, 250) for number in range(30)]
    for seen in range(12, 30):
        found = trend(points(lags[:seen]), 0.0)
        left_s = (20_000 - 500 * (seen - 1)) / 50
        assert found.catch_up_s is not None and abs(found.catch_up_s - left_s) <= 0.25 * left_s, (seed, seen)


def test_no_time_has_no_slope() -> None:
    assert slope([(1.0, 5.0), (1.0, 9.0)]) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"), (0, "0 s"), (0.24, "240 ms"), (4.23, "4.2 s"), (59, "59 s"), (200, "3 min"),
        (9_000, "2.5 h"), (200_000, "2.3 d"), (5_000_000, "58 d"),
    ],
)  # fmt: skip
def test_durations_as_a_person_reads_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_counts() -> None:
    assert (count(None), count(1234567), records(1), records(20_000)) == (
        "unknown", "1,234,567", "1 record", "20,000 records")  # fmt: skip
