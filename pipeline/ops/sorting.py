"""The oracle's order of canonical values, where Python sorts: null, false, true, numbers, text by code point."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

SortKey = tuple[Any, ...]

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SPECIAL = frozenset({"NaN", "Infinity", "-Infinity"})


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


def sort_key(value: Any, as_number: bool) -> SortKey:
    """Comparable with other keys; `as_number`: text that spells a number sorts as one."""
    if value is None:
        return (0,)
    if isinstance(value, bool):
        return (1, value)
    if as_number or not isinstance(value, str):
        number = number_of(value)
        if number is not None:
            return (2, 1, Decimal(0)) if number.is_nan() else (2, 0, number)
    text = value if isinstance(value, str) else repr(value)
    return (3, text.encode("utf-8", "surrogatepass"))
