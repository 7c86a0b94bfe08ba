"""Holds the snapshot to a number of rows a second, however many readers share it."""

from __future__ import annotations

from pipeline.core.clock import Clock

BURST_S = 0.1


class Throttle:
    """`take` waits until what was taken so far fits the rate. A pause is not saved up beyond a short burst."""

    def __init__(self, rows_per_second: int, clock: Clock) -> None:
        self._rate = rows_per_second
        self._clock = clock
        self._free_at_s = clock.monotonic_s()

    async def take(self, rows: int) -> None:
        """After `rows` have been read."""
        now_s = self._clock.monotonic_s()
        self._free_at_s = max(self._free_at_s, now_s - BURST_S) + rows / self._rate
        wait_s = self._free_at_s - now_s
        if wait_s > 0:
            await self._clock.sleep(wait_s)
