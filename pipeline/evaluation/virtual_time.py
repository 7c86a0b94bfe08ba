"""An event loop whose time passes only where everybody waits: deadlines of minutes take no time and are exact.

Timers of asyncio (sleep, timeout, wait) all run on it. Where nothing is ready, time jumps to the next timer; where
there is no timer either, nobody could ever go on, and that is an error instead of a hang. While a thread works for the
loop, time stands still.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar

VIRTUAL_S_MAX = 7 * 86_400.0
"""A flow that waits longer waits for ever."""
_DIGITS = 9
"""Of seconds: sums of floats would drift from the times that people write."""
_THREAD_POLL_S = 0.05
_FOREIGN_THREAD_S = 1.0
_CLEAN_UP_S = 60.0
_CLEAN_UP_REAL_S = 5.0
T = TypeVar("T")


class NeverEnds(BaseException):
    """Everybody waits for something that can't come. Not an Exception, so that no flow catches it."""


class TakesTooLong(BaseException):
    """Of real time. Not an Exception either."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0. `real_s_max`: of the machine's time, looked at between two turns of the loop."""

    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, real_s_max: float | None = None) -> None:
        self._selector_in_front = _JumpingSelector(self)
        super().__init__(self._selector_in_front)
        self.now_s = 0.0
        self.threads = 0
        self._timers = 0
        self.ends_at_s = None if real_s_max is None else time.monotonic() + real_s_max
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now_s

    def run_in_executor(  # type: ignore[override]  # the stubs' types need variadic generics
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Timers of the same moment ring in the order in which they were set, as they do where no two are the same."""
        if self.is_closed():
            raise RuntimeError("the event loop is closed")
        self._timers += 1
        timer = _Timer(when, self._timers, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def _thread_done(self, future: asyncio.Future[Any]) -> None:
        self.threads -= 1


class _Timer(asyncio.TimerHandle):
    """`number`: how many were set before it."""

    __slots__ = ("_number",)
    _scheduled: bool

    def __init__(self, when: float, number: int, *more: Any) -> None:
        super().__init__(when, *more)
        self._number = number

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, _Timer):
            return NotImplemented
        return (self.when(), self._number) < (other.when(), other._number)


class VirtualClock:
    """pipeline.core.clock.Clock over such a loop; `began_us` is what `now_us` says at first."""

    def __init__(self, loop: VirtualLoop, began_us: int) -> None:
        self._loop, self._began_us = loop, began_us

    def now_us(self) -> int:
        return self._began_us + round(self._loop.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self._loop.now_s

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


def run_virtually(make: Callable[[VirtualLoop], Coroutine[Any, Any, T]], real_s_max: float | None = None) -> T:
    """Runs one coroutine to its end on a loop of its own. Raises NeverEnds, TakesTooLong, and what the coroutine
    raises; tasks that it left behind are cancelled."""
    loop = VirtualLoop(real_s_max)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(make(loop))
    finally:
        try:
            _end_tasks(loop)
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _end_tasks(loop: VirtualLoop) -> None:
    """Each is cancelled once, and has a while to clean up."""
    cancelled: set[asyncio.Task[Any]] = set()
    until_s = loop.now_s + _CLEAN_UP_S
    if loop.ends_at_s is not None:
        loop.ends_at_s = time.monotonic() + _CLEAN_UP_REAL_S
    try:
        while (left := asyncio.all_tasks(loop)) and loop.now_s < until_s:
            for task in sorted(left - cancelled, key=_by_birth):
                task.cancel()
            cancelled |= left
            loop.run_until_complete(asyncio.wait(left, timeout=until_s - loop.now_s))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.threads += 1  # the one that waits for the others
        loop.run_until_complete(loop.shutdown_default_executor())
    except (NeverEnds, TakesTooLong):
        pass


def _by_birth(task: asyncio.Task[Any]) -> tuple[int, str]:
    """Tasks are called Task-9, Task-10, …; their set has no order that two runs share."""
    return len(task.get_name()), task.get_name()


class _JumpingSelector(selectors.DefaultSelector):
    """Asks the real selector without waiting, and lets the loop's time jump where it would have waited."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self._loop
        if loop.ends_at_s is not None and time.monotonic() > loop.ends_at_s:
            raise TakesTooLong
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        if loop.threads:
            return super().select(_THREAD_POLL_S)
        if timeout is None:
            # a thread that the loop was not told of (of anyio, say) may still call it
            if threading.active_count() > 1 and (found := super().select(_FOREIGN_THREAD_S)):
                return found
            raise NeverEnds("it waits for something that can never come: no timer runs and nothing is ready")
        loop.now_s = round(loop.now_s + timeout, _DIGITS)
        if loop.now_s > VIRTUAL_S_MAX:
            raise NeverEnds(f"it waits for more than {VIRTUAL_S_MAX / 86_400:g} days")
        return found
