"""Many calls with one deadline end one after the other, and in time; few lose nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pipeline.guard.endings import EARLIER_SHARE_MAX, ENDING_US, ENDING_US_MAX, SLICE_US, Booking, Endings
from pipeline.guard.ladder import end_s
from tests.support.guard_script import World, fails

BEGAN_S = 1000.0


def booked(endings: Endings, deadline_s: float, began_s: float = BEGAN_S, task: str = "t") -> Booking:
    return endings.book(end_s(began_s, deadline_s), began_s, deadline_s, task)


def busy(ending_us: float = 1_000) -> Endings:
    """On a machine where an end takes so long, as late answers have taught it."""
    endings = Endings()
    endings._ending_us = ending_us
    return endings


def overrun_s(bookings: list[Booking], deadline_at_s: float, takes_s: float) -> float:
    """By how much the last is late where one processor ends them all, each when its models are done at the latest."""
    now_s = 0.0
    for booking in sorted(bookings, key=lambda one: one.ends_s):
        now_s = max(now_s, booking.ends_s) + takes_s
    return now_s - deadline_at_s


@pytest.mark.parametrize(("callers", "deadline_s"), [(200, 1.0), (200, 10.0), (1000, 5.0), (50, 0.3)])
def test_all_of_a_crowd_are_in_time(callers: int, deadline_s: float) -> None:
    endings = busy()
    bookings = [booked(endings, deadline_s) for _ in range(callers)]
    assert overrun_s(bookings, BEGAN_S + deadline_s, 0.001) <= 0
    alone = [Booking(0, end_s(BEGAN_S, deadline_s), ()) for _ in range(callers)]
    if callers >= 200:
        assert overrun_s(alone, BEGAN_S + deadline_s, 0.001) > 0.1, "without it they would be late"
    assert min(one.ends_s for one in bookings) >= BEGAN_S + (1 - EARLIER_SHARE_MAX) * deadline_s - 1e-6


def test_whoever_is_alone_loses_nothing() -> None:
    endings = Endings()
    for number in range(100):
        began_s = BEGAN_S + number * 0.02
        assert booked(endings, 10.0, began_s).ends_s == end_s(began_s, 10.0)


def test_what_is_released_is_free_again() -> None:
    endings = busy()
    for _ in range(5):
        bookings = [booked(endings, 1.0) for _ in range(100)]
        assert booked(endings, 1.0).ends_s < end_s(BEGAN_S, 1.0) - 0.09
        for booking in bookings:
            endings.release(booking, BEGAN_S, BEGAN_S + 1)
        endings._booked_us.clear()
        assert booked(endings, 1.0).ends_s == end_s(BEGAN_S, 1.0)
        endings._booked_us.clear()


def test_a_slow_function_takes_its_time_from_the_models() -> None:
    endings = Endings()
    for _ in range(30):
        endings.took("slow", 0.02)
    assert endings.expected_s("slow") == pytest.approx(0.02) and endings.expected_s("quick") == 0
    bookings = [booked(endings, 2.0, task="slow") for _ in range(30)]
    assert overrun_s(bookings, BEGAN_S + 2.0, 0.021) <= 0


def test_late_answers_teach_it_and_those_in_time_make_it_forget() -> None:
    endings, deadline_at_s = Endings(), BEGAN_S + 10
    crowd = [booked(endings, 10.0) for _ in range(50)]
    for booking in crowd:
        endings.release(booking, deadline_at_s + 0.1, deadline_at_s)
    assert endings._ending_us == 2 * ENDING_US, "all of one crowd are late for one reason"
    for _ in range(10):
        endings.release(booked(endings, 10.0), deadline_at_s + 0.1, deadline_at_s)
    assert endings._ending_us == ENDING_US_MAX
    for _ in range(5_000):
        booking = booked(endings, 10.0)
        endings.release(booking, booking.ends_s + 0.001, deadline_at_s)
    assert endings._ending_us == ENDING_US
    for _ in range(100):
        endings.release(booked(endings, 10.0), BEGAN_S + 0.1, deadline_at_s)
    assert endings._ending_us == ENDING_US and not endings._booked_us


@given(
    some.lists(
        some.tuples(
            some.floats(0, 3), some.floats(-1, 3), some.sampled_from(["quick", "slow", "very"]), some.booleans()
        ),
        max_size=150,
    )
)
def test_no_slice_is_booked_twice_and_everything_is_given_back(
    calls: list[tuple[float, float, str, bool]],
) -> None:
    endings, held = Endings(), list[tuple[Booking, float]]()
    endings.took("slow", 0.015)
    endings.took("very", 5.0)
    for began_s, deadline_s, task, leaves in calls:
        began_s += BEGAN_S
        booking = booked(endings, deadline_s, began_s, task)
        latest_s = end_s(began_s, deadline_s)
        earliest_s = began_s + deadline_s - EARLIER_SHARE_MAX * max(0.0, deadline_s)
        assert min(latest_s, earliest_s) - 1e-5 <= booking.ends_s <= latest_s + 1e-9
        assert all(0 < part_us <= SLICE_US for part_us in endings._booked_us.values())
        held.append((booking, began_s + deadline_s))
        if leaves:
            endings.release(held[-1][0], began_s, held.pop()[1])
    for booking, deadline_at_s in held:
        endings.release(booking, deadline_at_s + 0.01, deadline_at_s)
    assert not endings._booked_us


async def test_a_slow_function_is_not_begun_for_a_caller_whose_time_is_over() -> None:
    world = World(functions={"t": lambda request: {"answer": 0}}, primary=[fails("reset")], route={"retries_max": 0})
    assert (await world.call()).rung == "deterministic"
    for _ in range(30):
        world.guard._endings.took("t", 0.2)
    assert (await world.call(deadline_s=5.0)).rung == "deterministic", "there is time for it"
    late = await world.call(deadline_s=0.1)
    assert (late.rung, late.attempts[-1].reason) == ("escalated", "function_failed")
    assert late.attempts[-1].detail == "it did not answer in time"


def test_a_booking_costs_little() -> None:
    """Of a crowd of 2,000: a fraction of what a call takes, also for the last of them."""
    endings = busy()
    began_s = time.perf_counter()
    bookings = [booked(endings, 30.0) for _ in range(2000)]
    took_s = time.perf_counter() - began_s
    print(f"{took_s / len(bookings) * 1e6:.1f} µs a booking")
    assert len({booking.ends_s for booking in bookings}) > 1980
