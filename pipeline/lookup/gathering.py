"""Lookups of one key that the near cache can't answer, and that come in the same turn of the event loop, go down the
ladder together: what a question costs beside its key is paid once."""

from __future__ import annotations

import asyncio
from functools import partial

from pipeline.core.clock import Clock
from pipeline.lookup.ladder import Ladder, Read

KEYS_TOGETHER_MAX = 64
Outcome = tuple[Read | None, Exception | None]
"""What a rung has of the key; None, and then why the store did not answer."""


class _Group:
    """Keys with the same budget, and who waits for each. What is read by `until_s` is in time for all: that is when the
    first of them must have its answer."""

    __slots__ = ("until_s", "waiting")

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.waiting: dict[str, list[asyncio.Future[Outcome]]] = {}


class Gathering:
    """Of one ladder and one event loop. A caller that goes away takes nothing from the others."""

    def __init__(self, ladder: Ladder, clock: Clock) -> None:
        self._ladder, self._clock = ladder, clock
        self._groups: dict[float, _Group] = {}
        self._reading: set[asyncio.Task[tuple[list[Read | None], Exception | None]]] = set()

    def read(self, key: str, budget_ms: float, until_s: float) -> asyncio.Future[Outcome]:
        """As Ladder.read of this key alone, some microseconds later. `until_s` is of the event loop's clock, the end of
        `budget_ms` from now. What it raises there, the future raises."""
        loop = asyncio.get_running_loop()
        group = self._groups.get(budget_ms)
        if group is None:
            group = self._groups[budget_ms] = _Group(until_s)
            loop.call_soon(self._go, budget_ms, group)
        outcome: asyncio.Future[Outcome] = loop.create_future()
        group.waiting.setdefault(key, []).append(outcome)
        if len(group.waiting) >= KEYS_TOGETHER_MAX:
            self._go(budget_ms, group)
        return outcome

    def _go(self, budget_ms: float, group: _Group) -> None:
        if self._groups.get(budget_ms) is group:
            del self._groups[budget_ms]
            reading = self._ladder.read(
                list(group.waiting), group.until_s, self._clock.now_us(), self._clock.monotonic_s()
            )
            task = asyncio.get_running_loop().create_task(reading, name="lookups")
            self._reading.add(task)
            task.add_done_callback(partial(self._hand_out, group))

    def _hand_out(self, group: _Group, task: asyncio.Task[tuple[list[Read | None], Exception | None]]) -> None:
        self._reading.discard(task)
        waiting = [[one for one in outcomes if not one.done()] for outcomes in group.waiting.values()]
        if task.cancelled():
            for outcome in (one for outcomes in waiting for one in outcomes):
                outcome.cancel()
            return
        failure = task.exception()
        if failure is not None:
            for outcome in (one for outcomes in waiting for one in outcomes):
                outcome.set_exception(failure)
            return
        reads, error = task.result()
        for outcomes, read in zip(waiting, reads, strict=True):
            for outcome in outcomes:
                outcome.set_result((read, error))
