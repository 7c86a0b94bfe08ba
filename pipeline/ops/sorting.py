"""The oracle's order of canonical values, where Python sorts: null, false, true, numbers, times, text by code point."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Literal

SortKey = tuple[Any, ...]
Kind = Literal["number", "time", "text"]
"""How the texts of a column sort."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SPECIAL = frozenset({"NaN", "Infinity", "-Infinity"})
_TIME = re.compile(r"(\d+)-(\d\d-\d\d(?:T[\d:.]+)?)Z?( BC)?", re.ASCII)


def number_of(value: Any) -> Decimal | None:
    """A canonical value as an exact decimal (also NaN and the infinities); None for what is no number."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, int | Decimal):
        return Decimal(value)
    if isinstance(value, str) and (value in _SPECIAL or _NUMBER.fullmatch(value)):
        return Decimal(value)
    return None


def sort_key(value: Any, kind: Kind) -> SortKey:
    """Comparable with other keys of the same column."""
    if value is None:
        return (0,)
    if isinstance(value, bool):
        return (1, value)
    if kind == "time" and isinstance(value, str):
        return (3, *_moment(value))
    if kind == "number" or not isinstance(value, str):
        number = number_of(value)
        if number is not None:
            return (2, 1, Decimal(0)) if number.is_nan() else (2, 0, number)
    text = value if isinstance(value, str) else repr(value)
    return (4, text.encode("utf-8", "surrogatepass"))


def _moment(text: str) -> tuple[int, str]:
    """(year, the rest), where the infinities are years beyond all others."""
    found = _TIME.fullmatch(text)
    if found is None:
        return -1_000_000 if text == "-infinity" else 1_000_000, text
    year, rest, era = found.groups()
    return -int(year) if era else int(year), rest
