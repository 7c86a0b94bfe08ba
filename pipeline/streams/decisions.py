"""What became of dead letters: decisions of people, kept beside the letters, and the state that they add up to. Pure.

A decision names letters by their offsets. It counts for letters that were written before it only: where somebody made
the topic of the letters anew, offsets begin again, and what was decided of others says nothing of the new ones.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["applied", "overtaken", "asked", "failed", "discarded"]
"""`overtaken`: the row was newer already. `asked`: a text is looked at again, and nobody knows yet what became of it.
`failed`: once more. After both the letter waits on, like one that nobody looked at."""
State: TypeAlias = Literal["waiting", "failed", "applied", "overtaken", "asked", "discarded", "repeated"]
"""`repeated`: a newer letter of the same record stands for it."""

OPEN: frozenset[str] = frozenset({"waiting", "failed", "asked"})
"""States in which somebody has to do something."""
RANGES_MAX = 500
"""In one record."""
REASON_CHARACTERS_MAX = 2_000


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """On the wire, JSON. `numbers` are ranges of offsets, both ends included; `by` is who decided, `why` the reason of
    a discard, or why the record failed again; `attempts` counts the redrives of one that failed."""

    outcome: Outcome
    numbers: list[tuple[int, int]]
    at_ms: int
    by: str = ""
    why: str = ""
    attempts: int = 0


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Decision)


class Verdicts:
    """Decisions added up in their order: of each letter, the last one counts."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._decisions: list[Decision] = []

    def add(self, decision: Decision) -> None:
        """Also of decisions that came before; their letters are decided anew."""
        for first, last in decision.numbers:
            self._put(first, last, decision)

    def of(self, number: int, written_ms: int) -> Decision | None:
        """The decision that counts for a letter, None where nobody decided."""
        place = bisect_right(self._starts, number) - 1
        if place < 0 or self._ends[place] < number or self._decisions[place].at_ms < written_ms:
            return None
        return self._decisions[place]

    def closed_below(self, number: int) -> int:
        """How many letters with a lower number need nobody any more."""
        count = 0
        for first, last, decision in zip(self._starts, self._ends, self._decisions, strict=True):
            if first >= number:
                break
            if decision.outcome not in OPEN:
                count += min(last, number - 1) - first + 1
        return count

    def first_open(self, start: int, end: int) -> int | None:
        """The first number from `start` on that somebody still has to look at; None where there is none below `end`."""
        place = max(0, bisect_right(self._starts, start) - 1)
        for number in range(place, len(self._starts)):
            if start >= end or self._starts[number] > start:
                break
            if self._ends[number] >= start and self._decisions[number].outcome not in OPEN:
                start = self._ends[number] + 1
        return start if start < end else None

    def _put(self, first: int, last: int, decision: Decision) -> None:
        low = bisect_right(self._starts, first) - 1
        if low < 0 or self._ends[low] < first:
            low += 1
        high = bisect_right(self._starts, last)
        pieces = [(first, last, decision)]
        if low < high:
            if self._starts[low] < first:
                pieces.insert(0, (self._starts[low], first - 1, self._decisions[low]))
            if self._ends[high - 1] > last:
                pieces.append((last + 1, self._ends[high - 1], self._decisions[high - 1]))
        self._starts[low:high] = [piece[0] for piece in pieces]
        self._ends[low:high] = [piece[1] for piece in pieces]
        self._decisions[low:high] = [piece[2] for piece in pieces]


def state_of(decision: Decision | None) -> State:
    """Of a letter that no newer one stands for."""
    return "waiting" if decision is None else decision.outcome


def encode_decision(decision: Decision) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of its records. The same letters have the same key: a letter that fails again and again leaves one
    record behind."""
    whole = msgspec.structs.replace(decision, why=decision.why[:REASON_CHARACTERS_MAX])
    for start in range(0, len(decision.numbers), RANGES_MAX):
        part = msgspec.structs.replace(whole, numbers=decision.numbers[start : start + RANGES_MAX])
        text = ",".join(f"{first}-{last}" for first, last in part.numbers).encode()
        yield (text if len(text) < 100 else hashlib.blake2b(text, digest_size=16).hexdigest().encode(),
               _ENCODER.encode(part))  # fmt: skip


def decode_decision(value: bytes | None) -> Decision:
    """Raises ValueError on bytes that `encode_decision` did not write."""
    try:
        return _DECODER.decode(value or b"")
    except msgspec.DecodeError as error:
        raise ValueError(f"not a decision on dead letters: {error}") from error


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbours together: 1, 2, 3, 7 → (1, 3), (7, 7)."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def total(ranges: Sequence[tuple[int, int]]) -> int:
    """How many numbers the ranges hold."""
    return sum(last - first + 1 for first, last in ranges)
