"""When a rung of the ladder is passed over, and when it is asked again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.lookup.rung_state import FAILURES_MAX, PROBE_EVERY_S, STALL_S, UNANSWERED_S_MAX, RungState

WAITED_S = 0.01


class World:
    """A rung at a time of the test's own; `told` are the reasons that it gave when it changed."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.told: list[str | None] = []
        self.rung = RungState(lambda: self.now_s, changed=lambda rung: self.told.append(rung.reason))

    def ask(self) -> int:
        number = self.rung.begin()
        assert number is not None
        return number

    def time_out(self, times: int) -> None:
        for _ in range(times):
            number = self.ask()
            self.now_s += WAITED_S
            self.rung.timed_out(number)


def test_three_failures_in_a_row_pass_it_over_at_once() -> None:
    world = World()
    world.time_out(2)
    assert not world.rung.passed_over
    world.rung.failed(world.ask(), "refused")
    assert world.rung.begin() is None
    assert world.told == ["3 failures in a row, the last: refused"]


def test_an_answer_between_failures_starts_the_count_anew() -> None:
    world = World()
    world.time_out(2)
    world.rung.succeeded(world.ask())
    world.time_out(2)
    assert not world.rung.passed_over


def test_questions_that_fail_together_are_one_failure() -> None:
    world = World()
    numbers = [world.ask() for _ in range(50)]
    world.now_s += WAITED_S
    for number in numbers:
        world.rung.timed_out(number)
    assert not world.rung.passed_over
    world.time_out(2)
    assert world.rung.passed_over


def test_one_probe_per_interval_and_its_answer_ends_it() -> None:
    world = World()
    world.time_out(3)
    assert world.rung.begin() is None
    world.now_s += PROBE_EVERY_S
    probe = world.ask()
    assert world.rung.begin() is None
    world.now_s += WAITED_S
    world.rung.timed_out(probe)
    assert world.rung.passed_over and world.rung.begin() is None
    world.now_s += PROBE_EVERY_S
    world.rung.succeeded(world.ask())
    assert not world.rung.passed_over and world.rung.begin() is not None
    assert world.told[-1] is None and len(world.told) == 2


def test_a_late_answer_ends_it_too() -> None:
    world = World()
    slow = world.ask()
    world.time_out(3)
    world.rung.succeeded(slow)
    assert not world.rung.passed_over


def test_a_caller_without_patience_says_nothing() -> None:
    world = World()
    for _ in range(100):
        number = world.ask()
        world.now_s += 0.001
        world.rung.timed_out(number)
    assert not world.rung.passed_over


def test_who_needs_no_answer_any_more_says_nothing() -> None:
    world = World()
    for _ in range(100):
        number = world.ask()
        world.now_s += WAITED_S
        world.rung.gave_up(number)
    assert not world.rung.passed_over and world.rung.unanswered == 0


def test_a_question_without_an_answer_for_too_long_passes_it_over() -> None:
    world = World()
    world.ask()
    world.now_s += UNANSWERED_S_MAX + 0.001
    assert world.rung.begin() is not None, "answers may lie in front of an event loop that stood still"
    world.now_s += 2 * STALL_S
    assert world.rung.begin() is None
    assert world.told == ["no answer for 25 ms"]


def test_an_event_loop_that_stood_still_is_no_failure_of_the_rung() -> None:
    world = World()
    number = world.ask()
    world.now_s += 10 * UNANSWERED_S_MAX
    world.ask()
    world.rung.succeeded(number)
    world.now_s += STALL_S
    assert world.rung.begin() is not None


def test_a_question_that_later_ones_have_overtaken_is_alone_with_its_trouble() -> None:
    world = World()
    world.ask()
    world.rung.succeeded(world.ask())
    for _ in range(20):
        world.now_s += UNANSWERED_S_MAX
        world.rung.succeeded(world.ask())
    assert not world.rung.passed_over and world.rung.unanswered == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "succeeded", "failed", "timed_out", "gave_up"]),
            st.integers(0, 5),
            st.floats(0, 0.06),
        ),
        max_size=120,
    )
)
def test_whatever_happens_it_is_passed_over_for_a_reason_and_probed(steps: list[tuple[str, int, float]]) -> None:
    world = World()
    rung, asked = world.rung, list[int]()
    failures_since_answer, let_through_s = 0, list[float]()
    for what, which, passed_s in steps:
        world.now_s += passed_s
        if what == "begin":
            silent = bool(asked)
            was = rung.passed_over
            number = rung.begin()
            if not was and rung.passed_over:
                assert silent, "only an unanswered question can pass it over here"
            if number is not None:
                if rung.passed_over:
                    assert not let_through_s or world.now_s - let_through_s[-1] >= PROBE_EVERY_S - 1e-9
                    let_through_s.append(world.now_s)
                asked.append(number)
        elif asked:
            number = asked.pop(which % len(asked))
            was = rung.passed_over
            rung.failed(number, "away") if what == "failed" else getattr(rung, what)(number)
            failures_since_answer += what in ("failed", "timed_out")
            if what == "succeeded":
                failures_since_answer = 0
                let_through_s.clear()
                assert not rung.passed_over
            elif rung.passed_over and not was:
                assert failures_since_answer >= FAILURES_MAX and what in ("failed", "timed_out")
        assert rung.unanswered == len(asked)
        assert rung.passed_over == (rung.reason is not None)
