"""What a person writes after --filter → conditions. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from pipeline.stores.spaces import Comparison, Condition
from schemas.vectors import FilterValue

_CONDITION = re.compile(r"\s*([^<>=\s]+)\s*(<=|>=|<|>|=)\s*(.*?)\s*", re.DOTALL)
_ORDER: dict[str, Comparison] = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


def conditions_of(filters: Sequence[str]) -> tuple[list[Condition], list[str]]:
    """The conditions, and what is wrong with others, a sentence each.

    A number means the number and the text of the same signs, since a person cannot tell which of them a column holds;
    text in double quotes is only text.
    """
    choices: dict[str, list[FilterValue]] = {}
    conditions: list[Condition] = []
    mistakes: list[str] = []
    for written in filters:
        parts = _CONDITION.fullmatch(written)
        if parts is None:
            mistakes.append(f"--filter {written!r} is no condition; write field=value, field<value or field>=value")
            continue
        field, sign, text = parts.groups()
        value = _value(text)
        if sign in _ORDER:
            conditions.append(Condition(field, _ORDER[sign], value))
        else:
            meant = [value] if isinstance(value, str) or value is None else [value, text]
            choices.setdefault(field, []).extend(meant)
    return [Condition(field, "in", values) for field, values in choices.items()] + conditions, mistakes


def _value(text: str) -> FilterValue:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return value if value is None or isinstance(value, str | int | float | bool) else text
