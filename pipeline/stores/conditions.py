"""Conditions on a bundle's marked fields, as both indexes of a space understand them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import ge, gt, le, lt
from typing import Any

from pipeline.stores.spaces import Comparison, Condition
from schemas.vectors import FilterValue

Filters = Mapping[str, FilterValue | list[FilterValue]]

_ORDER: dict[Comparison, Callable[[Any, Any], bool]] = {"lt": lt, "le": le, "gt": gt, "ge": ge}


def condition_mistakes(conditions: Sequence[Condition], marked: Collection[str]) -> list[str]:
    """What is wrong with them, a sentence each: a field that the spec does not mark, a value that does not fit."""
    mistakes = []
    for condition in conditions:
        if condition.field not in marked:
            known = ", ".join(sorted(marked)) or "none"
            mistakes.append(f"filter: the spec marks no field {condition.field!r} under embedding: filters: ({known})")
        several = isinstance(condition.value, list)
        if several != (condition.comparison == "in"):
            shape = "a single value" if several else "a list"
            mistakes.append(f"filter: {condition.field}: {condition.comparison} takes {shape}")
        elif condition.comparison in _ORDER and (condition.value is None or isinstance(condition.value, bool)):
            mistakes.append(f"filter: {condition.field}: {condition.comparison} compares numbers or texts")
    return mistakes


def meets(conditions: Sequence[Condition], filters: Filters) -> bool:
    """Whether a bundle with these values meets all conditions (see Condition)."""
    return all(_meets(condition, filters.get(condition.field)) for condition in conditions)


def equal(left: FilterValue, right: FilterValue) -> bool:
    """True and 1 are two things, 1 and 1.0 are one."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _meets(condition: Condition, value: FilterValue | list[FilterValue]) -> bool:
    wanted = condition.value
    if condition.comparison in ("eq", "in"):
        choices = wanted if isinstance(wanted, list) else [wanted]
        values = value if isinstance(value, list) else [value]
        return any(equal(one, choice) for one in values for choice in choices)
    if isinstance(value, list | bool) or value is None or isinstance(value, str) != isinstance(wanted, str):
        return False
    return _ORDER[condition.comparison](value, wanted)
