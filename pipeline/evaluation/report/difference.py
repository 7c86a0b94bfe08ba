"""Two texts laid side by side, line by line: what both reports for people and pages show of a flip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from pipeline.evaluation.report.visible import wrapped

LINES_MAX = 120
"""Of each side: comparing costs the square of it."""
AROUND = 2
"""Equal lines that are shown beside a difference."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One row; `differs` False: both sides are equal, or stand for a run of equal lines."""

    left: str
    right: str
    differs: bool


def side_by_side(left: str, right: str, width: int, lines_max: int = LINES_MAX) -> list[Pair]:
    """Long runs of equal lines are only counted, and lines beyond `lines_max` too."""
    one, other = _limited(wrapped(left, width), lines_max), _limited(wrapped(right, width), lines_max)
    pairs: list[Pair] = []
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind == "equal":
            pairs += _equal(one[a:b], first=a == 0, last=b == len(one))
        else:
            pairs += [Pair(before, after, True) for before, after in zip_longest(one[a:b], other[c:d], fillvalue="")]
    return pairs


def _equal(lines: list[str], *, first: bool, last: bool) -> Iterator[Pair]:
    if first and last and len(lines) <= 4 * AROUND:
        head, tail = len(lines), 0
    else:
        head, tail = 0 if first else AROUND, 0 if last else AROUND
    hidden = len(lines) - head - tail
    if hidden <= 1:
        head, tail, hidden = len(lines), 0, 0
    yield from (Pair(line, line, False) for line in lines[:head])
    if hidden:
        told = f"… {hidden} equal lines"
        yield Pair(told, told, False)
    yield from (Pair(line, line, False) for line in lines[len(lines) - tail :])


def _limited(lines: list[str], lines_max: int) -> list[str]:
    if len(lines) <= lines_max:
        return lines
    return [*lines[:lines_max], f"… {len(lines) - lines_max} more lines"]
