"""A breaker against every order of questions, answers, cancels and hours that a machine can think of."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from pipeline.guard.breaker import Breaker, Permit, State
from pipeline.guard.config import BreakerConfig

CONFIG = BreakerConfig(failures_max=3, open_s=10, open_s_max=40, jitter=0.5)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class BreakerMachine(RuleBasedStateMachine):
    """What is known without looking inside: how many failed in a row since the last change, and who probes."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.told = Clock(), list[State]()
        self.chance = 0.0
        self.breaker = Breaker(CONFIG, self.clock, lambda: self.chance, self.told.append)
        self.failures, self.generation = 0, 0
        self.open_since_s: float | None = None
        self.open_s = 0.0
        self.probe: Permit | None = None
        self.openings = 0

    @rule(target=permits)
    def ask(self) -> Permit:
        permit = self.breaker.admit()
        may = self.open_since_s is None or (self.over() and self.probe is None)
        assert (permit is not None) is may
        if permit is None:
            return Permit(-1, probe=False)  # of nobody; it must count nothing
        assert permit.generation == self.generation
        assert permit.probe is (self.open_since_s is not None)
        if permit.probe:
            self.probe = permit
        return permit

    @rule(permit=permits)
    def succeed(self, permit: Permit) -> None:
        """Also for permits that were handed back already: a second report may come."""
        counts = self.counts(permit)
        self.breaker.success(permit)
        if counts and permit.probe:
            self.open_since_s, self.openings = None, 0
            self.changed()
        elif counts:
            self.failures = 0

    @rule(permit=consumes(permits))
    def fail(self, permit: Permit) -> None:
        counts = self.counts(permit)
        self.breaker.failure(permit)
        if not counts:
            return
        self.failures += 1
        if permit.probe or self.failures == CONFIG.failures_max:
            self.open_s = min(CONFIG.open_s * 2**self.openings, CONFIG.open_s_max) * (1 + CONFIG.jitter * self.chance)
            self.open_since_s, self.openings = self.clock.now_s, self.openings + 1
            self.changed()

    @rule()
    def fail_three_times(self) -> None:
        """What it takes many steps to come upon by chance."""
        for _ in range(3):
            permit = self.ask()
            self.fail(permit)

    @precondition(lambda self: self.open_since_s is not None)
    @rule()
    def probe_and_fail(self) -> None:
        if not self.over():
            self.wait_until_it_may_probe()
        self.fail(self.ask())

    @rule(permit=consumes(permits))
    def go_away(self, permit: Permit) -> None:
        before = self.breaker.generation
        self.breaker.neutral(permit)
        assert self.breaker.generation == before
        if permit is self.probe:
            self.probe = None

    @rule(seconds=st.sampled_from([0.1, 5.0, 10.0, 20.0, 60.0]), chance=st.sampled_from([0.0, 0.5, 0.99]))
    def wait(self, seconds: float, chance: float) -> None:
        self.clock.now_s += seconds
        self.chance = chance

    @precondition(lambda self: self.open_since_s is not None and not self.over())
    @rule()
    def wait_until_it_may_probe(self) -> None:
        assert self.open_since_s is not None
        self.clock.now_s = self.open_since_s + self.open_s + 0.001

    @invariant()
    def it_is_in_the_state_that_follows(self) -> None:
        expected = "closed" if self.open_since_s is None else "half_open" if self.over() else "open"
        assert self.breaker.state == expected
        assert self.breaker.generation == self.generation

    def over(self) -> bool:
        return self.open_since_s is not None and self.clock.now_s >= self.open_since_s + self.open_s

    def counts(self, permit: Permit) -> bool:
        return permit.generation == self.generation and (not permit.probe or permit is self.probe)

    def changed(self) -> None:
        self.generation += 1
        self.failures, self.probe = 0, None


BreakerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBreaker = BreakerMachine.TestCase


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(CONFIG, clock, lambda: 0.0)
    for _ in range(3):
        permit = breaker.admit()
        assert permit is not None
        breaker.failure(permit)
    return breaker, clock


def test_three_in_a_row_open_it_and_two_with_a_success_between_do_not() -> None:
    clock = Clock()
    breaker = Breaker(CONFIG, clock, lambda: 0.0)
    for outcome in ("failure", "failure", "neutral", "success", "failure", "failure", "neutral"):
        permit = breaker.admit()
        assert permit is not None
        getattr(breaker, outcome)(permit)
    assert breaker.state == "closed"
    permit = breaker.admit()
    assert permit is not None
    breaker.failure(permit)
    assert breaker.state == "open"
    assert breaker.admit() is None


def test_what_was_asked_before_it_opened_changes_nothing_after() -> None:
    clock = Clock()
    breaker = Breaker(CONFIG, clock, lambda: 0.0)
    late = [breaker.admit() for _ in range(8)]
    for permit in late[:3]:
        assert permit is not None
        breaker.failure(permit)
    clock.now_s += 10
    probe = breaker.admit()
    assert probe is not None
    for permit in late[3:5]:
        assert permit is not None
        breaker.success(permit)
    assert breaker.state == "half_open", "a late success does not close it"
    breaker.success(probe)
    for permit in late[5:]:
        assert permit is not None
        breaker.failure(permit)
    assert breaker.state == "closed", "late failures don't open it again"


def test_a_probe_whose_caller_went_away_makes_room_for_the_next() -> None:
    breaker, clock = opened()
    clock.now_s += 10
    probe = breaker.admit()
    assert probe is not None
    assert breaker.admit() is None
    breaker.neutral(probe)
    second = breaker.admit()
    assert second is not None
    assert breaker.admit() is None
    breaker.success(probe)
    assert breaker.state == "half_open", "the first has nothing to say any more"
    breaker.success(second)
    assert breaker.state == "closed"


def test_who_probed_long_ago_does_not_take_the_place_of_who_probes_now() -> None:
    breaker, clock = opened()
    clock.now_s += 10
    old = breaker.admit()
    assert old is not None
    breaker.failure(old)
    clock.now_s += 20
    probe = breaker.admit()
    assert probe is not None
    breaker.neutral(old)
    assert breaker.admit() is None


def test_it_stays_open_twice_as_long_after_each_probe_that_fails_up_to_a_limit() -> None:
    breaker, clock = opened()
    for open_s in (10, 20, 40, 40):
        clock.now_s += open_s - 0.1
        assert breaker.admit() is None
        clock.now_s += 0.1
        probe = breaker.admit()
        assert probe is not None
        breaker.failure(probe)
    clock.now_s += 40
    probe = breaker.admit()
    assert probe is not None
    breaker.success(probe)
    for _ in range(3):
        permit = breaker.admit()
        assert permit is not None
        breaker.failure(permit)
    clock.now_s += 10
    assert breaker.admit() is not None, "as long as the first time again"
