"""Time as an argument: the real clock here, a simulated one in the tests."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """The time and the passing of time. `now_us` is microseconds since 1970 UTC, `monotonic_s` never goes back."""

    def now_us(self) -> int: ...

    def monotonic_s(self) -> float: ...

    async def sleep(self, duration_s: float) -> None: ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)
