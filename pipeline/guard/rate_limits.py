"""Pauses that endpoints ask for by 429: how long, and who is paused. It never counts against a breaker."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pipeline.guard.config import Endpoint

HEADER = "retry-after"
_JITTER = 0.1


def pause_s(headers: Mapping[str, str], now: datetime, endpoint: Endpoint) -> float:
    """Seconds until the endpoint may be asked again: those of Retry-After (a number, or a date), clamped between 0 and
    `cooldown_s_max`; `cooldown_s` where it is missing or says nothing that makes sense."""
    told = asked_s(headers, now)
    if told is None or told < 0:
        told = endpoint.cooldown_s
    return min(told, endpoint.cooldown_s_max)


def asked_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """What Retry-After says, however absurd; None where it is missing or neither a number nor a date."""
    text = headers.get(HEADER, "").strip()[:64]
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return _until(text, now)
    return None if math.isnan(seconds) else seconds


def _until(text: str, now: datetime) -> float | None:
    try:
        at = parsedate_to_datetime(text)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        return max(0.0, (at - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class Cooldowns:
    """Until when which endpoint is paused. A little is added by chance, so that not everybody comes back at once."""

    def __init__(self, now_s: Callable[[], float], chance: Callable[[], float]) -> None:
        self._now_s, self._chance = now_s, chance
        self._until_s: dict[str, float] = {}

    def pause(self, endpoint: str, seconds: float) -> None:
        """A shorter pause never ends a longer one."""
        until_s = self._now_s() + seconds * (1 + _JITTER * self._chance())
        self._until_s[endpoint] = max(until_s, self._until_s.get(endpoint, until_s))

    def left_s(self, endpoint: str) -> float:
        """0: it may be asked."""
        if not self._until_s:
            return 0.0
        return max(0.0, self._until_s.get(endpoint, 0.0) - self._now_s())
