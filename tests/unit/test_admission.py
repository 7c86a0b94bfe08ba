"""Admission on a virtual clock: what is let in is answered in time, what is refused costs little, tenants are fair."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lookup.admission import LOAD_ALWAYS_TAKEN, SHEDDING_S, TURN_SHARE, Admission, Refusal, Ticket
from pipeline.lookup.admission_estimates import LIMIT_FIRST, LIMIT_MIN, Estimates, Limit, size_of
from pipeline.lookup.tenant_shares import fair_shares, with_bursts
from tests.support.virtual_server import Outcome, VirtualServer

SECONDS = 3.0
SEEDS = (1, 2)


def served(seed: int, load: float, **more: float) -> Outcome:
    server = VirtualServer(seed, **more)
    server.run({None: load}, SECONDS)
    assert server.admission.in_flight == 0 and server.admission.load == pytest.approx(0, abs=1e-6)
    return server.outcomes[None]


def test_at_half_and_at_80_percent_of_capacity_all_are_let_in_and_answered_in_time() -> None:
    """Of all that came: a refusal counts as no answer."""
    for load in (0.5, 0.8):
        outcomes = [served(seed, load) for seed in range(1, 6)]
        assert sum(one.in_budget for one in outcomes) >= 0.999 * sum(one.came for one in outcomes)


@pytest.mark.parametrize("seed", SEEDS)
def test_at_overload_those_that_are_let_in_are_answered_in_time(seed: int) -> None:
    at_capacity, overload, flood = (served(seed, load) for load in (1.0, 1.5, 3.0))
    assert at_capacity.share_in_budget >= 0.99 and at_capacity.share_refused < 0.1
    assert overload.share_in_budget >= 0.99 and 0.3 < overload.share_refused < 0.4
    assert flood.share_in_budget >= 0.99
    assert flood.in_budget >= 0.9 * at_capacity.in_budget, "refusing costs less than a tenth of what is answered"


def test_without_admission_nobody_is_answered_in_time_at_overload() -> None:
    """So that the server of these tests is one that breaks."""
    assert served(1, 1.5, in_flight_max=0).share_in_budget < 0.05


def test_with_a_tight_budget_fewer_are_let_in_and_answered_in_time() -> None:
    outcome = served(3, 1.5, budget_s=0.005)
    assert outcome.share_in_budget >= 0.98 and outcome.share_refused < 0.5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("overload", [1.5, 3.0])
def test_a_noisy_tenant_does_not_starve_another(seed: int, overload: float) -> None:
    server = VirtualServer(seed)
    server.run({"noisy": overload * 10 / 11, "small": overload / 11}, SECONDS)
    small, noisy = server.outcomes["small"], server.outcomes["noisy"]
    assert small.share_refused < 0.01 and small.share_in_budget >= 0.99
    assert noisy.share_refused > 0.3 and noisy.share_in_budget >= 0.99
    assert set(noisy.reasons) <= {"tenant share", "too late"} and noisy.reasons["tenant share"] > 100


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [served(seed, 1.5).latencies_s for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


class Room:
    """An admission at a time of the test's own; what it calls soon is called when the test says so."""

    def __init__(self, in_flight_max: int = 256) -> None:
        self.now_s = 50.0
        self.soon: deque[Callable[[], None]] = deque()
        self.admission = Admission(in_flight_max, lambda: self.now_s, self.soon.append)

    def turn(self) -> None:
        """The event loop comes round."""
        while self.soon:
            self.soon.popleft()()

    def let_in(self, tenant: str | None = None, left_ms: float = 10, keys: int = 1) -> Ticket:
        ticket = self.admission.admit(tenant, left_ms, keys)
        assert isinstance(ticket, Ticket)
        return ticket

    def refused(self, tenant: str | None = None, left_ms: float = 10, keys: int = 1) -> Refusal:
        refusal = self.admission.admit(tenant, left_ms, keys)
        assert isinstance(refusal, Refusal)
        assert 0 < refusal.retry_after_s <= 5
        return refusal

    def answer(self, took_s: float, keys: int = 1, times: int = 1) -> None:
        for _ in range(times):
            ticket = self.let_in(keys=keys, left_ms=1_000)
            self.turn()
            self.now_s += took_s
            self.admission.done(ticket)


def answered_from_memory(rate_per_s: float, refusing: bool, store_share: float = 0.0) -> tuple[int, int, int]:
    """(came, let in, of these in their 10 ms) of a loop that answers each request while it looks at it: 20 µs to read
    one, 30 µs to answer it, and nobody sees what comes meanwhile. Some need the store, which has answered when the loop
    comes round, and 10 µs then."""
    room, chance = Room(in_flight_max=256 if refusing else 0), random.Random(1)
    came_at_s = deque(50.0 + number / rate_per_s for number in range(int(rate_per_s * 2)))
    came = len(came_at_s)
    let_in = in_time = 0
    asking: list[tuple[float, Ticket]] = []
    while came_at_s:
        answers, asking = asking, []
        if not answers:
            room.now_s = max(room.now_s, came_at_s[0])
        waiting = []
        while came_at_s and came_at_s[0] <= room.now_s:
            waiting.append(came_at_s.popleft())
        for came_s, ticket in answers:
            room.now_s += 10e-6
            room.admission.done(ticket)
            in_time += room.now_s - came_s <= 0.010
        for came_s in waiting:
            room.now_s += 20e-6
            if room.admission.late(10) is not None:
                continue
            if chance.random() < store_share:
                found = room.admission.admit(None, 10)
                if isinstance(found, Ticket):
                    let_in += 1
                    asking.append((came_s, found))
                continue
            let_in += 1
            room.now_s += 30e-6
            in_time += room.now_s - came_s <= 0.010
        room.turn()
    return came, let_in, in_time + len(asking)


