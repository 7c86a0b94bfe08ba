"""Virtual time: waiting takes none of the machine's, deadlines are exact, and what could never end is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from pipeline.evaluation.virtual_time import NeverEnds, TakesTooLong, VirtualClock, VirtualLoop, run_virtually

BEGAN_US = 1_767_225_600_000_000


def run(work: Any, **options: Any) -> Any:
    """`work` gets the loop's clock."""

    def make(loop: VirtualLoop) -> Coroutine[Any, Any, Any]:
        return work(VirtualClock(loop, BEGAN_US))

    return run_virtually(make, **options)


def test_time_passes_only_where_everybody_waits() -> None:
    async def work(clock: VirtualClock) -> list[float]:
        seen = []
        for duration_s in (3600, 0.25, 1e-3):
            await clock.sleep(duration_s)
            sum(range(1000))
            seen.append(clock.monotonic_s())
        assert clock.now_us() == BEGAN_US + 3_600_251_000
        return seen

    assert run(work) == [3600, 3600.25, 3600.251]


def test_sums_of_floats_stay_what_people_write() -> None:
    async def work(clock: VirtualClock) -> float:
        for _ in range(1000):
            await clock.sleep(0.1)
        return clock.monotonic_s()

    assert run(work) == 100.0


def test_deadlines_end_what_waits_for_ever_at_their_moment() -> None:
    async def work(clock: VirtualClock) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        done, late = await asyncio.wait([asyncio.create_task(asyncio.sleep(s)) for s in (1, 2, 50)], timeout=10)
        assert (len(done), len(late)) == (2, 1)
        return clock.monotonic_s()

    assert run(work) == 40


def test_the_order_of_timers_is_that_of_their_times() -> None:
    async def work(clock: VirtualClock) -> list[int]:
        ended: list[int] = []

        async def one(number: int, duration_s: float) -> None:
            await clock.sleep(duration_s)
            ended.append(number)

        await asyncio.gather(one(1, 5), one(2, 3), one(3, 3), one(4, 1))
        return ended

    assert run(work) == [4, 2, 3, 1]


def slow() -> str:
    time.sleep(0.2)
    return "done"


def test_time_stands_still_while_a_thread_works() -> None:
    async def work(clock: VirtualClock) -> tuple[str, float]:
        ticking = asyncio.create_task(asyncio.sleep(1000))
        told = await asyncio.to_thread(slow)
        ticking.cancel()
        return told, clock.monotonic_s()

    assert run(work) == ("done", 0.0)


def test_a_thread_that_the_loop_knows_nothing_of_may_still_end_the_waiting() -> None:
    async def work(clock: VirtualClock) -> str:
        loop, waiting = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        threading.Timer(0.05, lambda: loop.call_soon_threadsafe(waiting.set_result, "came")).start()
        return await waiting

    assert run(work) == "came"


def test_what_can_never_go_on_is_an_error_that_no_flow_catches() -> None:
    async def work(clock: VirtualClock) -> None:
        try:
            await asyncio.Event().wait()
        except Exception:  # noqa: BLE001 - as flows do
            return

    with pytest.raises(NeverEnds, match="no timer runs and nothing is ready"):
        run(work)


def test_a_wait_without_an_end_is_one_too() -> None:
    async def work(clock: VirtualClock) -> None:
        while True:
            await clock.sleep(3600)

    with pytest.raises(NeverEnds, match="more than 7 days"):
        run(work)


def test_a_loop_that_is_always_busy_ends_with_the_real_time_it_may_take() -> None:
    async def work(clock: VirtualClock) -> None:
        while True:
            await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))

    with pytest.raises(TakesTooLong):
        run(work, real_s_max=0.1)


def test_tasks_that_were_left_behind_are_cancelled_and_may_clean_up() -> None:
    cleaned = []

    async def work(clock: VirtualClock) -> str:
        async def behind() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await clock.sleep(5)
                cleaned.append(clock.monotonic_s())

        task = asyncio.create_task(behind())
        await asyncio.sleep(0)
        assert not task.done()
        return "done"

    assert run(work) == "done"
    assert cleaned == [5.0]


def test_what_the_work_raises_comes_out() -> None:
    async def work(clock: VirtualClock) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(work)
