"""Waiting for a condition in a test: polls instead of sleeping, and says at the end what it last saw."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Seen = TypeVar("Seen")
INTERVAL_FIRST_S = 0.01
INTERVAL_LAST_S = 0.25


def eventually_sync(
    probe: Callable[[], Seen],
    until: Callable[[Seen], bool] = bool,
    *,
    timeout_s: float = 30.0,
    what: str = "",
    ignore: tuple[type[BaseException], ...] = (),
) -> Seen:
    """Call `probe` until `until` accepts what it returned, and return that.

    ignore: exceptions of the probe that mean "not yet". When the time is up an AssertionError says what was awaited
    and what was seen last.
    """
    watch = _Watch(what or _name(probe), timeout_s)
    while True:
        try:
            seen = probe()
        except ignore as error:
            watch.seen(error)
        else:
            if until(seen):
                return seen
            watch.seen(seen)
        time.sleep(watch.interval_s())


async def eventually(
    probe: Callable[[], Awaitable[Seen]] | Callable[[], Seen],
    until: Callable[[Seen], bool] = bool,
    *,
    timeout_s: float = 30.0,
    what: str = "",
    ignore: tuple[type[BaseException], ...] = (),
) -> Seen:
    """The same inside asyncio; `probe` may be a plain or an async function."""
    watch = _Watch(what or _name(probe), timeout_s)
    while True:
        try:
            result = probe()
            seen: Seen = await result if inspect.isawaitable(result) else result
        except ignore as error:
            watch.seen(error)
        else:
            if until(seen):
                return seen
            watch.seen(seen)
        await asyncio.sleep(watch.interval_s())


class _Watch:
    def __init__(self, what: str, timeout_s: float) -> None:
        self.what = what
        self.timeout_s = timeout_s
        self.began = time.monotonic()
        self.tries = 0
        self.last: object = None

    def seen(self, value: object) -> None:
        self.last = value
        self.tries += 1

    def interval_s(self) -> float:
        """How long to wait before the next try; raises when the time is up."""
        if time.monotonic() - self.began > self.timeout_s:
            raise AssertionError(
                f"{self.what}: not within {self.timeout_s:.0f} s ({self.tries} tries); last seen: {self.last!r}"
            )
        return min(INTERVAL_FIRST_S * 1.5 ** min(self.tries, 20), INTERVAL_LAST_S)


def _name(probe: object) -> str:
    return getattr(probe, "__qualname__", repr(probe))
