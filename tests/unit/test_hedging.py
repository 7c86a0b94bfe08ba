"""The second question of a slow read: when it is sent, who wins, what is cancelled, and how much it may cost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lookup.hedging import OBSERVATIONS_MIN, SAVED_KEYS_MAX, Hedging, LatencyWindow, hedged

DELAY_S = 0.005


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is its timers': it never waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def passes(timeout: float | None) -> Any:
            self.now_s += timeout or 0
            return select(0)

        self._selector.select = passes  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.run_until_complete(made.shutdown_asyncgens())
    made.close()


class Source:
    """Answers after a time, or fails; remembers whether it was asked, and cancelled."""

    def __init__(self, name: str, takes_s: float, error: Exception | None = None) -> None:
        self.name, self.takes_s, self.error = name, takes_s, error
        self.asked = 0
        self.cancelled = False

    async def __call__(self) -> str:
        self.asked += 1
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return self.name


CASES = [
    (0.001, None, 0.001, None, "first", 0.001, 0),
    (0.1, None, 0.001, None, "second", 0.006, 1),
    (0.008, None, 0.1, None, "first", 0.008, 1),
    (0.1, None, 0.001, OSError("two"), "first", 0.1, 1),
    (0.001, OSError("one"), 0.001, None, "second", 0.002, 1),
    (0.008, OSError("one"), 0.1, None, "second", 0.105, 1),
]


@pytest.mark.parametrize(("first_s", "first_error", "second_s", "second_error", "winner", "at_s", "asked"), CASES)
def test_the_first_success_counts_and_the_other_is_cancelled(
    loop: VirtualLoop,
    first_s: float,
    first_error: Exception | None,
    second_s: float,
    second_error: Exception | None,
    winner: str,
    at_s: float,
    asked: int,
) -> None:
    first, second = Source("first", first_s, first_error), Source("second", second_s, second_error)

    async def run() -> tuple[str, str]:
        found = await hedged(first, second, DELAY_S)
        assert loop.time() == pytest.approx(at_s)
        await asyncio.sleep(1)
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        return found

    assert loop.run_until_complete(run()) == (winner, winner)
    assert second.asked == asked
    loser = second if winner == "first" else first
    assert loser.cancelled == bool(loser.asked and loser.error is None)


@pytest.mark.parametrize(("first_s", "second_s"), [(0.001, 0.001), (0.1, 0.001), (0.008, 0.001), (0.006, 0.1)])
@pytest.mark.parametrize("delay_s", [DELAY_S, None])
def test_only_when_both_failed_the_error_of_the_first_is_raised(
    loop: VirtualLoop, first_s: float, second_s: float, delay_s: float | None
) -> None:
    first, second = Source("first", first_s, OSError("one")), Source("second", second_s, OSError("two"))
    with pytest.raises(OSError, match="one"):
        loop.run_until_complete(hedged(first, second, delay_s))
    assert second.asked >= 1


def test_a_timeout_around_it_cancels_both(loop: VirtualLoop) -> None:
    first, second = Source("first", 1), Source("second", 1)

    async def run() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await hedged(first, second, DELAY_S)
        assert loop.time() == pytest.approx(0.02)
        await asyncio.sleep(0)

    loop.run_until_complete(run())
    assert first.cancelled and second.cancelled


def test_a_timeout_at_the_moment_of_the_second_answer_is_a_timeout(loop: VirtualLoop) -> None:
    """Both cancel the task in one turn of the loop; neither cancellation is lost."""
    answer: list[asyncio.Future[str]] = []

    def second() -> asyncio.Future[str]:
        answer.append(loop.create_future())
        return answer[0]

    async def run() -> str:
        found = await hedged(Source("first", 1), second, DELAY_S)
        return found[0]

    task = loop.create_task(run())

    def both() -> None:
        answer[0].set_result("second")
        loop.call_soon(task.cancel)

    loop.call_later(0.01, both)
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


def test_no_second_question_where_none_is_allowed(loop: VirtualLoop) -> None:
    second = Source("second", 0.001)
    assert loop.run_until_complete(hedged(Source("first", 0.1), second, DELAY_S, lambda: False)) == ("first", "first")
    assert not second.asked


def test_a_loop_that_stood_still_sends_no_hedge_for_an_answer_that_is_there(loop: VirtualLoop) -> None:
    second = Source("second", 0.001)
    first: asyncio.Future[str] = loop.create_future()

    def stand_still() -> None:
        loop.now_s += 1

    loop.call_later(DELAY_S / 4, stand_still)
    # In the turn after it both are due: the answer, of which the task hears in the next one, and the hedge.
    loop.call_later(DELAY_S / 2, first.set_result, "first")
    allowed: list[bool] = []

    def may_hedge() -> bool:
        allowed.append(True)
        return True

    found = loop.run_until_complete(_of(lambda: hedged(lambda: first, second, DELAY_S, may_hedge)))
    assert found == ("first", "first") and not allowed and not second.asked


def test_a_second_that_cannot_be_asked_leaves_the_first(loop: VirtualLoop) -> None:
    def refuses() -> Any:
        raise ConnectionError("closed")

    assert loop.run_until_complete(hedged(Source("first", 0.1), refuses, DELAY_S)) == ("first", "first")
    with pytest.raises(OSError, match="one"):
        loop.run_until_complete(hedged(Source("first", 0.1, OSError("one")), refuses, DELAY_S))


def test_reads_are_hedged_after_the_95th_percentile_within_the_share(loop: VirtualLoop) -> None:
    chance = random.Random(7)
    hedging = Hedging()

    async def run() -> list[float]:
        took = []
        for _ in range(4_000):
            slow = chance.random() < 0.03
            began_s = loop.time()
            takes_s = 0.2 if slow else chance.uniform(0.001, 0.002)
            await hedging.read(Source("first", takes_s), Source("second", 0.0015))
            took.append(loop.time() - began_s)
        return took

    took = sorted(loop.run_until_complete(run())[OBSERVATIONS_MIN:])
    assert hedging.hedged <= 0.05 * 4_000
    assert hedging.won > 90, "3% of 4,000 are slow"
    assert took[int(0.99 * len(took))] < 0.005 < 0.2 == pytest.approx(max(took)), "bad ones were hedged when known"


def test_none_while_requests_are_shed_and_none_before_latencies_are_known() -> None:
    shedding = True
    hedging = Hedging(shedding=lambda: shedding)
    hedging.began(100)
    shedding = False
    assert hedging.delay_s() is None
    for _ in range(OBSERVATIONS_MIN * 2):
        hedging.observe(0.002)
    assert hedging.delay_s() == pytest.approx(0.002, rel=0.06)
    shedding = True
    assert hedging.delay_s() is None and not hedging.may_hedge()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 1_000)), max_size=200))
def test_additional_reads_are_never_more_than_their_share(steps: list[tuple[bool, int]]) -> None:
    hedging = Hedging()
    read = again = 0
    for hedge, keys in steps:
        if hedge:
            again += keys if hedging.may_hedge(keys) else 0
        else:
            read += keys
            hedging.began(keys)
        assert again <= 0.05 * read + 1e-6
    for _ in range(10_000):
        hedging.began(100)
    assert hedging.may_hedge(SAVED_KEYS_MAX) and not hedging.may_hedge(1), "what is saved has a limit"


@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.95, 0.99]))
def test_the_window_tells_the_quantile_within_some_percent(seed: int, quantile: float) -> None:
    chance = random.Random(seed)
    window = LatencyWindow(quantile)
    values = [chance.lognormvariate(-6.5, 0.6) for _ in range(2_048)]
    for value in values:
        window.observe(value)
    exact = sorted(values)[int(quantile * len(values))]
    assert window.value_s == pytest.approx(exact, rel=0.08)


def test_the_window_forgets() -> None:
    window = LatencyWindow(0.95)
    for _ in range(3_000):
        window.observe(0.1)
    for _ in range(4_200):
        window.observe(0.001)
    assert window.value_s == pytest.approx(0.001, rel=0.06)


async def _of(call: Callable[[], Any]) -> Any:
    return await call()
