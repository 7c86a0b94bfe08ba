"""Ranges of clustering columns: from the table's own order, as the log has them, to ascending values. Pure.

With CLUSTERING ORDER BY (… DESC) the log's first bound is the greater one. Where the columns that the bounds differ in
are ordered both ways, no pair of ascending bounds says the same, and the range falls into several.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.mutation import Bound

Range = tuple[Bound | None, Bound | None]


def ascending(start: Bound | None, end: Bound | None, descending: Sequence[bool]) -> list[Range]:
    """`start` and `end` in the table's order; `descending` for each clustering column. (lower, upper) each."""
    first, last = (start.values if start else ()), (end.values if end else ())
    common = _common(first, last)
    involved = descending[common : max(len(first), len(last))]
    if not any(involved):
        return [(start, end)]
    if all(involved):
        return [(end, start)]
    return [
        (upper, lower) if descending[column] else (lower, upper)
        for column, lower, upper in _pieces(start, end, first, last, common)
    ]


def _pieces(
    start: Bound | None, end: Bound | None, first: tuple[object, ...], last: tuple[object, ...], common: int
) -> list[tuple[int, Bound | None, Bound | None]]:
    """(column that varies, its bounds in the table's order), from the start's deepest column to the end's deepest."""
    found: list[tuple[int, Bound | None, Bound | None]] = []
    for column in range(len(first) - 1, common, -1):
        found.append((column, _cut(start, first, column + 1), _prefix(first, column)))
    lower = _cut(start, first, common + 1) if len(first) > common else _prefix(first, common)
    upper = _cut(end, last, common + 1) if len(last) > common else _prefix(last, common)
    found.append((common, lower, upper))
    for column in range(common + 1, len(last)):
        found.append((column, _prefix(last, column), _cut(end, last, column + 1)))
    return found


def _cut(bound: Bound | None, values: tuple[object, ...], length: int) -> Bound:
    """The bound's first columns; whole bounds keep what they say of their own values, shorter ones exclude them."""
    return Bound(values[:length], bound is not None and bound.inclusive and length == len(values))


def _prefix(values: tuple[object, ...], length: int) -> Bound | None:
    return Bound(values[:length], True) if length else None


def _common(left: tuple[object, ...], right: tuple[object, ...]) -> int:
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