@pytest.mark.parametrize("store_share", [0.0, 0.02])
def test_answers_from_memory_are_refused_too_before_they_are_late(store_share: float) -> None:
    """20,000 a second can be answered."""
    came, let_in, in_time = answered_from_memory(15_000, True, store_share)
    assert let_in == in_time == came
    came, let_in, in_time = answered_from_memory(28_000, True, store_share)
    assert let_in > 0.25 * came and in_time >= 0.99 * let_in
    came, let_in, in_time = answered_from_memory(28_000, False, store_share)
    assert in_time < 0.1 * came


def test_more_than_the_limit_are_refused_until_some_are_done() -> None:
    room = Room(in_flight_max=10)
    tickets = [room.let_in() for _ in range(10)]
    assert room.refused().reason == "overload" and room.admission.shedding
    room.admission.done(tickets[0])
    room.admission.done(tickets[0])
    assert room.admission.in_flight == 9
    room.let_in()
    assert room.refused().reason == "overload"
    room.now_s += SHEDDING_S
    assert not room.admission.shedding


def test_what_takes_longer_than_is_left_is_refused_but_for_little_load() -> None:
    room = Room()
    room.answer(0.004, times=300)
    tickets = [room.let_in(left_ms=1) for _ in range(int(LOAD_ALWAYS_TAKEN))]
    assert room.refused(left_ms=1).reason == "too late"
    tickets.append(room.let_in(left_ms=50))
    for ticket in tickets:
        room.admission.done(ticket)
    room.let_in(left_ms=1)


def test_time_that_a_request_waited_before_it_was_seen_counts() -> None:
    room = Room()
    room.answer(0.004, times=300)
    for _ in range(3):
        room.let_in(left_ms=20)
    room.now_s += 0.018
    assert room.admission.lag_s == pytest.approx(0.018), "the loop has not come round since"
    assert room.refused(left_ms=20).reason == "too late"
    room.turn()
    assert room.admission.lag_s == pytest.approx(0.018)
    room.now_s += 1
    assert room.admission.lag_s == 0


def test_answers_from_memory_wait_for_no_ticket_and_say_nothing_of_those_that_do() -> None:
    room = Room()
    room.answer(0.009, times=300)
    slow, limit = room.admission.lag_s, room.admission.limit
    for _ in range(1_000):
        assert room.admission.late(10) is None
    assert (room.admission.in_flight, room.admission.limit, room.admission.lag_s) == (0, limit, slow)
    for _ in range(3):
        room.let_in(left_ms=20)
    assert room.refused(left_ms=8).reason == "too late", "it is still known what waiting takes"
    assert room.admission.late(8) is None
    room.now_s += 20e-3 * TURN_SHARE + 1e-6
    refusal = room.admission.late(20)
    assert refusal is not None and refusal.reason == "too late" and room.admission.shedding
    room.turn()
    assert room.admission.late(20) is None, "another turn has begun"


def test_zero_lets_all_in() -> None:
    room = Room(in_flight_max=0)
    for _ in range(2_000):
        room.let_in(left_ms=0.001)
        room.now_s += 1
        assert room.admission.late(0.001) is None
    assert room.admission.in_flight == 2_000


def test_what_says_nothing_of_the_load_changes_no_limit() -> None:
    room = Room()
    for _ in range(50):
        tickets = [room.let_in() for _ in range(15)]
        room.turn()
        room.now_s += 0.0095
        for ticket in tickets:
            room.admission.done(ticket, typical=False)
    assert room.admission.limit == LIMIT_FIRST


def test_an_outage_refuses_nobody_once_the_store_is_passed_over() -> None:
    room = Room()
    for _ in range(300):
        room.answer(0.009)
    for _ in range(3):
        room.let_in(left_ms=50)
    assert room.refused(left_ms=8).reason == "too late"
    limit = room.admission.limit
    for took_s in [0.02] * 50 + [
        0.0003
    ] * 200:  # first each waits for the store, then what was last known comes at once
        ticket = room.let_in(left_ms=1_000)
        room.turn()
        room.now_s += took_s
        room.admission.done(ticket, None)
    assert isinstance(room.admission.admit(None, 8), Ticket) and room.admission.limit == limit


