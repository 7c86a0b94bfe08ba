"""A read that is slow for its rung is sent to the replica as well: the first answer counts (The Tail at Scale), with at
most a small share of additional reads."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Which = Literal["first", "second"]

SHARE_MAX = 0.05
SAVED_KEYS_MAX = 250
OBSERVATIONS_MIN = 200
WINDOW = 2_048
QUANTILE = 0.95
DELAY_S_MIN = 0.0002
"""No sooner: timers of an event loop are no finer, and answers may lie in front of it already."""
LOOK_EVERY = 64
STEPS_PER_DOUBLING = 16
_SMALLEST_S = 1e-6


class Hedging:
    """For one reader with a replica; used in one event loop. `read` does all of it; the parts are for callers that send
    their questions themselves: `began` per read, `delay_s`, `may_hedge` when that has passed, `observe` at the end."""

    def __init__(
        self,
        share_max: float = SHARE_MAX,
        shedding: Callable[[], bool] = lambda: False,
        quantile: float = QUANTILE,
        saved_keys_max: int = SAVED_KEYS_MAX,
    ) -> None:
        """`share_max` of the keys that are read may be read twice, counted from the start: a quiet time saves up to
        `saved_keys_max` of them. No hedges while `shedding()`."""
        self._share_max, self._shedding, self._saved_keys_max = share_max, shedding, saved_keys_max
        self._saved_keys = 0.0
        self.latencies = LatencyWindow(quantile)
        self.hedged = self.won = 0
        """Reads that were sent twice, and those that the replica answered first."""

    async def read(
        self, first: Callable[[], Awaitable[T]], second: Callable[[], Awaitable[T]], keys: int = 1
    ) -> tuple[T, Which]:
        """As `hedged`, measured, and hedged where it is due and allowed."""
        self.began(keys)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            value, which = await hedged(first, second, self.delay_s(), lambda: self.may_hedge(keys))
        except asyncio.CancelledError:
            self.observe(loop.time() - began_s)
            raise
        # Of a read that lost or was given up, it is known that it took at least so long.
        self.observe(loop.time() - began_s)
        self.won += which == "second"
        return value, which

    def began(self, keys: int = 1) -> None:
        self._saved_keys = min(self._saved_keys + keys * self._share_max, self._saved_keys_max)

    def delay_s(self) -> float | None:
        """After so long without an answer the replica is asked too; None: it isn't worth a timer now."""
        delay_s = self.latencies.value_s
        if delay_s is None or self._saved_keys < 1 or self._shedding():
            return None
        return max(delay_s, DELAY_S_MIN)

    def may_hedge(self, keys: int = 1) -> bool:
        """Call it when the replica is about to be asked: True takes its cost from what was saved."""
        if self._saved_keys < keys or self._shedding():
            return False
        self._saved_keys -= keys
        self.hedged += 1
        return True

    def observe(self, took_s: float) -> None:
        self.latencies.observe(took_s)


class LatencyWindow:
    """A quantile of the last few thousand observations, within 5%: counts by size of the present and the past window,
    so that nothing is sorted and nothing is kept. `value_s` is None while too little is known."""

    def __init__(self, quantile: float, window: int = WINDOW, observations_min: int = OBSERVATIONS_MIN) -> None:
        self._quantile, self._window, self._observations_min = quantile, window, observations_min
        self._present: dict[int, int] = {}
        self._past: dict[int, int] = {}
        self._count = self._past_count = 0
        self.value_s: float | None = None

    def observe(self, took_s: float) -> None:
        size = int(math.log2(max(took_s, _SMALLEST_S) / _SMALLEST_S) * STEPS_PER_DOUBLING)
        self._present[size] = self._present.get(size, 0) + 1
        self._count += 1
        if self._count >= self._window:
            self._past, self._past_count = self._present, self._count
            self._present, self._count = {}, 0
        if not self._count % LOOK_EVERY:
            self._look()

    def _look(self) -> None:
        total = self._count + self._past_count
        if total < self._observations_min:
            return
        above = total * (1 - self._quantile)
        for size in sorted({*self._present, *self._past}, reverse=True):
            above -= self._present.get(size, 0) + self._past.get(size, 0)
            if above < 0:
                self.value_s = _SMALLEST_S * 2 ** ((size + 1) / STEPS_PER_DOUBLING)
                return


