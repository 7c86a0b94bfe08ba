"""Key text: the one spelling of a primary key or join value, used in store keys, URLs, topics and logs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

_PLAIN_FLOATS_MAX = 1e15
"""From here on Postgres prints an exponent."""


def key_text(values: Iterable[Any]) -> str:
    """Parts joined by `|`, with `%` and `|` inside a part written as %25 and %7C: ("EWR", 7) → "EWR|7".

    Numbers and text of the same spelling are equal, so that an integer column joins with a decimal one sent as text.
    Whole floats are spelt as Postgres prints them, 7 and not 7.0: some connectors send the one, some the other.
    """
    return "|".join(map(key_part, values))


def split_key_text(text: str) -> list[str]:
    """The parts of a key text, unescaped, each as text."""
    return [part.replace("%7C", "|").replace("%25", "%") for part in text.split("|")]


def key_part(value: Any) -> str:
    """One value as a part of a key text."""
    if value.__class__ is int:
        return str(value)
    if value.__class__ is str:
        return value if "%" not in value and "|" not in value else value.replace("%", "%25").replace("|", "%7C")
    if value is True:
        return "true"
    if value is False:
        return "false"
    if value is None:
        return "%00"
    if value.__class__ is float and value.is_integer() and abs(value) < _PLAIN_FLOATS_MAX:
        return str(int(value))
    return key_part(msgspec.json.encode(value).decode())
