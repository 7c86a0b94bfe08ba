"""Which window of the log is read next, and what may be lost: every choice is an arithmetic of times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from connectors.scylla.windows import Sight, Start, Window, beginning, first_start, log_start, next_window, verdict

S = 1_000_000


def sight(now_us: int, *generations_ms: int, seen_us: int | None = None) -> Sight:
    return Sight(now_us, now_us if seen_us is None else seen_us, 30 * S, 60 * S, generations_ms or (0,))


def test_a_window_ends_before_the_confidence_window() -> None:
    assert next_window(0, 0, sight(40 * S)) == Window(0, 10 * S, False, True)
    assert next_window(10 * S, 0, sight(40 * S)) is None, "nothing is old enough"
    assert next_window(20 * S, 0, sight(40 * S)) is None, "a clock that was set back"


def test_whoever_is_behind_reads_large_windows() -> None:
    assert next_window(0, 0, sight(500 * S)) == Window(0, 60 * S, False, False)


def test_no_window_reaches_beyond_what_is_known_of_generations() -> None:
    assert next_window(0, 0, sight(500 * S, seen_us=25 * S)) == Window(0, 25 * S, False, True)


def test_a_generation_is_read_to_its_end_and_no_further() -> None:
    at_20 = 20_000
    assert next_window(0, 0, sight(500 * S, 0, at_20)) == Window(0, 20 * S - 1, True, False)
    assert next_window(0, 0, sight(49 * S, 0, at_20)) == Window(0, 19 * S, False, True), "its end is not old enough"
    assert next_window(20 * S - 1, 0, sight(500 * S, 0, at_20)) == Window(20 * S - 1, 20 * S - 1, True, False)
    assert next_window(20 * S - 1, at_20, sight(500 * S, 0, at_20)) == Window(20 * S - 1, 80 * S - 1, False, False)


@given(
    st.lists(st.integers(0, 2_000), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(1, 400), min_size=30, max_size=60),
)
def test_windows_cover_all_time_without_gap_in_their_generation(times_s: list[int], steps_s: list[int]) -> None:
    """Whatever the clock does, windows follow each other, and each microsecond is read in the generation it was
    written in."""
    times_ms = sorted(time * 1000 for time in times_s)
    start = first_start(0, times_ms)
    assert start is not None
    until, generation, now = start.until_us, start.generation_ms, 0
    for step in steps_s:
        now += step * S
        window = next_window(until, generation, sight(now, *times_ms))
        if window is None:
            continue
        assert window.start_us == until and until <= window.end_us <= now - 30 * S
        assert until + 1 >= generation * 1000
        following_ms = min((time for time in times_ms if time > generation), default=None)
        assert following_ms is None or window.end_us < following_ms * 1000
        until = window.end_us
        if window.ends_generation:
            assert following_ms is not None and until == following_ms * 1000 - 1
            generation = following_ms


def test_where_reading_begins() -> None:
    assert first_start(50 * S, []) is None
    assert first_start(50 * S, [10_000, 40_000, 60_000]) == Start(40_000, 50 * S)
    assert first_start(5 * S, [10_000, 40_000]) == Start(10_000, 10 * S - 1), "not before the first generation"


def test_what_the_log_still_holds() -> None:
    now = 1_000_000 * S
    oldest = log_start(now, 86_400)
    assert oldest == now - 86_400 * S + 60 * S and log_start(now, 100) == now - 90 * S and log_start(now, 0) == 0
    assert verdict(oldest, 7, [7], oldest) == "readable"
    assert verdict(oldest - 1, 7, [7], oldest) == "expired"
    assert verdict(oldest, 7, [8], oldest) == "generation gone"
    assert log_start(now, 86_400) < beginning(now, 86_400) < now and beginning(now, 0) == 0
