"""A case as the generator writes it, and what kinds share in writing one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CaseLine = dict[str, Any]


def case(name: str, kind: str, why: str, group: str, expect: Sequence[dict[str, Any]], **more: Any) -> CaseLine:
    """`more`: context, input, conditions, twins, tags, where they are not the default."""
    return {"id": name, "kind": kind, "why": why, "group": group, **more, "expect": list(expect)}


def check(name: str, value: Any = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"check": name, **more}
    if value is not None:
        found["value"] = value
    return found


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly over the whole."""
    if len(values) <= count:
        return list(values)
    return [values[index * len(values) // count] for index in range(count)]
