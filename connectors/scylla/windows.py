"""What is read next, and whether it still can be: windows of write time, generations, the log's time to live. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from connectors.scylla.streams import following, operating


class Window(msgspec.Struct, frozen=True):
    """Writes after `start_us` up to `end_us`. `ends_generation`: the next one begins right behind it."""

    start_us: int
    end_us: int
    ends_generation: bool
    caught_up: bool


class Sight(msgspec.Struct, frozen=True):
    """What is known when a window is chosen. `generations_ms` are as of `seen_us`, and no window reaches beyond it:
    a generation is announced before its time comes, so that all up to then are known."""

    now_us: int
    seen_us: int
    confidence_us: int
    window_us: int
    generations_ms: Sequence[int]


def next_window(until_us: int, generation_ms: int, sight: Sight) -> Window | None:
    """The window behind `until_us`, None when there is nothing old enough. It never crosses into another generation:
    all groups of the old one are read to its end first."""
    confident = min(sight.now_us - sight.confidence_us, sight.seen_us)
    end = min(confident, until_us + sight.window_us)
    successor = following(sight.generations_ms, generation_ms)
    border = None if successor is None else successor * 1000 - 1
    ends_generation = border is not None and border <= end
    if border is not None and ends_generation:
        end = border
    if end <= until_us and not ends_generation:
        return None
    return Window(until_us, max(end, until_us), ends_generation, end == confident)


class Start(msgspec.Struct, frozen=True):
    generation_ms: int
    until_us: int


def first_start(from_us: int, generations_ms: Sequence[int]) -> Start | None:
    """Where reading begins that wants everything after `from_us`: not before the first generation that is still told.
    None while there is no generation."""
    if not generations_ms:
        return None
    generation = operating(generations_ms, from_us)
    if generation is None:
        generation = min(generations_ms)
    return Start(generation, max(from_us, generation * 1000 - 1))


Verdict = Literal["readable", "expired", "generation gone"]


def verdict(until_us: int, generation_ms: int, generations_ms: Sequence[int], log_start_us: int) -> Verdict:
    """Whether everything behind `until_us` is still in the log. `log_start_us`: what is older has lived its time."""
    if until_us < log_start_us:
        return "expired"
    return "readable" if generation_ms in generations_ms else "generation gone"


def log_start(now_us: int, ttl_s: int) -> int:
    """What was written before has left the log, or may do so while it is read; 0 for a log that is kept for ever.

    A minute, or a tenth of a short life, is left for reading.
    """
    return 0 if ttl_s == 0 else now_us - ttl_s * 1_000_000 + min(60_000_000, ttl_s * 100_000)


def beginning(now_us: int, ttl_s: int) -> int:
    """Where somebody begins who wants all of the log: an hour, or a fifth of a short life, behind where it ends, so
    that its end does not overtake him while he catches up."""
    return 0 if ttl_s == 0 else now_us - ttl_s * 1_000_000 + min(3_600_000_000, ttl_s * 200_000)
