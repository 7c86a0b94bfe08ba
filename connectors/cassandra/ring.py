"""The ring in parts: token ranges of equal width, each of which is read by one query and resumed on its own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

TOKEN_MIN = -(1 << 63)
TOKEN_MAX = (1 << 63) - 1


class TokenRange(msgspec.Struct, frozen=True):
    """Tokens above `after`, up to and with `until`."""

    number: int
    after: int
    until: int


def split(count: int) -> list[TokenRange]:
    """The whole ring in `count` parts. Murmur3 gives no key the smallest token, so that nothing is left out below."""
    width = TOKEN_MAX - TOKEN_MIN
    edges = [TOKEN_MIN + width * number // count for number in range(count + 1)]
    return [TokenRange(number, edges[number], edges[number + 1]) for number in range(count)]


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """0, 1, 2, 5 → [[0, 2], [5, 5]]: how a position holds thousands of ranges in a few bytes."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def numbers(stored: Sequence[Sequence[int]]) -> set[int]:
    """The numbers that `runs` stored."""
    return {number for first, last in stored for number in range(first, last + 1)}
