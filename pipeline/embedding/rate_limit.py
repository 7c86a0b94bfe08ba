"""How much may be asked of a provider now: two buckets that fill by the minute, and the pauses that it asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_BURST_S = 10.0
"""Buckets hold what comes in this time: a full minute's worth at once would be twice the limit in the first minute."""


class RateLimit:
    """For several threads. A limit of None is none; `clock` gives seconds that never go back."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._rates = [None if limit is None else limit / 60 for limit in (requests_per_minute, tokens_per_minute)]
        self._most = [0.0 if rate is None else max(1.0, rate * _BURST_S) for rate in self._rates]
        self._levels = list(self._most)
        self._filled_at = clock()
        self._paused_until = 0.0

    def take(self, requests: int, tokens: int) -> float:
        """0 when they may be sent now and are counted; else the seconds to wait, and nothing is counted.

        A batch that is larger than a bucket goes when the bucket is full enough to begin, and is paid off afterwards.
        """
        with self._lock:
            now = self._clock()
            passed, self._filled_at = now - self._filled_at, now
            wait = max(0.0, self._paused_until - now)
            wanted = (requests, tokens)
            for number, rate in enumerate(self._rates):
                if rate is not None:
                    self._levels[number] = min(self._most[number], self._levels[number] + passed * rate)
                    lacking = min(wanted[number], self._most[number]) - self._levels[number]
                    wait = max(wait, lacking / rate)
            if wait <= 0:
                self._levels = [level - amount for level, amount in zip(self._levels, wanted, strict=True)]
                return 0.0
            return wait

    def pause(self, seconds: float) -> None:
        """The provider asked for it: nobody asks before."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)
