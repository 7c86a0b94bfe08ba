"""Key text: the one spelling of a primary key or join value, used in store keys, URLs, topics and logs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from schemas.types import is_decimal

if TYPE_CHECKING:
    from schemas.context import ContextSpec

_PLAIN_FLOATS_MAX = 1e15
"""From here on Postgres prints an exponent."""
_FRACTION = re.compile(r"-?(0|[1-9]\d*)\.\d+", re.ASCII)


def key_text(values: Iterable[Any]) -> str:
    """Parts joined by `|`, with `%` and `|` inside a part written as %25 and %7C: ("EWR", 7) → "EWR|7".

    Numbers and text of the same spelling are equal, so that an integer column joins with a decimal one sent as text.
    Whole floats are spelt as Postgres prints them, 7 and not 7.0: some connectors send the one, some the other.
    """
    return "|".join(map(key_part, values))


def split_key_text(text: str) -> list[str]:
    """The parts of a key text, unescaped, each as text."""
    return [part.replace("%7C", "|").replace("%25", "%") for part in text.split("|")]


def tenant_text(value: Any) -> str | None:
    """A value of the column that names the tenant → as credentials name it: text as it is, 7 as "7"; None for null."""
    return value if value is None or value.__class__ is str else key_part(value)


def plain_decimal(value: Any) -> Any:
    """Decimal text without the zeros that end its fraction, so that what SQL calls equal is spelt the same: 1.00 is 1.
    For columns that hold decimals; the rest stays as it is, also text that only looks like a number (007)."""
    if value.__class__ is not str or _FRACTION.fullmatch(value) is None:
        return value
    text = value.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def root_key_texts(spec: ContextSpec, texts: Sequence[str]) -> list[str]:
    """Key texts as somebody wrote them → as bundles are named: alike only where key columns are declared decimals."""
    decimals = decimal_columns(spec)
    if not any(decimals):
        return list(texts)
    return [_respelt(text, decimals) for text in texts]


def decimal_columns(spec: ContextSpec) -> list[bool]:
    """Which of the root's key columns are declared decimals, in the key's order."""
    root = spec.entities[spec.root]
    same = [entity for entity in spec.entities.values() if (entity.source, entity.table) == (root.source, root.table)]
    return [any(is_decimal(entity.types.get(column)) for entity in same) for column in root.key]


def _respelt(text: str, decimals: Sequence[bool]) -> str:
    parts = split_key_text(text)
    if len(parts) != len(decimals):
        return text
    return key_text([plain_decimal(part) if decimal else part for part, decimal in zip(parts, decimals, strict=True)])


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