def test_a_batch_weighs_as_much_as_it_takes_longer() -> None:
    estimates = Estimates()
    for _ in range(400):
        estimates.observe(size_of(1), 0, 0.001)
        estimates.observe(size_of(250), 0, 0.006)
    assert estimates.weight(size_of(250), 250) == pytest.approx(6, rel=0.05)
    assert estimates.weight(size_of(1), 1) == 1
    assert estimates.weight(size_of(16), 16) == 4, "the root, while nothing is known"


def test_a_batch_larger_than_the_limit_is_let_in_when_there_is_room() -> None:
    room = Room()
    for _ in range(200):
        room.answer(0.001)
        room.answer(0.2, keys=1_000)
    room.let_in(keys=1_000, left_ms=1_000)
    assert room.refused(keys=1_000, left_ms=1_000).reason == "overload"


def test_estimates_learn_what_each_request_on_its_way_adds() -> None:
    estimates = Estimates()
    for number in range(6_000):
        load = number * 7 % 40
        estimates.observe(1, load, 0.0005 + 0.0002 * load)
    for load in (0, 10, 40):
        assert estimates.expected_s(1, load) == pytest.approx(0.0005 + 0.0002 * load, rel=0.15)


def test_the_limit_falls_where_answers_are_late_and_rises_again() -> None:
    limit, now_s = Limit(100), 0.0

    def answers(used: float, times: int, load_share: float = 1.0) -> float:
        nonlocal now_s
        for _ in range(times):
            now_s += 0.001
            limit.observe(limit.value * load_share, used, now_s)
        return limit.value

    assert answers(1.2, 2_000) == LIMIT_MIN
    assert answers(0.1, 500, load_share=0.4) == LIMIT_MIN, "answers at little load say nothing of it"
    assert answers(0.1, 5_000) == 100
    assert answers(0.1, 500) == 100


@given(st.lists(st.floats(0, 1_000), min_size=1, max_size=30), st.floats(0.1, 500))
def test_shares_are_max_min_fair(wanted: list[float], limit: float) -> None:
    shares = fair_shares(wanted, limit)
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    assert sum(shares) == pytest.approx(min(limit, sum(wanted)), abs=1e-6)
    short = [share for share, want in zip(shares, wanted, strict=True) if share < want - 1e-9]
    if short:
        assert max(short) == pytest.approx(min(short)), "all who get less than they want get the same"
        assert max(shares) <= max(short) + 1e-6, "and nobody gets more than they"
    for share, burst in zip(shares, with_bursts(wanted, shares, limit), strict=True):
        assert burst >= share / 2


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "done", "turn"]),
        st.sampled_from([None, "a", "b", "c"]),
        st.sampled_from([1, 1, 1, 5, 250]),
        st.floats(0.1, 20),
        st.floats(0, 0.01),
    ),
    max_size=200,
)


@given(STEPS, st.integers(0, 40))
def test_whatever_comes_the_books_balance(
    steps: list[tuple[str, str | None, int, float, float]], in_flight_max: int
) -> None:
    room = Room(in_flight_max)
    tickets: list[Ticket] = []
    turned_s = room.now_s
    for what, tenant, keys, left_ms, passed_s in steps:
        room.now_s += passed_s
        if what == "admit":
            found = room.admission.admit(tenant, left_ms, keys)
            if isinstance(found, Ticket):
                tickets.append(found)
            else:
                admission, turn_s = room.admission, room.now_s - turned_s
                much = admission.load >= LOAD_ALWAYS_TAKEN or admission.in_flight >= in_flight_max
                assert in_flight_max and (much or turn_s > left_ms / 1000 * TURN_SHARE)
        elif what == "done" and tickets:
            room.admission.done(tickets.pop(keys % len(tickets)))
        elif what == "turn" and room.soon:
            room.soon.popleft()()
            turned_s = room.now_s
        assert room.admission.in_flight == len(tickets) <= (in_flight_max or 1_000)
        assert room.admission.load == pytest.approx(sum(ticket.weight for ticket in tickets), abs=1e-6)
        assert len(room.soon) <= 1
    for ticket in tickets:
        room.admission.done(ticket)
    room.now_s += 5
    room.turn()
    room.let_in("d", left_ms=0.01) if in_flight_max != 0 else None
    assert room.admission.in_flight in (0, 1)


def test_who_has_time_is_let_in_where_those_in_a_hurry_are_refused() -> None:
    admission = Admission(16, lambda: 0.0)
    admission._limit.value = 4.0  # as those left it whose answers used up 10 ms
    for _ in range(8):
        assert isinstance(admission.admit(None, 2_000), Ticket)
    hurried = admission.admit(None, 1)
    assert isinstance(hurried, Refusal) and hurried.reason == "overload"
    for _ in range(8):
        assert isinstance(admission.admit(None, 2_000), Ticket)
    assert isinstance(admission.admit(None, 2_000), Refusal), "no more than in_flight_max, whoever has time"


def test_who_has_time_does_not_push_others_aside() -> None:
    admission = Admission(100, lambda: 0.0)
    admission._limit.value = 4.0
    assert isinstance(admission.admit("small", 10), Ticket)
    let_in = [admission.admit("large", 2_000) for _ in range(50)]
    assert sum(isinstance(one, Ticket) for one in let_in) < 8