async def hedged(
    first: Callable[[], Awaitable[T]],
    second: Callable[[], Awaitable[T]],
    delay_s: float | None,
    may_hedge: Callable[[], bool] = lambda: True,
) -> tuple[T, Which]:
    """The first success, and whose it is; the other one is cancelled. After `delay_s` without an answer, if `may_hedge`
    then, `second` is asked too; None: only when the first has failed. It is asked at once when the first fails. When
    both fail, the first one's error is raised.

    `first` runs in the caller's task, so that a read without a hedge costs a timer and no task.
    """
    if delay_s is None:
        try:
            return await first(), "first"
        except Exception as error:  # noqa: BLE001 - raised again unless the other one answers
            return await _instead(second, error), "second"
    loop = asyncio.get_running_loop()
    race: _Race[T] = _Race(second, may_hedge)
    timer = loop.call_later(delay_s, race.due)
    try:
        value = await first()
        if race.interrupted:
            race.forgive()
        return value, "first"
    except asyncio.CancelledError:
        if race.interrupted and race.forgive():
            return race.result(), "second"
        raise
    except Exception as error:  # noqa: BLE001 - raised again unless the other one answers
        if race.interrupted and race.forgive():  # the second one answered, the first made an error of its cancellation
            return race.result(), "second"
        running = race.take()
        return await _instead(second if running is None else lambda: running, error), "second"
    finally:
        timer.cancel()
        race.end()


async def _instead(second: Callable[[], Awaitable[T]], error: Exception) -> T:
    try:
        return await second()
    except Exception as also:
        raise error from also  # the first one's says more


_RUNNING: set[asyncio.Future[object]] = set()
"""Event loops hold tasks weakly; one that lost ends in its own time."""


class _Race(Generic[T]):
    """The second question, from the end of the delay on. Its success cancels the first, which the task awaits."""

    __slots__ = ("_ask", "_cancels", "_ended", "_may_hedge", "_second", "_task", "interrupted")

    def __init__(self, ask: Callable[[], Awaitable[T]], may_hedge: Callable[[], bool]) -> None:
        task = asyncio.current_task()
        assert task is not None, "hedged is awaited in a task"
        self._task, self._ask, self._may_hedge = task, ask, may_hedge
        self._cancels = task.cancelling()
        self._second: asyncio.Future[T] | None = None
        self._ended = self.interrupted = False

    def due(self) -> None:
        """After an event loop stood still, the first answer may be there: it goes before the hedge."""
        self._task.get_loop().call_soon(self._start)

    def _start(self) -> None:
        if self._ended or not self._may_hedge():
            return
        try:
            second = asyncio.ensure_future(self._ask())
        except Exception:  # noqa: BLE001 - a hedge is no more than a chance; what ails it shows when it is needed
            return
        self._second = second
        _RUNNING.add(second)  # type: ignore[arg-type]
        second.add_done_callback(_RUNNING.discard)
        second.add_done_callback(self._answered)

    def take(self) -> asyncio.Future[T] | None:
        """The second question if it was asked; from now on it interrupts nobody."""
        self._ended = True
        return self._second

    def forgive(self) -> bool:
        """The interruption is over; False when somebody else has cancelled the task too."""
        return self._task.uncancel() <= self._cancels

    def result(self) -> T:
        assert self._second is not None
        return self._second.result()

    def end(self) -> None:
        self._ended = True
        if self._second is not None and not self._second.done():
            self._second.cancel()

    def _answered(self, second: asyncio.Future[T]) -> None:
        failed = second.cancelled() or second.exception() is not None
        if not failed and not self._ended:
            self.interrupted = True
            self._task.cancel()
